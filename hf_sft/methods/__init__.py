"""A method decides which weights are trained. It returns phases; each phase is one `Trainer.train()`."""

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
"""Maximum number of evaluations in a run of default length."""
LENGTH = ("num_train_epochs", "max_steps", "eval_strategy", "eval_steps")
"""Fields of `training` that a method sets by the number of rows if the recipe does not."""
LrMultiplier: TypeAlias = Callable[[LoadedModel, str], float]
"""The factor of the learning rate of a parameter, given by its name in the loaded model."""


def constant(loaded: LoadedModel, parameter: str) -> float:
    """The recipe's learning rate for all parameters."""
    return 1.0


@dataclass(frozen=True)
class Phase:
    """One training from beginning to end; aids edit it with `dataclasses.replace`."""

    name: str
    training: Training
    """Complete: the recipe's fields over the method's defaults."""
    prepare: Callable[[LoadedModel], Any]
    """Freezes or wraps the model; returns one in which exactly the trainable parameters have `requires_grad`."""
    finish: Callable[[Any], Any]
    """Turns the trained model into the one that is saved (merges adapters)."""
    item_loss: ItemLoss = item_loss
    """The loss of each item: label smoothing and class weights wrap this."""
    loss: StepLoss = sum_items
    """The sum of a micro-batch's losses; replaced by what needs more than one forward pass (R-Drop)."""
    rate: LrMultiplier = constant
    """The factor of a parameter's learning rate."""
    callbacks: tuple[Callable[[], TrainerCallback], ...] = ()
    """Factories: each training gets new callbacks, since they hold state."""


class Method(Block, ABC):
    """The contract. A concrete method is a frozen pydantic model whose fields are its block of the recipe."""

    type: str
    """The method: a file in hf_sft/methods, or a dotted module name."""

    training_defaults: ClassVar[dict[str, Any]]
    """This method's defaults for `training`, each with its reason."""
    steps: ClassVar[tuple[int, int]] = (500, sys.maxsize)
    """Minimum and maximum number of optimizer steps of the default epochs.

    MiniLM on banking77, all weights, from 616 rows: 0.434 after 3 epochs, which are 60 steps, and 0.798 after 500.
    """

    def reshape(self, loaded: LoadedModel, checkpoint: Checkpoint, examples: Examples, items: ItemsOf) -> LoadedModel:
        """The model with changes that this method needs, decided on some examples; unchanged by default.

        Raises `RecipeError` if the model does not fit the method.
        """
        return loaded

    @abstractmethod
    def phases(self, task: Task, training: Training, rows: int) -> tuple[Phase, ...]:
        """The phases, in order; `rows` is the number of training rows."""

    @classmethod
    def complete(cls, training: Training, task: Task, rows: int) -> Training:
        """`training` with this method's defaults for the fields that are not set.

        Small data sets get more epochs, so that there are enough steps, and `EVALUATIONS` evaluations at most.
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
    """`finish` of phases whose trained model is saved unchanged."""
    return model
