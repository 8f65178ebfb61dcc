"""Metrics as local `evaluate.Metric` classes: no network, no remote code.

Values are scikit-learn's or scipy's. Where one is undefined (the correlation of a constant) it is nan, silently.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value
from numpy.typing import ArrayLike
from pyarrow import ChunkedArray
from pyarrow.types import is_nested
from scipy import stats
from sklearn import metrics as sk
from sklearn.exceptions import UndefinedMetricWarning

from hf_sft.errors import RecipeError
from hf_sft.label_columns import MULTI, REGRESSION, SINGLE

CLASSES, NUMBERS = (SINGLE, MULTI), (REGRESSION,)


@dataclass(frozen=True)
class MetricSpec:
    """A function of (references, predictions), or of (references, scores), and what is to be known about it."""

    function: Callable[[np.ndarray, np.ndarray], float]
    problem_types: tuple[str, ...]
    description: str
    greater_is_better: bool = True
    needs_scores: bool = False


def _correlation(function: Callable, references: np.ndarray, predictions: np.ndarray) -> float:
    return function(references, predictions).statistic if len(references) > 1 else np.nan


def ranked_columns(references: np.ndarray, scores: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """What ROC AUC averages over: for each label, which rows have it, and the rows' scores for it."""
    if references.ndim == 2:
        return [(references[:, k] == 1, scores[:, k]) for k in range(scores.shape[1])]
    columns = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    return [(references == k, scores[:, k]) for k in columns]


def _roc_auc(references: np.ndarray, scores: np.ndarray) -> float:
    # scikit-learn has no value when one label of many is on no row; small test splits would then never have one.
    ranked = [pair for pair in ranked_columns(references, scores) if pair[0].any() and not pair[0].all()]
    return float(np.mean([sk.roc_auc_score(*pair) for pair in ranked])) if ranked else np.nan


_AVERAGES = {
    "micro": "all labels counted together",
    "macro": "mean over labels, each counting the same",
    "weighted": "mean over labels, by their rows",
}
_RATES: dict[str, tuple[Callable[..., float], str]] = {
    "precision": (sk.precision_score, "share of what was predicted that is right"),
    "recall": (sk.recall_score, "share of what is true that was predicted"),
    "f1": (sk.f1_score, "harmonic mean of precision and recall"),
}

METRICS: dict[str, MetricSpec] = {
    "accuracy": MetricSpec(sk.accuracy_score, CLASSES, "Share of rows that are right (multi-label: in every label)."),
    **{
        f"{rate}_{average}": MetricSpec(
            partial(function, average=average, zero_division=0), CLASSES, f"{meaning[0].upper()}{meaning[1:]}; {over}."
        )
        for rate, (function, meaning) in _RATES.items()
        for average, over in _AVERAGES.items()
    },
    "matthews": MetricSpec(sk.matthews_corrcoef, (SINGLE,), "Correlation of classes; 0 is chance, whatever their shares."),
    "roc_auc": MetricSpec(
        _roc_auc,
        CLASSES,
        "Chance that a row with the label scores above one without; mean over the labels that rows differ in.",
        needs_scores=True,
    ),
    "pearson": MetricSpec(partial(_correlation, stats.pearsonr), NUMBERS, "Linear correlation."),
    "spearman": MetricSpec(partial(_correlation, stats.spearmanr), NUMBERS, "Correlation of ranks."),
    "mse": MetricSpec(sk.mean_squared_error, NUMBERS, "Mean squared error.", greater_is_better=False),
    "mae": MetricSpec(sk.mean_absolute_error, NUMBERS, "Mean absolute error.", greater_is_better=False),
    "r2": MetricSpec(sk.r2_score, NUMBERS, "Share of the variance that is explained; 0 is predicting the mean."),
}


