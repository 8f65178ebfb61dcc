"""Every recipe that is shipped reads, and passes check on a tiny stand-in for its checkpoint and its data."""

import json
import re
from itertools import cycle
from pathlib import Path

import pytest
from datasets import Dataset
from transformers import CONFIG_MAPPING

import hf_sft
from tests import ROOT, tiny

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_every_recipe_has_a_row_in_the_table():
    named = re.findall(r"\]\(([a-z0-9_]+\.yaml)\) \|", (ROOT / "recipes" / "README.md").read_text())
    assert sorted(named) == [path.name for path in RECIPES]


def stand_in(recipe: hf_sft.Recipe, folder: Path) -> str:
    """A file of rows with the columns that the recipe names, of the first kind that its task and its metrics take."""
    path = folder / "rows.jsonl"
    kinds = [
        kind
        for kind in (*tiny.PROBLEMS, "pictures", "texts", "masked", "talks", "pairs")
        if tiny.task_of(kind)["type"] == recipe.task.type
    ]
    if getattr(recipe.task, "prompt", None):
        kinds = [tiny.PROBLEMS[0]]  # a text, and a word to answer
    rows = next(rows for rows in (rename(tiny.rows(kind, 60), recipe) for kind in kinds) if fits(rows, recipe))
    if getattr(recipe.task, "prompt", None):  # words that a tiny tokenizer knows
        rows = [{name: tiny.KNOWN.get(str(cell), cell) for name, cell in row.items()} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny.draw_files(folder, rows)
    return str(path)


def rename(rows: list[dict], recipe: hf_sft.Recipe) -> list[dict]:
    inputs = recipe.task.input_columns()
    truth = [name for names in recipe.task.columns().values() for name in names if name not in inputs]
    renamed = []
    for cells in (list(row.values()) for row in rows):
        asked, answers = cells[: len(cells) - len(truth)], cells[len(cells) - len(truth) :]
        if 1 < len(asked) < len(inputs):  # a list for several columns
            asked = [asked[0], *asked[1]]
        others = {name: len(renamed) // 4 for name in (recipe.data.group, recipe.data.stratify) if name}
        renamed.append({**dict(zip(inputs, cycle(asked), strict=False)), **dict(zip(truth, answers, strict=True)), **others})
    return renamed


def fits(rows: list[dict], recipe: hf_sft.Recipe) -> bool:
    try:
        recipe.evaluation.names(recipe.task.resolve({"train": Dataset.from_list(rows)})[0])
    except hf_sft.HfSftError:
        return False
    return True


@pytest.mark.parametrize("path", RECIPES, ids=[path.stem for path in RECIPES])
def test_a_recipe_reads_and_passes_check(path, checkpoints, tmp_path):
    recipe = hf_sft.load_recipe(path)
    families = {**{name: name for name in checkpoints}, **({"smollm2": "llama"} if recipe.task.type == "chat" else {})}
    family = next((family for name, family in families.items() if name in path.stem), "bert")
    overrides = ["data.dataset=json"]
    begins = "checkpoint" if recipe.model.checkpoint else "from_config"
    overrides += [f"model.{begins}={checkpoints[family]}"] if recipe.model.where not in CONFIG_MAPPING else []
    overrides += [f"data.{name}=4" for name in ("rows", "rows_per_label") if getattr(recipe.data, name)]
    overrides += ["task.max_length=32"] if hasattr(recipe.task, "max_length") else []
    overrides += ["task.chat_template=plain"] if recipe.task.type == "chat" else []  # tiny checkpoints bring none
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
