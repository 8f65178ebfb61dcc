"""Baselines are fitted on train, and a finished run is never lost over one."""

import pytest
from datasets import Dataset

from hf_sft.tasks import Labels
from hf_sft.tasks.common.baselines import ask_all, fit_all
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
    found, notes = fit_all(TASK.baselines(rows(texts, labels), Labels(("a", "b"))))
    assert set(found) == {"majority"} and len(found["majority"](rows(["one"], ["b"]))) == 1
    assert len(notes) == 1 and notes[0].startswith("baseline tfidf_logreg could not be fitted") and failed in notes[0]


def test_baselines_know_train_and_not_the_rows_that_they_answer():
    """Words of the test rows decide, in train, for the other class: who had seen the test rows would be right."""
    train = rows(["goal goal", "match goal", "bank rates", "rates fell", "bank"], ["a", "a", "b", "b", "b"])
    test = rows(["goal match", "goal", "match", "bank"], ["b", "b", "b", "a"])
    found, _ = fit_all(TASK.baselines(train, Labels(("a", "b"))))
    assert [answer["label"] for answer in found["tfidf_logreg"](test).as_json()] == ["a", "a", "a", "b"]
    assert found["majority"](test).as_json()[0]["scores"] == {"a": 0.4, "b": 0.6}


def test_multi_label_baselines_have_a_column_for_each_class_even_for_one():
    task = TASK.model_copy(update={"problem_type": "multi_label_classification"})
    train = rows(["goal", "bank", "goal", "rates"], [["a"], [], ["a"], []])
    found, notes = fit_all(task.baselines(train, Labels(("a",))))
    assert notes == []
    assert [answer["labels"] for answer in found["tfidf_logreg"](train).as_json()] == [["a"], [], ["a"], []]
    assert found["majority"](train).as_json()[0]["scores"] == {"a": 0.5}


def test_a_baseline_that_fails_while_it_answers_is_struck_out_and_said():
    def fail(rows):
        raise ValueError("no such word")

    rivals, failed = {"good": len, "bad": fail}, []
    assert ask_all(rivals, [1, 2], failed) == {"good": 2} and list(rivals) == ["good"]
    assert failed == ["baseline bad could not be asked: no such word"]


@pytest.mark.parametrize("calls", [RuntimeError, KeyError, StopIteration])
def test_a_baseline_that_fails_without_a_word_is_named_by_the_kind_of_its_failure(calls):
    def fail(*_):
        raise calls

    assert fit_all({"bad": fail}) == ({}, [f"baseline bad could not be fitted: {calls.__name__}"])
    failed = []
    assert ask_all({"bad": fail}, [1], failed) == {} and failed == [f"baseline bad could not be asked: {calls.__name__}"]


CHINESE = {"好": "今天的电影很好看{}", "坏": "这部电影太难看了{}", "中": "他们昨天去了公园{}"}
THAI = {"ดี": "ภาพยนตร์เรื่องนี้สนุกมาก{}", "แย่": "อาหารร้านนี้แย่มาก{}"}


@pytest.mark.parametrize("made", [CHINESE, THAI])
def test_words_without_spaces_are_told_apart_by_characters(made):
    """Each text is one word of its own: of words alone the majority is all that can be learned."""
    texts = [text.format(chr(0x4E00 + 37 * i + k)) for i in range(40) for k, text in enumerate(made.values())]
    labels = [*made] * 40
    train, test = rows(texts[:60], labels[:60]), rows(texts[60:], labels[60:])
    found, failed = fit_all(TASK.baselines(train, Labels(tuple(made))))
    assert not failed and [answer["label"] for answer in found["tfidf_logreg"](test).as_json()] == labels[60:]


def test_where_words_have_spaces_the_baseline_is_scikit_learn_s_on_words():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    train = rows(["goal goal", "match goal", "bank rates", "rates fell 東", "bank"] * 9, ["a", "a", "b", "b", "b"] * 9)
    found, _ = fit_all(TASK.baselines(train, Labels(("a", "b"))))
    model = make_pipeline(TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2)), LogisticRegression(C=10.0, max_iter=1000))
    model.fit(train["text"], train["label"])
    scores = [answer["scores"]["a"] for answer in found["tfidf_logreg"](train).as_json()]
    assert scores == pytest.approx(model.predict_proba(train["text"])[:, 0], abs=1e-6)
