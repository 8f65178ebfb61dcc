"""Only what chat must get right: which tokens carry loss, whatever the template, and that the model learns to stop."""

import html
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers.processors import TemplateProcessing
from torch.nn import functional
from transformers import AutoTokenizer, GPT2Config, pipeline

import hf_sft
from hf_sft.block import load_kind
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loading import load_model, load_processor
from hf_sft.runs.prepare import load_run
from hf_sft.tasks.common.chat_templates import ChatTemplate
from hf_sft.tasks.common.generation import GenerationOptions
from tests import tiny
from tests.chat_cases import CASES, TALKS, Turns, sentencepiece, tokenizer


def task(**fields: Any) -> Any:
    return load_kind("tasks", "chat").model_validate({"type": "chat", **fields})


def talk_of(turns: Turns) -> list[dict[str, str]]:
    return [{"role": role, "content": said} for role, said in turns]


@pytest.mark.parametrize("make", [tokenizer, sentencepiece])
@pytest.mark.parametrize("name", CASES)
def test_the_tokens_that_carry_loss_are_those_marked_by_hand(name, make):
    case, processor = CASES[name], make()
    processor.chat_template = case.template
    talks = [turns for turns in TALKS if case.system or turns[0][0] != "system"]
    encoded = task().encode({"messages": [talk_of(turns) for turns in talks]}, processor, None)
    assert encoded["flaw"] == [""] * len(talks)
    for turns, ids, mask in zip(talks, encoded["input_ids"], encoded["loss_mask"], strict=True):
        pieces = case.by_hand(turns)
        text = "".join(said for said, _ in pieces)
        assert ids == processor.apply_chat_template(talk_of(turns), return_dict=False)  # no second first token, and none less
        own = [is_own for said, is_own in pieces for _ in said]
        tokens = processor(text, add_special_tokens=False, return_offsets_mapping=True)
        assert tokens["input_ids"] == ids
        assert mask == [int(any(own[start:end])) for start, end in tokens["offset_mapping"]]
        ended = [i for i, carries in enumerate(mask) if carries and not [*mask, 0][i + 1]]
        assert len(ended) == sum(role == "assistant" for role, _ in turns)
        assert {ids[i] for i in ended} == {ChatTemplate(processor).end_id}
        # What the model is asked by when it answers is what stands before the first token of an answer in training.
        asked = processor.apply_chat_template(talk_of(turns)[:-1], add_generation_prompt=True, return_dict=False)
        start = max(i for i, carries in enumerate(mask) if carries and not [0, *mask][i])
        assert ids[:start] == asked


def test_a_token_across_the_border_carries_loss_and_there_is_one():
    processor = tokenizer()
    processor.chat_template = CASES["vicuna"].template
    encoded = task().encode({"messages": [talk_of(TALKS[0])]}, processor, None)
    tokens = processor.convert_ids_to_tokens(encoded["input_ids"][0])
    first = encoded["loss_mask"][0].index(1)
    assert tokens[first] == "ĠHi" and "".join(tokens[:first]).endswith("ASSISTANT:")


def test_templates_with_generation_blocks_give_what_transformers_gives():
    processor = tokenizer()
    processor.chat_template = (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}{% if message['role'] == 'assistant' %}"
        "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}"
        "{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    talks = [talk_of(turns) for turns in TALKS]
    theirs = processor.apply_chat_template(talks, return_dict=True, return_assistant_tokens_mask=True)
    ours = task().encode({"messages": talks}, processor, None)
    assert ours["input_ids"] == theirs["input_ids"] and ours["loss_mask"] == theirs["assistant_masks"]


