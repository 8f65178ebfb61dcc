"""Families of checkpoints, by rule: what moves, what is new, and that what was saved is what was trained."""

import json
import os
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AlbertConfig,
    BartConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    GPTNeoXConfig,
    LlamaConfig,
    ModernBertConfig,
    PreTrainedConfig,
    Qwen2Config,
    RobertaConfig,
    T5Config,
)
from transformers.models.auto import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

import hf_sft
from hf_sft.models.new_tokenizer import NewTokenizer, train_tokenizer
from tests import processes, tiny
from tests.gradients import TOLERANCE, alike_however_cut, relative_difference, steps_of
from tests.grids import WHOLE, one_each
from tests.quaint import QuaintConfig

SINGLE = "single_label_classification"
SIZE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
LARGER = {**SIZE, "vocab_size": 300}
ENDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "decoder_start_token_id": 2}
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "roberta": lambda: RobertaConfig(**SIZE, max_position_embeddings=66),
    "distilbert": lambda: DistilBertConfig(vocab_size=64, dim=32, n_layers=2, n_heads=4, hidden_dim=64),
    "electra": lambda: ElectraConfig(**SIZE, embedding_size=16),
    "albert": lambda: AlbertConfig(**SIZE, embedding_size=16),
    "deberta_v2": lambda: DebertaV2Config(**SIZE, relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0),
    "modernbert": lambda: ModernBertConfig(**SIZE, pad_token_id=0),
    "llama": lambda: LlamaConfig(**LARGER, num_key_value_heads=2),
    "qwen2": lambda: Qwen2Config(**LARGER, num_key_value_heads=2),
    "gpt_neox": lambda: GPTNeoXConfig(**LARGER),
    "bart": lambda: BartConfig(
        **{"vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 64},
        **{"decoder_ffn_dim": 64, "encoder_attention_heads": 4, "decoder_attention_heads": 4, **ENDS},
    ),
    "quaint": QuaintConfig,
    "t5": lambda: T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, **ENDS),
}
DECODERS = ("llama", "qwen2", "gpt_neox")
METHODS = ("full", "head_only", "last_layers", "lora:merged", "lora:kept")
BPE = NewTokenizer(type="bpe", vocab_size=300)


