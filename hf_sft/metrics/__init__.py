"""What a metric is, and where the metrics are: one file here for each kind of thing that is measured. A name like
`evaluate:NAME` or `evaluate:FOLDER` is a module that the `evaluate` library loads.

A metric is a sum over rows and a function of the sum, so that a thousand resamples of the rows cost a matrix product. The few
that are not sums (ranks) take weights.
"""

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import import_module

import numpy as np

from hf_sft.answers.contract import Answers
from hf_sft.errors import RecipeError, first_line, nearest, suggest

Stats = Callable[[Answers, np.ndarray, float], np.ndarray]
"""Answers, their references, and a number near the references, to what is added up over rows, shape (rows, k)."""


@dataclass(frozen=True)
class Metric:
    """`finalize(row_statistics(…).sum(0))`; or `weighted`, if it needs ranks; or `corpus_value`, if another library has it."""

    description: str
    measures: tuple[type[Answers], ...]
    row_statistics: Stats | None = None
    finalize: Callable[[np.ndarray], np.ndarray] | None = None
    """Sums of shape (…, k) to values of shape (…); nan where there are no rows, or no value."""
    weighted: Callable[[Answers, np.ndarray, np.ndarray], np.ndarray] | None = None
    """Answers, references, and weights of shape (rows, resamples), to values of shape (resamples,)."""
    corpus_value: Callable[[Answers, np.ndarray], float] | None = None
    """Answers and references to one value: it has no interval."""
    greater_is_better: bool = True
    needs_scores: bool = False
    needs_texts: bool = True
    """True if the metric needs generated text."""


FOREIGN = "evaluate:"
"""What the names of other libraries' metrics begin with."""


@cache
def list_metrics() -> dict[str, tuple[Metric, ...]]:
    """All metrics by name, from the files of this folder: under one name those of different kinds of answers."""
    found: dict[str, tuple[Metric, ...]] = {}
    for module in pkgutil.iter_modules(__path__):
        for name, metric in import_module(f"{__name__}.{module.name}").METRICS.items():
            found[name] = (*found.get(name, ()), metric)
    return found


def find_metric(name: str, kind: type[Answers]) -> Metric:
    """The metric of that name. Raises `RecipeError` when there is none, or when it doesn't fit the kind of answers."""
    if name.startswith(FOREIGN):
        return load_module(name.removeprefix(FOREIGN))
    metrics = list_metrics()
    fitting = {other: metric for other, each in metrics.items() for metric in each if issubclass(kind, metric.measures)}
    if name not in metrics:
        hint = suggest(nearest(name, metrics))
        raise RecipeError(f"`{name}` is not a metric.{hint}\n  Metrics for answers of {kind.called}: {', '.join(fitting)}.")
    if name not in fitting:
        raise RecipeError(f"the metric `{name}` does not measure answers of {kind.called}.\n  These do: {', '.join(fitting)}.")
    return fitting[name]


@cache
def load_module(name: str) -> Metric:
    """A module of the `evaluate` library, from the Hub or a folder: its code is run. Raises `RecipeError`.

    It is given classes as ids, sets of classes as 0 and 1, numbers, or lists of tags. Of what it answers the number of its own
    name counts, or the first one. Greater is taken for better.
    """
    import evaluate  # a quarter of a second, which other metrics do not need

    try:
        module = evaluate.load(name, keep_in_memory=True)
    except (FileNotFoundError, ConnectionError, ImportError, OSError, ValueError) as error:
        raise RecipeError(f"the metric `{FOREIGN}{name}` can't be loaded: {first_line(error)}") from error

    def compute(answers: Answers, references: np.ndarray) -> float:
        predictions, true = answers.for_evaluate(references)
        found = module.compute(predictions=predictions, references=true) or {}
        numbers = {key: value for key, value in found.items() if isinstance(value, int | float | np.number)}
        return float(numbers.get(module.name, next(iter(numbers.values()), np.nan)))

    return Metric(str(module.description), (Answers,), corpus_value=compute)


def ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Zero where nothing is below: scikit-learn's `zero_division=0`."""
    above, below = np.broadcast_arrays(above, below)
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 0)
