"""One answer per row, in its place, from whatever the rows come in; and scores that say what they are of."""

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

import hf_sft
from hf_sft.cli import app, main
from tests import tiny

SINGLE = "single_label_classification"


def strictly(text: str):
    """JSON, and nothing that only Python takes for JSON."""

    def refuse(constant: str):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def run(finished_run) -> Path:
    return finished_run()


def ask(monkeypatch, run: Path, content: str | bytes):
    content = content.encode() if isinstance(content, str) else content
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    return hf_sft.predict(run, "-")


def test_a_json_array_and_json_lines_and_text_lines_are_answered_alike(run, monkeypatch):
    texts = ["goal match", "bank cut rates"]
    wanted = hf_sft.predict(run, texts)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    for content in (
        json.dumps(texts),
        json.dumps([{"text": text} for text in texts]),
        lines,
        "\n".join(texts),
        "\r\n".join(texts),
    ):
        assert ask(monkeypatch, run, content) == wanted
    assert ask(monkeypatch, run, "[goal] match\nbank")[1]["row"] == 1


def test_an_empty_line_keeps_its_place_and_is_answered_by_null(run, monkeypatch, tmp_path):
    wanted = hf_sft.predict(run, ["goal match", "bank cut"])
    (tmp_path / "a.txt").write_text("goal match\n\nbank cut\n")
    (tmp_path / "a.csv").write_text('text\ngoal match\n""\nbank cut\n')
    for answers in (
        ask(monkeypatch, run, "goal match\n  \nbank cut\n"),
        ask(monkeypatch, run, '{"text": "goal match"}\n\n{"text": "bank cut"}\n'),
        hf_sft.predict(run, ["goal match", None, "bank cut"]),
        hf_sft.predict(run, tmp_path / "a.txt"),
        hf_sft.predict(run, str(tmp_path / "a.csv")),
    ):
        assert [answer["row"] for answer in answers] == [0, 1, 2]
        assert answers[1] == {"row": 1, "label": None, "score": None, "scores": None}
        assert [answers[0]["label"], answers[2]["label"]] == [answer["label"] for answer in wanted]
    assert hf_sft.predict(run, ["", " "])[1]["label"] is None
    with pytest.raises(hf_sft.DataError, match=r"column `text` is empty in row\(s\) \[1\]"):
        hf_sft.predict(run, ["goal", "", "bank"], strict=True)


