"""Labels are read as what they are: classes, several of them, numbers, or none; and what may be two things is refused."""

import json
from decimal import Decimal

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from sklearn.metrics import mean_squared_error, r2_score

import hf_sft
from hf_sft.data.data_source import DataSource
from hf_sft.data.splits import load_splits
from hf_sft.errors import DataError
from hf_sft.tasks.sequence_classification import SequenceClassification
from tests import tiny

SINGLE, MULTI, NUMBER = "single_label_classification", "multi_label_classification", "regression"


def read(folder, labels, header="label", fields=None, **source):
    """The splits of a csv with a column for the label, and a text for each row."""
    path = folder / "rows.csv"
    quoted = [f'"{label}"' if "," in str(label) or '"' in str(label) else label for label in labels]
    path.write_text(f"text,{header}\n" + "".join(f"text {i},{label}\n" for i, label in enumerate(quoted)))
    return load_splits(
        DataSource(dataset=str(path), **source), SequenceClassification(type="sequence_classification", **fields or {})
    )


def sets(splits):
    """The classes of each row, by its text."""
    found = [
        (text, row)
        for rows in splits.rows.values()
        for text, row in zip(rows["text"], splits.task.references(rows), strict=True)
    ]
    return dict(found)


@pytest.mark.parametrize("form", ["['bug', 'login']", '["bug", "login"]'])
@pytest.mark.parametrize("kind", [None, MULTI])
def test_lists_that_are_written_as_text_are_lists(form, kind, tmp_path):
    cells = ["['bug', 'login']", "['bug']", "[]", "['login', 'speed']"] * 15
    if form.startswith('["'):
        cells = [cell.replace("'", '""') for cell in cells]
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f'text {i},"{cell}"\n' for i, cell in enumerate(cells)))
    splits = load_splits(
        DataSource(dataset=str(path)), SequenceClassification(type="sequence_classification", problem_type=kind)
    )
    assert splits.task.problem_type == MULTI and splits.labels.names == ("bug", "login", "speed")
    assert [sets(splits)[f"text {i}"] for i in range(4)] == [["bug", "login"], ["bug"], [], ["login", "speed"]]
    assert any("lists written as text" in note for note in splits.notes)


def test_lists_of_zero_and_one_that_are_written_as_text_are_a_place_for_each_class(tmp_path):
    splits = read(tmp_path, ["[0, 1, 1]", "[1, 0, 0]", "[0, 0, 1]"] * 20, fields={"label_names": ("a", "b", "c")})
    assert splits.labels.names == ("a", "b", "c")
    assert [sets(splits)[f"text {i}"] for i in range(3)] == [["b", "c"], ["a"], ["c"]]


def test_lists_that_are_written_as_text_are_classes_of_their_own_where_the_recipe_says_so(tmp_path):
    splits = read(tmp_path, ["[1, 2]", "[3]"] * 30, fields={"problem_type": SINGLE})
    assert splits.labels.names == ("[1, 2]", "[3]")


@pytest.mark.parametrize("mark", ["|", ";", ","])
def test_several_labels_in_a_cell_are_refused_with_both_readings_and_read_by_their_delimiter(mark, tmp_path):
    cells = [f"bug{mark}login", "bug", "login", f"login{mark} speed"] * 15
    for kind in (None, MULTI):
        with pytest.raises(DataError, match=r"As several of 3 classes \(bug, login, speed\)(.|\n)*As one of 4 classes"):
            read(tmp_path, cells, fields={"problem_type": kind}, delimiter=None)
    splits = read(tmp_path, cells, label_delimiter=mark)
    assert splits.task.problem_type == MULTI and splits.labels.names == ("bug", "login", "speed")
    assert [sets(splits)[f"text {i}"] for i in range(4)] == [["bug", "login"], ["bug"], ["login"], ["login", "speed"]]
    assert read(tmp_path, cells, fields={"problem_type": SINGLE}).labels.names == tuple(sorted({*cells}))


@pytest.mark.parametrize("names", [("Sports, leisure", "Business, finance"), ("a|b", "c"), ("yes; no", "no idea", "maybe")])
def test_a_name_that_holds_a_delimiter_is_a_name(names, tmp_path):
    splits = read(tmp_path, [*names] * 20)
    assert splits.task.problem_type == SINGLE and splits.labels.names == tuple(sorted(names))


