"""Only what language models must get right: no document sees another, every token counts once, and what is counted is true."""

import json
import math
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import AutoModelForCausalLM, BertConfig, BertModel, OPTConfig, OPTModel

import hf_sft
from hf_sft.block import load_kind
from hf_sft.cli import app
from hf_sft.evaluation.bootstrap import measure
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loading import load_model, load_processor
from hf_sft.tasks import GenerationOptions
from hf_sft.tasks.causal_lm import CausalLm
from hf_sft.tasks.common.baselines import fit_all
from hf_sft.tasks.common.packing import Grams, pack
from tests import tiny

FAMILIES = ("gpt2", *tiny.CAUSAL_FAMILIES)
LENGTHS = (1, 3, 5, 9, 2, 7, 30, 4, 14, 6)


def task(**fields: Any) -> CausalLm:
    return CausalLm(type="causal_lm", **fields)


def documents(lengths: tuple[int, ...] = LENGTHS) -> Dataset:
    made = [" ".join(tiny.WORDS[(5 * i + 3 * j) % len(tiny.WORDS)] for j in range(n)) for i, n in enumerate(lengths)]
    return Dataset.from_dict({"text": made})


def load(folder: Path, attention: str = "sdpa") -> tuple[Any, Any]:
    checkpoint = Checkpoint(checkpoint=str(folder))
    processor = load_processor(checkpoint)
    model = load_model(checkpoint, task(), None, processor).model
    model.set_attn_implementation(attention)
    return model, processor