def test_labels_of_a_csv_come_back_as_references(run, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\ngoal,law\nbank,\n")
    assert [answer["reference"] for answer in hf_sft.predict(run, tmp_path / "a.csv")] == ["law", None]


@pytest.fixture(scope="module")
def latin(run, tmp_path_factory) -> Path:
    """The run, as if its rows were read from a latin-1 csv with semicolons and plain quotation marks."""
    folder = tmp_path_factory.mktemp("latin") / "run"
    shutil.copytree(run, folder)
    recipe = YAML(typ="safe").load(folder / "recipe.yaml")
    recipe["data"] |= {"dataset": "csv", "encoding": "latin-1", "delimiter": ";", "quoting": False}
    YAML(typ="safe").dump(recipe, folder / "recipe.yaml")
    return folder


def test_a_file_is_read_with_the_run_s_encoding_delimiter_and_quoting(latin, tmp_path, monkeypatch):
    texts = ["café goal", '"bank', "shares, fell"]
    wanted = hf_sft.predict(latin, texts)
    (tmp_path / "a.csv").write_bytes(("text;n\n" + "".join(f"{text};1\n" for text in texts)).encode("latin-1"))
    (tmp_path / "a.txt").write_bytes("\n".join(texts).encode("latin-1"))
    assert hf_sft.predict(latin, tmp_path / "a.csv") == wanted
    assert hf_sft.predict(latin, tmp_path / "a.txt") == wanted
    assert ask(monkeypatch, latin, "\n".join(texts).encode("latin-1")) == wanted


def test_another_encoding_delimiter_or_quoting_can_be_given(latin, tmp_path):
    (tmp_path / "a.csv").write_text('n|text\n1|"café ""goal"""\n', encoding="utf-8")
    given = ["encoding=utf-8", "delimiter='|'", "quoting=true"]
    assert hf_sft.predict(latin, tmp_path / "a.csv", data=given) == hf_sft.predict(latin, ['café "goal"'])
    with pytest.raises(hf_sft.RecipeError, match="expected encoding=VALUE, delimiter=VALUE, quoting=VALUE"):
        hf_sft.predict(latin, tmp_path / "a.csv", data=["splits=x"])


def test_a_file_by_another_delimiter_than_the_run_s_is_read_by_its_header(latin, tmp_path):
    (tmp_path / "a.csv").write_text("n,text\n1,goal match\n", encoding="latin-1")
    assert hf_sft.predict(latin, tmp_path / "a.csv") == hf_sft.predict(latin, ["goal match"])


@pytest.mark.parametrize("content", ['{"text": "a \\ud83d b"}\n', '["a \\ud83d b"]', '[{"text": "a \\ude00"}]'])
def test_half_of_a_surrogate_pair_is_named(content, run, monkeypatch):
    with pytest.raises(hf_sft.DataError, match=r"surrogate pair, which is no character: 'a .ud"):
        ask(monkeypatch, run, content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "a"}\n{"text": \n', r"standard input, line 2: .*; expected a JSON object on each line"),
        ("café".encode("latin-1"), r"standard input is not UTF-8 text \(line 1\)"),
        ("", r"nothing to answer"),
    ],
)
def test_input_that_cannot_be_read_is_told_by_line(content, message, run, monkeypatch):
    with pytest.raises(hf_sft.DataError, match=message):
        ask(monkeypatch, run, content)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"text,label\n", r"holds no rows"),
        ("a.csv", "text\ncafé\n".encode("latin-1"), r"can't be read"),
        ("a.txt", "café\n".encode("latin-1"), r"not UTF-8 text"),
        ("a.jsonl", b'{"text": \n', r"can't be read"),
        ("a.csv", b"words\ngoal\n", r"lacks column\(s\) text"),
    ],
)
def test_files_that_cannot_be_answered(name, content, message, run, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(hf_sft.DataError, match=message):
        hf_sft.predict(run, str(tmp_path / name))


@pytest.mark.parametrize(
    ("inputs", "message"),
    [([1, 2], r"row 0 is 1: expected only texts"), (["a", {"text": "b"}], r"row 1 is \{"), ("x.doc", r"its name says not")],
)
def test_values_that_are_no_rows(inputs, message, run):
    with pytest.raises(hf_sft.DataError, match=message):
        hf_sft.predict(run, inputs)


def command(monkeypatch, capsys, *words: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["hf-sft", *words])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


def test_a_file_given_as_text_is_asked_about(run, monkeypatch, capsys, tmp_path):
    (tmp_path / "rows.csv").write_text("text\ngoal\n")
    code, said = command(monkeypatch, capsys, "predict", str(run), "rows.csv")
    assert code == 2 and "`rows.csv` is a file here" in said and "--input rows.csv" in said


def test_an_output_that_cannot_be_written_is_found_before_the_answers(run, monkeypatch, capsys):
    monkeypatch.setattr("hf_sft.runs.predict.load_run", lambda *_: pytest.fail("the run was loaded"))
    code, said = command(monkeypatch, capsys, "predict", str(run), "goal", "--output", "nowhere/a.jsonl")
    assert code == 2 and "lies in a folder that is not there" in said


def test_answers_and_scores_on_the_command_line_are_strict_json(run, tmp_path):
    (tmp_path / "one.csv").write_text("text,label\ngoal,law\n")
    told = CliRunner().invoke(app, ["predict", str(run), "goal", ""])
    assert [strictly(line)["row"] for line in told.stdout.splitlines()] == [0, 1]
    told = CliRunner().invoke(app, ["evaluate", str(run), "--data", "dataset=one.csv"])
    assert set(strictly(told.stdout.splitlines()[-1])["data"]) == {"accuracy", "f1_macro"}
    assert "split `train`, 1 rows." in told.output


def test_other_data_is_scored_as_it_is_asked_for(run, tmp_path):
    made = [{"text": "goal", "label": "law", "ok": i < 6} for i in range(10)] + [{"text": "", "label": "law", "ok": True}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    scored = hf_sft.evaluate(run, data=["dataset=rows.jsonl", "keep=ok", "drop_invalid=true"])
    assert scored.rows == 6
    assert scored.notes[0] == "split `train`, 6 rows."
    assert any("left 7 of 11" in note for note in scored.notes) and any("1 of 7 rows" in note for note in scored.notes)
    for word in ("rows=3", "rows_per_label=1", "splits.test=train", "group=ok"):
        with pytest.raises(hf_sft.RecipeError, match="has no meaning for rows that are only scored"):
            hf_sft.evaluate(run, data=["dataset=rows.jsonl", word])


def test_of_several_splits_one_is_named(run, tmp_path):
    for name, count in (("a", 3), ("b", 4)):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "goal,law\n" * count)
    words = ["dataset=csv", "data_files={a: a.csv, b: b.csv}"]
    with pytest.raises(hf_sft.DataError, match=r"none of them called `test`(.|\n)*It has: a, b"):
        hf_sft.evaluate(run, data=words)
    assert hf_sft.evaluate(run, split="b", data=words).notes[0] == "split `b`, 4 rows."
    with pytest.raises(hf_sft.DataError, match="has no split `c`"):
        hf_sft.evaluate(run, split="c", data=words)


def test_predictions_are_one_json_object_per_row_in_order(run):
    lines = [strictly(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(11))
    assert all(set(line) == {"row", "label", "score", "scores", "reference"} for line in lines)
    assert [line["reference"] for line in lines] == [row["label"] for row in tiny.rows(SINGLE, 11, 200)]


def test_answers_and_scores_do_not_depend_on_the_blocks_that_rows_are_cut_into(run, monkeypatch):
    texts: list[str | None] = [row["text"] for row in tiny.rows(SINGLE, 20)]
    texts[7] = None
    whole, scored = hf_sft.predict(run, texts), hf_sft.evaluate(run)
    for module in ("data.examples", "data.encoding", "evaluation.bootstrap"):
        monkeypatch.setattr(f"hf_sft.{module}.BLOCK", 3)
    answers = hf_sft.predict(run, texts)
    assert [(a["row"], a["label"]) for a in answers] == [(a["row"], a["label"]) for a in whole]
    np.testing.assert_allclose([a["score"] or 0 for a in answers], [a["score"] or 0 for a in whole], atol=1e-5)
    again = hf_sft.evaluate(run)
    assert (again.scores, again.per_class, again.confusions) == (scored.scores, scored.per_class, scored.confusions)
    assert [mistake["row"] for mistake in again.mistakes] == [mistake["row"] for mistake in scored.mistakes]


def test_an_interrupted_prediction_leaves_no_half_of_a_file(run, monkeypatch, tmp_path):
    def fail(*_, **__):
        yield {"row": 0}
        raise KeyboardInterrupt

    monkeypatch.setattr("hf_sft.runs.predict.answer", fail)
    (tmp_path / "out.jsonl").write_text("before\n")
    CliRunner().invoke(app, ["predict", str(run), "goal", "--output", str(tmp_path / "out.jsonl")])
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before\n"]


def test_rows_that_have_changed_since_the_run_are_noticed(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE, train=20)
    hf_sft.train(hf_sft.Recipe.model_validate(tiny.recipe(checkpoints["bert"], files, tmp_path / "run")))
    assert not any("changed" in note for note in hf_sft.evaluate(tmp_path / "run").notes)
    lines = Path(files["test"]).read_text().splitlines()
    Path(files["test"]).write_text("\n".join(lines[1:]) + "\n")
    assert any("the data has changed since" in note for note in hf_sft.evaluate(tmp_path / "run").notes)
    assert not any("changed" in note for note in hf_sft.evaluate(tmp_path / "run", "validation").notes)


def test_every_json_of_a_run_is_strict(checkpoints, tmp_path):
    """A correlation of one row is undefined: null, in every file."""
    files = tiny.write_rows(tmp_path / "data", "regression", train=20)
    Path(files["test"]).write_text('{"text": "goal", "label": 1.5}\n')
    report = hf_sft.train(hf_sft.Recipe.model_validate(tiny.recipe(checkpoints["bert"], files, tmp_path / "run")))
    assert report.metrics["test"]["pearson"]["value"] is None
    assert strictly((tmp_path / "run" / "report.json").read_text())["metrics"]["test"]["pearson"]["value"] is None
    for path in (tmp_path / "run" / "predictions").iterdir():
        assert [strictly(line)["row"] for line in path.read_text().splitlines()]
    hf_sft.reports.report.score_table(report.metrics, {}, {})


def test_rows_of_test_that_train_has_are_scored_apart(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE, train=20)
    train = Path(files["train"]).read_text().splitlines()
    with Path(files["test"]).open("a") as file:
        file.write("\n".join(train[:4]) + "\n")
    report = hf_sft.train(hf_sft.Recipe.model_validate(tiny.recipe(checkpoints["bert"], files, tmp_path / "run")))
    known = {json.loads(line)["text"] for line in train}
    test = [json.loads(line)["text"] for line in Path(files["test"]).read_text().splitlines()]
    rest = [i for i, text in enumerate(test) if text not in known]
    predictions = [json.loads(line) for line in (tmp_path / "run/predictions/test.jsonl").read_text().splitlines()]
    right = [predictions[i]["label"] == predictions[i]["reference"] for i in rest]
    assert report.facts["unseen"]["test"]["accuracy"]["value"] == pytest.approx(sum(right) / len(right))
    said = f"{len(test) - len(rest)} of {len(test)} rows of split `test` have an input that train has too"
    assert any(said in note for note in report.facts["data"]["warnings"])
    card = (tmp_path / "run" / "README.md").read_text()
    assert "rows not trained on" in card and "rows not trained on" in (tmp_path / "run" / "report.html").read_text()
