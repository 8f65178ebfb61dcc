"""What LoRA must reach so that a task can be learned: the token that ends a turn, experts, an output layer of its own."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Qwen3MoeConfig, Qwen3MoeForCausalLM

import hf_sft
from tests import tiny

TEMPLATE = "{% for m in messages %}{{ m.content }}{{ 'song' if m.role == 'assistant' else '\n' }}{% endfor %}"


def with_end_token(checkpoint: Path, folder: Path, how: str) -> Path:
    """A checkpoint whose end token has an embedding that was never trained: near zero, or that of other unused tokens."""
    shutil.copytree(checkpoint, folder)
    processor = AutoTokenizer.from_pretrained(folder)
    processor.add_special_tokens({"additional_special_tokens": ["song"]})
    processor.chat_template = TEMPLATE
    processor.save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    table = next(name for name in weights if name.endswith("wte.weight"))
    end, other = processor.convert_tokens_to_ids(["song", "actor"])
    if how == "tiny":
        weights[table][end] *= 1e-3
    if how == "equal":
        weights[table][end] = weights[table][other]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def recipe_of(
    checkpoint: Path, files: dict[str, str], folder: Path, method: dict[str, Any], **training: Any
) -> dict[str, Any]:
    made = tiny.recipe(checkpoint, files, folder, task={"type": "chat", "max_length": 32})
    made["method"] = {"type": "lora", **method}
    made["training"] |= {"optim": "adamw_torch", "learning_rate": 1e-2, **training}
    return made


@pytest.mark.parametrize("how", ["tiny", "equal"])
@pytest.mark.parametrize("merge", [True, False])
def test_an_end_token_that_was_never_trained_is_trained_along(how, merge, checkpoints, tmp_path):
    base = with_end_token(checkpoints["gpt2"], tmp_path / "base", how)
    files = tiny.write_rows(tmp_path / "data", "talks", train=20)
    report = hf_sft.train(recipe_of(base, files, tmp_path / "run", {"merge": merge}, max_steps=60))
    assert any("were never trained: they are trained too" in w for w in report.facts["data"]["warnings"])
    assert report.facts["certificate"]["within"]
    if not merge:
        return
    end = AutoTokenizer.from_pretrained(base).convert_tokens_to_ids("song")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "run"))
    was, now = (next(value for name, value in weights.items() if name.endswith("wte.weight")) for weights in (before, after))
    changed = (now - was).abs().sum(1)
    assert changed[end] > 0 and float(changed.sum() - changed[end]) == 0
    answers = hf_sft.predict(tmp_path / "run", [json.loads(Path(files["train"]).read_text().splitlines()[0])])
    assert answers[0]["text"] is not None


def test_an_end_token_that_was_trained_stays(checkpoints, tmp_path):
    base = with_end_token(checkpoints["gpt2"], tmp_path / "base", "as it is")
    files = tiny.write_rows(tmp_path / "data", "talks", train=20)
    found = hf_sft.check(recipe_of(base, files, tmp_path / "run", {}))
    assert not any("never trained" in warning for warning in found.warnings)


@pytest.mark.parametrize("output_layer", ["whole", "lora", "frozen"])
def test_an_output_layer_of_its_own_is_told_and_can_be_switched(output_layer, checkpoints, tmp_path):
    base = tmp_path / "base"
    model = _untied(checkpoints["llama"])
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(checkpoints["llama"]).save_pretrained(base)
    files = tiny.write_rows(tmp_path / "data", "talks", train=20)
    made = recipe_of(base, files, tmp_path / "run", {"output_layer": output_layer})
    made["task"]["chat_template"] = "plain"
    report = hf_sft.train(made)
    total = sum(parameter.numel() for parameter in model.parameters())
    share = model.lm_head.weight.numel() / total
    told = next(warning for warning in report.facts["data"]["warnings"] if "`lm_head`" in warning)
    assert f"`lm_head`, {share:.0%} of the weights, is not tied to the embeddings" in told
    assert ("method.output_layer=lora" in told) is (output_layer == "whole")
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    change = after["lm_head.weight"] - before["lm_head.weight"]
    rank = int(torch.linalg.matrix_rank(change, atol=1e-6))
    assert {"whole": rank > 8, "lora": 0 < rank <= 8, "frozen": rank == 0}[output_layer]
    assert report.facts["certificate"]["within"]


def _untied(checkpoint: Path):
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(checkpoint)
    config.tie_word_embeddings = False
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config)


def test_experts_that_are_parameters_and_no_layers_take_updates(checkpoints, tmp_path):
    processor = AutoTokenizer.from_pretrained(checkpoints["llama"])
    size = {"hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16, "num_hidden_layers": 2, "head_dim": 16}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_experts": 4, "num_experts_per_tok": 2}
    signs = dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id"), 0)
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=len(processor), max_position_embeddings=64, tie_word_embeddings=True, **size, **heads, **signs
    )
    Qwen3MoeForCausalLM(config).save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    files = tiny.write_rows(tmp_path / "data", "talks", train=20)
    made = recipe_of(tmp_path / "base", files, tmp_path / "run", {}, max_steps=8)
    made["task"]["chat_template"] = "plain"
    report = hf_sft.train(made)
    assert any("weights of experts" in warning for warning in report.facts["data"]["warnings"])
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("base", "run"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("experts" in name for name in moved) and report.facts["certificate"]["within"]
    for method in ({"target_modules": ["q_proj"]}, {"variant": "dora"}, {"dropout": 0.1}, {"variant": "rslora"}):
        found = hf_sft.check({**made, "method": {"type": "lora", **method}})
        assert any("weights of experts" in warning for warning in found.warnings) is (method == {"variant": "rslora"}), method


@pytest.mark.parametrize(("family", "method"), [("bert", "full"), ("bert", "lora"), ("gpt2", "lora"), ("llama", "lora")])
def test_tokens_that_are_added_begin_at_the_mean_and_are_trained(family, method, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification", train=20)
    for path in files.values():
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        Path(path).write_text("".join(json.dumps({**row, "text": f"<pad1> {row['text']} snow"}) + "\n" for row in rows))
    made = tiny.recipe(checkpoints[family], files, tmp_path / "run", method)
    made["model"]["add_tokens"] = ["<pad1>", "snow"]
    made["training"] |= {"optim": "adamw_torch", "learning_rate": 1e-2}
    begun = hf_sft.runs.prepare.prepare(hf_sft.Recipe.model_validate(made))
    ids = begun.processor.convert_tokens_to_ids(["<pad1>", "snow"])
    table = begun.loaded.model.get_input_embeddings().weight.detach().clone()
    old = [i for i in range(len(begun.processor)) if i not in ids]
    torch.testing.assert_close(table[ids], table[old].mean(0).expand(2, -1))
    report = hf_sft.train(made)
    assert report.facts["certificate"]["within"]
    assert any("2 token(s) are added (<pad1>, snow)" in warning for warning in report.facts["data"]["warnings"])
    run = hf_sft.runs.prepare.load_run(tmp_path / "run")
    moved = (run.model.get_input_embeddings().weight.detach() - table).abs().sum(1)
    assert (moved[ids] > 0).all() and (method == "full" or float(moved[old].sum()) == 0)
    assert run.processor.tokenize("the snow") == ["the", "snow"]
    lines = [json.loads(line) for line in (tmp_path / "run/predictions/test.jsonl").read_text().splitlines()]
    again = hf_sft.predict(
        tmp_path / "run", [json.loads(line)["text"] for line in Path(files["test"]).read_text().splitlines()]
    )
    assert [each["label"] for each in again] == [line["label"] for line in lines]


def test_tokens_that_are_known_and_adapters_on_added_ones_are_refused(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    made = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "lora")
    made["model"]["add_tokens"] = ["goal"]
    with pytest.raises(hf_sft.CheckpointError, match="has 'goal' already"):
        hf_sft.check(made)
    made["model"]["add_tokens"], made["method"]["merge"] = ["snow"], False
    with pytest.raises(hf_sft.RecipeError, match="changes what an adapter is put on"):
        hf_sft.check(made)
