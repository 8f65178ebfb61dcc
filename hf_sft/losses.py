"""What a training step minimises: a sum over items, which the trainer divides by the items of the whole step."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

FAR = -1e4
"""The logit of an output that an item does not have: its probability is 0, and differences of two stay finite."""


@dataclass(frozen=True)
class Items:
    """The items of a micro-batch that carry loss."""

    logits: Tensor
    """float32, shape (items, outputs)."""
    targets: Tensor
    """The class of each item, long, shape (items,); 0 and 1 for each class, float, (items, outputs); or a number, (items,)."""
    real: Tensor | None = None
    """Where items have different numbers of outputs: which are their own, bool, (items, outputs); others' logits are `FAR`."""
    weights: Tensor | None = None
    """Where several items are parts of one: the share of each, float32, shape (items,)."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def has_classes(self) -> bool:
        """Each item has one class."""
        return not self.targets.is_floating_point()

    @property
    def has_sets(self) -> bool:
        """Each item has any number of classes."""
        return self.targets.ndim == 2


Batch: TypeAlias = dict[str, Tensor]
"""The model's inputs for one forward pass."""
RowOutputs: TypeAlias = list[list[np.ndarray]]
"""For each row the outputs of its examples, then its generated text, if there is one."""
ItemLoss: TypeAlias = Callable[[Items], Tensor]
"""The loss of each item, shape (items,)."""
Forward: TypeAlias = Callable[[dict[str, Any]], Items]
"""One forward pass of the model over a micro-batch."""
StepLoss: TypeAlias = Callable[[ItemLoss, Forward, dict[str, Any]], Tensor]
"""The sum of a micro-batch's losses, shape (); it runs the model itself, once or more."""


def item_loss(items: Items) -> Tensor:
    """Cross-entropy; for sets of classes the mean of the classes' binary ones, as in transformers; for numbers the square."""
    if items.has_classes:
        return functional.cross_entropy(items.logits, items.targets, reduction="none")
    if items.has_sets:
        return functional.binary_cross_entropy_with_logits(items.logits, items.targets, reduction="none").mean(-1)
    return functional.mse_loss(items.logits.squeeze(-1), items.targets, reduction="none")


def sum_nats(items: Items, counts: Tensor) -> list[np.ndarray]:
    """For each example the sum of its items' nats, and their number, float32, shape (2,); `counts` are those numbers."""
    losses = item_loss(items)
    return sum_by_example(torch.stack([losses, torch.ones_like(losses)], dim=1), counts)


def sum_by_example(values: Tensor, counts: Tensor) -> list[np.ndarray]:
    """For each example the sums over its items, float32, shape (k,), from values of all items, shape (items, k)."""
    parts = values.double().split(counts.tolist())
    return list(torch.stack([part.sum(0) for part in parts]).float().cpu().numpy())


def sum_items(item_loss: ItemLoss, forward: Forward, batch: dict[str, Any]) -> Tensor:
    """One forward pass, and the sum of the items' losses."""
    items = forward(batch)
    return weigh(item_loss(items), items).sum()


def weigh(losses: Tensor, items: Items) -> Tensor:
    """The losses of items, shape (items,), each times its share."""
    return losses if items.weights is None else losses * items.weights
