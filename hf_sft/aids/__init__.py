"""An aid changes one thing in a phase so that the model generalises better."""

from abc import ABC, abstractmethod

from datasets import Dataset

from hf_sft.block import Block
from hf_sft.methods import Phase
from hf_sft.tasks import Task


class Aid(Block, ABC):
    """The contract. A concrete aid is a frozen pydantic model whose fields are its entry in the recipe's `aids`."""

    type: str
    """The aid: a file in hf_sft/aids, or a dotted module name."""

    @abstractmethod
    def apply(self, phase: Phase, task: Task, train: Dataset) -> Phase:
        """A new phase (`dataclasses.replace`); `phase` is not changed. Raises `RecipeError` if the aid does not fit."""
