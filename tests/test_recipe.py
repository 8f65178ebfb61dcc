"""What a recipe may say, and what is said about those that say something else."""

import random
import re
import string
from pathlib import Path
from textwrap import dedent

import pytest

import hf_sft
from hf_sft.block import list_kinds, load_kind
from hf_sft.config.training import OWNED
from hf_sft.errors import RecipeError
from hf_sft.recipe.recipe import Recipe, dump_recipe, load_recipe
from hf_sft.recipe.schema import schema
from hf_sft.recipe.yaml_reader import NotYaml, read_scalar, read_yaml
from hf_sft.tasks.sequence_classification import SequenceClassification
from tests import tiny

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))

MRPC = """\
model:
  checkpoint: google-bert/bert-base-uncased
  revision: main
data:
  dataset: nyu-mll/glue
  config: mrpc
  splits: {train: train, validation: 0.1}
task:
  type: sequence_classification
  text: sentence1
  text_pair: sentence2
method:
  type: lora
  r: 4
aids:
  - {type: early_stopping, patience: 2}
training:
  batch_size: 16
  learning_rate: 2e-4
evaluation:
  metrics: [accuracy, f1_macro]
  best: f1_macro
output:
  folder: runs/mrpc
seed: 3
"""
SHORTEST = """\
model: {checkpoint: bert}
data: {dataset: glue}
task: {type: sequence_classification}
method: {type: head_only}
output: {folder: run}
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a recipe into an empty folder and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write_recipe(text: str | bytes, name: str = "mrpc.yaml") -> str:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write_recipe


def edited(old: str, new: str, text: str = MRPC) -> str:
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the recipe"
    return text.replace(old, new)


def complaint(path: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, overrides)
    return str(raised.value)


def problems(path: str, *overrides: str) -> list[tuple[str, str, str]]:
    """The rows of a complaint: line, place, message."""
    return [tuple(re.split(r"  +", row.strip(), maxsplit=2)) for row in complaint(path, *overrides).splitlines()[2:]]  # type: ignore


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


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("2e-5", 2e-5), ("1.", 1.0), (".5", 0.5), ("-3", -3), ("+3", 3), ("012", 12), ("0o14", 12), ("0x1F", 31),
        ("no", "no"), ("yes", "yes"), ("on", "on"), ("1_000", "1_000"), ("12:30", "12:30"), ("0b11", "0b11"),
        ("true", True), ("False", False), ("null", None), ("~", None), ("", None), ("NULL", None), ("nULL", "nULL"),
        ("-.inf", float("-inf")), ("e5", "e5"), ("1e5x", "1e5x"), (".", "."), ("9" * 5000, float("inf")),
    ],
)  # fmt: skip
def test_scalars_are_read_as_yaml_1_2(written, read):
    assert repr(read_scalar(written)) == repr(read)


def test_quoted_and_block_scalars_are_text():
    assert read_yaml("a: '2e-5'\nb: \"null\"\nc: |\n  12\nd: >-\n  true\n").value == {
        "a": "2e-5", "b": "null", "c": "12\n", "d": "true",
    }  # fmt: skip


def test_all_problems_come_at_once_in_one_table(write):
    path = write(edited("text_pair", "text_par", edited("r: 4", "r: eight")))
    assert complaint(path) == dedent("""\
        mrpc.yaml is not a valid recipe (2 problems):

          line 11  task.text_par  is not a field of sequence_classification. Did you mean `text_pair`?
          line 14  method.r       must be a whole number of at least 1; got 'eight'.""")


def test_one_problem_is_counted_as_one_and_overrides_come_last(write):
    assert complaint(write(MRPC), "seed=-1") == dedent("""\
        mrpc.yaml is not a valid recipe (1 problem):

          override  seed  must be a whole number of at least 0 and of at most 4000000000; got -1.""")
    rows = problems(write(edited("batch_size: 16", "batch_size: 0")), "model.checkpoint=5", "method.r=0")
    assert [row[:2] for row in rows] == [
        ("line 18", "training.batch_size"), ("override", "model.checkpoint"), ("override", "method.r"),
    ]  # fmt: skip


WRONG_VALUES = [
    ("checkpoint: google-bert/bert-base-uncased", "checkpoint: 5", "model.checkpoint",
     "must be text; got 5. Put it in quotes."),
    ("config: mrpc", "config: true", "data.config", "must be text; got true. Put it in quotes."),
    ("text: sentence1", "text: null", "task.text", "must be text or a list of texts; got null."),
    ("r: 4", "r: 2.5", "method.r", "must be a whole number of at least 1; got 2.5."),
    ("r: 4", "r: 0", "method.r", "must be a whole number of at least 1; got 0."),
    ("r: 4", "alpha: much", "method.alpha", "must be a number above 0; got 'much'."),
    ("r: 4", "dropout: 1", "method.dropout", "must be a number of at least 0 and below 1; got 1."),
    ("r: 4", "merge: perhaps", "method.merge", "must be true or false; got 'perhaps'."),
    ("r: 4", "target_modules: query", "method.target_modules", "must be a list of texts; got 'query'."),
    ("r: 4", "target_modules: [query, 5]", "method.target_modules[1]", "must be text; got 5. Put it in quotes."),
    ("patience: 2", "patience: 0", "aids[0].patience", "must be a whole number of at least 1; got 0."),
    ("batch_size: 16", "eval_strategy: never", "training.eval_strategy",
     "must be one of no, steps, epoch; got 'never'."),
    ("batch_size: 16", "report_to: 5", "training.report_to", "must be text or a list of texts; got 5."),
    ("batch_size: 16", "report_to: [a, 5]", "training.report_to[1]", "must be text; got 5. Put it in quotes."),
    ("batch_size: 16", "micro_batch_tokens: 0", "training.micro_batch_tokens",
     "must be a whole number of at least 1; got 0."),
    ("learning_rate: 2e-4", "learning_rate: .inf", "training.learning_rate",
     "must be a finite number above 0; got inf."),
    ("learning_rate: 2e-4", "learning_rate: .nan", "training.learning_rate",
     "must be a finite number above 0; got nan."),
    ("learning_rate: 2e-4", "learning_rate: {a: 1}", "training.learning_rate",
     "must be a number above 0; got {'a': 1}."),
    ("validation: 0.1", "validation: [0.1]", "data.splits.validation", "must be text or a number; got [0.1]."),
    ("splits: {train: train, validation: 0.1}", "splits: train", "data.splits",
     "must be a mapping of names to text or a number; got 'train'."),
    ("validation: 0.1", "trian: 0.1", "data.splits.trian",
     "must be one of train, validation, test. Did you mean `train`?"),
    ("metrics: [accuracy, f1_macro]", "metrics: accuracy", "evaluation.metrics",
     "must be a list of texts; got 'accuracy'."),
    ("seed: 3", "seed: " + "x" * 100, "seed",
     f"must be a whole number of at least 0 and of at most 4000000000; got '{'x' * 58}…."),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "place", "message"), WRONG_VALUES, ids=[case[1][:40] for case in WRONG_VALUES])
def test_a_wrong_value_gets_one_message_that_says_what_fits(write, old, new, place, message):
    text = edited(old, new)
    line = text[: text.index(new)].count("\n") + 1
    assert problems(write(text)) == [(f"line {line}", place, message)]


@pytest.mark.parametrize("value", ["5", "null", "[]", "sequence_classification"])
@pytest.mark.parametrize("block", ["model", "data", "task", "method", "training", "evaluation", "output"])
def test_a_block_that_is_none_is_refused_as_a_block(write, block, value):
    text = re.sub(rf"^{block}:.*\n", "", SHORTEST, flags=re.M) + f"{block}: {value}\n"
    [(line, place, message)] = problems(write(text))
    assert (line, place) == (f"line {len(text.splitlines())}", block)
    assert re.match(r"must be a block (of fields \(|with a `type`: one of )", message)


def test_a_required_field_points_to_its_block_and_says_what_it_is(write):
    path = write(edited("dataset: nyu-mll/glue", "data_dir: x"))
    [(line, place, message)] = problems(path)
    assert (line, place) == ("line 4", "data.dataset")
    assert message.startswith("is required: A Hub id; a file; csv,")
    rows = problems(write("# only a remark\nseed: 1\n"))
    assert [row[:2] for row in rows] == [("line 1", name) for name in ("model", "data", "task", "method", "output")]
    assert rows[0][2].startswith("is required: Where training starts")


def test_a_misspelt_required_field_is_one_problem_not_two(write):
    path = write(edited("dataset:", "datset:"))
    assert problems(path) == [("line 5", "data.datset", "is not a field of data. Did you mean `dataset`?")]
    path = write(edited("output:", "outptu:"))
    assert problems(path) == [("line 23", "outptu", "is not a field of a recipe. Did you mean `output`?")]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("config: mrpc", "batch_size: 3", "is not a field of data; it belongs to `training`."),
        ("batch_size: 16", "max_length: 3", "is not a field of training; it belongs to `task`."),
        ("batch_size: 16", "r: 3", "is not a field of training; it belongs to `method`."),
        ("batch_size: 16", "revision: a", "is not a field of training; it belongs to `model` or `data`."),
        ("r: 4", "aids: []", "is not a field of lora; it belongs to the top of the recipe (mind the indentation)."),
        ("r: 4", "output_dir: x", "is not a field of lora; it belongs to `output.folder`."),
        ("seed: 3", "learning_rate: 3", "is not a field of a recipe; it belongs to `training`."),
        ("patience: 2", "patince: 2", "is not a field of early_stopping. Did you mean `patience`?"),
        ("learning_rate", "Learning-Rate", "is not a field of training. Did you mean `learning_rate`?"),
        ("hub: x", "zzz: x", "is not a field of output. It has: folder, hub, private, publish_report, hub_checkpoints."),
        ("batch_size: 16", "eval_delay: 1",
         "is a field of transformers.TrainingArguments that is not offered here."),
        ("batch_size: 16", "gradient_checkpointing: true",
         "is a field of transformers.TrainingArguments that is not offered here."
         " Did you mean `activation_checkpointing`?"),
        ("batch_size: 16", "zzz: 1", "is not a field of training."),
    ],
)  # fmt: skip
def test_an_unknown_field_is_sent_where_it_belongs(write, old, new, message):
    text = MRPC.replace("  folder:", "  hub: x\n  folder:")
    [(_, place, said)] = problems(write(edited(old, new, text)))
    assert (place.rpartition(".")[2], said) == (re.split(r"[ :]", new)[0], message)


@pytest.mark.parametrize("name", OWNED)
def test_what_the_house_owns_is_refused_one_by_one_beside_other_problems(write, name):
    rows = problems(write(edited("batch_size: 16", f"{name}: 1\n  batch_size: 0")))
    assert [row[:2] for row in rows] == [("line 18", f"training.{name}"), ("line 19", "training.batch_size")]
    assert re.match("(belongs to|has no place in a recipe:) ", rows[0][2])


def test_owned_fields_say_where_they_belong(write):
    path = write(edited("batch_size: 16", "output_dir: x\n  dataloader_drop_last: true\n  seed: 5"))
    assert [row[1:] for row in problems(path)] == [
        ("training.output_dir", "belongs to `output.folder`."),
        ("training.dataloader_drop_last", "has no place in a recipe: every row is trained on."),
        ("training.seed", "belongs to `seed`, at the top of the recipe."),
    ]


def test_a_wrong_type_is_the_only_problem_of_its_block(write):
    path = write(edited("type: lora\n  r: 4", "type: lroa\n  r: eight\n  zzz: 1"))
    [(line, place, message)] = problems(path)
    assert (line, place) == ("line 13", "method.type")
    assert re.fullmatch(r"must be one of .*\blora\b.*, or a dotted module name; got 'lroa'. Did you mean `lora`\?", message)


@pytest.mark.parametrize(
    ("old", "new", "place", "message"),
    [
        ("type: lora", "tpye: lora", "method", r"needs `type`: one of .*\blora\b.*\."),
        ("type: lora", "type: 5", "method.type", r"needs `type`: one of .*\blora\b.*\."),
        ("type: lora", "type: no_such.module", "method.type", r"names the module `no_such.module`, which can't be .*"),
        ("type: lora", "type: os.path", "method.type", r"names the module `os.path`, which must define one Method; .*"),
        ("{type: early_stopping, patience: 2}", "5", r"aids[0]", r"must be a block with a `type`: one of .*; got 5\."),
        ("- {type: early_stopping, patience: 2}", "type: early_stopping", "aids",
         r"must be a list, each item a block .*"),
    ],
)  # fmt: skip
def test_kinds_are_chosen_by_type(write, old, new, place, message):
    [(_, where, said)] = problems(write(edited(old, new)))
    assert where == place
    assert re.fullmatch(message, said)


def test_best_must_be_among_the_metrics_also_beside_other_problems(write):
    path = write(edited("[accuracy, f1_macro]", "[accuracy]"))
    assert problems(path, "seed=x") == [
        ("line 22", "evaluation.best", "`best: f1_macro` is not among `metrics`."),
        ("override", "seed", "must be a whole number of at least 0 and of at most 4000000000; got 'x'."),
    ]
    assert load_recipe(path, ["evaluation.metrics=null"]).evaluation.best == "f1_macro"


def test_unknown_metrics_are_named_with_the_nearest(write):
    path = write(edited("[accuracy, f1_macro]", "[accuracy, f1_marco]"))
    assert problems(path, "evaluation.best=zzzz")[0] == (
        "line 21", "evaluation.metrics[1]", "must be a metric; got 'f1_marco'. Did you mean `f1_macro`?",
    )  # fmt: skip
    assert re.match("must be a metric; got 'zzzz'. The metrics are accuracy, ", problems(path, "evaluation.best=zzzz")[1][2])


REFUSED = [
    ("text: sentence1", "text: &name sentence1", "task.text",
     "has an anchor (&name), which recipes don't use; leave it out."),
    ("text: sentence1", "text: !!str 5", "task.text",
     "has a tag (tag:yaml.org,2002:str), which recipes don't use; leave it out."),
    ("text: sentence1", "text: !!python/object:os.system x", "task.text",
     "has a tag (tag:yaml.org,2002:python/object:os.system), which recipes don't use; leave it out."),
    ("text: sentence1", "text: 2001-01-01", "task.text", "is a date (2001-01-01); put it in quotes if it is text."),
    ("text: sentence1", "<<: {text: sentence1}", "task.<<",
     "is a merge key, which recipes don't use; write the fields out."),
    ("text: sentence1", "5: a", "task.5", "is a key that is not a word."),
    ("text: sentence1", "true: a", "task.true", "is a key that is not a word."),
    ("text: sentence1", "2001-01-01: a", "task.2001-01-01", "is a key that is not a word."),
    ("text: sentence1", "a b: a", "task.a b", "is a key that is not a word."),
    ("text: sentence1", "[a, b]: a", "task.?", "is a key that is not a word."),
    ("text: sentence1", "&k text: a", "task.text", "is a key with an anchor or a tag; leave them out."),
    ("text: sentence1", "type: a", "task.type", "stands here a second time (column 3); it is on line 9 too."),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "place", "message"), REFUSED, ids=[case[1] for case in REFUSED])
def test_what_yaml_can_do_beyond_plain_values_is_refused_on_its_line(write, old, new, place, message):
    assert problems(write(edited(old, new))) == [("line 10", place, message)]


def test_aliases_are_refused_and_what_they_would_have_been_is_not_missed(write):
    text = edited("dataset: nyu-mll/glue", "dataset: *name", edited("revision: main", "revision: &name main"))
    assert problems(write(text)) == [
        ("line 3", "model.revision", "has an anchor (&name), which recipes don't use; leave it out."),
        ("line 5", "data.dataset", "is an alias (*name); write the value out."),
    ]
    assert [row[1] for row in problems(write(edited("dataset: nyu-mll/glue", "<<: {dataset: a}")))] == ["data.<<"]


def test_refused_yaml_comes_in_the_same_list_as_wrong_values(write):
    text = edited("text: sentence1", "text: 2001-01-01", edited("r: 4", "r: eight"))
    assert [row[:2] for row in problems(write(text))] == [("line 10", "task.text"), ("line 14", "method.r")]
    twice = MRPC + "task:\n  text_par: a\n"
    assert problems(write(edited("text_pair", "text_par", twice.replace("  text_par: a\n", "  a: b\n"))))[0][0] == "line 11"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: [a\nseed: 1\n", "line 2, column 5: expected ',' or ']', but got ':'"),
        (
            "model:\n\tcheckpoint: a\n",
            "line 2, column 1: found character '\\t' that cannot start any token; indent with",
        ),
        ("a: b: c\n", "line 1, column 5: mapping values are not allowed here"),
        ("a: 1\n---\nb: 1\n", "line 2, column 1: a second document starts here; a recipe is one"),
        ("%YAML 1.1\n---\na: no\n", "line 1, column 1: directives (%YAML, %TAG) are not part of a recipe"),
        ("a: 1\nb: \x01\n", "line 2, column 4: special characters are not allowed"),
        ('a: "\\U99999999"\n', "an escape stands for no character"),
        ("a: " + "[" * 30 + "]" * 30, "line 1, column 24: is nested too deeply for a recipe"),
        ("a: @b\n", "line 1, column 4: found character '@' that cannot start any token"),
    ],
)
def test_what_is_not_yaml_is_refused_with_line_and_column(write, text, message):
    said = complaint(write(text))
    assert said.startswith("mrpc.yaml can't be read as YAML: line ")
    assert message in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "mrpc.yaml holds nothing; expected a recipe, a mapping with the blocks `model:`, `data:`,"),
        ("# a remark\n", "mrpc.yaml holds nothing; expected a recipe"),
        ("- model\n", "mrpc.yaml holds a list; expected a recipe"),
        ("model\n", "mrpc.yaml holds a single value; expected a recipe"),
        (b"seed: \xff\n", r"mrpc.yaml is not UTF-8 text \(byte 6\).  Save it as UTF-8."),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(write, text, message):
    with pytest.raises(RecipeError, match=f"^{message}"):
        load_recipe(write(text))


def test_a_missing_file_is_named_with_its_neighbours(write):
    write(MRPC), write(MRPC, "bbc_lora.yaml")
    assert complaint("mrcp.yaml") == "mrcp.yaml: no such file.  Did you mean mrpc.yaml?"
    assert complaint("bbc") == "bbc: no such file.  Did you mean bbc_lora.yaml?"
    assert complaint("zzz.json") == "zzz.json: no such file."
    assert complaint("nowhere/mrpc.yaml") == "nowhere/mrpc.yaml: no such file.  There is no folder nowhere either."
    assert complaint("mrpc.yaml/a") == "mrpc.yaml/a: no such file.  There is no folder mrpc.yaml either."
    assert complaint(".") == ". is a folder; expected a recipe: a YAML file."


def test_a_byte_order_mark_and_windows_line_ends_are_read(write):
    assert load_recipe(write(b"\xef\xbb\xbf" + MRPC.replace("\n", "\r\n").encode())) == load_recipe(write(MRPC, "b.yaml"))


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
        files = Path(__file__).parents[1].joinpath("hf_sft", folder).glob("[!_]*.py")
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


def misspell(word: str) -> list[str]:
    """A word with one letter gone, added or replaced at each place, or with two neighbours exchanged."""
    draw, ends = random.Random(word), range(len(word))
    gone = [word[:i] + word[i + 1 :] for i in ends if len(word) > 1]
    exchanged = [word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in ends[:-1]]
    added = [word[:i] + draw.choice(string.ascii_lowercase) + word[i:] for i in (*ends, len(word))]
    replaced = [word[:i] + draw.choice(string.ascii_lowercase) + word[i + 1 :] for i in ends]
    return [wrong for wrong in dict.fromkeys(gone + exchanged + added + replaced) if wrong != word]


@pytest.mark.skipif(not RECIPES, reason="there are no recipes yet")
def test_misspelt_keys_are_refused_and_the_right_ones_suggested(write):
    """Keys of all recipes, in their blocks, at any of their letters: a thousand, drawn."""
    cases: dict[tuple[str, str, str], tuple[str, int]] = {}
    for path in RECIPES:
        text, block = path.read_text(), ""
        for match in re.finditer(r"(?<=[{,\n]) *(?:- )?(?:\{)? *(\w+)(?=:\s)", text):
            before = text[text.rfind("\n", 0, match.start(1)) + 1 : match.start(1)]
            if not before.lstrip().startswith("#"):
                block = match[1] if not before else block
                for wrong in misspell(match[1]):
                    cases.setdefault((block, match[1], wrong), (text, match.start(1)))
    suggested, drawn = 0, random.Random(0).sample([*cases.items()], 1000)
    for (_, right, wrong), (text, start) in drawn:
        said = complaint(write(text[:start] + wrong + text[start + len(right) :]))
        suggested += f"`{right}`" in said
    assert suggested >= 0.95 * len(drawn)


def test_damaged_recipes_are_read_or_refused_but_never_crash(write):
    draw = random.Random(0)
    marks = "{}[]:,-&*!|>'\"%@`#?~ \n\tnull0.<=é\x00\ud7ff"
    for _ in range(1000):
        text = list(MRPC)
        for _ in range(draw.randint(1, 4)):
            place = draw.randrange(len(text))
            text[place : place + draw.randint(0, 6)] = draw.choices(marks, k=draw.randint(0, 3))
        try:
            load_recipe(write("".join(text)))
        except RecipeError as error:
            assert "\n" in str(error) or "YAML" in str(error) or "holds" in str(error)


def test_lines_are_those_of_the_keys():
    document = read_yaml("a:\n  b: [1,\n    2]\nc:\n  - x\n  - d: 3\n")
    assert document.lines == {
        ("a",): 1, ("a", "b"): 2, ("a", "b", 0): 2, ("a", "b", 1): 3,
        ("c",): 4, ("c", 0): 5, ("c", 1): 6, ("c", 1, "d"): 6,
    }  # fmt: skip
    with pytest.raises(NotYaml, match="second document"):
        read_yaml("a\n---\nb\n")


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"type": "lora", "use_dora": True}, r"method\.use_dora +is not a field of lora: write `variant: dora`"),
        ({"type": "lora", "bias": "all"}, r"method\.bias +is not a field of lora: biases of the body are frozen"),
        ({"type": "lora", "target_modules": "all-linear"}, r"method\.target_modules +leave it out: all linear layers"),
        ({"type": "lora", "lora_dropout": 0.1}, r"Did you mean `dropout`\?"),
    ],
)
def test_peft_s_own_names_are_answered_with_ours(method, message, tmp_path):
    made = tiny.recipe(tmp_path, {"train": "x"}, tmp_path / "run") | {"method": method}
    with pytest.raises(hf_sft.RecipeError, match=message):
        hf_sft.check(made)


def test_an_aid_that_is_not_offered_is_not_named(tmp_path):
    made = tiny.recipe(tmp_path, {"train": "x"}, tmp_path / "run", training={"neftune_noise_alpha": 5})
    with pytest.raises(hf_sft.RecipeError, match=r"noise on embeddings is not among the aids \(`hf-sft list aids`\)"):
        hf_sft.check(made)


@pytest.mark.parametrize(("kinds", "block"), [("tasks", "task"), ("methods", "method"), ("aids", "aids")])
def test_a_kind_is_found_by_the_names_that_others_have_for_it(kinds, block, tmp_path):
    for kind in list_kinds(kinds):
        for name, told in getattr(load_kind(kinds, kind), "other_names", {}).items():
            assert name not in list_kinds(kinds) and any(other in told for other in list_kinds(kinds))
            recipe = tiny.recipe(tmp_path, {}, tmp_path / "run")
            recipe[block] = [{"type": name}] if block == "aids" else {"type": name}
            with pytest.raises(hf_sft.RecipeError, match=f"That is {re.escape(told)}"):
                hf_sft.check(recipe)


@pytest.mark.parametrize("data", [[{"dataset": "a.csv"}, {"dataset": "b.csv"}], {"dataset": ["a.csv", "b.csv"]}])
def test_several_data_sets_are_answered_with_several_files(data, tmp_path):
    made = tiny.recipe(tmp_path, {"train": "x"}, tmp_path / "run") | {"data": data}
    with pytest.raises(hf_sft.RecipeError, match=r"Several files of one kind: `data.data_files: \[ONE, OTHER\]`"):
        hf_sft.check(made)
