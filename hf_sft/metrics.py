"""Metrics as local `evaluate.Metric` classes: no network, no remote code; and how sure a metric's value is.

The value is scikit-learn's or scipy's. The interval comes from counts of many resamples at once, which give the same
numbers some hundred times faster. Where a value is undefined (the correlation of a constant) it is nan, silently.
"""

import warnings
from collections.abc import Callable, Iterable
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
from scipy import sparse, stats
from sklearn import metrics as sk
from sklearn.exceptions import UndefinedMetricWarning

from hf_sft.errors import RecipeError

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
CLASSES, NUMBERS = (SINGLE, MULTI), (REGRESSION,)

# Elements of one array over rows and resamples; about eight such arrays live at a time, so resampling stays near 64 MB.
CHUNK = 2**20

Draw = Callable[[int], dict[str, np.ndarray]]


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


def _ranked_columns(references: np.ndarray, scores: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """What ROC AUC averages over: for each label, which rows have it, and the rows' scores for it."""
    if references.ndim == 2:
        return [(references[:, k] == 1, scores[:, k]) for k in range(scores.shape[1])]
    columns = [1] if scores.shape[1] == 2 else range(scores.shape[1])
    return [(references == k, scores[:, k]) for k in columns]


def _roc_auc(references: np.ndarray, scores: np.ndarray) -> float:
    # scikit-learn has no value when one label of many is on no row; small test splits would then never have one.
    ranked = [pair for pair in _ranked_columns(references, scores) if pair[0].any() and not pair[0].all()]
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


def bootstrap(
    names: Iterable[str],
    predictions: ArrayLike,
    references: ArrayLike,
    scores: ArrayLike | None,
    problem_type: str,
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals over resampled rows, the same resamples for every metric; (nan, nan) for an undefined value.

    A metric's interval does not depend on which others are asked for. Resamples where it is undefined are left out.
    """
    values = {name: score(name, predictions, references, scores, problem_type=problem_type) for name in names}
    defined = [name for name, value in values.items() if not np.isnan(value)]
    intervals = dict.fromkeys(values, (float("nan"), float("nan")))
    if not defined:
        return intervals
    prepare = {SINGLE: _draw_classes, MULTI: _draw_label_sets, REGRESSION: _draw_numbers}[problem_type]
    draw, width = prepare(defined, np.asarray(predictions), np.asarray(references), scores, seed)
    size = max(1, CHUNK // width)
    with np.errstate(divide="ignore", invalid="ignore"):
        drawn = [draw(min(size, resamples - start)) for start in range(0, resamples, size)]
    tails = [50 * (1 - level), 50 * (1 + level)]
    for name in defined:
        found = np.concatenate([chunk[name] for chunk in drawn])
        found = found[~np.isnan(found)]
        if len(found):
            low, high = np.percentile(found, tails)
            intervals[name] = (float(low), float(high))
    return intervals


def _draw_classes(
    names: list[str], predictions: np.ndarray, references: np.ndarray, scores: ArrayLike | None, seed: int
) -> tuple[Draw, int]:
    """Rows with the same reference and prediction can be exchanged: drawing how many of each there are is enough."""
    num_rows = len(references)
    labels, ids = np.unique(np.concatenate([references, predictions]), return_inverse=True)
    cells, cell_of, sizes = np.unique(ids[:num_rows] * len(labels) + ids[num_rows:], return_inverse=True, return_counts=True)
    reference, prediction = np.divmod(cells, len(labels))
    by_label = [
        sparse.csr_array((np.ones(len(cells)), (np.arange(len(cells)), of)), shape=(len(cells), len(labels)))
        for of in (prediction, reference)
    ]
    right = (reference == prediction).astype(np.float64)
    hits = sparse.diags_array(right).tocsr() @ by_label[0]
    ranked = _ranked_columns(references, np.asarray(scores, dtype=np.float64)) if "roc_auc" in names else []
    rows_by_cell, starts = np.argsort(cell_of, kind="stable"), np.cumsum(sizes) - sizes
    # Which rows of a cell are drawn has a stream of its own, so that asking for roc_auc changes no other interval.
    rng, row_rng = np.random.default_rng(seed), np.random.default_rng([seed, 1])

    def draw(num: int) -> dict[str, np.ndarray]:
        counts = rng.multinomial(num_rows, sizes / num_rows, size=num)
        predicted, referred = (counts @ matrix for matrix in by_label)
        hit = counts @ hits
        found = {
            name: score_counts(name, hit, predicted, referred, counts @ right / num_rows, predicted + referred > 0)
            for name in names
            if name != "roc_auc"
        }
        if ranked:
            cell = np.repeat(np.tile(np.arange(len(cells)), num), counts.ravel()).reshape(num, num_rows)
            weights = _weights(rows_by_cell[starts[cell] + row_rng.integers(sizes[cell])])
            found["roc_auc"] = _mean_auc(weights, ranked)
        return found

    return draw, max(len(cells), len(labels), num_rows if ranked else 0)


def _draw_label_sets(
    names: list[str], predictions: np.ndarray, references: np.ndarray, scores: ArrayLike | None, seed: int
) -> tuple[Draw, int]:
    num_rows, num_labels = references.shape
    predicted, referred = predictions.astype(np.float64), references.astype(np.float64)
    right = (predicted == referred).all(1).astype(np.float64)
    ranked = _ranked_columns(references, np.asarray(scores, dtype=np.float64)) if "roc_auc" in names else []
    rng = np.random.default_rng(seed)

    def draw(num: int) -> dict[str, np.ndarray]:
        weights = _weights(rng.integers(num_rows, size=(num, num_rows)))
        hit, by_prediction, by_reference = (weights.T @ each for each in (predicted * referred, predicted, referred))
        accuracy, present = weights.T @ right / num_rows, np.ones(num_labels)
        found = {
            name: score_counts(name, hit, by_prediction, by_reference, accuracy, present)
            for name in names
            if name != "roc_auc"
        }
        return found | ({"roc_auc": _mean_auc(weights, ranked)} if ranked else {})

    return draw, max(num_rows, num_labels)


def _draw_numbers(
    names: list[str], predictions: np.ndarray, references: np.ndarray, scores: ArrayLike | None, seed: int
) -> tuple[Draw, int]:
    predictions, references = predictions.astype(np.float64), references.astype(np.float64)
    rng = np.random.default_rng(seed)

    def draw(num: int) -> dict[str, np.ndarray]:
        rows = rng.integers(len(references), size=(num, len(references)))
        return {name: score_numbers(name, references[rows], predictions[rows]) for name in names}

    return draw, len(references)


def score_counts(
    name: str, hits: np.ndarray, predicted: np.ndarray, referred: np.ndarray, accuracy: np.ndarray, present: np.ndarray
) -> np.ndarray:
    """A metric of many resamples from their counts by label, shape (resamples, labels); `accuracy` (resamples,).

    As in scikit-learn, macro takes the mean over the labels `present` in references or predictions (multi-label: all).
    """
    if name == "accuracy":
        return accuracy
    if name == "matthews":
        rows = referred.sum(-1)
        spread = [rows**2 - (counts**2).sum(-1) for counts in (predicted, referred)]
        return _ratio(hits.sum(-1) * rows - (predicted * referred).sum(-1), np.sqrt(spread[0]) * np.sqrt(spread[1]))
    rate, average = name.split("_")
    above, below = {
        "precision": (hits, predicted),
        "recall": (hits, referred),
        "f1": (2 * hits, predicted + referred),
    }[rate]
    if average == "micro":
        return _ratio(above.sum(-1), below.sum(-1))
    weights = referred if average == "weighted" else np.broadcast_to(present, referred.shape)
    return _ratio((_ratio(above, below) * weights).sum(-1), weights.sum(-1))


def score_numbers(name: str, references: np.ndarray, predictions: np.ndarray) -> np.ndarray:
    """A metric of many resamples of numbers, both of shape (resamples, rows)."""
    if name == "spearman":
        return score_numbers("pearson", stats.rankdata(references, axis=1), stats.rankdata(predictions, axis=1))
    errors = references - predictions
    if name == "mae":
        return np.abs(errors).mean(1)
    squared = (errors**2).mean(1)
    if name == "mse":
        return squared
    constant = [(numbers == numbers[:, :1]).all(1) for numbers in (references, predictions)]
    x, y = (numbers - numbers.mean(1, keepdims=True) for numbers in (references, predictions))
    if name == "r2":
        # scikit-learn's values for references that don't vary.
        return np.where(constant[0], (squared == 0).astype(np.float64), 1 - squared / (x**2).mean(1))
    found = (x * y).mean(1) / np.sqrt((x**2).mean(1) * (y**2).mean(1))
    return np.where(constant[0] | constant[1], np.nan, found)


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """scikit-learn's `zero_division=0`."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)


def _weights(rows: np.ndarray) -> np.ndarray:
    """How often each row was drawn: (resamples, rows drawn) to (rows, resamples)."""
    num, num_rows = rows.shape
    drawn = np.bincount((rows * num + np.arange(num)[:, None]).ravel(), minlength=num * num_rows)
    return drawn.reshape(num_rows, num).astype(np.float64)


def _mean_auc(weights: np.ndarray, ranked: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """ROC AUC of resamples: the share of (row with the label, row without) in the right order, ties counting half."""
    total, num_defined = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for positive, scores in ranked:
        without = np.flatnonzero(~positive)
        without = without[np.argsort(scores[without])]
        below = np.zeros((len(without) + 1, weights.shape[1]))
        np.cumsum(weights[without], axis=0, out=below[1:])
        left, right = (np.searchsorted(scores[without], scores[positive], side=side) for side in ("left", "right"))
        won = (weights[positive] * (below[left] + below[right])).sum(0) / 2
        pairs = below[-1] * weights[positive].sum(0)
        total += _ratio(won, pairs)
        num_defined += pairs > 0
    return total / num_defined
