"""Only what writing one text from another must get right: what carries loss, what is written, and what is said of it."""

import json
import random
import re
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics.bleu import BLEU
from sacrebleu.metrics.chrf import CHRF
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSeq2SeqLM, ByT5Tokenizer, T5Config, T5ForConditionalGeneration

import hf_sft
from hf_sft.answers.texts import WrittenAnswers, as_texts
from hf_sft.config.training import Training
from hf_sft.evaluation.bootstrap import draw_weights, score_rows
from hf_sft.evaluation.plan import EvaluationPlan
from hf_sft.methods.lora import Lora
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.models.loading import load_model, load_processor
from hf_sft.runs.prepare import load_run
from hf_sft.tasks import GenerationOptions
from hf_sft.tasks.seq2seq import Seq2Seq
from tests import tiny

FAMILIES = tuple(tiny.SEQ2SEQ_FAMILIES)


def task(**fields: Any) -> Seq2Seq:
    return Seq2Seq(type="seq2seq", **fields)


def load(folder: Path, **fields: Any) -> tuple[Any, Any, Seq2Seq]:
    checkpoint = Checkpoint(checkpoint=str(folder))
    processor = load_processor(checkpoint)
    model = load_model(checkpoint, task(), None, processor).model
    return model, processor, task(**fields).probe(model, processor)[0]


def write_files(folder: Path, **splits: list[tuple[Any, Any]]) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in splits.items():
        lines = [json.dumps({"source": source, "target": target}) + "\n" for source, target in pairs]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return {name: str(folder / f"{name}.jsonl") for name in splits}


def lists_of_words(count: int) -> list[list[str]]:
    rng, made = random.Random(0), {}
    while len(made) < count:
        words = tuple(rng.sample(tiny.WORDS[:12], rng.randint(2, 4)))
        made[words] = list(words)
    return list(made.values())


def test_a_model_from_a_config_learns_to_reverse_words(checkpoints, tmp_path):
    pairs = [(" ".join(words), " ".join(reversed(words))) for words in lists_of_words(3000)]
    files = write_files(tmp_path, train=pairs[:2800], validation=pairs[2800:2860], test=pairs[2860:])
    size = {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 1, "num_heads": 4, "dropout_rate": 0.0}
    asked = {
        "model": {"from_config": "t5", "tokenizer": str(checkpoints["t5"]), "config": size},
        "task": {"type": "seq2seq", "max_target_length": 8},
        "evaluation": {"metrics": ["exact_match", "rouge_1", "rouge_2", "rouge_l", "chrf", "bleu"]},
        "training": {"learning_rate": 3e-3, "max_steps": 600, "optim": "adamw_torch", "lr_scheduler_type": "linear"},
    }
    recipe = tiny.recipe(checkpoints["t5"], files, tmp_path / "run", **asked)
    recipe["model"], recipe["training"] = asked["model"], recipe["training"] | {"batch_size": 32}
    report = hf_sft.train(recipe)
    said = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [(row["reference"], row["text"]) for row in said] == [(target, target) for _, target in pairs[2860:]]
    scores = {name: score["value"] for name, score in report.metrics["test"].items()}
    assert scores.pop("loss") < 0.1 and scores == pytest.approx(dict.fromkeys(scores, 1.0))
    lead = report.facts["baselines"]["lead"]["test"]
    assert lead["exact_match"]["value"] < 0.5 and lead["rouge_1"]["value"] > 0.8 and lead["loss"]["value"] is None
    assert report.facts["gaps"]["lead"]["test"]["exact_match"]["low"] > 0.4

    # What is saved writes the same when plain transformers loads it, and so does `predict`.
    plain = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "run")
    processor = load_processor(Checkpoint(checkpoint=str(tmp_path / "run")))
    inputs = processor([source for source, _ in pairs[2860:2880]], padding=True, return_tensors="pt")
    texts = processor.batch_decode(plain.generate(**inputs), skip_special_tokens=True)
    assert texts == [target for _, target in pairs[2860:2880]]
    answers = hf_sft.predict(tmp_path / "run", [source for source, _ in pairs[2860:2880]])
    assert [answer["text"] for answer in answers] == texts and all(answer["stopped"] for answer in answers)


