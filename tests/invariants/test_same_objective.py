"""What makes a training fast changes nothing that is learned."""

import contextlib
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch.utils._python_dispatch import TorchDispatchMode

import hf_sft
from hf_sft.runs.prepare import as_recipe, prepare
from hf_sft.trainer.fit import fit
from hf_sft.trainer.speedups.lora_linear import as_one_operation
from tests import tiny

SINGLE = tiny.PROBLEMS[0]


class CountCasts(TorchDispatchMode):
    """How often matrices are copied to bfloat16."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        casts = func is torch.ops.aten._to_copy.default and (kwargs or {}).get("dtype") is torch.bfloat16
        self.count += casts and args[0].ndim == 2
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_weights_are_cast_once_a_step_and_the_gradients_are_the_same(family, checkpoints, tmp_path, monkeypatch):
    files = tiny.write_rows(tmp_path / "data", SINGLE, train=16)
    found: dict[tuple[bool, int], tuple[int, dict[str, torch.Tensor]]] = {}
    for once, tokens in ((True, 10_000), (True, 24), (False, 24)):
        training = {"batch_size": 16, "micro_batch_tokens": tokens, "bf16": True}
        trainer = hf_sft.build_trainer(tiny.recipe(checkpoints[family], files, tmp_path / "run", training=training))
        model = trainer.accelerator.prepare_model(trainer.model)
        if not once:
            monkeypatch.setattr(trainer, "_cast_once", contextlib.nullcontext)
        with CountCasts() as counted:
            trainer.training_step(model, next(iter(trainer.get_train_dataloader())))
        found[once, tokens] = counted.count, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    assert found[True, 24][0] < found[False, 24][0] / 2
    assert all(torch.equal(found[True, 24][1][name], gradient) for name, gradient in found[False, 24][1].items())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_adapted_layers_as_one_operation_have_the_gradients_of_pefts_own(family, checkpoints, tmp_path):
    """In float32 but for rounding; in bfloat16 no further from those than PEFT's are."""
    files = tiny.write_rows(tmp_path / "data", SINGLE, train=16)
    found: dict[tuple[bool, bool], torch.Tensor] = {}
    for bf16, one in itertools.product((False, True), repeat=2):
        training = {"batch_size": 16, "micro_batch_tokens": 24, "bf16": bf16}
        trainer = hf_sft.build_trainer(tiny.recipe(checkpoints[family], files, tmp_path / "run", "lora", training=training))
        model = trainer.accelerator.prepare_model(trainer.model)
        layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
        torch.manual_seed(1)
        for layer in layers:  # they begin at zero, and A then has no gradient
            torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
        with as_one_operation(model, trainer.machine) if one else contextlib.nullcontext():
            assert all(("forward" in vars(layer)) == one for layer in layers)
            torch.manual_seed(2)
            trainer.training_step(model, next(iter(trainer.get_train_dataloader())))
        assert not any("forward" in vars(layer) for layer in layers)
        found[bf16, one] = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(found[False, True], found[False, False], rtol=1e-4, atol=1e-6)
    errors = [float((found[True, one] - found[False, False]).norm()) for one in (True, False)]
    assert 0 < errors[0] < 1.1 * errors[1]


@pytest.mark.parametrize("method", [{"variant": "dora"}, {"dropout": 0.1}])
def test_layers_that_do_more_stay_pefts_own(method, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "lora")
    trainer = hf_sft.build_trainer({**recipe, "method": {**recipe["method"], **method}})
    with as_one_operation(trainer.model, trainer.machine):
        assert not any("forward" in vars(module) for module in trainer.model.modules())


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_fifty_losses_are_those_of_a_loop_that_neither_sorts_nor_cuts(family, checkpoints, tmp_path):
    """In float32, without dropout; the loop is PyTorch alone, and pads each step to its longest row."""
    files = tiny.write_rows(tmp_path / "data", SINGLE, train=45)
    training = {"optim": "adamw_torch", "learning_rate": 1e-3, "max_steps": 50, "micro_batch_tokens": 24}
    recipe = tiny.recipe(checkpoints[family], files, tmp_path / "run", training=training)
    prepared, again = prepare(as_recipe(recipe)), prepare(as_recipe(recipe))
    config = prepared.fit_config(tmp_path / "run")
    _, curve = fit(prepared.phases[0], prepared.loaded, config)

    model, train, losses, epoch = again.loaded.model.train(), again.examples["train"], [], 0
    asked = prepared.phases[0].training
    optimizer = torch.optim.AdamW(decay_groups(model, asked.weight_decay), lr=1e-3, eps=asked.adam_epsilon)
    while len(losses) < 50:
        order = np.random.default_rng((config.seed, epoch)).permutation(len(train))
        for rows in np.split(order, range(8, len(order), 8))[: 50 - len(losses)]:
            batch = train.collate(tuple(rows.tolist()))
            loss = torch.nn.functional.cross_entropy(model(**{**batch, "labels": None}).logits, batch["labels"])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), asked.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss.detach()))
        epoch += 1
    assert curve.losses == pytest.approx(losses, rel=1e-4)


def decay_groups(model, decay):
    """As Trainer has them: biases and norms do not decay."""
    kept = [p for name, p in model.named_parameters() if p.ndim > 1]
    free = [p for name, p in model.named_parameters() if p.ndim == 1]
    return [{"params": kept, "weight_decay": decay}, {"params": free, "weight_decay": 0.0}]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_step_that_does_not_fit_is_repeated_in_smaller_pieces(family, checkpoints, tmp_path, capsys):
    """As a device says it that has room for 30 tokens; and one that has room for none still says so itself."""
    files = tiny.write_rows(tmp_path / "data", SINGLE, train=20)
    recipe = tiny.recipe(checkpoints[family], files, tmp_path / "run")
    recipe["training"] |= {"micro_batch_tokens": 100, "eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 2}

    def train(room):
        prepared = prepare(as_recipe(recipe))
        items = prepared.splits.task.items

        def in_room(model, batch):
            if model.training and batch["input_ids"].numel() > room:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
            return items(model, batch)

        config = prepared.fit_config(tmp_path / f"room_{room}")
        return fit(prepared.phases[0], prepared.loaded, replace(config, hooks=replace(config.hooks, items=in_room)))

    (wanted, plenty), (found, scarce) = train(room=1000), train(room=30)
    said = re.findall(
        r"Out of memory: from now on micro-batches of (\d+) tokens; the step is repeated", capsys.readouterr().err
    )
    assert said == ["50", "25"]
    assert (plenty.micro_batch_tokens, scarce.micro_batch_tokens) == (100, 25)
    assert scarce.losses == pytest.approx(plenty.losses, rel=1e-5) and scarce.examples == plenty.examples == 40
    for name, weight in wanted.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], weight, rtol=1e-5, atol=1e-6)
    with pytest.raises(torch.OutOfMemoryError):
        train(room=0)
