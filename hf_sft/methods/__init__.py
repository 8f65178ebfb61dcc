"""A method knows which weights move. It answers with phases; each phase is one `Trainer.train()`."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from transformers import PreTrainedModel, TrainerCallback

from hf_sft.block import Block
from hf_sft.config.training import Training
from hf_sft.data.examples import Examples
from hf_sft.frozen.features import ItemsOf
from hf_sft.losses import ItemLoss, StepLoss, item_loss, sum_items
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.tasks import Task

EVALUATIONS = 20
"""Of a run whose length is the default, at most."""
LENGTH = ("num_train_epochs", "max_steps", "eval_strategy", "eval_steps")
"""Fields of `training` that a method sets by the number of rows, where the recipe says nothing."""
LrMultiplier: TypeAlias = Callable[[LoadedModel, str], float]
"""By a parameter's name in the loaded model: what the learning rate is multiplied by."""


def constant(loaded: LoadedModel, parameter: str) -> float:
    """All parameters learn at the rate of the recipe."""
    return 1.0


@dataclass(frozen=True)
class Phase:
    """One training from beginning to end; aids edit it with `dataclasses.replace`."""

    name: str
    training: Training
    """Complete: the recipe's fields over the method's defaults."""
    prepare: Callable[[LoadedModel], Any]
    """Freezes or wraps: gives the model whose parameters with `requires_grad` are those that shall move."""
    finish: Callable[[Any], Any]
    """Turns the trained model into the one that is saved (merges adapters)."""
    item_loss: ItemLoss = item_loss
    """The loss of each item: label smoothing and class weights wrap this."""
    loss: StepLoss = sum_items
    """The sum of a micro-batch's losses: what runs the model more than once, or otherwise, goes here."""
    rate: LrMultiplier = constant
    """What a parameter's learning rate is multiplied by."""
    callbacks: tuple[Callable[[], TrainerCallback], ...] = ()
    """Made anew for each training: a callback remembers."""


class Method(Block, ABC):
    """The contract. A concrete method is a frozen pydantic model whose fields are its block of the recipe."""

    type: str
    """The method: a file in hf_sft/methods, or a dotted module name."""

    training_defaults: ClassVar[dict[str, Any]]
    """Fields of `training` that suit this method, each with its reason beside it."""
    steps: ClassVar[tuple[int, int]] = (500, sys.maxsize)
    """At least and at most how many optimizer steps the default epochs are, if whole epochs can be that.

    MiniLM on banking77, all weights, from 616 rows: 0.434 after 3 epochs, which are 60 steps, and 0.798 after 500.
    """

    def reshape(self, loaded: LoadedModel, checkpoint: Checkpoint, examples: Examples, items: ItemsOf) -> LoadedModel:
        """The model as this method needs it, found out on some examples by the task's `items`; most take it as it is.

        Raises `RecipeError` where it can't be had.
        """
        return loaded

    @abstractmethod
    def phases(self, task: Task, training: Training, rows: int) -> tuple[Phase, ...]:
        """The phases, in order, for so many rows of train."""

    @classmethod
    def complete(cls, training: Training, task: Task, rows: int) -> Training:
        """`training` with this method's defaults where it says nothing.

        Few rows are seen more often than many, so that there are steps enough to learn in; they are scored `EVALUATIONS` times
        at most.
        """
        completed = training.with_defaults(cls.training_defaults)
        if task.joins() or training.model_fields_set & {*LENGTH[:2]}:
            return completed
        least, most = cls.steps
        of_epoch = math.ceil(rows / completed.batch_size)
        epochs = max(min(completed.num_train_epochs, max(1, most // of_epoch)), math.ceil(least / of_epoch))
        length: dict[str, Any] = {"num_train_epochs": float(epochs)}
        if epochs > EVALUATIONS and not training.model_fields_set & {*LENGTH[2:]}:
            between = math.ceil(epochs / EVALUATIONS)
            length = {
                "num_train_epochs": float(between * math.ceil(epochs / between)),
                "eval_strategy": "steps",
                "eval_steps": between * of_epoch,
            }
        return completed.model_copy(update=length)


def unchanged(model: PreTrainedModel) -> PreTrainedModel:
    """For phases whose trained model is saved as it is."""
    return model