def answers_and_references(count: int = 60) -> tuple[WrittenAnswers, np.ndarray]:
    rng = np.random.default_rng(0)
    words = [*tiny.WORDS, "Straße,", "naïve", "(end).", "3.5", "don't"]
    texts = [" ".join(rng.choice(words, rng.integers(0, 14))) for _ in range(count)]
    references = [" ".join([*text.split()[: rng.integers(1, 8)], *rng.choice(words, rng.integers(1, 5))]) for text in texts]
    return WrittenAnswers(np.ones(count), np.ones(count), as_texts(texts)), as_texts(references)


def library_values(texts: list[str], references: list[str]) -> dict[str, float]:
    scorer = RougeScorer(["rouge1", "rouge2", "rougeL"])
    rouge = [scorer.score(true, text) for true, text in zip(references, texts, strict=True)]
    means = {f"rouge_{name[-1].lower()}": np.mean([each[name].fmeasure for each in rouge]) for name in rouge[0]}
    grams = {"chrf": CHRF(), "bleu": BLEU()}
    return means | {name: metric.corpus_score(texts, [references]).score / 100 for name, metric in grams.items()}


def test_scores_are_those_of_rouge_score_and_sacrebleu_and_so_is_each_resample():
    answers, references = answers_and_references()
    texts, true = answers.texts.tolist(), references.tolist()
    known = library_values(texts, true)
    scores = score_rows(known, answers, references)
    assert {name: score.value for name, score in scores.items()} == pytest.approx(known, abs=1e-12)
    weights = draw_weights(0, len(answers))
    for resample in range(5):
        places = np.repeat(np.arange(len(answers)), weights[:, resample])
        known = library_values([texts[i] for i in places], [true[i] for i in places])
        assert {name: score.resampled[resample] for name, score in scores.items()} == pytest.approx(known, abs=1e-6)
    assert all(score.low < score.value < score.high for score in scores.values())
    exact = score_rows(["exact_match"], answers, as_texts([*texts[:15], *true[15:]]))["exact_match"]
    assert exact.value == np.mean([i < 15 or text == true[i] for i, text in enumerate(texts)])


def test_the_worst_mistakes_are_the_texts_with_least_in_common():
    answers, references = answers_and_references(6)
    found = answers.mistakes(references)
    assert [each.row for each in found] == [i for i in range(6) if answers.texts[i] != references[i]]
    sentence = [1 - CHRF().sentence_score(answers.texts[each.row], [references[each.row]]).score / 100 for each in found]
    assert [each.score for each in found] == pytest.approx(sentence)
    assert answers.mistakes(answers.texts) == []


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_that_of_transformers_with_what_is_padded_left_out(family, checkpoints):
    model, processor, asked = load(checkpoints[family], prefix="the film ", max_target_length=6)
    pairs = tiny.rows("pairs", 12)
    rows = {name: [pair[name] for pair in pairs] for name in ("source", "target")}
    encoded = asked.encode(rows, processor, None)
    batch = asked.collator(processor)([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])
    whole = processor([f"the film {source}" for source in rows["source"]], padding=True, return_tensors="pt")
    assert batch["input_ids"].tolist() == whole["input_ids"].tolist()
    labels = processor(text_target=rows["target"], padding=True, return_tensors="pt")
    ids = labels["input_ids"].masked_fill(labels["attention_mask"] == 0, -100)
    assert (ids == processor.eos_token_id).sum() == len(pairs)
    with torch.no_grad():
        known = model(**whole, labels=ids).loss
        items = asked.items(model, batch)
        found = torch.nn.functional.cross_entropy(items.logits, items.targets)
    torch.testing.assert_close(found, known)
    assert len(items) == (ids >= 0).sum()


