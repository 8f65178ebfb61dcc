"""Only what masked language models must get right: how many tokens, which ones, and only they are looked at."""

import json
import math
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import (
    AutoModelForMaskedLM,
    DistilBertConfig,
    DistilBertModel,
    ElectraConfig,
    ElectraModel,
    ModernBertConfig,
    ModernBertModel,
    RobertaConfig,
    RobertaModel,
)

import hf_sft
from hf_sft.data.encoding import read_examples
from hf_sft.evaluation.bootstrap import measure
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loading import load_processor
from hf_sft.tasks.masked_lm import MaskedLm
from tests import processes, tiny

SIZE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
BODIES = {
    "roberta": lambda: RobertaModel(RobertaConfig(**SIZE, max_position_embeddings=66)),
    "distilbert": lambda: DistilBertModel(DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=64)),
    "electra": lambda: ElectraModel(ElectraConfig(**SIZE, embedding_size=32)),
    "modernbert": lambda: ModernBertModel(ModernBertConfig(**SIZE, pad_token_id=0)),
}
FILL = """
import json, sys
from transformers import pipeline
answer = pipeline("fill-mask", model=sys.argv[1])
print(json.dumps([[each["token_str"], each["score"]] for each in answer(sys.argv[2])]))
"""


def task(**fields: Any) -> MaskedLm:
    return MaskedLm(type="masked_lm", **fields)


@pytest.fixture
def processor(checkpoints):
    return load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))


def texts(count: int) -> Dataset:
    return Dataset.from_list([{"text": row["text"]} for row in tiny.rows("texts", count)])


@pytest.mark.parametrize("whole_words", [False, True])
@pytest.mark.parametrize("probability", [0.15, 0.4])
def test_as_many_tokens_are_predicted_as_the_share_says_and_words_stay_whole(probability, whole_words):
    asked, rng = task(probability=probability, whole_words=whole_words), np.random.default_rng(0)
    for size in (1, 3, 10, 100):
        words = [-1, *np.repeat(np.arange(size), rng.integers(1, 4, size)).tolist(), -1]
        ids = rng.integers(5, 60, len(words)).tolist()
        chosen, _ = asked.choose(ids, words, (0, 1))
        assert len(chosen) == len(set(chosen)) == max(1, round(probability * (len(words) - 2)))
        assert all(words[place] >= 0 for place in chosen)
        if whole_words:
            taken, whole = Counter(words[place] for place in chosen), Counter(words)
            assert sum(taken[word] < whole[word] for word in taken) <= 1


def test_eight_of_ten_are_masked_one_is_another_and_one_stays(processor):
    asked, rows = task(probability=0.5, max_length=64), texts(600)
    examples = read_examples(rows, asked, None, processor)
    batch = examples.collate(tuple(range(len(examples))), (3, 1))
    shown, true = batch["input_ids"][batch["predicts"]], batch["originals"][batch["predicts"]]
    masked, same = (shown == processor.mask_token_id).float().mean(), (shown == true).float().mean()
    assert len(true) == examples.items.sum() > 2000
    assert float(masked) == pytest.approx(0.8, abs=0.03) and float(same) == pytest.approx(0.1, abs=0.03)
    assert torch.equal(batch["input_ids"][~batch["predicts"]], batch["originals"][~batch["predicts"]])
    assert not set(shown.tolist()) & {processor.pad_token_id, processor.cls_token_id, processor.sep_token_id}


def test_masks_belong_to_seed_epoch_and_window_and_those_of_evaluation_are_fixed(processor):
    asked, rows = task(max_length=16), texts(40)
    examples = read_examples(rows, asked, None, processor)

    def masks(places: tuple[int, ...], draw: tuple[int, ...]) -> dict[int, list[int]]:
        batch = examples.collate(places, draw)
        sizes = [len(each["input_ids"]) for each in examples.take(places)]
        return {p: ids[:size].tolist() for p, ids, size in zip(places, batch["input_ids"], sizes, strict=True)}

    together = masks(tuple(range(20)), (0, 0))
    assert {place: masks((place,), (0, 0))[place] for place in together} == together
    assert masks(tuple(range(20)), (0, 1)) != together != masks(tuple(range(20)), (1, 0))
    fixed = masks(tuple(range(20)), ())
    later = read_examples(rows.select(range(5, 40)), asked, None, processor)
    place = next(i for i, example in enumerate(examples.take(tuple(range(20)))) if example == later.take((0,))[0])
    ids = later.collate((0,))["input_ids"][0].tolist()
    assert ids == fixed[place]


