"""Planted mistakes: each gets one clear message, exit status 2, and leaves nothing behind."""

import subprocess
import sys

import pytest
import yaml
from datasets import Dataset

import hf_sft
from hf_sft.cli import app
from tests import tiny
from tests.integration.mistakes import MISTAKES, SINGLE, Bench, lines, misspelt_key, output_holds_a_run

FINE_FOR_CHECK = (output_holds_a_run,)


@pytest.mark.parametrize(("mistake", "message"), MISTAKES, ids=[mistake.__name__ for mistake, _ in MISTAKES])
def test_a_mistake_gets_its_message_and_leaves_nothing_behind(mistake, message, checkpoints, tmp_path):
    bench = Bench(tmp_path, checkpoints["bert"])
    mistake(bench)
    path = bench.write()
    before = {file for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(hf_sft.HfSftError, match=message) as raised:
        hf_sft.train(path, bench.overrides)
    if mistake in FINE_FOR_CHECK:
        assert any("is not empty" in warning for warning in hf_sft.check(path, bench.overrides).warnings)
    else:
        with pytest.raises(type(raised.value), match=message):
            hf_sft.check(path, bench.overrides)
    assert {file for file in tmp_path.rglob("*") if file.is_file()} == before
    assert len(str(raised.value).splitlines()) <= 8


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [unclosed", r"line 1, column \d+"),
        ("model: {checkpoint: x}\n\tdata: 1\n", r"line 2"),
        ("seed: 1\nseed: 2\n", r"line 2"),
        ("seed: &a 1\n", r"anchor"),
        ("", r"nothing"),
    ],
)
def test_yaml_that_does_not_parse_is_told_by_line(text, message, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(hf_sft.RecipeError, match=message):
        hf_sft.load_recipe(tmp_path / "r.yaml")


def test_the_command_line_exits_with_2_and_without_a_traceback(checkpoints, tmp_path):
    bench = Bench(tmp_path, checkpoints["bert"])
    misspelt_key(bench)
    done = subprocess.run(
        [sys.executable, "-m", "hf_sft", "train", str(bench.write())], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("RecipeError: ") and "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_clean_recipe_passes_check_and_check_writes_nothing(checkpoints, tmp_path):
    bench = Bench(tmp_path, checkpoints["bert"])
    found = hf_sft.check(bench.write())
    assert found.facts["rows"] == "20 train, 9 validation, 11 test"
    assert found.facts["labels"] == "business, law, sport"
    assert found.facts["full: optimizer steps"].startswith("5 of 8 rows")
    assert found.warnings == []
    assert not (tmp_path / "run").exists()


def test_predict_refuses_what_it_cannot_answer(checkpoints, tmp_path):
    bench = Bench(tmp_path, checkpoints["bert"])
    hf_sft.train(bench.write())
    for inputs, message in (([], "nothing to answer"), ([{"txt": "a"}], "lacks column"), ("x.doc", "x.doc")):
        with pytest.raises(hf_sft.DataError, match=message):
            hf_sft.predict(tmp_path / "run", inputs)
    with pytest.raises(hf_sft.RecipeError, match="no finished run"):
        hf_sft.predict(tmp_path, ["a"])


def test_every_verb_of_the_contract_is_there():
    names = {command.name or command.callback.__name__ for command in app.registered_commands}
    assert names >= {"check", "train", "evaluate", "predict", "publish", "certify", "list", "schema"}


def test_a_save_to_disk_folder_of_one_split_is_train(tmp_path, checkpoints):
    rows = tiny.rows(SINGLE, 40)
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    recipe = tiny.recipe(checkpoints["bert"], {}, tmp_path / "run")
    recipe["data"] = {"dataset": str(tmp_path / "saved")}
    report = hf_sft.train(hf_sft.Recipe.model_validate(recipe))
    assert sum(report.facts["data"]["rows"].values()) == 40


@pytest.mark.parametrize("sign", ["[/b]", "[bold]", "[/]", "[link=x]", ":smile:"])
def test_texts_and_labels_that_look_like_markup_are_shown_as_they_are(sign, tmp_path, checkpoints):
    from typer.testing import CliRunner

    made = [{"text": f"{sign} text {i}", "label": f"{sign}{'ab'[i % 2]}"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text(lines(made))
    recipe = tiny.recipe(checkpoints["bert"], {}, tmp_path / "run") | {"data": {"dataset": str(tmp_path / "rows.jsonl")}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    told = CliRunner().invoke(app, ["check", str(tmp_path / "recipe.yaml")])
    assert told.exit_code == 0 and f"{sign} text" in told.output and f"{sign}a, {sign}b" in told.output
