"""Overrides of the command line are values of YAML, and clear what no longer fits."""

import pytest

from hf_sft.recipe.recipe import load_recipe
from tests.unit.recipe.recipe_texts import MRPC, SHORTEST, edited, problems


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("training.learning_rate=3e-5", "training.learning_rate", 3e-5),
        ("training.eval_strategy=no", "training.eval_strategy", "no"),
        ("task.text_pair=null", "task.text_pair", None),
        ("task.text_pair=", "task.text_pair", None),
        ("task.label=[a, b]", "task.label", ("a", "b")),
        ("data.splits={train: 'train[:80%]', test: 0.2}", "data.splits", {"train": "train[:80%]", "test": 0.2}),
        ("data.splits.validation=0.2", "data.splits", {"train": "train", "validation": 0.2}),
        ("task.text='a: b = c'", "task.text", "a: b = c"),
        ("output.folder=runs/a=b", "output.folder", "runs/a=b"),
        ("seed=7", "seed", 7),
        ("aids=[]", "aids", ()),
        ("method={type: full}", "method.type", "full"),
    ],
)
def test_overrides_are_yaml_values(write, override, place, value):
    found = load_recipe(write(MRPC), [override])
    for part in place.split("."):
        found = getattr(found, part)
    assert found == value


def test_overrides_make_blocks_and_the_last_word_counts(write):
    recipe = load_recipe(write(SHORTEST), ["training.batch_size=2", "evaluation.best=accuracy", "training.batch_size=4"])
    assert (recipe.training.batch_size, recipe.evaluation.best) == (4, "accuracy")
    assert load_recipe(write(SHORTEST + "training:\n"), ["training.batch_size=2"]).training.batch_size == 2


@pytest.mark.parametrize(
    ("override", "place", "message"),
    [
        ("--resume", "--resume", "is not an override; expected `key=value`, such as training.learning_rate=3e-5."),
        ("seed", "seed", "is not an override; expected `key=value`, such as training.learning_rate=3e-5."),
        ("=3", "=3", "is not an override; expected `key=value`, such as training.learning_rate=3e-5."),
        ("a..b=3", "a..b=3", "is not an override; expected `key=value`, such as training.learning_rate=3e-5."),
        ("seed.x=1", "seed.x", "can't be set: seed is not a block of fields, but 3."),
        ("task.text.x=1", "task.text.x", "can't be set: task.text is not a block of fields, but 'sentence1'."),
        ("aids.patience=1", "aids.patience",
         "can't be set: aids is not a block of fields, but [{'type': 'early_stopping', 'patience': 2}]."),
        ("task.text=[a", "task.text",
         "can't be read as YAML: expected ',' or ']', but got '<stream end>'. Put it in quotes if it is text."),
        ("task.text=2001-01-01", "task.text", "is a date (2001-01-01); put it in quotes if it is text."),
        ("task.text=a: b", "task.text",
         "must be one value, [a list] or {a: mapping}; got 'a: b'. Put it in quotes if it is text."),
        ("method.rr=3", "method.rr", "is not a field of lora. Did you mean `r`?"),
        ("trainig.batch_size=3", "trainig", "is not a field of a recipe. Did you mean `training`?"),
        ("training.output_dir=x", "training.output_dir", "belongs to `output.folder`."),
    ],
)  # fmt: skip
def test_a_wrong_override_is_a_problem_like_any_other(write, override, place, message):
    assert problems(write(MRPC), override) == [("override", place, message)]


@pytest.mark.parametrize(
    "overrides",
    [["data.dataset=imdb", "data.config=plain"], ["data.config=plain", "data.dataset=imdb"]],
)
def test_another_data_set_clears_what_the_file_says_of_its_own_but_no_override(write, overrides):
    path = write(edited("config: mrpc", "config: mrpc\n  revision: x\n  data_files: a\n  data_dir: b\n  group: g"))
    data = load_recipe(path, overrides).data
    assert (data.dataset, data.config, data.revision, data.data_files) == ("imdb", "plain", None, None)
    assert (data.data_dir, data.splits, data.group) == (None, {}, "g")


@pytest.mark.parametrize("overrides", [["method.type=full"], ["method.type=lora", "method.type=full"]])
def test_another_type_clears_the_rest_of_the_block(write, overrides):
    path = write(MRPC)
    assert load_recipe(path, overrides).method.model_dump() == {"type": "full"}
    assert load_recipe(path, ["method.type=lora"]).method.model_dump()["r"] == 4
    mended = load_recipe(write(edited("type: lora", "type: full"), "b.yaml"), ["method.type=lora", "method.alpha=2"])
    assert mended.method.model_dump()["alpha"] == 2


def test_another_task_clears_the_columns_of_the_first(write):
    path = write(edited("type: sequence_classification\n  text: sentence1", "type: other\n  words: tokens\n  zzz: 1"))
    task = load_recipe(path, ["task.text=a", "task.type=sequence_classification"]).task
    assert (task.text, task.text_pair) == ("a", None)  # type: ignore


def test_another_checkpoint_clears_the_revision(write):
    path = write(MRPC)
    assert load_recipe(path, ["model.checkpoint=a"]).model.revision is None
    assert load_recipe(path, ["model.revision=v1", "model.checkpoint=a"]).model.revision == "v1"
    assert load_recipe(path).model.revision == "main"