@pytest.mark.parametrize(
    ("template", "turns", "flaw"),
    [
        (CASES["gemma"].template, TALKS[3], "is refused by the chat template: System role not supported"),
        (
            CASES["mistral"].template,
            [("tool", "4"), ("assistant", "It is 4")],
            "is refused by the chat template: Conversation",
        ),
        (
            "{% for m in messages %}{% if m.role != 'system' %}<|{{ m.role }}|>{{ m.content }}</s>{% endif %}{% endfor %}",
            TALKS[3],
            "has a turn of `system` that the chat template drops",
        ),
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ m.content }}</s>{% endfor %}",
            TALKS[0],
            "has a turn of `user` that the chat template writes twice",
        ),
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content | lower }}</s>{% endfor %}",
            TALKS[0],
            "has a turn of `user` that the chat template rewrites",
        ),
        (
            "{% for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}</s>{% endfor %}",
            [("user", "2 + 2"), ("assistant", "<think>easy</think>4")],
            "has a turn of `assistant` that the chat template rewrites",
        ),
    ],
)
def test_what_a_template_refuses_drops_or_rewrites_is_named(template, turns, flaw):
    processor = tokenizer()
    processor.chat_template = template
    (found,) = task().encode({"messages": [talk_of(turns)]}, processor, None)["flaw"]
    assert found.startswith(flaw)


def test_a_template_that_does_not_end_a_turn_is_refused():
    processor = tokenizer()
    processor.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(hf_sft.CheckpointError, match="nothing would tell the model to stop"):
        task().encode({"messages": [talk_of(TALKS[0])]}, processor, None)


def test_prompts_and_completions_in_every_form_are_the_same_conversation():
    turns = [{"role": "user", "content": "Say hello"}, {"role": "assistant", "content": "Hello"}]
    others = [{"from": "human", "value": "Say hello"}, {"from": "gpt", "value": "Hello"}]
    assert task().conversations({"messages": [turns]}) == [turns]
    assert task(messages="conversations").conversations({"conversations": [others]}) == [turns]
    assert task(prompt="ask").conversations({"ask": ["Say hello"], "completion": ["Hello"]}) == [turns]
    assert task(prompt="ask").conversations({"ask": [turns[:1]], "completion": [turns[1:]]}) == [turns]
    assert task(prompt="ask").conversations({"ask": ["Say hello"]}) == [turns[:1]]
    alpaca = {"instruction": ["Say hello", "Add"], "input": ["", "1 and 2"], "output": ["Hello", "3"]}
    first, second = task(prompt=["instruction", "input"], completion="output").conversations(alpaca)
    assert first == turns and [turn["content"] for turn in second] == ["Add\n\n1 and 2", "3"]


FLAWS: list[tuple[Any, str]] = [
    (None, "holds no conversation"),
    ([], "holds no conversation"),
    ([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}], "has two turns of `user` in a row"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}], "has an empty turn of `assistant`"),
    ([{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], "has a turn of `assistant` that is null"),
    ([{"role": None, "content": "a"}], "has a turn without a role"),
    ([{"role": "assistant", "content": "a"}], "has nothing that an assistant is asked"),
]


@pytest.mark.parametrize(("talk", "flaw"), FLAWS)
def test_conversations_that_cannot_be_learned_from_are_named(talk, flaw):
    good = talk_of(TALKS[0])
    rows = Dataset.from_dict({"messages": [good, talk, good]})
    (found,) = task().invalid_rows(rows, None).items()
    assert found[0].startswith("column `messages` " + flaw) and found[1] == [1]


def examples_of(encoded: Dataset) -> list[dict[str, Any]]:
    return [encoded[i] for i in range(len(encoded))]


def nats_alone(model: Any, ids: list[int], mask: list[int]) -> float:
    """Of a conversation's own tokens as transformers computes it, by labels of -100 elsewhere."""
    labels = torch.tensor([[token if carries else -100 for token, carries in zip(ids, mask, strict=True)]])
    with torch.no_grad():
        return float(model(torch.tensor([ids]), labels=labels).loss) * sum(mask[1:])


