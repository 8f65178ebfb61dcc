"""What is read is what is written: csv cells, delimiters, paths, folders."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import hf_sft
from hf_sft.data.data_source import DataSource
from hf_sft.data.sources import load_source
from hf_sft.data.splits import load_splits
from hf_sft.errors import DataError
from hf_sft.tasks.sequence_classification import SequenceClassification

TASK = SequenceClassification(type="sequence_classification")


def read(path, content, **fields):
    path.write_text(content)
    brought, source, notes = load_source(DataSource(dataset=str(path), **fields), ("text",))
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


DISAGREEING = [
    (["1", "2"], ["01", "2"]),
    (["1", "2"], ["1.5", "2"]),
    (["1", "2"], ["1e2", "2"]),
    (["1.5", "2"], ["123456789012345678", "2"]),
    (["1", "2"], ["", "2"]),
    (["1", "2"], ["", ""]),
    (["1", "2"], ["yes", "2"]),
    (["true", "false"], ["1", "0"]),
    (["true", "false"], ["True", ""]),
    (["true", "false"], ["yes", "no"]),
]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("pair", DISAGREEING, ids=str)
def test_splits_that_disagree_are_read_as_the_one_table_they_are(pair, turned, tmp_path):
    """A cell means the same in whatever split it stands: not the number 1 in one, and the text 01 in another."""
    pair = pair[::-1] if turned else pair
    for name, cells in (("train", pair[0]), ("test", pair[1]), ("both", [*pair[0], *pair[1]])):
        (tmp_path / f"{name}.csv").write_text(csv(cells))
    files = {name: str(tmp_path / f"{name}.csv") for name in ("train", "test")}
    apart, *_ = load_source(DataSource(dataset="csv", data_files=files), ["text"])
    together, *_ = load_source(DataSource(dataset=str(tmp_path / "both.csv")), ["text"])
    assert [(type(v), v) for split in ("train", "test") for v in apart[split]["label"]] == [
        (type(v), v) for v in together["train"]["label"]
    ]
    assert apart["train"].features == apart["test"].features == together["train"].features


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
    for k in range(120):
        (tmp_path / "t" / "ab"[k % 2] / f"more{k}.txt").write_text(f"more {k}")
    splits = load_splits(DataSource(dataset="textfolder", data_dir=str(tmp_path / "t")), TASK)
    assert splits.labels.names == ("a", "b")
    assert any("1 of 123 files are not utf-8" in note and "a/2.txt" in note for note in splits.notes)
    latin = load_splits(DataSource(dataset="textfolder", data_dir=str(tmp_path / "t"), encoding="latin-1"), TASK)
    assert any("café" in text for rows in latin.rows.values() for text in rows["text"])


def lines(count=80, odd=(), mark='"'):
    """A table of `count` rows; the texts of the `odd` ones begin with a quotation mark that is never closed."""
    return [(f"{mark if i in odd else ''}text {i}", "ab"[i % 2]) for i in range(count)]


def write_table(path, rows, delimiter, header=("text", "label")):
    path.write_text("".join(delimiter.join(row) + "\n" for row in (header, *rows)))
    return path


@pytest.mark.parametrize("odd", [(3, 20, 40, 70), (3,), (78, 79)])
def test_a_tsv_is_read_literally(odd, tmp_path):
    rows, _, _ = read(tmp_path / "a.tsv", write_table(tmp_path / "b", lines(odd=odd), "\t").read_text())
    assert rows["text"][:] == [text for text, _ in lines(odd=odd)]
    assert rows["label"][:] == [label for _, label in lines()]


def test_a_tsv_whose_header_stands_in_quotation_marks_has_them_around_its_cells(tmp_path):
    rows, _, _ = read(tmp_path / "a.tsv", '"text"\t"label"\n"a\t""b""\nc"\t"x"\n"d"\t"y"\n')
    assert rows["text"][:] == ['a\t"b"\nc', "d"] and rows["label"][:] == ["x", "y"]


@pytest.mark.parametrize("odd", [(3, 20, 40, 70), (3, 20), (3, 4, 5)])
def test_a_csv_in_which_quotation_marks_are_not_closed_is_refused(odd, tmp_path):
    path = write_table(tmp_path / "a.csv", lines(odd=odd), ",")
    with pytest.raises(DataError, match=r"quotation mark[\s\S]*`data.quoting=false`"):
        load_source(DataSource(dataset=str(path)), ("text",))
    rows = load_source(DataSource(dataset=str(path), quoting=False), ("text",))[0]["train"]
    assert rows["text"][:] == [text for text, _ in lines(odd=odd)]


def test_where_both_readings_of_quotation_marks_give_a_table_both_are_named(tmp_path):
    content = 'text,label\n"one,a\ntwo",b\nthree,a\n'
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=r"\(3 rows\): `data.quoting=false`[\s\S]*\(2 rows\): `data.quoting=true`"):
        load_source(DataSource(dataset=str(tmp_path / "a.csv")), ("text",))
    rows, _, notes = read(tmp_path / "a.csv", content, quoting=True)
    assert rows["text"][:] == ["one,a\ntwo", "three"] and "lines 2 to 3" in notes[0]


def test_cells_with_line_breaks_and_delimiters_are_counted(tmp_path):
    rows, _, notes = read(tmp_path / "a.csv", 'text,label\n"one\n\ntwo, ""three""",b\n"four\nfive",a\n')
    assert rows["text"][:] == ['one\n\ntwo, "three"', "four\nfive"]
    assert any("1 cell(s) in quotation marks hold line breaks and delimiters (lines 2 to 4)" in note for note in notes)


