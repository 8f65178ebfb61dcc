"""Early stopping on the validation split."""

from dataclasses import replace
from functools import partial

from datasets import Dataset
from pydantic import Field
from transformers import EarlyStoppingCallback

from hf_sft.aids import Aid
from hf_sft.errors import RecipeError
from hf_sft.methods import Phase
from hf_sft.tasks import Task


class EarlyStopping(Aid):
    """Stop when `evaluation.best` has not improved for some evaluations; the best checkpoint is saved in any case."""

    patience: int = Field(default=3, ge=1)
    """Evaluations without improvement before stopping."""
    threshold: float = Field(default=0.0, ge=0)
    """The smallest difference that is an improvement."""

    def apply(self, phase: Phase, task: Task, train: Dataset) -> Phase:
        if phase.training.eval_strategy == "no":
            raise RecipeError(
                "the aid `early_stopping` looks at evaluations, but `training.eval_strategy` is `no`.\n"
                "  Use `epoch` or `steps`, or leave the aid out."
            )
        stop = partial(EarlyStoppingCallback, early_stopping_patience=self.patience, early_stopping_threshold=self.threshold)
        return replace(phase, callbacks=(*phase.callbacks, stop))