@pytest.mark.parametrize("family", ["gpt2", *tiny.CAUSAL_FAMILIES])
def test_packed_is_unpacked_is_one_conversation_at_a_time(family, checkpoints):
    checkpoint = Checkpoint(checkpoint=str(checkpoints[family]))
    processor, asked = load_processor(checkpoint), task(chat_template="plain", packing=True, max_length=48)
    model = load_model(checkpoint, asked, None, processor).model
    asked, _ = asked.probe(model, processor)
    assert asked.packing
    rows = Dataset.from_list(tiny.rows("talks", 20))
    encoded = Dataset.from_dict(asked.encode(rows[:], processor, None))
    blocks = asked.join(encoded, processor)
    assert len(blocks) < 12 and max(map(len, blocks["lengths"])) > 2
    assert sum(blocks["items"]) == sum(encoded["items"]) == sum(sum(mask) for mask in encoded["loss_mask"])
    alone = sum(nats_alone(model, ids, mask) for ids, mask in zip(encoded["input_ids"], encoded["loss_mask"], strict=True))
    collate = asked.collator(processor)
    for examples in ([examples_of(blocks)], [[each] for each in examples_of(blocks)], [examples_of(encoded)]):
        items = [asked.items(model, collate(part)) for part in examples]
        loss = sum(functional.cross_entropy(each.logits, each.targets, reduction="sum").item() for each in items)
        assert loss == pytest.approx(alone, rel=1e-5)
        assert sum(map(len, items)) == sum(encoded["items"])


@pytest.mark.parametrize(("family", "method"), [("gpt2", "full"), ("llama", "full"), ("llama", "lora:kept")])
def test_a_run_is_scored_on_the_assistant_s_tokens_as_plain_transformers_scores_it(family, method, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "talks", train=40)
    report = hf_sft.train(tiny.recipe(checkpoints[family], files, tmp_path / "run", method, task=tiny.task_of("talks")))
    run = load_run(tmp_path / "run")
    rows = [json.loads(line) for line in Path(files["test"]).read_text().splitlines()]
    encoded = run.task.encode({"messages": [row["messages"] for row in rows]}, run.processor, None)
    pairs = list(zip(encoded["input_ids"], encoded["loss_mask"], strict=True))
    loss = sum(nats_alone(run.model, ids, mask) for ids, mask in pairs) / sum(sum(mask) for _, mask in pairs)
    scores = report.metrics["test"]
    assert scores["loss"]["value"] == pytest.approx(loss, rel=1e-5) and scores["loss"]["low"] < loss < scores["loss"]["high"]
    assert scores["perplexity"]["value"] == pytest.approx(math.exp(loss), rel=1e-5)
    as_it_was = {"checkpoint"} if family == "gpt2" else set()  # the tiny Llama brings no output layer
    assert set(report.facts["baselines"]) == {"unigram", "bigram"} | as_it_was
    assert AutoTokenizer.from_pretrained(tmp_path / "run").chat_template == run.processor.chat_template is not None
    asked = "\n".join(f"{turn['role']}: {turn['content']}" for turn in rows[0]["messages"][:-1])
    page = (tmp_path / "run" / "report.html").read_text()
    assert "What it writes, before and after training" in page and html.escape(asked) in page


def test_a_model_learns_to_answer_and_to_stop(checkpoints, tmp_path):
    """From rows of a prompt and a completion; a pipeline says the same, and stops where we do."""
    files = {}
    for split in ("train", "validation", "test"):
        files[split] = str(tmp_path / f"{split}.jsonl")
        made = [{"ask": f"{a} {b}", "say": f"{b} {a}"} for a in tiny.WORDS[:6] for b in tiny.WORDS[6:12]]
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in made))
    asked = {"type": "chat", "prompt": "ask", "completion": "say", "chat_template": "plain"}
    recipe = tiny.recipe(checkpoints["gpt2"], files, tmp_path / "run", task=asked)
    recipe["training"] |= {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 150, "batch_size": 36}
    report = hf_sft.train(recipe)
    assert report.metrics["test"]["loss"]["value"] < 0.05
    questions = [row["ask"] for row in made[:8]]
    answers = hf_sft.predict(tmp_path / "run", questions)
    assert [each["text"] for each in answers] == [row["say"] for row in made[:8]]
    assert all(each["stopped"] and each["tokens"] == 2 for each in answers)
    assert [each["reference"] for each in hf_sft.predict(tmp_path / "run", made[:8])] == [row["say"] for row in made[:8]]
    answer = pipeline("text-generation", model=str(tmp_path / "run"))
    said = answer([{"role": "user", "content": questions[0]}], max_new_tokens=20)
    assert said[0]["generated_text"][-1]["content"].split() == made[0]["say"].split()