def test_a_training_masks_each_row_anew_in_each_epoch_and_by_its_seed(checkpoints, tmp_path, monkeypatch):
    from hf_sft.trainer.step_trainer import StepTrainer

    taken: list[dict[int, list[int]]] = []
    step = StepTrainer.training_step

    def watch(self: StepTrainer, model: Any, inputs: dict[str, Any], *rest: Any) -> Any:
        for batch, micro_batch in inputs["micro_batches"]:
            shown = zip(micro_batch.places, batch["input_ids"].tolist(), strict=True)
            taken[-1] |= {place: [token for token in ids if token] for place, ids in shown}
        if self.state.global_step % 3 == 2:
            taken.append({})
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(StepTrainer, "training_step", watch)
    files = tiny.write_rows(tmp_path / "data", "masked", train=24)
    for seed in (0, 0, 1):
        taken.append({})
        training = {"max_steps": -1, "num_train_epochs": 3}
        made = tiny.recipe(
            checkpoints["bert"], files, tmp_path / "run", task={"type": "masked_lm", "max_length": 64}, training=training
        )
        hf_sft.build_trainer({**made, "seed": seed}).train()
        assert not taken.pop()
    one, again, other = taken[:3], taken[3:6], taken[6:]
    assert one == again and all(len(epoch) == 24 for epoch in taken)
    for first, second in ((one[0], one[1]), (one[1], one[2]), (one[0], other[0])):
        assert sum(first[place] != second[place] for place in first) > 20


@pytest.mark.parametrize("family", ["bert", *BODIES])
def test_the_head_is_given_only_what_is_predicted_and_says_the_same(family, checkpoints, processor, tmp_path):
    torch.manual_seed(0)
    folder = checkpoints["bert"]
    if family != "bert":
        folder = tmp_path / family
        BODIES[family]().save_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    processor.model_input_names = ["input_ids", "attention_mask"]
    examples = read_examples(texts(9), task(max_length=16), None, processor)
    batch = examples.collate(tuple(range(len(examples))))
    with torch.no_grad():
        items = task().items(model, batch)
        whole = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    torch.testing.assert_close(items.logits, whole[batch["predicts"]], rtol=1e-4, atol=1e-5)
    assert len(items) == examples.items.sum()


@pytest.mark.parametrize("method", ["full", "head_only", "lora"])
def test_a_run_is_scored_as_plain_transformers_scores_it_and_fills_masks_in_a_new_process(method, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "masked", train=40)
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", method, task=tiny.task_of("masked"))
    report = hf_sft.train(recipe)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run").eval()
    processor = load_processor(Checkpoint(checkpoint=str(tmp_path / "run")))
    rows = Dataset.from_json(files["test"])
    asked = MaskedLm.model_validate(tiny.task_of("masked"))
    examples, nats, hits, count = read_examples(rows, asked, None, processor), 0.0, 0, 0
    for place in range(len(examples)):
        batch = examples.collate((place,))
        with torch.no_grad():
            logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[batch["predicts"]]
        true = batch["originals"][batch["predicts"]]
        nats += float(functional.cross_entropy(logits, true, reduction="sum"))
        hits, count = hits + int((logits.argmax(-1) == true).sum()), count + len(true)
    scores = {name: score["value"] for name, score in report.metrics["test"].items()}
    assert scores["perplexity"] == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert scores["accuracy"] == pytest.approx(hits / count) and scores["accuracy"] <= scores["accuracy_at_5"] <= 1
    again = hf_sft.evaluate(tmp_path / "run")
    assert {n: s.value for n, s in again.scores.items()} == scores
    assert set(report.facts["baselines"]) == {"unigram"}
    if method == "full":
        text = "the [MASK] was lost in the last minute"
        done = processes.code(FILL, tmp_path / "run", text)
        assert done.returncode == 0, done.stderr[-2000:]
        with torch.no_grad():
            inputs = processor(text, return_tensors="pt")
            chances = model(**inputs).logits[0, inputs["input_ids"][0] == processor.mask_token_id].softmax(-1)[0]
        best = chances.topk(5)
        found = json.loads(done.stdout.splitlines()[-1])
        assert [token for token, _ in found] == processor.convert_ids_to_tokens(best.indices.tolist())
        assert [score for _, score in found] == pytest.approx(best.values.tolist(), rel=1e-4)
        (said,) = hf_sft.predict(tmp_path / "run", [text])
        assert [(each["token"], each["score"]) for each in said["masks"][0]] == [
            (t, pytest.approx(p, abs=1e-5)) for t, p in found
        ]
        assert said["text"] == text.replace("[MASK]", found[0][0])
        with pytest.raises(hf_sft.DataError, match=r"text 1 has no \[MASK\]: there is nothing to fill"):
            hf_sft.predict(tmp_path / "run", [text, "the goal"])


