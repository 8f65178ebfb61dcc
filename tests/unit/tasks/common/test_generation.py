"""Each text is written as if its prompt were the only one: whatever stands beside it, and however many processes there are."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import PartialState
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_sft.tasks.common.generation import GenerationOptions, Text, _cut, read_texts, write_texts
from tests import processes, tiny

PROMPTS = [[2 + (7 * i + 3 * j) % 36 for j in range(1 + (5 * i) % 13)] for i in range(20)]
ENDS = list(range(0, 64, 7))


def load(family: str, folder: Path) -> torch.nn.Module:
    """Larger weights than at random: texts that don't repeat one token for ever."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def write(model: torch.nn.Module, how: GenerationOptions, budget: int, prompts: list[list[int]] = PROMPTS) -> list[Text]:
    return list(write_texts(model, prompts, how, ends=ENDS, pad=1, budget=budget))


def test_a_text_is_read_without_its_special_tokens_and_counted_with_them(checkpoints):
    processor = AutoTokenizer.from_pretrained(checkpoints["bert"])
    goal, mask = processor.convert_tokens_to_ids(["goal", "[MASK]"])
    (said,) = read_texts([Text((goal, mask, goal), False)], processor)
    assert said == {"text": "goal goal", "tokens": 3, "stopped": False}


@pytest.mark.parametrize("budget", [60, 200])
def test_a_pass_holds_its_prompts_with_all_that_is_written_within_the_budget(budget, checkpoints, monkeypatch):
    model, ran = load("gpt2", checkpoints["gpt2"]), []
    generate = model.generate
    monkeypatch.setattr(model, "generate", lambda **how: ran.append(how["input_ids"].shape) or generate(**how))
    write(model, GenerationOptions(12), budget)
    assert sum(rows for rows, _ in ran) == len(PROMPTS)
    assert all(rows == 1 or rows * (width + 12) <= budget for rows, width in ran) and any(rows > 1 for rows, _ in ran)


def test_prompts_that_run_together_fill_the_budget_and_no_more():
    rng = np.random.default_rng(0)
    for _ in range(50):
        sizes = rng.integers(1, 40, rng.integers(1, 30)).tolist()
        budget = int(rng.integers(1, 200))
        parts = _cut([(size, number) for number, size in enumerate(sizes)], budget)
        assert sorted(number for part in parts for number in part) == [*range(len(sizes))]
        needed = [[sizes[number] for number in part] for part in parts]
        assert all(len(part) == 1 or len(part) * max(part) <= budget for part in needed)
        assert all((len(part) + 1) * max(part) > budget for part in needed[:-1]), "one more would have had room"
        assert [size for part in needed for size in part] == sorted(sizes, reverse=True)


@pytest.mark.parametrize("family", ["gpt2", *tiny.CAUSAL_FAMILIES])
def test_texts_are_those_of_plain_generate_and_do_not_depend_on_what_stands_beside_them(family, checkpoints):
    model = load(family, checkpoints[family])
    found = write(model, GenerationOptions(12), budget=1)
    for prompt, text in zip(PROMPTS, found, strict=True):
        ids = torch.tensor([prompt])
        told = {"attention_mask": torch.ones_like(ids), "pad_token_id": 1, "eos_token_id": ENDS}
        (said,) = model.generate(ids, max_new_tokens=12, do_sample=False, **told)[:, len(prompt) :].tolist()
        assert said == [*text.tokens, *said[len(text.tokens) :]] and text.stopped == (said[-1] in ENDS)
        assert len(said) == len(text.tokens) + text.stopped
    assert {text.stopped for text in found} == {True, False}
    drawn = write(model, GenerationOptions(12, 0.7), budget=1)
    assert drawn != found
    for budget in (60, 100_000):
        assert write(model, GenerationOptions(12), budget) == found
        assert write(model, GenerationOptions(12, 0.7), budget) == drawn
    assert write(model, GenerationOptions(12, 0.7, seed=1), budget=60) != drawn


def test_tokens_are_drawn_as_the_model_has_them(checkpoints):
    model, prompt = load("gpt2", checkpoints["gpt2"]), [7, 8, 9]
    with torch.no_grad():
        chances = (model(torch.tensor([prompt])).logits[0, -1] / 2.0).softmax(-1).numpy()
    texts = list(write_texts(model, [prompt] * 4000, GenerationOptions(1, 2.0), ends=[], pad=1, budget=100_000))
    counts = np.bincount([text.tokens[0] for text in texts], minlength=len(chances))
    expected = 4000 * chances
    assert float((((counts - expected) ** 2) / expected).sum()) < 110  # chi-squared with 63 degrees: one in 4,000 is above


def write_in_both(checkpoint: str, folder: str) -> None:
    state = PartialState(cpu=True)
    model = load("gpt2", checkpoint)
    texts = [write(model, GenerationOptions(12, heat), budget) for heat in (0.0, 0.7) for budget in (60, 400)]
    said = [[[*text.tokens, text.stopped] for text in each] for each in texts]
    Path(folder, f"{state.process_index}-of-{state.num_processes}.json").write_text(json.dumps(said))


def test_two_processes_write_the_texts_of_one_in_the_same_order(checkpoints, tmp_path):
    for ranks in (1, 2):
        done = processes.run(write_in_both, str(checkpoints["gpt2"]), str(tmp_path), ranks=ranks)
        assert not any(each.returncode for each in done), done
    found = {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}
    assert found.keys() == {"0-of-1", "0-of-2", "1-of-2"}
    assert found["0-of-2"] == found["1-of-2"] == found["0-of-1"]
