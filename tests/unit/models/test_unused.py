"""Parts of a body that no text reaches stay as they are, whatever the method, and several processes train beside them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig, SiglipVisionConfig

import hf_sft
from tests import processes, tiny


@pytest.fixture(scope="module")
def seeing(tmp_path_factory) -> Path:
    """A tiny Gemma 3: a language model with a vision tower."""
    folder, (_, make_processor) = tmp_path_factory.mktemp("seeing"), tiny.ALL_FAMILIES["llama"]
    processor = make_processor()
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = Gemma3TextConfig(
        **size,
        vocab_size=len(processor) + 4,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=64,
        sliding_window=32,
        **dict.fromkeys(("pad_token_id", "eos_token_id", "bos_token_id"), 0),
    )
    vision = SiglipVisionConfig(**{**size, "num_hidden_layers": 1}, image_size=28, patch_size=14)
    signs = {f"{name}_index": len(processor) + 1 + i for i, name in enumerate(("image_token", "boi_token", "eoi_token"))}
    torch.manual_seed(0)
    config = Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4, **signs)
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def moved(before: Path, after: Path) -> set[str]:
    """The parts of a model whose weights have changed."""
    first, second = load_file(before / "model.safetensors"), load_file(after / "model.safetensors")
    return {name.partition(".")[0] for name in first if not torch.equal(first[name], second[name])}


@pytest.mark.parametrize("method", ["full", "lora"])
def test_what_no_text_reaches_does_not_move(method, seeing, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "talks", train=20)
    recipe = tiny.recipe(seeing, files, tmp_path / "run", method, task=tiny.task_of("talks"))
    recipe["training"] |= {"optim": "adamw_torch", "weight_decay": 0.1, "learning_rate": 1e-2}
    report = hf_sft.train(recipe)
    assert any(
        "`vision_tower`, `multi_modal_projector`" in w and "stays as it is" in w for w in report.facts["data"]["warnings"]
    )
    assert moved(seeing, tmp_path / "run") == {"language_model"}


def test_two_processes_train_beside_it(seeing, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "talks", train=20)
    recipe = tiny.recipe(seeing, files, tmp_path / "two", task=tiny.task_of("talks"))
    processes.by_two(processes.train_all, [recipe])
    hf_sft.train({**recipe, "output": {"folder": str(tmp_path / "one")}})
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    apart = sum(float((one[name] - two[name]).square().sum()) for name in one) ** 0.5
    assert apart / sum(float(one[name].square().sum()) for name in one) ** 0.5 < 1e-5


def test_a_model_all_of_which_is_used_has_nothing_unused(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "talks", train=20)
    found = hf_sft.check(tiny.recipe(checkpoints["llama"], files, tmp_path / "run", task=tiny.task_of("talks")))
    assert not any("not used by this task" in warning for warning in found.warnings)
