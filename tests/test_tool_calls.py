"""Conversations with tools, calls and thoughts are written as transformers writes them, and what the assistant writes carries
loss: as the templates' own `generation` blocks say."""

import datetime
import json
import re
import shutil
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoTokenizer

import hf_sft
from hf_sft.block import load_kind
from hf_sft.models import reload_check as certificate
from hf_sft.tasks.common.chat_templates import ChatTemplate
from hf_sft.tasks.common.conversations import flaw_of_talk, read_turns
from hf_sft.tasks.common.generation import Writing
from tests import tiny
from tests.chat_cases import tokenizer

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}{{- messages[0].content + '\\n\\n' }}{%- endif %}
    {{- "# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" %}
        {%- set ns.multi_step_tool = false %}{%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}GENERATION
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if (loop.first and content) or (not loop.first) %}{{- '\\n' }}{%- endif %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name + '", "arguments": ' }}
            {{- tool_call.arguments if tool_call.arguments is string else tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>' }}ENDGENERATION{{- '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' + content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
LLAMA = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" + message.content + "<|eot_id|>" }}
    {%- elif 'tool_calls' in message %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}GENERATION
        {{- '{"name": "' + call.name + '", "parameters": ' }}{{- call.arguments | tojson }}{{- "}<|eot_id|>" }}ENDGENERATION
    {%- elif message.role == 'assistant' %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}GENERATION
        {{- message.content | trim + '<|eot_id|>' }}ENDGENERATION
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
        {%- if tools and loop.first %}{{- 'Functions:\\n' + (tools | tojson) + '\\n' }}{%- endif %}
        {{- message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""
MISTRAL = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == 'user' %}
        {%- if tools and loop.first %}{{- '[TOOLS] ' + (tools | tojson) + '[/TOOLS]' }}{%- endif %}
        {{- '[INST] ' + message.content + '[/INST]' }}
    {%- elif message.tool_calls %}GENERATION
        {{- '[CALLS] [' }}
        {%- for call in message.tool_calls %}{{- call.function | tojson }}{{- ', ' if not loop.last }}{%- endfor %}
        {{- ']' + eos_token }}ENDGENERATION
    {%- elif message.role == 'assistant' %}GENERATION{{- ' ' + message.content | trim + eos_token }}ENDGENERATION
    {%- else %}{{- '[RESULTS] ' + message.content + '[/RESULTS]' }}
    {%- endif %}
{%- endfor %}"""
TEMPLATES = {"qwen": QWEN, "llama": LLAMA, "mistral": MISTRAL}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"Looks up {name}",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
    for name in ("weather", "time")
]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def user(said: str) -> dict[str, Any]:
    return {"role": "user", "content": said}


def assistant(said: str = "", calls: list | None = None, thought: str | None = None) -> dict[str, Any]:
    turn: dict[str, Any] = {"role": "assistant", "content": said}
    turn |= {"tool_calls": calls} if calls else {}
    return turn | ({"reasoning_content": thought} if thought else {})


def result(said: str) -> dict[str, Any]:
    return {"role": "tool", "content": said}


ROME, PARIS = call("weather", city="Rome", days=2), call("time", city="Paris é")
TALKS: dict[str, tuple[list[dict[str, Any]], list | None, set[str]]] = {
    "one call": ([user("Rome?"), assistant("", [ROME])], TOOLS, {*TEMPLATES}),
    "call and answer": ([user("Rome?"), assistant("", [ROME]), result("12"), assistant("It is 12.")], TOOLS, {*TEMPLATES}),
    "words and call": ([user("Rome?"), assistant("Let me see.", [ROME]), result("12"), assistant("12.")], TOOLS, {"qwen"}),
    "parallel": (
        [user("Both?"), assistant("", [ROME, PARIS]), result("12"), result("noon"), assistant("12, noon.")],
        TOOLS,
        {"qwen", "mistral"},
    ),
    "several steps": (
        [user("Rome?"), assistant("", [ROME]), result("12"), assistant("", [PARIS]), result("1"), assistant("Done.")],
        TOOLS,
        {*TEMPLATES},
    ),
    "two questions": (
        [user("Rome?"), assistant("", [ROME]), result("12"), assistant("12."), user("Paris?"), assistant("", [PARIS])],
        TOOLS,
        {*TEMPLATES},
    ),
    "without arguments": ([user("Now?"), assistant("", [call("time")])], TOOLS, {*TEMPLATES}),
    "no tools named": ([user("Now?"), assistant("", [call("time")]), result("1"), assistant("One.")], None, {*TEMPLATES}),
    "thought": ([user("2 + 2?"), assistant("4", thought="easy\\nindeed")], None, {"qwen"}),
    "thought and call": (
        [user("Rome?"), assistant("", [ROME], "look"), result("12"), assistant("12.", thought="so")],
        TOOLS,
        {"qwen"},
    ),
    "thoughts inside": ([user("2 + 2?"), assistant("<think>\n easy\n</think>\n\n4")], None, {"qwen"}),
    "tools unused": ([user("Hello"), assistant("Hi, how are you?")], TOOLS, {*TEMPLATES}),
}
CASES = [(name, template) for name, (_, _, templates) in TALKS.items() for template in sorted(templates)]


def task(**fields: Any) -> Any:
    return load_kind("tasks", "chat").model_validate({"type": "chat", **fields})


def processor_of(template: str, blocks: bool = False) -> Any:
    made = tokenizer()
    made.model_max_length = 4096
    marks = ("{%- generation %}", "{%- endgeneration %}") if blocks else ("", "")
    made.chat_template = TEMPLATES[template].replace("ENDGENERATION", marks[1]).replace("GENERATION", marks[0])
    return made


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
    answers = hf_sft.predict(tmp_path / "run", made[:2], writing=Writing(3))
    assert [answer["reference"] for answer in answers] == ["the bank", "the goal"]


WRITING = [("gpt2", "talks", "full"), ("llama", "talks", "lora:kept"), ("gpt2", "texts", "lora:kept"), ("t5", "pairs", "full")]


@pytest.mark.parametrize(("family", "problem", "method"), WRITING)
def test_the_certificate_asks_for_a_written_answer(family, problem, method, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", problem, train=20)
    report = hf_sft.train(tiny.recipe(checkpoints[family], files, tmp_path / "run", method, task=tiny.task_of(problem)))
    assert report.facts["certificate"]["same_text"] and report.facts["certificate"]["within"]
    settings = tmp_path / "run" / "generation_config.json"
    said = json.loads((tmp_path / "run" / "probes" / "asked.json").read_text())["written"]
    first = said[-1]
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "suppress_tokens": [first]}))
    facts = certificate.begin(tmp_path / "run", tmp_path / "run", "cpu")()
    assert not facts["same_text"] and not facts["within"]
    with pytest.raises(hf_sft.CheckpointError, match="does not write as the model did that was trained"):
        certificate.require(facts, tmp_path / "run")


def test_an_adapter_that_ends_turns_by_another_token_than_its_base_does_so_by_the_card_s_lines(checkpoints, tmp_path):
    base, end = tmp_path / "base", "song"
    shutil.copytree(checkpoints["llama"], base)
    processor = AutoTokenizer.from_pretrained(base)
    processor.add_special_tokens({"additional_special_tokens": [end]})
    processor.save_pretrained(base)
    (tmp_path / "mine.jinja").write_text(f"{{% for m in messages %}}{{{{ m.content }}}}{end}{{% endfor %}}")
    files = tiny.write_rows(tmp_path / "data", "talks", train=20)
    block = {**tiny.task_of("talks"), "chat_template": str(tmp_path / "mine.jinja")}
    hf_sft.train(tiny.recipe(base, files, tmp_path / "run", "lora:kept", task=block))
    snippet = re.search(r"```python\n(.*?)```", (tmp_path / "run" / "README.md").read_text(), re.S)
    assert snippet is not None
    scope: dict[str, Any] = {}
    exec(snippet[1].rpartition("\nanswer(")[0], scope)
    ends = scope["model"].generation_config.eos_token_id
    assert processor.convert_tokens_to_ids(end) in ends


CLOCKED = (
    "{% if strftime_now is defined %}{% set day = strftime_now('%d %b %Y') %}"
    "{% else %}{% set day = '26 Jul 2024' %}{% endif %}"
    "{{ day + '\\n' }}{% for m in messages %}{{ m.content }}{{ eos_token if m.role == 'assistant' else '\\n' }}{% endfor %}"
)


@pytest.mark.parametrize("own", [True, False])
def test_a_template_with_a_clock_writes_the_day_of_training_ever_after(own, checkpoints, tmp_path):
    shutil.copytree(checkpoints["gpt2"], tmp_path / "checkpoint")
    (tmp_path / "mine.jinja").write_text(CLOCKED)
    if own:
        (tmp_path / "checkpoint" / "chat_template.jinja").write_text(CLOCKED)
    files = tiny.write_rows(tmp_path / "data", "talks", train=20)
    block = {"type": "chat", "max_length": 32} | ({} if own else {"chat_template": str(tmp_path / "mine.jinja")})
    made = tiny.recipe(tmp_path / "checkpoint", files, tmp_path / "run", task=block, training={"max_steps": 1})
    report = hf_sft.train(made)
    today = datetime.date.today()
    recipe = hf_sft.load_recipe(tmp_path / "run" / "recipe.yaml")
    assert recipe.task.date == today.isoformat()
    assert any(f"the chat template writes the date: {today.isoformat()}" in w for w in report.facts["data"]["warnings"])
    saved = AutoTokenizer.from_pretrained(tmp_path / "run")
    assert "strftime_now(" not in saved.chat_template
    assert saved.apply_chat_template([user("a")], tokenize=False).startswith(today.strftime("%d %b %Y"))
    made["task"]["date"], made["output"]["folder"] = "2020-02-03", str(tmp_path / "other")
    hf_sft.train(made)
    saved = AutoTokenizer.from_pretrained(tmp_path / "other")
    assert saved.apply_chat_template([user("a")], tokenize=False).startswith("03 Feb 2020")


def test_a_clock_whose_format_is_no_text_is_refused():
    from hf_sft.tasks.common.named_templates import stop_clock

    with pytest.raises(hf_sft.CheckpointError, match="by a format that is no plain text"):
        stop_clock("{{ strftime_now(wanted) }}", "2026-11-29")


def test_an_unfinished_run_goes_on_with_the_date_on_which_it_began(tmp_path):
    from hf_sft.runs.resume import with_date_of

    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    record = {"recipe": {"task": {"type": "chat", "date": "2020-02-03"}}}
    (tmp_path / "run" / "checkpoints" / "run.json").write_text(json.dumps(record))
    made = tiny.recipe(tmp_path, {"train": "x"}, tmp_path / "run", task={"type": "chat"})
    assert with_date_of(hf_sft.Recipe.model_validate(made), tmp_path / "run").task.model_dump()["date"] == "2020-02-03"
    made["task"]["date"] = "2021-01-01"
    assert with_date_of(hf_sft.Recipe.model_validate(made), tmp_path / "run").task.model_dump()["date"] == "2021-01-01"


@pytest.mark.parametrize("cell", ["weather(city)", '{"name": "weather"}', '["weather"]', ["weather"]])
def test_tools_that_are_none_are_named_with_their_rows(cell):
    good = TALKS["one call"][0]
    rows = Dataset.from_dict({"messages": [good, good], "tools": ["", cell] if isinstance(cell, str) else [[], cell]})
    (found,) = task().invalid_rows(rows, None).items()
    assert found[0].startswith("column `tools` holds no list of JSON schemas") and found[1] == [1]