def test_a_source_that_is_cut_keeps_its_end_and_bytes_serve_as_tokens_too(checkpoints):
    _, processor, asked = load(checkpoints["bart"], max_length=6, max_target_length=4)
    rows = {"source": ["the match was lost again in the last minute", "the match was lost"], "target": ["a", "a"]}
    found = asked.encode(rows, processor, None)
    assert found["truncated"] == [True, False] and [len(ids) for ids in found["input_ids"]] == [6, 6]
    assert all(ids[0] == processor.bos_token_id and ids[-1] == processor.eos_token_id for ids in found["input_ids"])
    by_bytes = asked.encode(rows, ByT5Tokenizer(), None)  # which is not a fast one
    assert by_bytes["input_ids"][1] == [*(byte + 3 for byte in b"the m"), 1] and by_bytes["labels"] == [[100, 1]] * 2


def test_a_model_of_many_languages_is_refused_for_it_would_write_in_any_of_them(checkpoints):
    model, processor, asked = load(checkpoints["bart"], max_target_length=4)
    processor.tgt_lang = "de_DE"
    with pytest.raises(hf_sft.CheckpointError, match="writes many languages, and has to be told by a token which one"):
        asked.probe(model, processor)


def test_a_target_that_is_cut_is_counted_and_teaches_no_end(checkpoints, tmp_path):
    _, processor, asked = load(checkpoints["t5"], max_target_length=4)
    rows = {"source": ["a goal"] * 3, "target": ["the match was", "the match was lost", "the match was lost again"]}
    found = asked.encode(rows, processor, None)
    ends = [ids[-1] == processor.eos_token_id for ids in found["labels"]]
    assert [len(ids) for ids in found["labels"]] == [4, 4, 4] and ends == [True, False, False]
    assert found["shortened"] == [False, True, True]
    files = write_files(tmp_path, train=[("a goal", words) for words in rows["target"]] * 3, validation=[("a", "a")] * 2)
    recipe = tiny.recipe(checkpoints["t5"], files | {"test": files["validation"]}, tmp_path / "run", task=asked.model_dump())
    said = hf_sft.train(recipe).facts["data"]["warnings"]
    assert any("6 of 9 rows of split `train` have a longer target than the model learns to write" in each for each in said)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("beams", [1, 3])
def test_texts_are_those_of_plain_generate_whatever_stands_beside_them(family, beams, checkpoints):
    model, processor, asked = load(checkpoints[family], max_target_length=9, num_beams=beams)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    rows = Dataset.from_list(tiny.rows("pairs", 20))

    def write(budget: int, **how: Any) -> list[dict[str, Any]]:
        return list(asked.complete(model, rows, processor, GenerationOptions(**how), budget))

    alone = write(1)
    for row, said in zip(rows, alone, strict=True):
        inputs = processor(row["source"], return_tensors="pt")
        (ids,) = model.generate(**inputs, num_beams=beams, max_new_tokens=9, do_sample=False)[:, 1:].tolist()
        assert said["text"] == processor.decode(ids, skip_special_tokens=True)
        assert said["stopped"] == (processor.eos_token_id in ids)
    drawn = write(1, temperature=2.0)
    assert len({said["text"] for said in alone}) > 5 and drawn != alone
    for budget in (100, 100_000):
        assert write(budget) == alone and write(budget, temperature=2.0) == drawn


def test_what_a_checkpoint_is_wont_to_write_is_left_out(checkpoints, tmp_path):
    model, processor, _ = load(checkpoints["bart"], max_target_length=30)
    model.generation_config.update(min_length=20, no_repeat_ngram_size=2, forced_eos_token_id=2, num_beams=4)
    asked, notes = task(max_target_length=30).probe(model, processor)
    assert notes == [
        "the checkpoint's own settings for writing are left out: forced_eos_token_id, min_length, no_repeat_ngram_size."
    ]
    model.generation_config.save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "generation_config.json").read_text())
    assert kept["min_length"] == kept["no_repeat_ngram_size"] == 0 and kept["num_beams"] == 1 and kept["max_new_tokens"] == 30
    assert kept.get("forced_eos_token_id") is None
    inputs = processor("the match was lost", return_tensors="pt")
    (said,) = asked.complete(model, Dataset.from_dict({"source": ["the match was lost"]}), processor, GenerationOptions(), 1)
    (ids,) = model.generate(**inputs)[:, 1:].tolist()
    assert said["text"] == processor.decode(ids, skip_special_tokens=True)


