"""Train the head and the last layers of the body; the layers below are frozen."""

from typing import Any, ClassVar

from pydantic import Field
from transformers import PreTrainedModel

from hf_sft.config.training import Training
from hf_sft.errors import RecipeError
from hf_sft.methods import Method, Phase, unchanged
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.tasks import Task


class LastLayers(Method):
    """Train the head, the last layers of the body, and what comes after them.

    Between head_only and full, in cost and in score: the lower layers are general, and need no gradients.
    """

    training_defaults: ClassVar[dict[str, Any]] = {
        "learning_rate": 2e-4,  # between that of all weights and that of the head
        "num_train_epochs": 3,
        "warmup_steps": 0.1,  # as in full: large early steps undo pre-training
    }

    layers: int = Field(default=2, ge=1)
    """Number of trainable layers of the body, counted from the last."""

    def phases(self, task: Task, training: Training, rows: int) -> tuple[Phase, ...]:
        return (Phase("last_layers", self.complete(training, task, rows), self._freeze_below, unchanged),)

    def _freeze_below(self, loaded: LoadedModel) -> PreTrainedModel:
        if self.layers > len(loaded.layers):
            raise RecipeError(
                f"`method.layers` is {self.layers}, but the body of {type(loaded.model).__name__} has {len(loaded.layers)} "
                "layer(s) with weights of their own.\n  Name fewer, or move all weights: `method: full`."
            )
        for name, parameter in loaded.model.named_parameters():
            parameter.requires_grad_(loaded.depth(name) <= self.layers)
        return loaded.model