def nats_alone(model: Any, processor: Any, text: str) -> float:
    """Of one document as transformers computes it, with a batch and a window of its own."""
    ids = torch.tensor([[0, *processor(text)["input_ids"], 0]])
    with torch.no_grad():
        return float(functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum"))


def examples_of(encoded: Dataset) -> list[dict[str, Any]]:
    return [encoded[i] for i in range(len(encoded))]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_is_unpacked_is_one_document_at_a_time(family, attention, training, checkpoints):
    model, processor = load(checkpoints[family], attention)
    model.train(training)
    for module in model.modules():
        for name in ("dropout", "attention_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    rows, asked = documents(), task(max_length=40)
    collate = asked.collator(processor)
    windows = Dataset.from_dict(asked.encode(rows[:], processor, None))
    blocks = asked.join(windows, processor)
    assert len(blocks) < len(windows) == len(rows) and max(map(len, blocks["lengths"])) > 2
    alone = sum(nats_alone(model, processor, text) for text in rows["text"])

    def total_and_gradient(examples: list[list[dict[str, Any]]]) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        items = [asked.items(model, collate(part)) for part in examples]
        assert sum(map(len, items)) == sum(n + 1 for n in LENGTHS)
        loss = torch.stack([functional.cross_entropy(each.logits, each.targets, reduction="sum") for each in items]).sum()
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    packed = total_and_gradient([examples_of(blocks)])
    apart = total_and_gradient([[each] for each in examples_of(windows)])
    unpacked = total_and_gradient([examples_of(windows)])
    for loss, gradient in (packed, apart, unpacked):
        assert loss == pytest.approx(alone, rel=1e-5)
        torch.testing.assert_close(gradient, apart[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_of_a_long_document_is_counted_once_with_what_its_window_shows(family, checkpoints):
    model, processor = load(checkpoints[family])
    asked, rows = task(max_length=16, stride=5), documents((50, 3, 16, 14, 15))
    encoded = asked.encode(rows[:], processor, None)
    assert max(map(len, encoded["input_ids"])) == 16 and encoded["row"].count(0) > 3
    with torch.no_grad():
        kept = asked.inference_step(model, asked.collator(processor)(examples_of(Dataset.from_dict(encoded))))
    by_row = [[k for k, of in zip(kept, encoded["row"], strict=True) if of == row] for row in range(len(rows))]
    found = asked.answer(by_row, rows, None)
    assert found.tokens.tolist() == [n + 1 for n in (50, 3, 16, 14, 15)]
    for row, text in enumerate(rows["text"]):
        ids = [0, *processor(text)["input_ids"], 0]
        nats, done = 0.0, 1
        while done < len(ids):
            start = 0 if done == 1 else done - 5
            window = torch.tensor([ids[start : start + 16]])
            with torch.no_grad():
                losses = functional.cross_entropy(model(window).logits[0, :-1], window[0, 1:], reduction="none")
            nats += float(losses[done - start - 1 :].sum())
            done = start + window.shape[1]
        assert found.nats[row] == pytest.approx(nats, rel=1e-5)
    assert found.bytes.tolist() == [len(text.encode()) for text in rows["text"]]


def test_joined_blocks_hold_every_document_in_pieces_as_long_as_a_block_and_are_nearly_full(checkpoints):
    _, processor = load(checkpoints["gpt2"])
    asked, rows = task(max_length=16, stride=7), documents(tuple(3 + (37 * i) % 61 for i in range(150)))
    windows = Dataset.from_dict(asked.encode(rows[:], processor, None))
    blocks = asked.join(windows, processor)
    found = []
    for ids, lengths in zip(blocks["input_ids"], blocks["lengths"], strict=True):
        ends = np.cumsum([0, *lengths])
        found += [tuple(ids[start:end]) for start, end in pairwise(ends)]
    whole = [[0, *processor(text)["input_ids"], 0] for text in rows["text"]]
    assert sorted(found) == sorted(tuple(each[at : at + 16]) for each in whole for at in range(0, len(each), 16))
    assert blocks["cost"][:] == [len(ids) for ids in blocks["input_ids"]] and max(blocks["cost"]) == 16
    assert sum(blocks["cost"]) / (16 * len(blocks)) > 0.99


def test_blocks_hold_every_piece_once_none_torn_and_nearly_full():
    rng = np.random.default_rng(0)
    for room in (16, 64, 256):
        lengths = rng.integers(1, room + 1, 500)
        blocks = pack(lengths, room)
        assert sorted(piece for block in blocks for piece in block) == list(range(500))
        assert max(lengths[block].sum() for block in blocks) <= room
        assert lengths.sum() / (len(blocks) * room) > 0.95
    assert pack(np.array([5, 5, 5]), 8) == [[0], [1], [2]]


@pytest.mark.parametrize("seed", range(10))
def test_a_block_is_begun_only_where_no_other_has_room(seed):
    """Also room for a piece of one token: the room left in a block is less than the longest piece of any later one."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 12, 80)
    blocks = pack(lengths, 12)
    assert sorted(piece for block in blocks for piece in block) == [*range(80)]
    left = [12 - lengths[block].sum() for block in blocks]
    assert min(left) >= 0
    by_longest = sorted(range(len(blocks)), key=lambda i: (-max(lengths[blocks[i]]), min(blocks[i])))
    for place, later in enumerate(by_longest):
        longest = max(lengths[blocks[later]])
        assert not [i for i in by_longest[:place] if left[i] >= longest and max(lengths[blocks[i]]) > longest]


def test_models_that_cannot_be_packed_say_so_and_run_unpacked_and_those_that_look_ahead_are_refused(tmp_path, checkpoints):
    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    OPTModel(OPTConfig(**size, ffn_dim=64, word_embed_proj_dim=32, max_position_embeddings=64)).save_pretrained(
        tmp_path / "opt"
    )
    load_processor(Checkpoint(checkpoint=str(checkpoints["gpt2"]))).save_pretrained(tmp_path / "opt")
    files = tiny.write_rows(tmp_path / "data", "texts")
    report = hf_sft.train(tiny.recipe(tmp_path / "opt", files, tmp_path / "run", task=tiny.task_of("texts")))
    assert any("are scored with a sliding context." in note for note in report.facts["data"]["warnings"])
    assert report.facts["recipe"]["task"]["packing"] is False
    assert any("OPTForCausalLM can't be packed exactly" in note for note in report.facts["data"]["warnings"])
    BertModel(BertConfig(**size, intermediate_size=64)).save_pretrained(tmp_path / "bert")
    load_processor(Checkpoint(checkpoint=str(checkpoints["bert"]))).save_pretrained(tmp_path / "bert")
    with pytest.raises(hf_sft.CheckpointError, match="sees the tokens that it should predict"):
        hf_sft.check(tiny.recipe(tmp_path / "bert", files, tmp_path / "bert_run", task=tiny.task_of("texts")))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize(("family", "method"), [("gpt2", "full"), ("gpt2", "lora"), ("llama", "full"), ("llama", "head_only")])
def test_a_run_is_scored_as_plain_transformers_scores_it(family, method, packing, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "texts", train=40)
    asked = {"type": "causal_lm", "max_length": 64, "packing": packing}
    report = hf_sft.train(tiny.recipe(checkpoints[family], files, tmp_path / "run", method, task=asked))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    processor = load_processor(Checkpoint(checkpoint=str(tmp_path / "run")))
    texts = [json.loads(line)["text"] for line in Path(files["test"]).read_text().splitlines()]
    nats = sum(nats_alone(model, processor, text) for text in texts)
    tokens, size = sum(len(processor(text)["input_ids"]) + 1 for text in texts), sum(len(text.encode()) for text in texts)
    scores = report.metrics["test"]
    assert scores["perplexity"]["value"] == pytest.approx(math.exp(nats / tokens), rel=1e-5)
    assert scores["bits_per_byte"]["value"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)
    assert scores["perplexity"]["low"] < scores["perplexity"]["value"] < scores["perplexity"]["high"]
    as_it_was = {"checkpoint"} if family == "gpt2" else set()  # the tiny Llama brings no output layer
    assert set(report.facts["baselines"]) == {"unigram", "bigram"} | as_it_was
    again = hf_sft.evaluate(tmp_path / "run")
    assert {n: s.value for n, s in again.scores.items()} == {n: s["value"] for n, s in scores.items()}
    long = sum(len(processor(text)["input_ids"]) + 2 > 64 for text in texts)
    said = f"{long} of 11 rows of split `test` are longer than the model takes, and are scored with a sliding context."
    assert (said in report.facts["data"]["warnings"]) is (long > 0)
    (phase,) = report.facts["training"]["phases"]
    assert packing is False or phase["padding_share"] < 0.1


def test_the_report_shows_what_the_model_writes_before_and_after_and_report_json_none_of_it(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "texts", train=40)
    recipe = tiny.recipe(checkpoints["gpt2"], files, tmp_path / "run", task=tiny.task_of("texts"))
    hf_sft.train({**recipe, "training": {**recipe["training"], "learning_rate": 0.5, "max_steps": 20}})
    page, prompts = (tmp_path / "run" / "report.html").read_text(), [row["text"] for row in tiny.rows("texts", 4, 200)]
    assert "What it writes, before and after training" in page
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["gpt2"])))
    for place, folder in (("before", checkpoints["gpt2"]), ("after", tmp_path / "run")):
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        for text in prompts:
            begun = " ".join(text.split()[:8])
            assert begun in page and begun not in (tmp_path / "run" / "report.json").read_text()
            ids = processor(begun, return_tensors="pt")["input_ids"]
            shown = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False, pad_token_id=0)
            assert f"{place}: {processor.decode(shown[0, ids.shape[1] :], skip_special_tokens=True)}".rstrip() in page


def test_where_nothing_but_tied_embeddings_would_move_head_only_is_refused(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "texts")
    with pytest.raises(hf_sft.RecipeError, match="would move nothing: the outputs of GPT2LMHeadModel are its embeddings"):
        hf_sft.train(tiny.recipe(checkpoints["gpt2"], files, tmp_path / "run", "head_only", task=tiny.task_of("texts")))
    assert not (tmp_path / "run").exists()


def test_one_long_text_is_cut_between_paragraphs_and_nothing_is_lost():
    text = "".join(f"Speaker {i}:\n{'word ' * (i % 300)}\n\n" for i in range(200))
    rows = task().divide(Dataset.from_dict({"text": [text]}))
    assert "".join(rows["text"]) == text and max(map(len, rows["text"])) <= 4096 and len(rows) > 10
    assert all(part.startswith("Speaker") for part in rows["text"])
    _, _, said = task().resolve({"train": rows})
    assert said == [f"split `train` is one long text: it was cut into {len(rows)} rows."]
    whole = Dataset.from_dict({"text": ["short", text]})
    assert task().divide(whole) is whole


def test_prompts_go_on_as_generate_says_and_a_row_without_text_stays_one(checkpoints, tmp_path, capsys):
    files = tiny.write_rows(tmp_path / "data", "texts", train=40)
    hf_sft.train(tiny.recipe(checkpoints["gpt2"], files, tmp_path / "run", task=tiny.task_of("texts")))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    processor = load_processor(Checkpoint(checkpoint=str(tmp_path / "run")))
    prompts = ["the goal", "", " ".join(tiny.WORDS * 3)]
    answers = hf_sft.predict(tmp_path / "run", prompts, writing=GenerationOptions(max_new_tokens=5))
    for prompt, said in zip(prompts, answers, strict=True):
        if not prompt:
            assert said == {"row": 1, "text": None, "tokens": None, "stopped": None}
            continue
        ids = processor(prompt, return_tensors="pt")["input_ids"][:, -(64 - 5) :]
        wanted = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=5, do_sample=False, pad_token_id=0)
        assert said["text"] == processor.decode(wanted[0, ids.shape[1] :], skip_special_tokens=True)
    app(["predict", str(tmp_path / "run"), "the goal", "--max-new-tokens", "5"], standalone_mode=False)
    assert json.loads(capsys.readouterr().out) == answers[0]
    drawn = [
        hf_sft.predict(tmp_path / "run", ["a", "the goal"], writing=GenerationOptions(8, 5.0, seed)) for seed in (0, 1, 2, 0)
    ]
    assert len({each[1]["text"] for each in drawn}) > 1 and drawn[0] == drawn[3]
    with pytest.raises(hf_sft.RecipeError, match="64 new tokens leave no room for a prompt"):
        hf_sft.predict(tmp_path / "run", ["the goal"], writing=GenerationOptions(max_new_tokens=64))
    labelled = tiny.write_rows(tmp_path / "labelled", "single_label_classification")
    hf_sft.train(tiny.recipe(checkpoints["gpt2"], labelled, tmp_path / "other", "head_only"))
    with pytest.raises(hf_sft.RecipeError, match="does not write: it answers with one class"):
        hf_sft.predict(tmp_path / "other", ["the goal"], writing=GenerationOptions())


def test_empty_texts_are_named(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "texts")
    with Path(files["train"]).open("a") as file:
        file.write(json.dumps({"text": " "}) + "\n")
    with pytest.raises(hf_sft.DataError, match=r"Column `text` is empty in 1 row\(s\) of split `train`: 17"):
        hf_sft.check(tiny.recipe(checkpoints["gpt2"], files, tmp_path / "run", task=tiny.task_of("texts")))


def test_a_text_of_one_token_is_named_where_the_tokenizer_adds_none(tmp_path):
    folder = tiny.build("gpt2", tmp_path / "gpt2")
    for name in ("tokenizer_config.json", "config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({k: v for k, v in settings.items() if not k.startswith(("bos_", "eos_"))}))
    files = tiny.write_rows(tmp_path / "data", "texts")
    with Path(files["train"]).open("a") as file:
        file.write(json.dumps({"text": "goal"}) + "\n")
    with pytest.raises(hf_sft.DataError, match=r"1 row\(s\) of split `train` have fewer than two tokens.*: 17"):
        hf_sft.check(tiny.recipe(folder, files, tmp_path / "run", task=tiny.task_of("texts")))


def test_the_baselines_are_proper_distributions_of_the_same_tokens():
    rng = np.random.default_rng(0)
    train = [rng.integers(0, 9, rng.integers(2, 30)).tolist() for _ in range(20)]
    for weight in (None, 5.0):
        model = Grams(train, 12, weight)
        for first in range(12):
            assert sum(math.exp(-model.nats([first, second], [1, 1])) for second in range(12)) == pytest.approx(1.0)
    pairs = [[0, 1, 0, 1, 0, 1]] * 50
    assert Grams(pairs, 3, 5.0).nats([0, 1, 0, 1], [1] * 4) < Grams(pairs, 3).nats([0, 1, 0, 1], [1] * 4)


def nats_of_grams(train: list[list[int]], size: int, weight: float | None, ids: list[int], mask: list[int]) -> float:
    """Add-one smoothed unigrams of the tokens after the first; bigrams mixed with `weight` of them."""
    single = Counter(token for each in train for token in each[1:])
    total, pairs = sum(single.values()), Counter(pair for each in train for pair in pairwise(each))
    before = Counter(token for each in train for token in each[:-1])
    nats = 0.0
    for (first, second), carries in zip(pairwise(ids), mask[1:], strict=True):
        chance = (single[second] + 1) / (total + size)
        if weight is not None:
            chance = (pairs[first, second] + weight * chance) / (before[first] + weight)
        nats -= carries * math.log(chance)
    return nats


@pytest.mark.parametrize("problem", ["texts", "talks"])
def test_the_baselines_of_a_language_model_are_grams_of_the_tokens_that_carry_loss(problem, checkpoints):
    """Fitted on train and asked about other rows; where only an assistant's tokens carry loss, only these are counted."""
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["gpt2"])))
    asked = load_kind("tasks", tiny.task_of(problem)["type"]).model_validate({**tiny.task_of(problem), "max_length": 64})
    train, test = (Dataset.from_list(tiny.rows(problem, *which)) for which in ((30,), (9, 200)))

    def tokens(rows: Dataset) -> list[tuple[list[int], list[int]]]:
        encoded = asked.encode(rows[:], processor, None)
        return list(
            zip(encoded["input_ids"], encoded.get("loss_mask", [[1] * len(e) for e in encoded["input_ids"]]), strict=True)
        )

    assert problem == "texts" or any(0 in mask[1:] and 1 in mask[1:] for _, mask in tokens(test))
    fitted, failed = fit_all(asked.baselines(train, None, processor))
    assert not failed and set(fitted) == {"unigram", "bigram"}
    for name, weight in (("unigram", None), ("bigram", 5.0)):
        found = fitted[name](test)
        pairs = tokens(test)
        wanted = [nats_of_grams([ids for ids, _ in tokens(train)], len(processor), weight, *pair) for pair in pairs]
        assert found.nats == pytest.approx(wanted)
        assert found.tokens.tolist() == [sum(mask[1:]) for _, mask in pairs]
        loss = sum(wanted) / sum(sum(mask[1:]) for _, mask in pairs)
        values = measure(["loss", "perplexity"], found, np.zeros(9))
        assert values == pytest.approx({"loss": loss, "perplexity": math.exp(loss)})
