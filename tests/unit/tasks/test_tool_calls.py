"""Conversations with tools are written as transformers writes them, and the loss is on what the assistant writes."""

import json
from typing import Any

import pytest
from datasets import Dataset

import hf_sft
from hf_sft.block import load_kind
from hf_sft.tasks.common.chat_templates import ChatTemplate
from hf_sft.tasks.common.conversations import flaw_of_talk, read_turns
from hf_sft.tasks.common.generation import GenerationOptions
from tests import tiny
from tests.chat_cases import tokenizer
from tests.unit.tasks.tool_call_cases import TALKS, TOOLS, assistant, call, processor_of, result, user

CASES = [(name, template) for name, (_, _, templates) in TALKS.items() for template in sorted(templates)]


def task(**fields: Any) -> Any:
    return load_kind("tasks", "chat").model_validate({"type": "chat", **fields})


def encode(processor: Any, turns: list[dict[str, Any]], tools: list | None = None, **fields: Any) -> dict[str, Any]:
    cells = {"messages": [turns], **({"tools": [tools]} if tools else {})}
    return {name: column[0] for name, column in task(**fields).encode(cells, processor, None).items()}


@pytest.mark.parametrize(("name", "template"), CASES)
def test_tokens_and_loss_are_those_of_transformers(name, template):
    turns, tools, _ = TALKS[name]
    found = encode(processor_of(template), turns, tools)
    blocks = processor_of(template, blocks=True)
    theirs = blocks.apply_chat_template(turns, tools=tools, return_dict=True, return_assistant_tokens_mask=True)
    assert found["flaw"] == "" and found["input_ids"] == theirs["input_ids"]
    assert found["loss_mask"] == theirs["assistant_masks"]
    ended = [i for i, carries in enumerate(found["loss_mask"]) if carries and not [*found["loss_mask"], 0][i + 1]]
    assert {found["input_ids"][i] for i in ended} == {ChatTemplate(blocks).end_id}


OPENAI = [
    {"id": "1", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"city": "Rome", "days": 2})}}
]

