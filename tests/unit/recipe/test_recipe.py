"""Recipes are read into blocks, and written so that they are read again as equal ones."""

import re

import pytest

from hf_sft.recipe.recipe import Recipe, dump_recipe, load_recipe
from hf_sft.recipe.schema import schema
from hf_sft.tasks.sequence_classification import SequenceClassification
from tests import ROOT
from tests.unit.recipe.recipe_texts import MRPC, SHORTEST, edited

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


def test_a_recipe_is_read_into_the_blocks_that_do_the_work(write):
    recipe = load_recipe(write(MRPC))
    assert recipe.model.checkpoint == "google-bert/bert-base-uncased"
    assert recipe.data.splits == {"train": "train", "validation": 0.1}
    assert isinstance(recipe.task, SequenceClassification)
    assert recipe.task.text_pair == "sentence2"
    assert [type(aid).__name__ for aid in recipe.aids] == ["EarlyStopping"]
    assert recipe.training.learning_rate == 2e-4
    assert recipe.seed == 3


def test_five_blocks_are_enough(write):
    recipe = load_recipe(write(SHORTEST))
    assert (recipe.aids, recipe.seed, recipe.evaluation.metrics, recipe.output.hub) == ((), 0, None, None)
    assert recipe.training.model_fields_set == set()


WRITTEN = [
    MRPC,
    SHORTEST,
    edited("text: sentence1", "text: '2e-5'\n  label: ['no', '2001-01-01', '1_000', ' a: b # c', '~', \"x\\ny\", 'ü😀']"),
    edited("text: sentence1", 'text: "a\\Nb\\Lc\\td"'),
    edited("batch_size: 16", "lr_scheduler_kwargs: {num_cycles: 2, deep: {a: [1, null, x]}}\n  report_to: [none]"),
    edited("batch_size: 16", "ddp_find_unused_parameters: null"),
    edited("batch_size: 16", f"run_name: {'long words ' * 40}"),
    edited("config: mrpc", "data_files: {train: [a.csv, b.csv], test: c.csv}"),
]


@pytest.mark.parametrize("text", WRITTEN, ids=range(len(WRITTEN)))
def test_a_written_recipe_is_read_as_an_equal_one(write, text):
    recipe = load_recipe(write(text))
    assert load_recipe(write(dump_recipe(recipe), "again.yaml")) == recipe


def test_a_written_recipe_trains_alike_though_the_method_has_its_own_defaults(write):
    recipe = load_recipe(write(edited("{type: head_only}", "{type: head_only}\ntraining: {warmup_steps: 0.3}", SHORTEST)))
    again = load_recipe(write(dump_recipe(recipe), "again.yaml"))
    first, second = (each.method.phases(each.task, each.training, 40)[0].training for each in (recipe, again))
    assert first == second
    assert (second.learning_rate, second.warmup_steps) == (1e-3, 0.3)


def test_a_written_recipe_keeps_the_order_and_says_the_defaults(write):
    written = dump_recipe(load_recipe(write(MRPC)))
    assert re.findall(r"^\w+", written, flags=re.M) == list(Recipe.model_fields)
    assert "  weight_decay: 0.01\n" in written
    assert "null" not in written


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_folder_is_valid_and_can_be_written(path, write):
    recipe = load_recipe(path)
    assert load_recipe(write(dump_recipe(recipe))) == recipe


def test_the_schema_has_every_kind_by_its_type():
    whole = schema()
    named = whole["$defs"]
    assert list(whole["properties"]) == list(Recipe.model_fields)
    assert whole["required"] == ["model", "data", "task", "method", "output"]
    assert whole["properties"]["task"]["$ref"] == "#/$defs/Task"
    for contract, folder in {"Task": "tasks", "Method": "methods", "Aid": "aids"}.items():
        files = ROOT.joinpath("hf_sft", folder).glob("[!_]*.py")
        kinds = [named[option["$ref"].removeprefix("#/$defs/")] for option in named[contract]["oneOf"][:-1]]
        assert [kind["properties"]["type"]["const"] for kind in kinds] == sorted(file.stem for file in files)
        assert all("type" in kind["required"] and kind["additionalProperties"] is False for kind in kinds)
        assert named[contract]["oneOf"][-1]["properties"]["type"]["pattern"] == r"\."
    assert named["Lora"]["properties"]["r"]["description"] == "Rank of the update."
    assert named["Lora"]["properties"]["r"]["minimum"] == 1


def test_every_reference_of_the_schema_leads_somewhere():
    whole = schema()
    references = set(re.findall(r"'\$ref': '#/\$defs/([^']+)'", str(whole)))
    assert references <= set(whole["$defs"])
