"""Train the head first, then all weights (LP-FT). https://huggingface.co/papers/2202.10054"""

from typing import Any, ClassVar

from pydantic import Field, ValidationError, field_validator

from hf_sft.config.training import Training
from hf_sft.errors import nearest, suggest
from hf_sft.methods import LENGTH, Method, Phase, unchanged
from hf_sft.methods.full import Full, move_everything
from hf_sft.methods.head_only import HeadOnly, freeze_body
from hf_sft.tasks import Task


class LpFt(Method):
    """Train the head on the frozen body, then all weights: the gradients of a random head don't damage the body.

    The first phase runs on stored features and costs little. Meant for test rows that differ from those of training. Each
    phase takes half of `training.max_steps`, if that is given and neither block here sets a length.
    """

    training_defaults: ClassVar[dict[str, Any]] = Full.training_defaults

    head: dict[str, Any] = Field(default_factory=dict)
    """Fields of `training` for the first phase, over those of head_only."""
    full: dict[str, Any] = Field(default_factory=dict)
    """Fields of `training` for the second phase, over the recipe's own."""

    @field_validator("head", "full")
    @classmethod
    def _fields_of_training(cls, fields: dict[str, Any]) -> dict[str, Any]:
        try:
            Training.model_validate(fields)
        except ValidationError as error:
            flaw = error.errors(include_url=False)[0]
            name = ".".join(str(part) for part in flaw["loc"])
            hint = "" if name in Training.model_fields else suggest(nearest(name, Training.model_fields))
            raise ValueError(f"must hold fields of `training`; `{name}`: {flaw['msg']}.{hint}") from None
        return fields

    def phases(self, task: Task, training: Training, rows: int) -> tuple[Phase, ...]:
        given = {name: getattr(training, name) for name in training.model_fields_set}
        # How long and how fast the head learns is its own business: the recipe's rate is meant for all the weights.
        own = {*HeadOnly.training_defaults, *LENGTH} - ({"eval_strategy"} if given.get("eval_strategy") == "no" else set())
        shared = {name: value for name, value in given.items() if name not in own}
        head = HeadOnly.complete(Training.model_validate({**shared, **self.head}), task, rows)
        full = self.complete(Training.model_validate({**given, **self.full}), task, rows)
        if training.max_steps > 0 and not {"max_steps", "num_train_epochs"} & {*self.head, *self.full}:
            half = max(1, training.max_steps // 2)
            head = head.model_copy(update={"max_steps": half})
            full = full.model_copy(update={"max_steps": max(1, training.max_steps - half)})
        return (Phase("head", head, freeze_body, unchanged), Phase("full", full, move_everything, unchanged))
