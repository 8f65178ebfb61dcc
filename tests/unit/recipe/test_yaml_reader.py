"""YAML is read as 1.2 has it; what goes beyond plain values is refused on its line."""

import pytest

from hf_sft.errors import RecipeError
from hf_sft.recipe.recipe import load_recipe
from hf_sft.recipe.yaml_reader import NotYaml, read_scalar, read_yaml
from tests.unit.recipe.recipe_texts import MRPC, complaint, edited, problems


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


def test_lines_are_those_of_the_keys():
    document = read_yaml("a:\n  b: [1,\n    2]\nc:\n  - x\n  - d: 3\n")
    assert document.lines == {
        ("a",): 1, ("a", "b"): 2, ("a", "b", 0): 2, ("a", "b", 1): 3,
        ("c",): 4, ("c", 0): 5, ("c", 1): 6, ("c", 1, "d"): 6,
    }  # fmt: skip
    with pytest.raises(NotYaml, match="second document"):
        read_yaml("a\n---\nb\n")
