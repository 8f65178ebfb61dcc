"""What is read is what is written: csv cells, delimiters, paths, folders."""

import json

import pytest

import hf_sft
from hf_sft.errors import DataError
from hf_sft.sources import DataSource, load_source
from hf_sft.splitting import load_splits
from hf_sft.tasks.sequence_classification import SequenceClassification

TASK = SequenceClassification(type="sequence_classification")


def read(path, content, **fields):
    path.write_text(content)
    notes: list[str] = []
    brought, source = load_source(DataSource(dataset=str(path), **fields), ("text",), notes)
    return brought["train"], source, notes


def csv(labels, texts=None):
    texts = texts or [f"text {i}" for i in range(len(labels))]
    return "text,label\n" + "".join(f"{text},{label}\n" for text, label in zip(texts, labels, strict=True))


@pytest.mark.parametrize(
    ("cells", "values"),
    [
        (["01", "2", "02"], ["01", "2", "02"]),
        (["NA", "None", "null", "nan"], ["NA", "None", "null", "nan"]),
        (["1", "", "3"], [1, None, 3]),
        (["-1", "0", "10"], [-1, 0, 10]),
        (["1.5", "", "2"], [1.5, None, 2.0]),
        (["1.0", "x", "2"], ["1.0", "x", "2"]),
        (["123456789012345678901", "1"], ["123456789012345678901", "1"]),
        (["True", "false", "TRUE"], [True, False, True]),
    ],
)
def test_cells_of_a_csv_are_read_as_they_are_written(cells, values, tmp_path):
    rows, _, _ = read(tmp_path / "a.csv", csv(cells))
    assert rows["label"][:] == values
    assert [type(v) for v in rows["label"]] == [type(v) for v in values]


def test_texts_that_are_numbers_stay_texts(tmp_path):
    rows, _, _ = read(tmp_path / "a.csv", csv(["a", "b"], ["007", "12"]))
    assert rows["text"][:] == ["007", "12"]


def test_one_empty_cell_does_not_make_a_regression_of_classes(tmp_path):
    (tmp_path / "a.csv").write_text(csv([str(i % 3) for i in range(60)] + [""]))
    splits = load_splits(DataSource(dataset=str(tmp_path / "a.csv"), drop_invalid=True), TASK)
    assert splits.task.problem_type == "single_label_classification" and splits.labels.names == ("0", "1", "2")
    assert any("each of the 3 is a class" in note and "task.problem_type=regression" in note for note in splits.notes)


def test_fractions_are_said_to_be_amounts_with_the_remedy(tmp_path):
    (tmp_path / "a.csv").write_text(csv([f"{i % 3}.5" for i in range(60)]))
    splits = load_splits(DataSource(dataset=str(tmp_path / "a.csv")), TASK)
    assert splits.task.problem_type == "regression"
    assert any("a number to regress on" in note and "task.problem_type=single_label" in note for note in splits.notes)


@pytest.mark.parametrize(("delimiter", "name"), [(";", "a.csv"), ("|", "a.csv"), ("\t", "a.csv"), ("\t", "a.tsv")])
def test_other_delimiters_are_found_and_said(delimiter, name, tmp_path):
    rows, source, notes = read(tmp_path / name, csv(["a", "b"]).replace(",", delimiter))
    assert rows["label"][:] == ["a", "b"] and source.delimiter == delimiter
    assert bool(notes) is name.endswith(".csv")


def test_a_delimiter_that_is_given_is_used(tmp_path):
    rows, _, notes = read(tmp_path / "a.csv", "text~label\na,x~b\n", delimiter="~")
    assert rows[0] == {"text": "a,x", "label": "b"} and notes == []


def test_paths_are_found_from_the_recipe_and_from_home(tmp_path, checkpoints, monkeypatch):
    from tests import tiny

    (tmp_path / "project").mkdir()
    (tmp_path / "home").mkdir()
    for folder in ("project", "home"):
        (tmp_path / folder / "rows.csv").write_text(csv(["a", "b"] * 30))
    made = tiny.recipe(checkpoints["bert"], {}, tmp_path / "run")
    made["data"] = {"dataset": "rows.csv"}
    (tmp_path / "project" / "recipe.yaml").write_text(json.dumps(made))
    recipe = hf_sft.load_recipe(tmp_path / "project" / "recipe.yaml")
    assert recipe.data.dataset == str(tmp_path / "project" / "rows.csv")
    assert load_splits(recipe.data, TASK).labels.names == ("a", "b")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert load_splits(DataSource(dataset="csv", data_files="~/rows.csv"), TASK).labels.names == ("a", "b")


def test_folders_and_patterns_are_answered_with_what_is_there(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "rows.csv").write_text(csv(["a", "b"] * 30))
    assert load_splits(DataSource(dataset="csv", data_files=str(tmp_path / "d" / "*.csv")), TASK).labels.names == ("a", "b")
    for files, message in (
        (f"{tmp_path}/d", r"is a folder.  It holds: rows\.csv"),
        (f"{tmp_path}/d/*.tsv", r"no file fits the pattern"),
        (f"{tmp_path}/d/row.csv", r"Did you mean `rows\.csv`"),
    ):
        with pytest.raises(DataError, match=message):
            load_splits(DataSource(dataset="csv", data_files=files), TASK)


def test_a_column_of_mixed_types_is_told_in_plain_words(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "label": 1}\n{"text": "b", "label": "one"}\n')
    with pytest.raises(DataError, match="column `label` holds values of several types"):
        load_splits(DataSource(dataset=str(tmp_path / "a.jsonl")), TASK)


def test_textfolder_takes_the_label_from_the_folder_and_counts_what_it_cannot_read(tmp_path):
    for label, name, content in (("a", "1.txt", b"one"), ("a", "2.txt", b"caf\xe9"), ("b", "1.txt", b"two")) * 1:
        (tmp_path / "t" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / label / name).write_bytes(content)
    for k in range(20):
        (tmp_path / "t" / "ab"[k % 2] / f"more{k}.txt").write_text(f"more {k}")
    splits = load_splits(DataSource(dataset="textfolder", data_dir=str(tmp_path / "t")), TASK)
    assert splits.labels.names == ("a", "b")
    assert any("1 file(s) are not utf-8" in note for note in splits.notes)
    latin = load_splits(DataSource(dataset="textfolder", data_dir=str(tmp_path / "t"), encoding="latin-1"), TASK)
    assert any("café" in text for rows in latin.rows.values() for text in rows["text"])
