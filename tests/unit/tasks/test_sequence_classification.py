"""What only this task must get right: kinds of labels, pairs, names."""

import pytest
from datasets import ClassLabel, Dataset, Features, List, Value

from hf_sft.errors import DataError
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loading import load_processor
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
    resolved, labels, _ = task().resolve({"train": rows})
    assert resolved.problem_type == problem_type
    assert (labels.names if labels else None) == names


def test_a_class_label_keeps_the_order_of_its_names():
    features = Features(text=Value("string"), label=ClassLabel(names=["zero", "alpha"]))
    rows = Dataset.from_dict({"text": ["t", "u"], "label": [0, 1]}, features=features)
    assert task().resolve({"train": rows})[1] == Labels(("zero", "alpha"))


def test_lists_of_class_labels_are_multi_label():
    features = Features(text=Value("string"), label=List(ClassLabel(names=["joy", "anger"])))
    rows = Dataset.from_dict({"text": ["t"], "label": [[1]]}, features=features)
    resolved, labels, _ = task().resolve({"train": rows})
    assert resolved.problem_type == MULTI and labels == Labels(("joy", "anger"))


def test_several_columns_are_multi_label_by_their_names(checkpoints):
    rows = Dataset.from_dict({"text": ["the goal", "a law"], "toxic": [1, 0], "rude": [0, 1]})
    resolved, labels, _ = task(label=("toxic", "rude")).resolve({"train": rows})
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
    encoded = pair.encode({"first": ["bank rates"], "second": ["goal " * 20]}, processor, None)
    words = processor.convert_ids_to_tokens(encoded["input_ids"][0])
    assert words == ["[CLS]", "bank", "rates", "[SEP]", "goal", "goal", "goal", "[SEP]"]


def test_classes_are_mapped_by_name_whatever_their_order(checkpoints):
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))
    encoded = task(problem_type=SINGLE).encode({"text": ["a", "a"], "label": ["no", "yes"]}, processor, Labels(("yes", "no")))
    assert encoded["labels"] == [1, 0]


def test_one_class_is_too_few():
    rows = Dataset.from_dict({"text": ["t", "u"], "label": ["same", "same"]})
    with pytest.raises(DataError, match="shows 1 class"):
        task().resolve({"train": rows})


def test_the_config_carries_the_names_of_the_classes():
    fields = task(problem_type=SINGLE).config_fields(Labels(("no", "yes")))
    assert fields["id2label"] == {0: "no", 1: "yes"} and fields["label2id"] == {"no": 0, "yes": 1}


def resolved(column, asked=None, **fields):
    rows = Dataset.from_dict({"text": [f"t{i}" for i in range(len(column))], "label": column})
    asked = asked or task(**fields)
    found, labels, said = asked.resolve({"train": rows})
    return found, labels, rows, said


@pytest.mark.parametrize("kind", [int, float, bool])
def test_lists_of_zero_and_one_are_a_place_for_each_class(kind):
    column = [[kind(v) for v in row] for row in ([0, 1, 0], [1, 1, 0], [0, 0, 1])]
    found, labels, rows, said = resolved(column)
    assert found.problem_type == MULTI and labels == Labels(("0", "1", "2"))
    assert found.targets(rows[:], labels) == [[0, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert found.references(rows) == [["1"], ["0", "1"], ["2"]]
    assert "a place for each of 3 classes" in said[0] and "task.label_names" in said[0]
    named, labels, rows, said = resolved(column, label_names=("x", "y", "z"))
    assert labels == Labels(("x", "y", "z")) and named.references(rows) == [["y"], ["x", "y"], ["z"]] and said == []
    bad = Dataset.from_dict({"text": ["t"], "label": [[1, 0]]})
    assert named.invalid_rows(bad, labels) == {"column `label` has the value [1, 0], not 3 times 0 or 1,": [0]}


def test_lists_of_ids_of_several_lengths_stay_lists_of_ids():
    found, labels, rows, said = resolved([[0, 1], [2], [], [1]])
    assert labels == Labels(("0", "1", "2")) and found.targets(rows[:], labels)[0] == [1, 1, 0] and said == []


@pytest.mark.parametrize(
    ("column", "fields", "message"),
    [
        ([[0], [1], [0]], {}, r"can be read in two ways(.|\n)*task.label_names(.|\n)*without lists"),
        ([[0.2, 0.8], [0.5, 0.5]], {}, r"lists of float64(.|\n)*Expected lists of names"),
        ([[0, 1], [1, 0]], {"label_names": ("a",)}, r"has 1 names, but the lists of column `label` 2 places"),
        (["a", "b"], {"label_names": ("a", "b")}, r"goes with a column of lists of 0 and 1"),
        ([[0, 1], [1, 1]], {"problem_type": SINGLE}, r"needs one value per row, but .* which holds lists"),
        ([[0, 1], [1, 1]], {"problem_type": NUMBER}, r"needs one value per row"),
        (["a", "b"], {"problem_type": NUMBER}, r"needs numbers, but column `label` holds a, b"),
        (["2,5", "1,0"], {"problem_type": NUMBER}, r"Write decimal points instead of commas"),
    ],
)
def test_columns_that_cannot_be_read_as_they_are_asked_for(column, fields, message):
    with pytest.raises(DataError, match=message):
        resolved(column, **fields)


@pytest.mark.parametrize(("column", "names"), [(["sport", "law"], ("law", "sport")), ([3, 1], ("1", "3"))])
def test_single_values_asked_for_as_multi_label_are_sets_of_one(column, names):
    found, labels, rows, _ = resolved(column, problem_type=MULTI)
    assert labels == Labels(names)
    assert found.references(rows) == [[str(value)] for value in column] and found.invalid_rows(rows, labels) == {}
    assert found.targets(rows[:], labels) == [[0, 1], [1, 0]]


def test_class_labels_asked_for_as_multi_label_are_sets_of_one():
    features = Features(text=Value("string"), label=ClassLabel(names=["no", "yes"]))
    rows = Dataset.from_dict({"text": ["t", "u"], "label": [1, 0]}, features=features)
    assert task(problem_type=MULTI).resolve({"train": rows})[1] == Labels(("no", "yes"))


def test_several_columns_are_one_text_a_line_for_each(checkpoints, tmp_path):
    import json

    import hf_sft
    from tests import tiny

    made = [
        {"title": row["text"], "body": "the court ruled" if i % 3 else None, "label": row["label"]}
        for i, row in enumerate(tiny.rows(SINGLE, 60))
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    recipe = tiny.recipe(checkpoints["bert"], {}, tmp_path / "run", task={"text": ["title", "body"]})
    hf_sft.train(recipe | {"data": {"dataset": str(tmp_path / "a.jsonl")}})
    joined = [{"title": "\n".join(filter(None, (row["title"], row["body"]))), "body": ""} for row in made]
    answers = hf_sft.predict(tmp_path / "run", made)
    plain = [{key: value for key, value in each.items() if key != "reference"} for each in answers]
    assert plain == hf_sft.predict(tmp_path / "run", joined)
    assert hf_sft.predict(tmp_path / "run", [{"title": "", "body": None}])[0]["label"] is None
    assert hf_sft.predict(tmp_path / "run", [{"title": None, "body": "the court ruled"}])[0]["label"] is not None
    with pytest.raises(hf_sft.DataError, match="give rows with the columns title, body"):
        hf_sft.predict(tmp_path / "run", ["a text"])


@pytest.mark.parametrize("text", [["a", "a"], [], ["a", "label"]])
def test_columns_of_a_text_are_different_ones(text):
    with pytest.raises(ValueError, match="must be another column"):
        task(text=text)
