"""Each problem of a recipe is one message, all at once, with what fits."""

import random
import re
import string
from textwrap import dedent

import pytest

import hf_sft
from hf_sft.block import list_kinds, load_kind
from hf_sft.config.training import OWNED
from hf_sft.errors import RecipeError
from hf_sft.recipe.recipe import load_recipe
from tests import ROOT, tiny
from tests.unit.recipe.recipe_texts import MRPC, SHORTEST, complaint, edited, problems

RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))


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