def build(family: str, folder: Path) -> Path:
    """A checkpoint of a family without a head, with no dropout."""
    config = FAMILIES[family]()
    for name, value in config.to_dict().items():
        if "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    texts = [row["text"] for row in tiny.rows(SINGLE, 99)]
    (train_tokenizer(BPE, texts) if family in DECODERS else tiny._bert_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> dict[str, Path]:
    return {family: build(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


def asked(checkpoint: Path, folder: Path, method: str) -> dict[str, Any]:
    recipe = tiny.recipe(checkpoint, tiny.write_rows(folder / "data", SINGLE), folder / "run", method)
    recipe["method"] |= {"layers": 1} if method == "last_layers" else {}
    return recipe


@pytest.mark.parametrize(("family", "method"), one_each([*product(FAMILIES, (*METHODS[3:], *METHODS[:3]))]))
def test_what_was_saved_answers_like_what_was_trained(family, method, built, tmp_path):
    facts = hf_sft.train(asked(built[family], tmp_path, method)).facts
    assert facts["certificate"]["within"] and facts["certificate"]["rows"] == 11
    losses = facts["training"]["curves"][0]["losses"]
    assert all(0 < loss < 5 for loss in losses)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_reads_the_mean_where_the_architecture_can_hold_that(family, built, tmp_path):
    recipe = asked(built[family], tmp_path, "head_only")
    recipe["method"]["pool"] = "mean"
    if family in (*DECODERS, "albert", "bart", "t5"):
        with pytest.raises(hf_sft.RecipeError, match="can't hold a head that reads the mean"):
            hf_sft.train(recipe)
        return
    facts = hf_sft.train(recipe).facts
    assert facts["certificate"]["within"] and facts["training"]["phases"][0]["stored_features"]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    if family == "modernbert":
        assert model.config.classifier_pooling == "mean"
        return
    texts = AutoTokenizer.from_pretrained(tmp_path / "run")(["a goal", "the bank cut its rates again", "law"], padding=True)
    batch = texts.convert_to_tensors("pt")
    with torch.no_grad():
        config = AutoConfig.from_pretrained(built[family])
        config.pad_token_id = model.config.pad_token_id
        body = AutoModel.from_pretrained(built[family], config=config).eval()
        below = body(**batch).last_hidden_state
        read = model(**batch, output_hidden_states=True).hidden_states[-1][:, 0]
    shown = batch["attention_mask"].unsqueeze(-1)
    mean = (below * shown).sum(1) / shown.sum(1)
    centred = [vectors - vectors.mean(-1, keepdim=True) for vectors in (read, mean)]
    assert torch.nn.functional.cosine_similarity(*centred).min() > 0.99


def test_a_checkpoint_says_what_its_head_is_to_read(built, checkpoints, tmp_path):
    """Of a checkpoint of sentence-transformers that was made for the mean; where a task asks for each position, its own."""
    made = tmp_path / "made"
    shutil.copytree(checkpoints["bert"], made)
    (made / "1_Pooling").mkdir()
    (made / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    read = {}
    for name, folder, pool in (("auto", made, "auto"), ("own", made, "own"), ("plain", checkpoints["bert"], "auto")):
        recipe = asked(folder, tmp_path / name, "head_only")
        recipe["method"]["pool"] = pool
        read[name] = len(hf_sft.build_trainer(recipe).loaded.layers)
    assert read == {"auto": 3, "own": 2, "plain": 2}
    files = tiny.write_rows(tmp_path / "tags", "entities")
    tags = tiny.recipe(made, files, tmp_path / "tags" / "run", "head_only", task=tiny.task_of("entities"))
    assert len(hf_sft.build_trainer(tags).loaded.layers) == 2
    tags["method"]["pool"] = "mean"
    with pytest.raises(hf_sft.RecipeError, match="can't hold a head that reads the mean"):
        hf_sft.build_trainer(tags)


@pytest.mark.parametrize(("family", "method"), one_each([*product(FAMILIES, ("head_only", "last_layers", "full", "lora"))]))
def test_what_is_meant_to_move_moves_and_nothing_else(family, method, built, tmp_path):
    trainer = hf_sft.build_trainer(asked(built[family], tmp_path, method))
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    moving = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p.detach(), before[name])}
    assert changed <= moving
    new = [name for name in trainer.loaded.new if name.endswith("weight")]
    assert new and all(any(part.endswith(name.rpartition(".")[2]) for part in changed) for name in new)
    head = {name for name in trainer.loaded.head if name in moving}
    if method == "head_only":
        assert moving == head
    if method == "last_layers":
        top = trainer.loaded.layers[-1]
        assert any(name.startswith(f"{top}.") for name in changed)
        assert not any(name.startswith(f"{layer}.") for layer in trainer.loaded.layers[:-1] for name in changed)


@pytest.mark.parametrize("family", ["electra", "bart", "t5"])
def test_lower_layers_are_stored_only_where_nothing_else_of_them_is_used(family, built, tmp_path):
    """A decoder's layers look at the encoder's too; on a tiny model the difference would be lost in rounding."""
    facts = hf_sft.train(asked(built[family], tmp_path, "last_layers")).facts
    assert facts["training"]["curves"][0]["stored_layers"] == (1 if family == "electra" else 0)


def alike_by_two_processes(recipes: dict[str, dict[str, Any]], folder: Path) -> None:
    """Each ends in the weights that one process ends in; a step has one row for the second process, or none."""
    for name, recipe in recipes.items():
        hf_sft.train({**recipe, "output": {"folder": str(folder / "one" / name)}})
    by_two = [{**recipe, "output": {"folder": str(folder / "two" / name)}} for name, recipe in recipes.items()]
    processes.by_two(processes.train_all, by_two)
    for name in recipes:
        (weights,) = {path.name for path in (folder / "one" / name).glob("*model.safetensors")}
        one, two = (load_file(folder / side / name / weights) for side in ("one", "two"))
        assert relative_difference(two, one) < TOLERANCE, name


@pytest.mark.parametrize(("family", "method"), one_each([*product(FAMILIES, METHODS)]))
def test_a_step_is_the_same_however_it_is_cut(family, method, built, tmp_path):
    alike_however_cut(steps_of(asked(built[family], tmp_path, method), (10_000, 24)), (5,))


def test_two_processes_end_in_the_weights_of_one(built, tmp_path):
    telling = [
        ("modernbert", "full"),
        ("electra", "head_only"),
        ("t5", "last_layers"),
        ("albert", "lora"),
        ("llama", "lora:kept"),
    ]
    cells = [*product(FAMILIES, METHODS)] if WHOLE in os.environ else telling
    recipes = {f"{family}-{method.replace(':', '_')}": asked(built[family], tmp_path, method) for family, method in cells}
    alike_by_two_processes(recipes, tmp_path)


def test_texts_of_which_the_tokenizer_makes_nothing_are_named(built, tmp_path):
    """transformers reads any tokenizer of a Qwen2 as Qwen2's own, which has no token for unknown words."""
    tiny._gpt2_tokenizer().save_pretrained(built["qwen2"])
    with pytest.raises(hf_sft.DataError, match=r"2 row\(s\) of split `train` give no token: 2, 11"):
        hf_sft.check(asked(built["qwen2"], tmp_path, "full"))