SHARED = [
    {"from": "human", "value": "Rome?"},
    {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Rome", "days": 2}})},
    {"from": "observation", "value": "12"},
    {"from": "gpt", "value": "It is 12."},
]


@pytest.mark.parametrize(
    "turns",
    [
        [user("Rome?"), {"role": "assistant", "content": None, "tool_calls": OPENAI}, result("12"), assistant("It is 12.")],
        [
            user("Rome?"),
            assistant("", [{"name": "weather", "arguments": {"city": "Rome", "days": 2}}]),
            *TALKS["call and answer"][0][2:],
        ],
        SHARED,
        [{**turn, "tool_calls": turn.get("tool_calls"), "name": None} for turn in TALKS["call and answer"][0]],
        [{"role": "Human", "content": "Rome?"}, *TALKS["call and answer"][0][1:]],
    ],
)
@pytest.mark.parametrize("tools", [TOOLS, json.dumps(TOOLS)])
def test_calls_are_read_in_every_form(turns, tools):
    wanted, _, _ = TALKS["call and answer"]
    processor = processor_of("qwen")
    assert flaw_of_talk(read_turns(turns)) is None
    found, same = encode(processor, turns, tools), encode(processor, wanted, TOOLS)
    assert (found["input_ids"], found["loss_mask"]) == (same["input_ids"], same["loss_mask"])


def test_what_a_table_adds_to_arguments_of_other_rows_is_not_written(tmp_path):
    """Arrow gives all mappings of a column the same keys."""
    rows = Dataset.from_list([{"messages": TALKS[name][0], "tools": TOOLS} for name in ("one call", "without arguments")])
    processor = processor_of("qwen")
    encoded = task().encode(rows[:], processor, None)
    for name, ids in zip(("one call", "without arguments"), encoded["input_ids"], strict=True):
        assert ids == encode(processor, TALKS[name][0], TOOLS)["input_ids"]


@pytest.mark.parametrize(
    ("template", "turns", "tools", "flaw"),
    [
        ("chatml", TALKS["one call"][0], None, "has tool calls that the chat template drops"),
        ("chatml", [user("a"), assistant("b")], TOOLS, "comes with tools that the chat template drops"),
        ("chatml", TALKS["thought"][0], None, "has thoughts in a turn of `assistant` that the chat template drops"),
        ("llama", TALKS["words and call"][0], TOOLS, "has a turn of `assistant` that the chat template drops"),
    ],
)
def test_what_a_template_can_not_write_is_named(template, turns, tools, flaw):
    fields = {"chat_template": "chatml"} if template == "chatml" else {}
    processor = tokenizer() if fields else processor_of(template)
    assert encode(processor, turns, tools, **fields)["flaw"] == flaw


def test_thoughts_before_earlier_answers_that_a_template_leaves_out_are_counted():
    turns = [user("a"), assistant("b", thought="c"), user("d"), assistant("e", thought="f")]
    found = encode(processor_of("qwen"), turns)
    assert found["flaw"] == "" and found["forgotten"]


@pytest.mark.parametrize(
    ("key", "off", "on"), [("weight", 0, 1), ("train", False, True), ("loss", False, None), ("trainable", "false", "true")]
)
def test_a_turn_that_is_switched_off_carries_no_loss_and_is_counted(key, off, on):
    turns = [user("Hello"), {**assistant("Hi"), key: off}, user("Fine?"), {**assistant("Good"), key: on}]
    plain = [{k: v for k, v in turn.items() if k != key} for turn in turns]
    processor, how = tokenizer(), {"chat_template": "chatml"}
    found, whole = encode(processor, turns, **how), encode(processor, plain, **how)
    first = encode(processor, plain[:2], **how)
    assert found["input_ids"] == whole["input_ids"] and sum(found["loss_mask"]) < sum(whole["loss_mask"])
    cut = max(i for i, carries in enumerate(first["loss_mask"]) if carries)
    assert not any(found["loss_mask"][: cut + 1]) and found["loss_mask"][cut + 1 :] == whole["loss_mask"][cut + 1 :]
    _, _, notes = task().resolve({"train": Dataset.from_list([{"messages": turns}])})
    assert any("1 of 2 turns of the assistant in split `train` carry no loss" in note for note in notes)


def test_a_system_column_is_the_first_turn_of_conversations_without_one():
    processor, turns = processor_of("qwen"), [user("Hello"), assistant("Hi")]
    system = {"role": "system", "content": "Be good."}
    cells = {"messages": [turns, [system, *turns], turns], "system": ["Be good.", "Be bad.", ""]}
    encoded = task().encode(cells, processor, None)["input_ids"]
    assert encoded[0] == encoded[1] == encode(processor, [system, *turns])["input_ids"] != encoded[2]
    assert task(system=None).encode(cells, processor, None)["input_ids"][0] == encoded[2]


@pytest.mark.parametrize("spelled", ["a <|im_end|> b", "<|im_start|>user\nHello<|im_end|>", "</s>", "<s><s>"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_control_tokens_that_data_spells_stay_text_and_are_counted(spelled, role):
    processor = processor_of("qwen")
    said = {"user": "Hello", "assistant": "Hi", role: spelled}
    turns = [user(said["user"]), assistant(said["assistant"])]
    found, plain = encode(processor, turns), encode(processor, [user("Hello"), assistant("Hi")])
    control = set(processor.all_special_ids)
    assert [i for i in found["input_ids"] if i in control] == [i for i in plain["input_ids"] if i in control]
    assert found["spelled"] and not plain["spelled"]
    own = [i for i, carries in zip(found["input_ids"], found["loss_mask"], strict=True) if carries]
    assert processor.decode(own).endswith(said["assistant"] + "<|im_end|>")
    assert processor.decode(found["input_ids"]) == processor.apply_chat_template(turns, tokenize=False)


def test_a_prompt_that_spells_control_tokens_is_asked_as_it_is_taught():
    processor = processor_of("qwen")
    turns = [user("<|im_end|> Hello"), assistant("Hi")]
    found = encode(processor, turns)
    start = found["loss_mask"].index(1)
    asked = task()._ask(task()._template(processor), read_turns(turns), None, processor, 512)
    assert asked == found["input_ids"][:start]


@pytest.mark.parametrize(
    ("content", "flaw"),
    [
        ([{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}], None),
        ([{"type": "image", "url": "x.png"}, {"type": "text", "text": "lo"}], "a part of type `image`: only text is read"),
        ([{"type": "input_audio", "input_audio": "x"}], "a part of type `input_audio`"),
    ],
)
def test_parts_of_text_are_joined_and_others_are_named(content, flaw):
    turns = read_turns([{"role": "user", "content": content}, assistant("Hi")])
    assert turns[0]["content"] == "Hello" if flaw is None else flaw in str(flaw_of_talk(turns))


def test_roles_that_are_unknown_are_named_with_those_that_are_expected():
    turns = read_turns([{"role": "Question", "content": "a"}, {"role": "Answer", "content": "b"}])
    assert flaw_of_talk(turns) == "has the roles Question, Answer: expected user and assistant, and system or tool"


def test_an_end_token_that_is_added_and_not_special_ends_a_turn():
    from tokenizers import AddedToken

    made = tokenizer()
    made.add_tokens([AddedToken("<|done|>", special=False)])
    made.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}<|done|>\n{% endfor %}"
    found = encode(made, [user("a"), assistant("b")])
    assert found["input_ids"][max(i for i, carries in enumerate(found["loss_mask"]) if carries)] == ChatTemplate(made).end_id
    assert made.convert_ids_to_tokens(ChatTemplate(made).end_id) == "<|done|>"


def test_a_run_with_tools_is_trained_scored_and_asked(checkpoints, tmp_path):
    template = (
        "{% if tools %}{{ tools[0].function.name }}\n{% endif %}{% for m in messages %}"
        "{% if m.tool_calls %}{% for c in m.tool_calls %}song {{ c.function.name }} {% endfor %}{{ eos_token }}"
        "{% else %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '\n' }}{% endif %}{% endfor %}"
    )
    (tmp_path / "mine.jinja").write_text(template)
    tool, asked = [{"type": "function", "function": {"name": name}} for name in ("goal", "match")], ["the", "a", "its"]
    answers = [
        [assistant("", [call("goal", place="bank")]), result("law"), assistant("the bank")],
        [assistant("", [call("goal"), call("match", on=1)]), result("a"), result("law"), assistant("the goal")],
        [assistant("the market fell")],
    ]
    made = [
        {"messages": [user(f"{asked[k]} {tiny.WORDS[i]}"), *turns], "tools": json.dumps(tool)}
        for i in range(10)
        for k, turns in enumerate(answers)
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    recipe = tiny.recipe(checkpoints["gpt2"], {}, tmp_path / "run", training={"max_steps": 1})
    recipe |= {
        "data": {"dataset": str(tmp_path / "a.jsonl")},
        "task": {"type": "chat", "chat_template": str(tmp_path / "mine.jinja")},
    }
    report = hf_sft.train(recipe)
    assert report.metrics["test"]["loss"]["value"] > 0
    answers = hf_sft.predict(tmp_path / "run", made[:2], writing=GenerationOptions(3))
    assert [answer["reference"] for answer in answers] == ["the bank", "the goal"]


@pytest.mark.parametrize("cell", ["weather(city)", '{"name": "weather"}', '["weather"]', ["weather"]])
def test_tools_that_are_none_are_named_with_their_rows(cell):
    good = TALKS["one call"][0]
    rows = Dataset.from_dict({"messages": [good, good], "tools": ["", cell] if isinstance(cell, str) else [[], cell]})
    (found,) = task().invalid_rows(rows, None).items()
    assert found[0].startswith("column `tools` holds no list of JSON schemas") and found[1] == [1]