class LocalMetric(evaluate.Metric):
    """A metric of the table with evaluate's interface: `add_batch`, then `compute`. `roc_auc` takes scores."""

    def __init__(self, name: str, problem_type: str, num_labels: int = 1):
        self._of = (name, problem_type, num_labels)
        # In memory, because evaluate's buffer is Arrow's: 16 bytes a row (label sets, scores: 8 per label and row),
        # no Python objects, and `compute` would read the whole file back anyway. Files would only bring locks,
        # collisions between processes and leftovers of killed ones.
        super().__init__(keep_in_memory=True, seed=0)
        self.info.module_name = name
        # `_compute` gets Arrow columns: lists would be objects, and "numpy" would make float32 of float64. Set here,
        # because MetricInfo refuses formats where a feature is a list.
        self.info.format = "arrow"

    def _build_data_dir(self) -> str:
        return ""  # evaluate makes an empty folder under HF_HOME even for a metric in memory

    def _info(self) -> evaluate.MetricInfo:
        name, problem_type, num_labels = self._of
        length = num_labels if num_labels > 1 else -1
        number = Value("float64" if problem_type == REGRESSION else "int64")
        references = List(number, length=length) if problem_type == MULTI else number
        predictions = List(Value("float64"), length=length) if METRICS[name].needs_scores else references
        return evaluate.MetricInfo(
            description=METRICS[name].description,
            citation="",
            inputs_description=f"\n\nFor {problem_type}.",
            features=Features({"predictions": predictions, "references": references}),
        )

    def _compute(self, *, predictions: ChunkedArray, references: ChunkedArray, **kwargs: Any) -> dict[str, float]:
        name, problem_type, _ = self._of
        predictions, references = _read_column(predictions), _read_column(references)
        return {name: score(name, predictions, references, predictions, problem_type=problem_type)}


def _read_column(column: ChunkedArray) -> np.ndarray:
    """A column of numbers to shape (rows,), of lists to (rows, labels)."""
    array = column.combine_chunks()
    if is_nested(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    return array.to_numpy(zero_copy_only=False)


def load_metric(name: str, problem_type: str, num_labels: int = 1) -> evaluate.Metric:
    """A metric that takes what the problem type's `labels` are. Raises `RecipeError`."""
    find_metric(name, problem_type)
    return LocalMetric(name, problem_type, num_labels)


def find_metric(name: str, problem_type: str) -> MetricSpec:
    """The metric of that name. Raises `RecipeError` when there is none, or when it doesn't fit the problem type."""
    fitting = ", ".join(other for other, spec in METRICS.items() if problem_type in spec.problem_types)
    if name not in METRICS:
        near = get_close_matches(name, METRICS, n=1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        raise RecipeError(f"`{name}` is not a metric.{hint}\n  Metrics for {problem_type}: {fitting}.")
    if problem_type not in METRICS[name].problem_types:
        raise RecipeError(f"the metric `{name}` does not work for {problem_type}.\n  These do: {fitting}.")
    return METRICS[name]


def score(
    name: str, predictions: ArrayLike, references: ArrayLike, scores: ArrayLike | None = None, *, problem_type: str
) -> float:
    """The metric's value; nan where it is undefined, on no rows, or when a prediction is not finite.

    Predictions and references have shape (rows,), or (rows, labels) of 0 and 1 for multi-label; scores (rows, labels).
    """
    spec = find_metric(name, problem_type)
    if spec.needs_scores and scores is None:
        raise ValueError(f"the metric `{name}` needs scores")
    given = np.asarray(scores if spec.needs_scores else predictions)
    references = np.asarray(references)
    given = given.astype(np.float64 if spec.needs_scores or problem_type == REGRESSION else np.int64)
    references = references.astype(np.float64 if problem_type == REGRESSION else np.int64)
    if not len(references) or not np.isfinite(given).all():
        return float("nan")
    with warnings.catch_warnings():
        for category in (UndefinedMetricWarning, stats.ConstantInputWarning, stats.NearConstantInputWarning):
            warnings.simplefilter("ignore", category)
        warnings.filterwarnings("ignore", "A single label was found")  # from the confusion matrix inside matthews
        return float(spec.function(references, given))
