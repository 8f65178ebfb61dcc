"""Baselines are fitted on train, and a finished run is never lost over one."""

import numpy as np
import pytest
from datasets import Dataset

from hf_sft.baselines import answer_simply
from hf_sft.tasks import Labels
from hf_sft.tasks.sequence_classification import SequenceClassification

TASK = SequenceClassification(type="sequence_classification", problem_type="single_label_classification")


def rows(texts, labels):
    return Dataset.from_dict({"text": texts, "label": labels})


@pytest.mark.parametrize(
    ("texts", "labels", "failed"),
    [
        (["😀", "🎉", "😀", "🎉"], ["a", "b", "a", "b"], "empty vocabulary"),
        (["one", "two", "three", "four"], ["a", "a", "a", "a"], "at least 2 classes"),
    ],
)
def test_a_baseline_that_cannot_be_fitted_is_said_and_the_others_stand(texts, labels, failed):
    found, notes = answer_simply(TASK, rows(texts, labels), rows(["one"], ["b"]), Labels(("a", "b")))
    assert set(found) == {"majority"} and found["majority"].shape == (1, 2)
    assert len(notes) == 1 and notes[0].startswith("baseline tfidf_logreg could not be fitted") and failed in notes[0]


def test_baselines_know_train_and_not_the_rows_that_they_answer():
    """Words of the test rows decide, in train, for the other class: who had seen the test rows would be right."""
    train = rows(["goal goal", "match goal", "bank rates", "rates fell", "bank"], ["a", "a", "b", "b", "b"])
    test = rows(["goal match", "goal", "match", "bank"], ["b", "b", "b", "a"])
    found, _ = answer_simply(TASK, train, test, Labels(("a", "b")))
    assert list(found["tfidf_logreg"].argmax(-1)) == [0, 0, 0, 1]
    np.testing.assert_allclose(np.exp(found["majority"][0]), [0.4, 0.6])


def test_multi_label_baselines_have_a_column_for_each_class_even_for_one():
    task = TASK.model_copy(update={"problem_type": "multi_label_classification"})
    train = rows(["goal", "bank", "goal", "rates"], [["a"], [], ["a"], []])
    found, notes = answer_simply(task, train, train, Labels(("a",)))
    assert notes == [] and found["tfidf_logreg"].shape == (4, 1) and list(found["tfidf_logreg"][:, 0] > 0) == [1, 0, 1, 0]
