"""Label smoothing. https://huggingface.co/papers/1512.00567"""

from dataclasses import replace
from functools import partial

from datasets import Dataset
from pydantic import Field
from torch import Tensor, full_like, ones_like

from hf_sft.aids import Aid
from hf_sft.answers.contract import NumberAnswers
from hf_sft.errors import RecipeError
from hf_sft.losses import ItemLoss, Items
from hf_sft.methods import Phase
from hf_sft.tasks import Task


class LabelSmoothing(Aid):
    """Share a part of the target equally among all classes: predicted probabilities become less extreme."""

    epsilon: float = Field(default=0.1, gt=0, lt=1)
    """The part of the target that is shared."""

    def apply(self, phase: Phase, task: Task, train: Dataset) -> Phase:
        if task.answer_kind() is NumberAnswers:
            raise RecipeError("the aid `label_smoothing` needs classes, but this task's labels are numbers.  Leave it out.")
        return replace(phase, item_loss=partial(smooth, phase.item_loss, self.epsilon))


def smooth(plain: ItemLoss, epsilon: float, items: Items) -> Tensor:
    """The loss with the true class as target, and with weight `epsilon` with the uniform target; shape (items,)."""
    if items.has_sets:
        even = plain(replace(items, targets=full_like(items.targets, 0.5)))
    else:
        real = ones_like(items.logits) if items.real is None else items.real.to(items.logits.dtype)
        even = -(items.logits.log_softmax(-1) * real).sum(-1) / real.sum(-1)
    return (1 - epsilon) * plain(items) + epsilon * even
