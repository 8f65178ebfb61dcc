"""Gradients of one optimizer step, and how far apart two sets of tensors are."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import pytest
import torch

import hf_sft
import hf_sft.trainer.fit

TOLERANCE = 1e-5


def relative_difference(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> float:
    """Norm of the difference of all tensors over the norm of all: single ones whose true value is zero are rounding."""
    assert found.keys() == wanted.keys()
    apart = sum((found[name] - wanted[name]).square().sum() for name in wanted)
    return float((apart / sum(tensor.square().sum() for tensor in wanted.values())).sqrt())


Step: TypeAlias = tuple[float, dict[str, torch.Tensor], int]
"""Loss and gradients, and into how many micro-batches it was cut."""


def steps_of(recipe: dict[str, Any], budgets: Sequence[int]) -> list[Step]:
    """The first optimizer step of 16 rows, cut by micro-batches of so many tokens.

    In float64: endings that a fresh head hardly tells apart have gradients that almost cancel, and rounding would show.
    """
    recipe = {**recipe, "training": {**recipe["training"], "batch_size": 16}}
    try:
        trainer = hf_sft.build_trainer(hf_sft.Recipe.model_validate(recipe))
    except hf_sft.RecipeError as error:
        pytest.skip(str(error))
    trainer.model.double()
    found = []
    for tokens in budgets:
        trainer.machine = replace(trainer.machine, micro_batch_tokens=tokens)
        inputs = next(iter(trainer.get_train_dataloader()))
        inputs["micro_batches"] = [(_in_double(batch), place) for batch, place in inputs["micro_batches"]]
        trainer.model.zero_grad()
        loss = trainer.training_step(trainer.model, inputs)
        gradients = {n: p.grad.clone() for n, p in trainer.model.named_parameters() if p.grad is not None}
        found.append((float(loss), gradients, len(inputs["micro_batches"])))
    return found


def alike_however_cut(steps: list[Step], at_least: Sequence[int]) -> None:
    """The first step is one micro-batch; the others are so many at least, and the same."""
    (loss, gradients, cuts), *others = steps
    assert cuts == 1
    for (other_loss, other_gradients, cuts), wanted in zip(others, at_least, strict=True):
        assert cuts >= wanted
        assert other_loss == pytest.approx(loss, rel=TOLERANCE)
        assert relative_difference(other_gradients, gradients) < TOLERANCE


def _in_double(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in batch.items()}
