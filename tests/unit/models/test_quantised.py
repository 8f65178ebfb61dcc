"""Few bits a weight: a GGUF file is dequantised once, and trained like any checkpoint; 4 bits rest beneath adapters."""

import re
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import hf_sft
import hf_sft.models.loading
from hf_sft.models.checkpoint import Checkpoint, find_checkpoint
from hf_sft.storage.cache import cache_folder
from tests import tiny

SINGLE = "single_label_classification"
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    **{f"self_attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    "model.layers": "blk",
}


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, num_key_value_heads=2, max_position_embeddings=64, **size))
    for norm in (m for name, m in model.named_modules() if "norm" in name):
        torch.nn.init.normal_(norm.weight, 1.0, 0.1)
    return model.eval()


@pytest.fixture(scope="module")
def folders(llama, tmp_path_factory) -> dict[str, Path]:
    made = {}
    for kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.Q8_0):
        made[kind.name] = tmp_path_factory.mktemp(kind.name)
        write(llama, made[kind.name] / "tiny.gguf", kind)
    return made


def write(model: LlamaForCausalLM, file: Path, kind: Any) -> None:
    """As llama.cpp's converter would."""
    config, out = model.config, gguf.GGUFWriter(file, "llama")
    out.add_context_length(64)
    out.add_embedding_length(config.hidden_size)
    out.add_block_count(config.num_hidden_layers)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(10_000.0)
    out.add_vocab_size(config.vocab_size)
    letters = [chr(place) for place in range(ord("a"), ord("z") + 1)]
    tokens = ["<unk>", "<s>", "<|endoftext|>", "Ġ", *letters, *(f"Ġ{letter}" for letter in letters)]
    tokens += [f"<{place}>" for place in range(config.vocab_size - len(tokens))]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("default")
    out.add_token_list(tokens)
    out.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    out.add_token_merges([f"Ġ {letter}" for letter in letters])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    for name, tensor in model.state_dict().items():
        for theirs, its in NAMES.items():
            name = name.replace(theirs, its)
        array = tensor.numpy()
        if "attn_q" in name or "attn_k" in name:
            heads = config.num_attention_heads if "attn_q" in name else config.num_key_value_heads
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        quantised = array.ndim == 2 and kind is gguf.GGMLQuantizationType.Q8_0
        stored = gguf.quants.quantize(np.ascontiguousarray(array), kind) if quantised else np.ascontiguousarray(array)
        out.add_tensor(name, stored, raw_dtype=kind if quantised else None)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()


def asked(folder: Path, there: Path, method: str = "lora") -> dict[str, Any]:
    return tiny.recipe(
        folder, tiny.write_rows(there / "data", SINGLE), there / "run", method, model={"gguf_file": "tiny.gguf"}
    )


def test_the_weights_are_those_of_the_file(llama, folders):
    made = AutoModelForCausalLM.from_pretrained(
        find_checkpoint(Checkpoint(checkpoint=str(folders["F32"]), gguf_file="tiny.gguf"))
    )
    assert made.dtype == torch.float32
    for name, tensor in made.state_dict().items():
        assert torch.equal(tensor, llama.state_dict()[name]), name
    quantised = find_checkpoint(Checkpoint(checkpoint=str(folders["Q8_0"]), gguf_file="tiny.gguf"))
    for name, tensor in AutoModelForCausalLM.from_pretrained(quantised).state_dict().items():
        wanted = llama.state_dict()[name]
        assert (tensor - wanted).abs().max() <= wanted.abs().max() / 127, name  # half a step of eight bits, and of the scale


@pytest.mark.parametrize("method", ["full", "lora"])
def test_it_is_trained_like_any_checkpoint(method, folders, tmp_path):
    facts = hf_sft.train(asked(folders["Q8_0"], tmp_path, method)).facts
    assert facts["certificate"]["within"]
    said = facts["recipe"]["model"]
    assert (said["checkpoint"], said["gguf_file"]) == (str(folders["Q8_0"]), "tiny.gguf")
    assert all(tensor.dtype == torch.float32 for tensor in load_file(tmp_path / "run" / "model.safetensors").values())


