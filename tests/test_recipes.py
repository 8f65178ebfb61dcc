"""Every recipe that is shipped reads, and passes check on a tiny stand-in for its checkpoint and its data."""

import json
import re
from pathlib import Path

import pytest

import hf_sft
from tests import tiny

ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_there_are_as_many_recipes_as_we_think():
    assert len(RECIPES) == 11


def stand_in(recipe: hf_sft.Recipe, folder: Path) -> str:
    """Rows with the columns that the recipe names, and labels of the kind that its data set has."""
    kind = "single_label_classification"
    if "go_emotions" in recipe.output.folder:
        kind = "multi_label_classification"
    if "stsb" in recipe.output.folder:
        kind = "regression"
    lines = []
    for row in tiny.rows(kind, 60):
        named = dict.fromkeys(recipe.task.input_columns(), row["text"])
        lines.append(json.dumps({**named, recipe.task.columns()["label"][0]: row["label"]}))
    path = folder / "rows.jsonl"
    path.write_text("\n".join(lines))
    return str(path)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_reads_and_passes_check(path, checkpoints, tmp_path):
    recipe = hf_sft.load_recipe(path)
    family = "gpt2" if "gpt2" in path.stem else "bert"
    overrides = [f"model.checkpoint={checkpoints[family]}", "data.dataset=json", "task.max_length=32"]
    found = hf_sft.check(path, [*overrides, f"data.data_files={stand_in(recipe, tmp_path)}"])
    assert any("parameters that move" in fact for fact in found.facts)


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_opens_with_its_question_its_launch_line_and_what_was_measured(path):
    text = path.read_text()
    comment = text[: text.index("\nmodel:")]
    assert "?" in comment.splitlines()[0]
    assert f"-m hf_sft train recipes/{path.name}" in comment
    assert "# Measured:" in comment
    for config in re.findall(r"--config_file (\S+)", comment):
        assert (ROOT / config).is_file()
    assert hf_sft.load_recipe(path).output.folder == f"runs/{path.stem}"


@pytest.mark.parametrize("path", sorted((ROOT / "accelerate_configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_accelerate_configuration_says_when_to_use_it_and_loads(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert path.read_text().startswith("#")
    assert (config.num_processes > 1) is ("multi" in path.stem)
    assert config.use_cpu is path.stem.startswith("cpu")
