"""Training that starts from nothing: random weights of a config, and a tokenizer that has seen train alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

import hf_sft
from hf_sft import build_trainer
from hf_sft.models.new_tokenizer import NewTokenizer, train_tokenizer
from hf_sft.tasks import GenerationOptions
from tests import processes, tiny

SMALL = {"n_layer": 2, "n_embd": 32, "n_head": 4, "n_positions": 64, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
GPT2 = {"from_config": "gpt2", "config": SMALL, "tokenizer": {"type": "bpe", "vocab_size": 300}}
GENERATE = """
import json, sys
from transformers import pipeline
answer = pipeline("text-generation", model=sys.argv[1])
print(json.dumps(answer(sys.argv[2], max_new_tokens=8, do_sample=False)[0]["generated_text"]))
"""


def recipe(model: dict[str, Any], files: dict[str, str], output: Path, **changes: Any) -> dict[str, Any]:
    method = changes.pop("method", {"type": "full"})
    made = tiny.recipe(Path("none"), files, output, **{"task": tiny.task_of("texts"), **changes})
    return {**made, "model": model, "method": method}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({}, "needs `checkpoint` or `from_config`; none is given"),
        ({"checkpoint": "gpt2", **GPT2}, "needs `checkpoint` or `from_config`; both are given"),
        ({"checkpoint": "gpt2", "config": SMALL}, "`config` and `tokenizer` go with `from_config`"),
        ({"from_config": "gpt2", "config": SMALL}, "needs `tokenizer`: an architecture brings none"),
        ({**GPT2, "tokenizer": {"type": "bpe", "vocab_size": 256}}, "`vocab_size` must be at least 257 for bpe; got 256"),
        ({**GPT2, "tokenizer": {"type": "unigram", "vocab_size": 300}}, "bpe"),
        (
            {**GPT2, "config": {"n_layers": 2}},
            r"`config.n_layers`: the config of gpt2 has no such field. +Did you mean",
        ),
    ],
)
def test_a_beginning_that_cannot_be_meant_is_refused(model, message, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "texts")
    with pytest.raises(hf_sft.RecipeError, match=message):
        hf_sft.check(recipe(model, files, tmp_path / "run"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"n_embd": 30}, "can't be built"),
        ({"vocab_size": 100}, "its tokenizer has 300 tokens, of which only the first 100 have embeddings"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config, message, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "texts", train=60)
    with pytest.raises(hf_sft.CheckpointError, match=message):
        hf_sft.check(recipe({**GPT2, "config": {**SMALL, **config}}, files, tmp_path / "run"))


def test_weights_are_the_seeds_and_the_run_is_a_checkpoint_like_any_other(tmp_path):
    files = tiny.write_rows(tmp_path / "data", "texts", train=60)
    still = {"learning_rate": 1e-12, "max_steps": 1}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        hf_sft.train({**recipe(GPT2, files, tmp_path / name, training=still), "seed": seed})
    one, again, other = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "again", "other"))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["transformer.wte.weight"], other["transformer.wte.weight"])
    report = json.loads((tmp_path / "one" / "report.json").read_text())
    assert report["checkpoint"]["name"] == "gpt2 with random weights" and report["parameters"]["new"] == []
    assert any("weights are drawn at random: gpt2" in note for note in report["data"]["warnings"])
    labelled = tiny.write_rows(tmp_path / "labelled", "single_label_classification")
    tuned = hf_sft.train(tiny.recipe(tmp_path / "one", labelled, tmp_path / "tuned", "head_only"))
    assert tuned.facts["parameters"]["new"] == ["score.weight"]
    body = load_file(tmp_path / "tuned" / "model.safetensors")
    assert all(torch.equal(body[name], one[name]) for name in one)


def test_a_run_from_nothing_goes_on_in_a_new_process_as_the_plain_model_does_and_runs_again_to_the_same(tmp_path):
    files = tiny.write_rows(tmp_path / "data", "texts", train=60)
    first = hf_sft.train(recipe(GPT2, files, tmp_path / "run", training={"max_steps": 20}))
    text = tiny.rows("texts", 1, 200)[0]["text"]
    done = processes.code(GENERATE, tmp_path / "run", text)
    assert done.returncode == 0, done.stderr[-2000:]
    from transformers import AutoModelForCausalLM

    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path / "run"), AutoModelForCausalLM.from_pretrained(tmp_path / "run")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        for _ in range(8):
            best = model(ids).logits[0, -1].argmax()
            if best == tokenizer.eos_token_id:
                break
            ids = torch.cat([ids, best.view(1, 1)], dim=1)
    assert json.loads(done.stdout.splitlines()[-1]) == tokenizer.decode(ids[0], skip_special_tokens=True)
    (said,) = hf_sft.predict(tmp_path / "run", [text], writing=GenerationOptions(max_new_tokens=8))
    assert text + said["text"] == tokenizer.decode(ids[0], skip_special_tokens=True)
    again = hf_sft.train(tmp_path / "run" / "recipe.yaml", [f"output.folder={tmp_path / 'again'}"])
    assert again.metrics == first.metrics


def test_the_config_of_a_checkpoint_is_taken_with_its_tokenizer_and_with_fields_set(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    model = {"from_config": str(checkpoints["bert"]), "config": {"num_hidden_layers": 1}}
    hf_sft.train(recipe(model, files, tmp_path / "run", task={"type": "sequence_classification"}))
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1 and config["hidden_size"] == 32
    before, after = load_file(checkpoints["bert"] / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    name = "embeddings.word_embeddings.weight"
    assert before[name].shape == after[f"bert.{name}"].shape and not torch.equal(before[name], after[f"bert.{name}"])


@pytest.mark.parametrize("kind", ["bpe", "wordpiece"])
def test_a_tokenizer_is_the_same_for_the_same_texts_and_reads_back_what_it_wrote(kind, tmp_path):
    texts = [row["text"] for row in tiny.rows("texts", 50)]
    made = [train_tokenizer(NewTokenizer(type=kind, vocab_size=300), texts) for _ in range(2)]
    assert made[0].get_vocab() == made[1].get_vocab() and len(made[0]) <= 300
    made[0].save_pretrained(tmp_path / "saved")
    read = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in texts:
        assert read(text)["input_ids"] == made[0](text)["input_ids"]
        assert read.decode(read(text)["input_ids"], skip_special_tokens=True) == text
    strange = "Ünïcode — 東京 🎉"
    if kind == "bpe":
        assert read.decode(read(strange)["input_ids"], skip_special_tokens=True) == strange
    else:
        assert {read.pad_token, read.cls_token, read.mask_token} == {"[PAD]", "[CLS]", "[MASK]"}
        assert read.convert_ids_to_tokens(read("goal")["input_ids"])[0] == "[CLS]"


def test_a_tokenizer_from_the_cache_is_that_of_these_texts_this_kind_and_this_size(tmp_path, monkeypatch):
    """One cache, filled by others first: each run's tokenizer is the one that its own train split gives."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    words = {"one": "the goal was lost", "two": "shares of the bank fell"}
    seen = set()
    for name, kind, size in (("one", "bpe", 290), ("two", "bpe", 290), ("one", "bpe", 280), ("one", "wordpiece", 120)):
        texts = [f"{words[name]} {i}" for i in range(40)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        wanted = {"type": kind, "vocab_size": size}
        files = dict.fromkeys(("train", "validation", "test"), str(tmp_path / f"{name}.jsonl"))
        found = build_trainer(recipe({**GPT2, "tokenizer": wanted}, files, tmp_path / "run")).processing_class.get_vocab()
        assert found == train_tokenizer(NewTokenizer.model_validate(wanted), texts).get_vocab()
        seen.add(json.dumps(found, sort_keys=True))
    assert len(seen) == 4


def test_an_adapter_on_random_weights_is_refused(tmp_path):
    files = tiny.write_rows(tmp_path / "data", "texts", train=60)
    made = recipe(GPT2, files, tmp_path / "run", method={"type": "lora", "merge": False})
    with pytest.raises(hf_sft.RecipeError, match="an adapter on random weights can't be loaded again"):
        hf_sft.check(made)


def test_files_of_text_are_read_by_paragraph_or_whole(tmp_path):
    from hf_sft.data.data_source import DataSource
    from hf_sft.data.sources import load_source

    (tmp_path / "plays.txt").write_text("one\ntwo\n\nthree\n")
    found = {}
    for by in (None, "paragraph", "document"):
        source = DataSource(dataset=str(tmp_path / "plays.txt"), sample_by=by)
        found[by] = load_source(source, ())[0]["train"]["text"][:]
    assert found[None] == ["one", "two", "", "three"]
    assert [text.strip() for text in found["paragraph"]] == ["one\ntwo", "three"]
    assert found["document"] == ["one\ntwo\n\nthree\n"]
    (tmp_path / "rows.csv").write_text("text\none\n")
    with pytest.raises(hf_sft.DataError, match=r"`data.sample_by` goes with files of text"):
        load_source(DataSource(dataset=str(tmp_path / "rows.csv"), sample_by="line"), ())