@pytest.mark.parametrize("best", [None, "rouge_l"])
def test_texts_are_written_while_training_only_where_they_choose(best, checkpoints, tmp_path, monkeypatch):
    written = []
    complete = Seq2Seq.complete

    def counted(self: Seq2Seq, model: Any, rows: Dataset, *how: Any) -> Any:
        written.append(len(rows))
        return complete(self, model, rows, *how)

    monkeypatch.setattr(Seq2Seq, "complete", counted)
    files = tiny.write_rows(tmp_path / "data", "pairs")
    asked = {"task": tiny.task_of("pairs"), "training": {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 4}}
    recipe = tiny.recipe(checkpoints["t5"], files, tmp_path / "run", **asked, evaluation={"best": best} if best else {})
    report = hf_sft.train(recipe)
    (curve,) = report.facts["training"]["curves"]
    meanwhile = {"loss"} if best is None else {"rouge_l", "chrf", "loss"}
    assert [each.keys() - {"step"} for each in curve["evaluations"]] == [meanwhile] * 2 and curve["best_step"]
    samples, test, validation = 4, 11, 9
    assert written == [samples, test, *([validation] * 2 if best else []), test, validation, samples]
    assert report.metrics["test"].keys() == {"rouge_l", "chrf", "loss"}
    assert report.facts["baselines"].keys() == {"lead", "checkpoint"}
    again = hf_sft.evaluate(tmp_path / "run")
    assert {name: score.value for name, score in again.scores.items()} == pytest.approx(
        {name: score["value"] for name, score in report.metrics["test"].items()}
    )


def test_where_no_metric_can_do_without_texts_the_loss_chooses(checkpoints, tmp_path):
    plan = EvaluationPlan(metrics=("bleu",))
    assert plan.choose_by(task()) == ("loss", False) and plan.while_training(task()) == ("loss",)
    assert plan.names(task()) == ("bleu", "loss")


