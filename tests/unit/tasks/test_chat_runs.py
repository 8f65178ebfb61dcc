"""Runs on conversations: what is asked after saving, the token that ends a turn, templates with a clock."""

import datetime
import json
import re
import shutil
from typing import Any

import pytest
from transformers import AutoTokenizer

import hf_sft
from hf_sft.models import reload_check
from tests import tiny
from tests.unit.tasks.tool_call_cases import user

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
    facts = reload_check.start(tmp_path / "run", tmp_path / "run", "cpu")()
    assert not facts["same_text"] and not facts["within"]
    with pytest.raises(hf_sft.CheckpointError, match="does not write as the model did that was trained"):
        reload_check.require(facts, tmp_path / "run")


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
