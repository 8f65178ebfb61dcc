"""What a metric is, and where the metrics are: one file here for each kind of thing that is measured.

A metric is a sum over rows and a function of the sum, so that a thousand resamples of the rows cost a matrix product. The few
that are not sums (ranks) take weights.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib import import_module

import numpy as np

from hf_sft.answers import Answers
from hf_sft.errors import RecipeError

Stats = Callable[[Answers, np.ndarray, float], np.ndarray]
"""Answers, their references, and a number near the references, to what is added up over rows, shape (rows, k)."""


@dataclass(frozen=True)
class Metric:
    """One metric: `value(stats(…).sum(0))`, or, where that can't be, `weighted`."""

    description: str
    measures: tuple[type[Answers], ...]
    stats: Stats | None = None
    value: Callable[[np.ndarray], np.ndarray] | None = None
    """Sums of shape (…, k) to values of shape (…); nan where there are no rows, or no value."""
    weighted: Callable[[Answers, np.ndarray, np.ndarray], np.ndarray] | None = None
    """Answers, references, and weights of shape (rows, resamples), to values of shape (resamples,)."""
    greater_is_better: bool = True
    needs_scores: bool = False


@cache
def list_metrics() -> dict[str, Metric]:
    """All metrics by name, from the files of this folder."""
    modules = [import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    return {name: metric for module in modules for name, metric in getattr(module, "METRICS", {}).items()}


def find_metric(name: str, kind: type[Answers]) -> Metric:
    """The metric of that name. Raises `RecipeError` when there is none, or when it doesn't fit the kind of answers."""
    metrics = list_metrics()
    fitting = ", ".join(other for other, metric in metrics.items() if issubclass(kind, metric.measures))
    if name not in metrics:
        near = get_close_matches(name, metrics, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise RecipeError(f"`{name}` is not a metric.{hint}\n  Metrics for answers of {kind.called}: {fitting}.")
    if not issubclass(kind, metrics[name].measures):
        raise RecipeError(f"the metric `{name}` does not measure answers of {kind.called}.\n  These do: {fitting}.")
    return metrics[name]


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Zero where nothing is below: scikit-learn's `zero_division=0`."""
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