def test_a_delimiter_behind_each_row_shifts_no_cell(tmp_path):
    content = "id,text,label,lang\n" + "".join(f"{i},text {i},{'ab'[i % 2]},en,\n" for i in range(80))
    rows, _, _ = read(tmp_path / "a.csv", content)
    assert rows[3] == {"id": 3, "text": "text 3", "label": "b", "lang": "en"} and len(rows) == 80


@pytest.mark.parametrize("place", [0, 1, 40])
@pytest.mark.parametrize("surplus", [", oh", ", oh, oh"])
def test_a_line_with_too_many_cells_is_named(place, surplus, tmp_path):
    content = "label,text\n" + "".join(f"{'ab'[i % 2]},text {i}{surplus if i == place else ''}\n" for i in range(80))
    (tmp_path / "a.csv").write_text(content)
    with pytest.raises(DataError, match=rf"line {place + 2} has {2 + surplus.count(',')} cells"):
        load_source(DataSource(dataset=str(tmp_path / "a.csv")), ("text",))
    rows, _, notes = read(tmp_path / "a.csv", content, drop_invalid=True)
    assert len(rows) == 79 and "1 line(s) have more cells" in notes[0]
    assert rows["text"][:] == [f"text {i}" for i in range(80) if i != place]


def test_a_line_with_too_few_cells_is_counted(tmp_path):
    rows, _, notes = read(tmp_path / "a.csv", "text,label,lang\na,x,en\nb,y\n")
    assert rows["lang"][:] == ["en", None] and "line 3 has 2 cells" in notes[0]


def test_a_delimiter_is_found_by_the_columns_that_the_task_reads(tmp_path):
    content = 'text;"label, kind"\n' + "".join(f"one, {i};{'ab'[i % 2]}\n" for i in range(9))
    rows, source, _ = read(tmp_path / "a.csv", content)
    assert rows[0] == {"text": "one, 0", "label, kind": "a"} and source.delimiter == ";"


def test_compressed_tables_are_read(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(csv(["a", "b"]).encode()))
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"text": "x", "label": "a"}\n'))
    assert load_source(DataSource(dataset=str(tmp_path / "a.csv.gz")), ("text",))[0]["train"]["label"][:] == ["a", "b"]
    assert load_source(DataSource(dataset=str(tmp_path / "a.jsonl.gz")), ("text",))[0]["train"]["text"][:] == ["x"]


@pytest.mark.parametrize("value", ["2021-01-01", "2021-01-01T10:00:00Z", "2021-01-01 10:00:00", "12:30:00"])
@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_text_of_json_that_is_a_date_stays_a_text(value, form, tmp_path):
    made = [{"text": value, "label": value, "parts": [{"day": value}]} for _ in range(3)]
    content = json.dumps(made) if form == "array" else "".join(json.dumps(row) + "\n" for row in made)
    rows, _, _ = read(tmp_path / "a.json", content)
    assert rows[:] == {"text": [value] * 3, "label": [value] * 3, "parts": [[{"day": value}]] * 3}


@pytest.mark.parametrize("kind", ["csv", "jsonl", "txt"])
def test_letters_that_an_encoding_does_not_have_are_counted_and_refused(kind, tmp_path):
    def write(odd):
        texts = [f"café {i}" if i < odd else f"coffee {i}" for i in range(200)]
        content = {
            "csv": csv(["a"] * 200, texts),
            "jsonl": "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts),
            "txt": "\n".join(texts),
        }
        (path := tmp_path / f"{odd}.{kind}").write_bytes(content[kind].encode("latin-1"))
        return str(path), texts

    path, _ = write(80)
    with pytest.raises(DataError, match="80 of 200 rows of split `train` are not utf-8"):
        load_source(DataSource(dataset=path, encoding="utf-8"), ("text",))
    with pytest.raises(DataError, match=r"`data\.encoding`"):
        load_source(DataSource(dataset=path), ("text",))
    path, _ = write(2)
    *_, notes = load_source(DataSource(dataset=path, encoding="utf-8"), ("text",))
    assert any("2 of 200 rows of split `train` are not utf-8" in note for note in notes)
    path, texts = write(80)
    brought, _, notes = load_source(DataSource(dataset=path, encoding="latin-1"), ("text",))
    assert brought["train"]["text"][:] == texts and notes == []