@pytest.mark.parametrize("values", [[-1, 0, 1], [-1, 0, 1, 2, 3], [0, 1, -1]])
@pytest.mark.parametrize("form", ["csv", "json"])
def test_minus_one_is_no_label(values, form, tmp_path):
    labels = values * 20
    if form == "csv":
        splits = read(tmp_path, labels)
    else:
        (tmp_path / "a.jsonl").write_text(
            "".join(json.dumps({"text": f"text {i}", "label": v}) + "\n" for i, v in enumerate(labels))
        )
        splits = load_splits(
            DataSource(dataset=str(tmp_path / "a.jsonl")), SequenceClassification(type="sequence_classification")
        )
    assert splits.labels.names == tuple(str(value) for value in sorted(values) if value >= 0)
    assert len(sets(splits)) == 20 * (len(values) - 1)
    assert any("20 of" in note and "task.minus_one_is_class=true" in note for note in splits.notes)


@pytest.mark.parametrize(
    ("values", "fields"), [([-1, 0, 1], {"minus_one_is_class": True}), ([-1, 1], {}), ([-2, -1, 0, 1], {})]
)
def test_minus_one_is_a_class_where_it_is_said_or_where_it_must_be(values, fields, tmp_path):
    assert read(tmp_path, values * 20, fields=fields).labels.names == tuple(map(str, sorted(values)))


def test_minus_one_of_numbers_is_a_number(tmp_path):
    splits = read(tmp_path, [-1, 0, 1] * 20, fields={"problem_type": NUMBER})
    assert sum(len(rows) for rows in splits.rows.values()) == 60


def test_spaces_around_a_name_are_not_part_of_it_and_other_differences_are_told(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    splits = read(tmp_path, ["pos", "pos ", " pos", "POS", composed, decomposed, "neg"] * 10)
    assert splits.labels.names == tuple(sorted(["pos", "POS", composed, decomposed, "neg"]))
    assert any("20 label(s)" in note and "spaces around them" in note for note in splits.notes)
    told = next(note for note in splits.notes if "differ only in case" in note)
    assert "'POS'; 'pos'" in told and f"{decomposed!r}; {composed!r}" in told


def test_names_in_lists_lose_their_outer_spaces_too(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f"t{i}", "label": ["a ", "b"]}) + "\n" for i in range(60)))
    splits = load_splits(DataSource(dataset=str(tmp_path / "a.jsonl")), SequenceClassification(type="sequence_classification"))
    assert splits.labels.names == ("a", "b")


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_whole_numbers_that_a_null_made_fractions_are_classes(missing, tmp_path):
    rows = {"text": [f"t{i}" for i in range(61)], "label": [0.0, 1.0, 2.0] * 20 + [missing]}
    Dataset.from_dict(rows, features=Features(text=Value("string"), label=Value("float64"))).to_parquet(tmp_path / "a.parquet")
    source = DataSource(dataset=str(tmp_path / "a.parquet"), drop_invalid=True)
    splits = load_splits(source, SequenceClassification(type="sequence_classification"))
    assert splits.task.problem_type == SINGLE and splits.labels.names == ("0", "1", "2")


