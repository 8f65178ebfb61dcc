"""How sure a metric's value is: percentile bootstrap over rows.

The values of a thousand resamples come from counts of all of them at once, which give scikit-learn's numbers some hundred
times faster than asking it for each.
"""

from collections.abc import Callable, Iterable

import numpy as np
from numpy.typing import ArrayLike
from scipy import sparse, stats

from hf_sft.metrics import MULTI, REGRESSION, SINGLE, ranked_columns, score

# Elements of one array over rows and resamples; about eight such arrays live at a time, so resampling stays near 64 MB.
CHUNK = 2**20

Draw = Callable[[int], dict[str, np.ndarray]]


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
    ranked = ranked_columns(references, np.asarray(scores, dtype=np.float64)) if "roc_auc" in names else []
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
    ranked = ranked_columns(references, np.asarray(scores, dtype=np.float64)) if "roc_auc" in names else []
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