def make_folder(folder, names, content=None):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content) if content else Image.new("RGB", (4, 4), "red").save(path)
    return str(folder)


@pytest.mark.parametrize("odd", ["cat on the train 3.png", "test pattern.png", "validation-eval.png"])
def test_a_picture_whose_name_holds_a_split_s_name_drops_no_other(odd, tmp_path):
    names = [f"{label}/{i}.png" for label in ("cat", "dog") for i in range(10)]
    folder = make_folder(tmp_path / "p", [*names, f"cat/{odd}"])
    brought, *_ = load_source(DataSource(dataset="imagefolder", data_dir=folder), ("image",))
    assert {name: len(rows) for name, rows in brought.items()} == {"train": 21}
    assert brought["train"].features["label"].names == ["cat", "dog"]


@pytest.mark.parametrize(("kind", "end"), [("imagefolder", "png"), ("textfolder", "txt")])
def test_folders_that_are_classes_are_classes_whatever_they_are_called(kind, end, tmp_path):
    names = [f"{label}/{i}.{end}" for label in ("test", "train", "test_tube") for i in range(3)]
    folder = make_folder(tmp_path / "p", names, None if end == "png" else "a text")
    brought, *_ = load_source(DataSource(dataset=kind, data_dir=folder), ())
    assert {name: len(rows) for name, rows in brought.items()} == {"train": 9}
    assert brought["train"].features["label"].names == ["test", "test_tube", "train"]


@pytest.mark.parametrize(("kind", "end"), [("imagefolder", "png"), ("textfolder", "txt")])
def test_folders_of_classes_below_folders_of_splits(kind, end, tmp_path):
    names = [f"{split}/{label}/{i}.{end}" for split in ("train", "test", "spare") for label in "ab" for i in range(3)]
    folder = make_folder(tmp_path / "p", names, None if end == "png" else "a text")
    brought, _, notes = load_source(DataSource(dataset=kind, data_dir=folder), ())
    assert {name: len(rows) for name, rows in brought.items()} == {"train": 6, "test": 6}
    assert any("1 folder(s) left out: spare" in note for note in notes)


@pytest.mark.parametrize(
    ("names", "found", "note"),
    [
        (["january", "february", "train_strikes"], {"train": 3}, "train has 3 (february.csv, january.csv, train_strikes.csv)"),
        (["train", "test", "extra"], {"train": 1, "test": 1}, "1 left out, whose names are no split's: extra.csv"),
        (["reviews", "test"], {"train": 1, "test": 1}, "train has 1 (reviews.csv)"),
        (["data/train-00000-of-00002", "data/train-00001-of-00002", "data/dev"], {"train": 2, "dev": 1}, "data/dev.csv"),
        (["train/a", "train/b", "test/a"], {"train": 2, "test": 1}, "test has 1 (test/a.csv)"),
    ],
)
@pytest.mark.parametrize("named", ["csv", "folder"])
def test_what_a_folder_of_tables_holds_and_what_is_left_out_is_counted(names, found, note, named, tmp_path):
    folder = make_folder(tmp_path / "d", [f"{name}.csv" for name in names], csv(["a", "b"] * 3))
    (tmp_path / "d" / "README.md").write_text("# Strikes")
    source = DataSource(dataset="csv", data_dir=folder) if named == "csv" else DataSource(dataset=folder)
    brought, _, notes = load_source(source, ("text",))
    assert {name: len(rows) for name, rows in brought.items()} == {name: 6 * count for name, count in found.items()}
    assert any(note in each for each in notes)


def test_a_folder_of_the_hub_with_a_card_that_names_its_files(tmp_path):
    folder = make_folder(tmp_path / "d", ["data/one.csv", "data/two.csv"], csv(["a", "b"] * 3))
    card = "---\nconfigs:\n- config_name: default\n  data_files:\n  - {split: train, path: data/one.csv}\n---\n# Card\n"
    (tmp_path / "d" / "README.md").write_text(card)
    brought, *_ = load_source(DataSource(dataset=folder), ("text",))
    assert {name: len(rows) for name, rows in brought.items()} == {"train": 6}


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_texts_that_arrow_stores_as_views_are_texts(kind, tmp_path):
    texts = pa.array([f"text {i}" for i in range(60)], pa.string_view())
    lists = pa.array([["x"], ["y"]] * 30, pa.list_(pa.string_view()))
    table = pa.table({"text": texts, "label": lists})
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pq.write_table(table, path)
    else:
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream:
            stream.write_table(table)
    splits = load_splits(DataSource(dataset=str(path)), TASK)
    assert splits.labels.names == ("x", "y") and sum(map(len, splits.rows.values())) == 60
    assert sorted(text for rows in splits.rows.values() for text in rows["text"]) == sorted(texts.to_pylist())