def test_rows_that_end_with_a_question_are_learned_up_to_there_and_others_are_refused(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "talks", train=30)
    rows = [json.loads(line) for line in Path(files["train"]).read_text().splitlines()]
    rows[3]["messages"].append({"role": "user", "content": "again"})
    Path(files["train"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = tiny.recipe(checkpoints["gpt2"], files, tmp_path / "run", task=tiny.task_of("talks"))
    found = hf_sft.check(recipe)
    assert "1 of 30 rows of split `train` end with words that nobody answers: these are left out." in found.warnings
    assert "«" in found.facts["as the model sees it"] and "loss on those in" in found.facts["as the model sees it"]
    rows[5]["messages"] = rows[5]["messages"][:1]
    Path(files["train"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(hf_sft.DataError, match=r"1 row\(s\) of split `train` show nothing that an assistant says.*: 5"):
        hf_sft.check(recipe)
    rows[5]["messages"] = [{"role": "user", "content": "a " * 40}, {"role": "assistant", "content": "good"}]
    Path(files["train"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = hf_sft.train(recipe)  # one of 30 may be cut before its answer
    said = "1 of 30 rows of split `train` are cut before what carries loss, and teach nothing."
    assert said in report.facts["data"]["warnings"]
    Path(files["train"]).write_text("".join(json.dumps(row) + "\n" for row in [*rows[:20], rows[5], rows[5]]))
    with pytest.raises(
        hf_sft.DataError, match=r"3 of 22 rows of split `train` are cut before what carries loss, more than 5%"
    ):
        hf_sft.check(tiny.recipe(checkpoints["gpt2"], files, tmp_path / "other", task=tiny.task_of("talks")))


def test_a_checkpoint_without_a_template_asks_for_one_and_a_file_is_kept_in_the_resolved_recipe(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "talks")
    recipe = tiny.recipe(checkpoints["gpt2"], files, tmp_path / "run", task={"type": "chat"})
    with pytest.raises(hf_sft.CheckpointError, match=r"has no chat template.*\n.*chatml, plain, or a file"):
        hf_sft.check(recipe)
    with pytest.raises(hf_sft.CheckpointError, match=r"`task.chat_template: chatlm` is neither .* Did you mean `chatml`\?"):
        hf_sft.check({**recipe, "task": {"type": "chat", "chat_template": "chatlm"}})
    text = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    (tmp_path / "mine.jinja").write_text(text)
    hf_sft.train({**recipe, "task": {"type": "chat", "chat_template": str(tmp_path / "mine.jinja")}})
    (tmp_path / "mine.jinja").unlink()
    assert hf_sft.load_recipe(tmp_path / "run" / "recipe.yaml").task.model_dump()["chat_template"] == text
    (first,) = hf_sft.predict(tmp_path / "run", ["the goal"], writing=GenerationOptions(5))
    assert first["tokens"] <= 5


def test_a_conversation_that_ends_with_an_answer_is_asked_again_and_known(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "talks", train=30)
    hf_sft.train(tiny.recipe(checkpoints["gpt2"], files, tmp_path / "run", task=tiny.task_of("talks")))
    row = tiny.rows("talks", 1, 201)[0]["messages"]
    asked = [{"messages": row}, {"messages": row[:-1]}, {"messages": None}]
    whole, cut, none = hf_sft.predict(tmp_path / "run", asked, writing=GenerationOptions(6))
    assert whole["reference"] == row[-1]["content"] and cut["reference"] is None and none["text"] is None
    assert whole["text"] == cut["text"]
    with pytest.raises(hf_sft.DataError, match="has two turns of `user` in a row in row\\(s\\) \\[0\\]"):
        hf_sft.predict(tmp_path / "run", [{"messages": [row[0], row[0]]}])


def test_a_question_that_the_template_refuses_is_named():
    processor = tokenizer()
    processor.chat_template = CASES["gemma"].template
    rows = Dataset.from_dict({"messages": [talk_of(TALKS[0]), talk_of(TALKS[3])]})
    with pytest.raises(hf_sft.DataError, match="row 1 can't be answered: it is refused by the chat template: System role"):
        list(task().complete(Silent(), rows, processor, GenerationOptions(10), 1024))


def test_where_there_is_no_room_the_oldest_turns_are_left_out_and_the_system_s_is_not():
    processor, model = tokenizer(), Silent()
    processor.chat_template = CASES["chatml"].template
    processor.model_max_length = 60
    talk = talk_of([("system", "Be good."), *[("user", "Hello there"), ("assistant", "Hi")] * 5, ("user", "How are you?")])
    list(task().complete(model, Dataset.from_dict({"messages": [talk]}), processor, GenerationOptions(10), 1024))
    (prompt,) = model.asked
    shown = [talk[0], *talk[-3:]]
    assert len(prompt) <= 50
    assert prompt == processor.apply_chat_template(shown, add_generation_prompt=True, return_dict=False)
    with pytest.raises(hf_sft.RecipeError, match="60 new tokens leave no room"):
        list(task().complete(model, Dataset.from_dict({"messages": [talk]}), processor, GenerationOptions(60), 1024))


class Silent:
    """A model that ends each answer at once, and knows what it was asked."""

    device, config = "cpu", GPT2Config()

    def generate(self, input_ids: torch.Tensor, eos_token_id: list[int], **_: Any) -> torch.Tensor:
        self.asked = input_ids.tolist()
        return torch.cat([input_ids, torch.full((len(input_ids), 1), eos_token_id[0])], dim=1)


def test_the_plain_template_begins_as_the_tokenizer_does_and_once():
    processor = tokenizer()
    for first in (False, True):
        if first:
            single = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", processor.bos_token_id)])
            processor.backend_tokenizer.post_processor = single
        (ids,) = task(chat_template="plain").encode({"messages": [talk_of(TALKS[0])]}, processor, None)["input_ids"]
        assert ids.count(processor.bos_token_id) == int(first) and (ids[0] == processor.bos_token_id) is first


def test_what_a_template_refuses_comes_with_its_rows(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "talks")
    refuses = "{% if m.content == 'law' %}{{ raise_exception('No law') }}{% endif %}"
    (tmp_path / "mine.jinja").write_text(
        f"{{% for m in messages %}}{refuses}{{{{ m.content }}}}{{{{ eos_token }}}}{{% endfor %}}"
    )
    task = {"type": "chat", "chat_template": str(tmp_path / "mine.jinja")}
    with pytest.raises(
        hf_sft.DataError, match=r"row\(s\) of split `train`, each of which is refused by the chat template: No law"
    ):
        hf_sft.check(tiny.recipe(checkpoints["gpt2"], files, tmp_path / "run", task=task))


def test_the_checkpoint_as_it_was_is_a_baseline(checkpoints, tmp_path, monkeypatch):
    """A rate of nearly nothing: the trained model is the checkpoint, and so are its scores, in several blocks too."""
    files = tiny.write_rows(tmp_path / "data", "talks", train=40)
    recipe = tiny.recipe(checkpoints["gpt2"], files, tmp_path / "run", task=tiny.task_of("talks"))
    recipe["training"]["learning_rate"] = 1e-12
    monkeypatch.setattr("hf_sft.data.examples.BLOCK", 4)
    facts = hf_sft.train(recipe).facts
    for name, score in facts["metrics"]["test"].items():
        assert facts["baselines"]["checkpoint"]["test"][name] == pytest.approx(score, rel=1e-5)
        assert facts["gaps"]["checkpoint"]["test"][name]["value"] == pytest.approx(0, abs=1e-5)
