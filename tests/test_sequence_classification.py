"""What only this task must get right: kinds of labels, pairs, names."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_sft.errors import DataError
from hf_sft.models import Checkpoint, load_processor
from hf_sft.tasks import Labels
from hf_sft.tasks.sequence_classification import SequenceClassification

SINGLE, MULTI, NUMBER = "single_label_classification", "multi_label_classification", "regression"


def task(**fields) -> SequenceClassification:
    return SequenceClassification(type="sequence_classification", **fields)


@pytest.mark.parametrize(
    ("column", "problem_type", "names"),
    [
        (["b", "a", "b"], SINGLE, ("a", "b")),
        ([10, 9, 10], SINGLE, ("9", "10")),
        ([True, False, True], SINGLE, ("False", "True")),
        ([0.5, 1.5, 2.0], NUMBER, None),
        ([["x"], ["x", "y"], []], MULTI, ("x", "y")),
    ],
)
def test_the_kind_of_label_is_inferred_from_the_column(column, problem_type, names):
    rows = Dataset.from_dict({"text": ["t"] * 3, "label": column})
    resolved = task().resolve(rows)
    labels = resolved.labels(rows)
    assert resolved.problem_type == problem_type
    assert (labels.names if labels else None) == names


def test_a_class_label_keeps_the_order_of_its_names():
    features = Features(text=Value("string"), label=ClassLabel(names=["zero", "alpha"]))
    rows = Dataset.from_dict({"text": ["t", "u"], "label": [0, 1]}, features=features)
    assert task().resolve(rows).labels(rows) == Labels(("zero", "alpha"))


def test_lists_of_class_labels_are_multi_label():
    features = Features(text=Value("string"), label=List(ClassLabel(names=["joy", "anger"])))
    rows = Dataset.from_dict({"text": ["t"], "label": [[1]]}, features=features)
    resolved = task().resolve(rows)
    assert resolved.problem_type == MULTI and resolved.labels(rows) == Labels(("joy", "anger"))


def test_several_columns_are_multi_label_by_their_names(checkpoints):
    rows = Dataset.from_dict({"text": ["the goal", "a law"], "toxic": [1, 0], "rude": [0, 1]})
    resolved = task(label=("toxic", "rude")).resolve(rows)
    labels = resolved.labels(rows)
    encoded = resolved.encode(rows[:], load_processor(Checkpoint(checkpoint=str(checkpoints["bert"]))), labels)
    assert labels == Labels(("toxic", "rude"))
    assert encoded["labels"] == [[1.0, 0.0], [0.0, 1.0]]
    assert resolved.references(rows) == [["toxic"], ["rude"]]


def test_pair_tasks_keep_the_second_text_when_truncating(checkpoints):
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))
    pair = task(text="first", text_pair="second", max_length=8, problem_type=SINGLE)
    encoded = pair.encode({"first": ["goal " * 20], "second": ["bank rates"]}, processor, None)
    words = processor.convert_ids_to_tokens(encoded["input_ids"][0])
    assert words == ["[CLS]", "goal", "goal", "goal", "[SEP]", "bank", "rates", "[SEP]"]
    assert encoded["truncated"] == [True]


def test_classes_are_mapped_by_name_whatever_their_order(checkpoints):
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))
    encoded = task(problem_type=SINGLE).encode({"text": ["a", "a"], "label": ["no", "yes"]}, processor, Labels(("yes", "no")))
    assert encoded["labels"] == [1, 0]


def test_one_class_is_too_few():
    rows = Dataset.from_dict({"text": ["t", "u"], "label": ["same", "same"]})
    with pytest.raises(DataError, match="shows 1 class"):
        task().resolve(rows).labels(rows)


def test_the_config_carries_the_names_of_the_classes():
    fields = task(problem_type=SINGLE).config_fields(Labels(("no", "yes")))
    assert fields["id2label"] == {0: "no", 1: "yes"} and fields["label2id"] == {"no": 0, "yes": 1}