def test_the_baseline_is_the_tokens_of_train_by_how_often_they_occur(processor):
    """Add-one smoothed, asked about the very places that the model is; counted by hand."""
    asked, rows = task(max_length=16, probability=0.9), texts(60)
    train, test = rows.select(range(30)), rows.select(range(30, 60))
    words = [token for text in train["text"] for token in processor(text, add_special_tokens=False)["input_ids"]]
    counts, size = Counter(words), len(processor)
    often = sorted(range(size), key=lambda token: (-counts[token], token))
    examples = read_examples(test, asked, None, processor)
    wanted, met = np.zeros((len(test), 4)), set()
    for place in range(len(examples)):
        batch = examples.collate((place,))
        for token in batch["originals"][batch["predicts"]].tolist():
            nats = -math.log((counts[token] + 1) / (len(words) + size))
            wanted[examples.row_of(place)] += nats, 1, token == often[0], token in often[:5]
            met.add(token)
    assert {*often[:6]} <= met
    found = asked.baselines(train, None, processor)["unigram"]()(test)
    np.testing.assert_allclose(found.sums, wanted)
    values = measure(["loss", "accuracy", "accuracy_at_5"], found, np.zeros(len(test)))
    nats, count, first, five = wanted.sum(0)
    assert values == pytest.approx({"loss": nats / count, "accuracy": first / count, "accuracy_at_5": five / count})


def test_the_samples_are_the_first_words_of_texts_with_one_masked(processor):
    said = [" ".join(f"w{i}" for i in range(count)) for count in (1, 2, 5, 12, 13, 40)]
    rows = task().prompts(Dataset.from_dict({"text": said}), processor)
    for text, prompt in zip(said, rows["text"], strict=True):
        words, shown = text.split(), prompt.split()
        assert len(shown) == min(12, len(words)) and shown.count("[MASK]") == 1
        assert all(word in ("[MASK]", own) for word, own in zip(shown, words, strict=False))
        assert shown.index("[MASK]") == len(shown) // 2


def test_a_tokenizer_without_a_mask_is_refused(checkpoints, tmp_path):
    folder = tiny.build("bert", tmp_path / "bert")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("mask_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    files = tiny.write_rows(tmp_path / "data", "masked")
    with pytest.raises(hf_sft.CheckpointError, match="has no mask token"):
        hf_sft.check(tiny.recipe(folder, files, tmp_path / "run", task=tiny.task_of("masked")))


def test_a_long_text_is_asked_about_in_all_its_windows(processor):
    rows = Dataset.from_dict({"text": [" ".join(tiny.WORDS * 3), "goal"]})
    examples = read_examples(rows, task(max_length=16), None, processor)
    runs = [list(group) for _, group in groupby(range(len(examples)), lambda place: examples.encoded["row"][place])]
    assert len(runs[0]) == math.ceil(len(tiny.WORDS) * 3 / 14) and len(runs[1]) == 1
    shown = [i for place in runs[0] for i in examples.take((place,))[0]["input_ids"][1:-1]]
    assert shown == processor(rows[0]["text"], add_special_tokens=False)["input_ids"]


def test_empty_texts_are_named(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "masked")
    with Path(files["test"]).open("a") as file:
        file.write(json.dumps({"text": ""}) + "\n")
    with pytest.raises(hf_sft.DataError, match=r"Column `text` is empty in 1 row\(s\) of split `test`: 11"):
        hf_sft.check(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task=tiny.task_of("masked")))


def test_a_text_without_tokens_is_named(tmp_path):
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    model = {"from_config": "bert", "config": shape, "tokenizer": {"type": "wordpiece", "vocab_size": 120}}
    files = tiny.write_rows(tmp_path / "data", "masked")
    with Path(files["test"]).open("a") as file:
        file.write(json.dumps({"text": "\u200b"}) + "\n")
    message = r"1 row\(s\) of split `test` have no token but special ones, so none that can be predicted: 11"
    with pytest.raises(hf_sft.DataError, match=message):
        hf_sft.train({**tiny.recipe(tmp_path, files, tmp_path / "run", task=tiny.task_of("masked")), "model": model})
    assert not (tmp_path / "run").exists()