def test_it_is_dequantised_once_for_each_content(folders, tmp_path):
    shutil.copytree(folders["F32"], tmp_path / "one")
    where = Checkpoint(checkpoint=str(tmp_path / "one"), gguf_file="tiny.gguf")
    made = Path(find_checkpoint(where))
    assert made.parent == cache_folder("dequantised")
    before = (made / "model.safetensors").stat().st_mtime_ns
    assert find_checkpoint(where) == str(made) and (made / "model.safetensors").stat().st_mtime_ns == before
    shutil.copy(folders["Q8_0"] / "tiny.gguf", tmp_path / "one" / "tiny.gguf")
    assert find_checkpoint(where) != str(made)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gguf_file": "tinny.gguf"}, r"has no file `tinny.gguf`.\n  It has: tiny.gguf. Did you mean `tiny.gguf`\?"),
        ({"gguf_file": None}, r"it holds GGUF files; name one as `model.gguf_file`: tiny.gguf"),
        ({"gguf_file": "notes.txt"}, "is not a GGUF file: it does not begin with GGUF"),
        ({"gguf_file": "torn.gguf"}, "`torn.gguf` can't be dequantised"),
    ],
)
def test_mistakes_with_such_files_are_told(changes, words, folders, tmp_path):
    (folders["F32"] / "notes.txt").write_text("no model")
    (tmp_path / "torn").mkdir()
    recipe = asked(folders["F32"], tmp_path)
    if changes["gguf_file"] == "torn.gguf":
        (tmp_path / "torn" / "torn.gguf").write_bytes((folders["F32"] / "tiny.gguf").read_bytes()[:5000])
        recipe["model"]["checkpoint"] = str(tmp_path / "torn")
    recipe["model"] |= changes
    with pytest.raises(hf_sft.CheckpointError, match=words):
        hf_sft.train(recipe)
    assert not (tmp_path / "run").exists()


def test_weights_in_four_bits_need_the_package_that_makes_them(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr(hf_sft.models.loading, "find_spec", lambda name: None)
    recipe = tiny.recipe(checkpoints["bert"], tiny.write_rows(tmp_path / "data", SINGLE), tmp_path / "run", "lora:kept")
    recipe["model"]["load_in_4bit"] = True
    with pytest.raises(hf_sft.CheckpointError, match=r'needs the package bitsandbytes: pip install "hf-sft\[qlora\]"'):
        hf_sft.train(recipe)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_adapters_on_weights_in_four_bits_are_certified(family, checkpoints, tmp_path):
    wider = tmp_path / "wider"  # 64 weights share a scale
    shutil.copytree(checkpoints[family], wider)
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.from_pretrained(wider, hidden_size=64)).save_pretrained(wider)
    recipe = tiny.recipe(wider, tiny.write_rows(tmp_path / "data", SINGLE), tmp_path / "run", "lora:kept")
    recipe["model"]["load_in_4bit"] = True
    trainer = hf_sft.build_trainer({**recipe, "output": {"folder": str(tmp_path / "other")}})
    packed = {name for name, p in trainer.model.named_parameters() if p.dtype == torch.uint8}
    moving = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert packed and not packed & moving
    assert all(any(new.rpartition(".")[2] in name for name in moving) for new in trainer.loaded.new)
    report = hf_sft.train(recipe)
    assert report.facts["certificate"]["within"]
    snippet = re.search(r"```python\n(.*?)```", (tmp_path / "run" / "README.md").read_text(), re.DOTALL)
    assert snippet
    said: dict[str, Any] = {}
    exec(snippet[1].replace("\nanswer(", "\nlabel = answer("), said)
    assert said["label"][0]["label"] == hf_sft.predict(tmp_path / "run", ["A text."])[0]["label"]


def test_weights_in_four_bits_take_no_updates_in(checkpoints, tmp_path):
    recipe = tiny.recipe(checkpoints["bert"], tiny.write_rows(tmp_path / "data", SINGLE), tmp_path / "run", "lora")
    recipe["model"]["load_in_4bit"] = True
    with pytest.raises(hf_sft.RecipeError, match="can neither move nor take updates in"):
        hf_sft.train(recipe)


def test_an_adapter_needs_a_checkpoint_that_it_can_be_put_on_again(folders, tmp_path):
    with pytest.raises(hf_sft.RecipeError, match="an adapter on a GGUF file can't be loaded again"):
        hf_sft.train(asked(folders["F32"], tmp_path, "lora:kept"))
