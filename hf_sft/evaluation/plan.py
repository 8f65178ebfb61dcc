"""Which metrics are measured, and which of them chooses the best checkpoint."""

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from hf_sft.block import Block
from hf_sft.metrics import find_metric
from hf_sft.tasks import Task


class EvaluationPlan(Block):
    """The recipe's `evaluation` block."""

    metrics: tuple[str, ...] | None = None
    """Names from `hf-sft list metrics`, or `evaluate:NAME` for a module of that library; the task's own when not given."""
    best: str | None = None
    """The metric that chooses the checkpoint on validation; the first when not given."""

    @model_validator(mode="after")
    def _best_is_measured(self) -> "EvaluationPlan":
        if self.metrics is not None and self.best is not None and self.best not in self.metrics:
            raise PydanticCustomError("best", "`best: {best}` is not among `metrics`", {"best": self.best})
        return self

    def names(self, task: Task) -> tuple[str, ...]:
        """The metrics to compute, including the one that chooses. Raises `RecipeError` for one that doesn't fit the task."""
        names = self.metrics or task.default_metrics
        for name in names:
            find_metric(name, task.answer_kind())
        best, _ = self.choose_by(task)
        return names if best in names else (best, *names) if self.best else (*names, best)

    def while_training(self, task: Task) -> tuple[str, ...]:
        """The metrics of evaluations during training, best first. Texts are generated only if `best` needs them."""
        best, _ = self.choose_by(task)
        names = tuple(dict.fromkeys((best, *self.names(task))))
        return names if needs_texts(best, task) else tuple(name for name in names if not needs_texts(name, task))

    def choose_by(self, task: Task) -> tuple[str, bool]:
        """The metric that chooses the best checkpoint, and whether greater is better. If `best` is not given: the first
        that needs no generated text, or the loss."""
        names = (name for name in self.metrics or task.default_metrics if not needs_texts(name, task))
        name = self.best or next(names, "loss")
        return name, find_metric(name, task.answer_kind()).greater_is_better


def needs_texts(metric: str, task: Task) -> bool:
    """True if a metric needs generated text."""
    return task.answer_kind().written and find_metric(metric, task.answer_kind()).needs_texts