def test_decimals_are_numbers(tmp_path):
    rows = {"text": [f"t{i}" for i in range(60)], "label": [Decimal(f"{i % 7}.25") for i in range(60)]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    splits = load_splits(
        DataSource(dataset=str(tmp_path / "a.parquet")), SequenceClassification(type="sequence_classification")
    )
    assert splits.task.problem_type == NUMBER
    assert sets(splits) == {f"t{i}": i % 7 + 0.25 for i in range(60)}


@pytest.mark.parametrize(
    ("cells", "remedy"),
    [
        (["1,500", "2,250", "30"], r"Write 1500 for 1,500, or 1\.5 where the comma is a decimal point"),
        (["1,500,000", "2,000"], "Write 1500000 for 1,500,000"),
        (["1,500.25", "2"], r"Write 1500\.25 for 1,500\.25"),
        (["1,5", "2,25"], "decimal points instead of commas"),
    ],
)
def test_commas_in_numbers_are_told_apart(cells, remedy, tmp_path):
    with pytest.raises(DataError, match=remedy):
        read(tmp_path, cells * 20, fields={"problem_type": NUMBER})


@pytest.mark.parametrize("kind", [None, NUMBER])
def test_several_numbers_for_a_row_are_refused(kind, tmp_path):
    (tmp_path / "a.csv").write_text("text,a,b\n" + "".join(f"t{i},{i / 4},{i / 3:.3f}\n" for i in range(60)))
    task = SequenceClassification(type="sequence_classification", label=("a", "b"), problem_type=kind)
    with pytest.raises(DataError, match="one number to regress on: name one column, and train a run for each"):
        load_splits(DataSource(dataset=str(tmp_path / "a.csv")), task)


def unlabelled_files(folder, form):
    made = tiny.rows(SINGLE, 60)
    train, test = made[:50], [{"text": row["text"]} for row in made[50:]]
    if form == "null":
        test = [{**row, "label": None} for row in test]
    if form == "minus one":
        names = sorted({row["label"] for row in train})
        features = Features(text=Value("string"), label=ClassLabel(names=names))
        parts = {"train": train, "test": [{**row, "label": -1} for row in test]}
        saved = DatasetDict({name: Dataset.from_list(rows, features=features) for name, rows in parts.items()})
        saved.save_to_disk(folder / "saved")
        return {"dataset": str(folder / "saved")}, test
    if form == "whole numbers":
        numbers = {name: i for i, name in enumerate(sorted({row["label"] for row in train}))}
        train, test = [{**row, "label": numbers[row["label"]]} for row in train], [{**row, "label": -1} for row in test]
    for name, rows in (("train", train), ("test", test)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = {name: str(folder / f"{name}.jsonl") for name in ("train", "test")}
    return {"dataset": "json", "data_files": files}, test


@pytest.mark.parametrize("form", ["no column", "null", "minus one", "whole numbers"])
def test_a_test_split_without_labels_is_predicted_and_not_scored(form, tmp_path, checkpoints):
    source, test = unlabelled_files(tmp_path, form)
    recipe = tiny.recipe(checkpoints["bert"], {}, tmp_path / "run", training={"max_steps": 1}) | {"data": source}
    report = hf_sft.train(recipe)
    assert sum(report.facts["data"]["rows"].values()) == 50 and report.facts["data"]["rows"]["test"] > 0
    assert any("split `test` has no labels: its 10 rows are predicted" in note for note in report.facts["data"]["warnings"])
    predicted = [json.loads(line) for line in (tmp_path / "run/predictions/unlabelled.jsonl").read_text().splitlines()]
    assert predicted == hf_sft.predict(tmp_path / "run", [row["text"] for row in test])
    again = hf_sft.train(tmp_path / "run/recipe.yaml", [f"output.folder={tmp_path / 'again'}"])
    assert again.facts["metrics"] == report.facts["metrics"]
    assert (tmp_path / "again/predictions/unlabelled.jsonl").read_text() == (
        tmp_path / "run/predictions/unlabelled.jsonl"
    ).read_text()


def test_prices_are_learnt_and_answered_in_their_own_units(tmp_path, checkpoints):
    made = [{"text": row["text"], "label": 250_000 + 400_000 * row["label"]} for row in tiny.rows(NUMBER, 300)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    recipe = tiny.recipe(
        checkpoints["bert"], {}, tmp_path / "run", training={"max_steps": 100, "optim": "adamw_torch", "learning_rate": 1e-3}
    )
    recipe["data"] = {"dataset": str(tmp_path / "a.jsonl")}
    report = hf_sft.train(recipe)
    lines = [json.loads(line) for line in (tmp_path / "run/predictions/test.jsonl").read_text().splitlines()]
    values, references = [line["value"] for line in lines], [line["reference"] for line in lines]
    assert min(references) >= 250_000 and r2_score(references, values) > 0.5
    assert report.metrics["test"]["mse"]["value"] == pytest.approx(mean_squared_error(references, values), rel=1e-5)
    mean, deviation = hf_sft.load_recipe(tmp_path / "run/recipe.yaml").task.scale
    train = [row["label"] for row in made if row["label"] is not None]
    assert mean == pytest.approx(np.mean(train), rel=0.1) and deviation == pytest.approx(np.std(train), rel=0.1)


def test_the_card_s_lines_answer_in_the_data_s_units(tmp_path, checkpoints):
    from transformers import pipeline

    made = [{"text": row["text"], "label": 1000 + 100 * row["label"]} for row in tiny.rows(NUMBER, 60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    recipe = tiny.recipe(checkpoints["bert"], {}, tmp_path / "run", training={"max_steps": 1})
    recipe["data"] = {"dataset": str(tmp_path / "a.jsonl")}
    hf_sft.train(recipe)
    call = hf_sft.load_recipe(tmp_path / "run/recipe.yaml").task.example_call()
    assert call in (tmp_path / "run/README.md").read_text()
    answered = eval(call, {"answer": pipeline("text-classification", model=str(tmp_path / "run"))})
    assert answered == pytest.approx([each["value"] for each in hf_sft.predict(tmp_path / "run", ["A text."])], rel=1e-5)
