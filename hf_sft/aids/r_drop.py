"""R-Drop: two forward passes with different dropout should agree. https://huggingface.co/papers/2106.14448"""

from dataclasses import replace
from functools import partial
from typing import Any

from datasets import Dataset
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from hf_sft.aids import Aid
from hf_sft.losses import Forward, ItemLoss, Items, weigh
from hf_sft.methods import Phase
from hf_sft.tasks import Task


class RDrop(Aid):
    """Run each row twice with different dropout, and add the distance of the two outputs to the loss. Doubles the time.

    The published gains were not reproduced by everybody: compare with and without it.
    """

    alpha: float = Field(default=1.0, gt=0)
    """The weight of the distance between the two answers."""

    def apply(self, phase: Phase, task: Task, train: Dataset) -> Phase:
        return replace(phase, loss=partial(agree, self.alpha))


def agree(alpha: float, item_loss: ItemLoss, forward: Forward, batch: dict[str, Any]) -> Tensor:
    """The mean loss of two passes, plus `alpha` times their distance, summed over the items."""
    first, second = forward(batch), forward(batch)
    losses = (item_loss(first) + item_loss(second)) / 2
    return weigh(losses + alpha * distance(first, second), first).sum()


def distance(first: Items, second: Items) -> Tensor:
    """For each item the mean of both Kullback-Leibler divergences (for sets of classes, mean over the classes); for
    numbers the square of the difference. Shape (items,)."""
    if not (first.has_classes or first.has_sets):
        return functional.mse_loss(first.logits, second.logits, reduction="none").squeeze(-1)
    if first.has_classes:
        p, q = first.logits.log_softmax(-1), second.logits.log_softmax(-1)
        return ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2
    # Of two coins with the log-odds a and b, the two divergences add up to (p - q) (a - b).
    p, q = first.logits.sigmoid(), second.logits.sigmoid()
    return ((p - q) * (first.logits - second.logits)).mean(-1) / 2