@pytest.mark.parametrize("tied", [True, False])
def test_t5_is_all_body_but_for_an_output_layer_of_its_own(tied):
    size = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
    model = T5ForConditionalGeneration(T5Config(vocab_size=64, **size))
    if not tied:
        model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
        model.config.tie_word_embeddings = False
    loaded = LoadedModel(model, (), None)
    assert loaded.head == (set() if tied else {"lm_head.weight"})
    assert loaded.layers == [f"{side}.block.{i}" for side in ("encoder", "decoder") for i in range(2)]
    (phase,) = Lora(type="lora").phases(task(), Training(), 100)
    wrapped = phase.prepare(loaded)
    moving = {name for name, p in wrapped.named_parameters() if p.requires_grad}
    assert {name for name in moving if "lora_" not in name} == (
        set() if tied else {"base_model.model.lm_head.modules_to_save.default.weight"}
    )
    assert len({name.split(".lora_")[0] for name in moving if "lora_" in name}) == 2 * 6 + 2 * 10
    depths = [loaded.depth(f"{layer}.layer.0.SelfAttention.q.weight") for layer in loaded.layers]
    assert all(above + 1 == below for below, above in pairwise(depths)) and loaded.depth("shared.weight") == 5


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings")  # PEFT's, of what plain transformers loads
@pytest.mark.parametrize("method", ["full", "lora", "lora:kept"])
def test_an_output_layer_that_is_not_tied_stays_so_as_flan_t5_has_it(method, checkpoints, tmp_path):
    """transformers says of every T5 that it is tied, whatever it holds, and reads from the same field whether to scale."""
    config = json.loads((checkpoints["t5"] / "config.json").read_text()) | {"tie_word_embeddings": False}
    del config["scale_decoder_outputs"]
    shutil.copytree(checkpoints["t5"], tmp_path / "flan")
    (tmp_path / "flan" / "config.json").write_text(json.dumps(config))
    weights = load_file(tmp_path / "flan" / "model.safetensors")
    torch.manual_seed(0)
    save_file({**weights, "lm_head.weight": torch.randn(64, 32)}, tmp_path / "flan" / "model.safetensors", {"format": "pt"})
    files = tiny.write_rows(tmp_path / "data", "pairs")
    recipe = tiny.recipe(tmp_path / "flan", files, tmp_path / "run", method, task=tiny.task_of("pairs"))
    report = hf_sft.train(recipe | {"training": recipe["training"] | {"learning_rate": 0.01}})
    assert report.facts["certificate"]["within"] and report.facts["checkpoint"] and not report.facts["parameters"]["new"]
    model = load_run(tmp_path / "run").model
    inner = model.get_base_model() if method == "lora:kept" else model
    assert inner.lm_head.weight is not inner.shared.weight and inner.config.scale_decoder_outputs is False
    if method == "lora":  # nothing but the output layer and what is adapted has moved
        assert torch.equal(inner.shared.weight, weights["shared.weight"])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("a goal", "good"), ("the bank", "  ")], "Column `target` is empty"),
        ([("a goal", None), ("the bank", "cut")], "Column `target` holds NoneType, not text"),
        ([(" ", "good"), ("the bank", "cut")], "Column `source` is empty"),
    ],
)
def test_rows_that_say_nothing_are_named(rows, expected, checkpoints, tmp_path, capsys):
    files = write_files(tmp_path / "data", train=rows * 4, validation=[("a", "a")], test=[("a", "a")])
    recipe = tiny.recipe(checkpoints["t5"], files, tmp_path / "run", task={"type": "seq2seq"})
    with pytest.raises(hf_sft.DataError, match=expected):
        hf_sft.train(recipe)
    assert not (tmp_path / "run").exists()


def test_mistakes_in_a_recipe_are_named(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "pairs")

    def refused(family: str, **fields: Any) -> str:
        asked = tiny.recipe(checkpoints[family], files, tmp_path / "run", task={"type": "seq2seq", **fields})
        with pytest.raises(hf_sft.HfSftError) as error:
            hf_sft.train(asked)
        return str(error.value)

    assert "must be another column than that of the source" in refused("t5", target="source")
    assert "does not write 80 tokens" in refused("bart", max_target_length=80)
    assert "That is seq2seq." in refused("t5", type="summarization")
    assert "summary" in refused("t5", target="summary")
    assert "is described by a GPT2Config, and transformers has no AutoModelForSeq2SeqLM for such" in refused("gpt2")
    with pytest.raises(hf_sft.RecipeError, match="90 new tokens are more than the model writes: 63"):
        model, processor, asked = load(checkpoints["bart"], max_target_length=30)
        asked.complete(model, Dataset.from_dict({"source": ["a"]}), processor, GenerationOptions(90), 1)


def test_letters_that_rouge_does_not_see_are_said():
    rows = Dataset.from_dict({"source": ["вот"] * 3, "target": ["да", "нет", "yes"]})
    _, _, notes = task().resolve({"train": rows})
    assert notes == ["62% of the targets' letters are none of a to z, and ROUGE leaves them out: look at chrf."]
    assert task().resolve({"train": Dataset.from_dict({"target": ["yes", "no"]})})[2] == []


def test_check_shows_a_source_and_its_target(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "pairs")
    recipe = tiny.recipe(checkpoints["t5"], files, tmp_path / "run", task={"type": "seq2seq", "prefix": "the film "})
    shown = hf_sft.check(recipe).facts["as the model sees it"]
    assert re.fullmatch(r"the film a .*</s>  \[\d+ tokens\]  ->  .*</s>  \[\d+ tokens\]", shown)
