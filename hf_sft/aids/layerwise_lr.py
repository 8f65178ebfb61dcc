"""Layer-wise learning rates. https://huggingface.co/papers/1801.06146"""

from dataclasses import replace
from functools import partial

from datasets import Dataset
from pydantic import Field

from hf_sft.aids import Aid
from hf_sft.methods import LrMultiplier, Phase
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.tasks import Task


class LayerwiseLr(Aid):
    """Multiply the learning rate by `decay` at each layer from the top down: lower layers are general, and change less."""

    decay: float = Field(default=0.9, gt=0, le=1)
    """A layer's rate over that of the layer above it; the head is above the top layer, the embeddings are below the lowest."""

    def apply(self, phase: Phase, task: Task, train: Dataset) -> Phase:
        return replace(phase, rate=partial(fall, phase.rate, self.decay))


def fall(above: LrMultiplier, decay: float, loaded: LoadedModel, parameter: str) -> float:
    """The factor of a parameter's learning rate."""
    return above(loaded, parameter) * decay ** loaded.depth(parameter)
