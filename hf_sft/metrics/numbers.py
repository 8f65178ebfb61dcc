"""Metrics of numbers, with scikit-learn's and scipy's values."""

import numpy as np

from hf_sft.answers.contract import Answers, NumberAnswers
from hf_sft.metrics import Metric

CONSTANT = 1e-13
"""A variance below this share of the mean square is rounding."""


def moments(answers: Answers, references: np.ndarray, origin: float) -> np.ndarray:
    """1, r, p, r², p², r·p, (r - p)² and |r - p|, of references and predictions less `origin`: so squares keep digits."""
    assert isinstance(answers, NumberAnswers)
    r, p = np.asarray(references, dtype=np.float64) - origin, answers.values.astype(np.float64) - origin
    return np.stack([np.ones(len(r)), r, p, r * r, p * p, r * p, (r - p) ** 2, np.abs(r - p)], axis=1)


def _spread(rows: np.ndarray, sums: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """The sum of squared differences from the mean; zero where that is rounding."""
    spread = squares - sums**2 / rows
    return np.where(spread > CONSTANT * squares, spread, 0.0)


def pearson(totals: np.ndarray) -> np.ndarray:
    rows, r, p, rr, pp, rp = np.moveaxis(totals[..., :6], -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = _spread(rows, r, rr) * _spread(rows, p, pp)
        return np.where((rows > 1) & (spread > 0), np.clip((rp - r * p / rows) / np.sqrt(spread), -1, 1), np.nan)


def mse(totals: np.ndarray) -> np.ndarray:
    return _mean(totals, 6)


def mae(totals: np.ndarray) -> np.ndarray:
    return _mean(totals, 7)


def _mean(totals: np.ndarray, place: int) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return totals[..., place] / totals[..., 0]


def r2(totals: np.ndarray) -> np.ndarray:
    """scikit-learn's values for references that don't vary: 1 where all is right, else 0; nan for less than two rows."""
    rows, r, rr, errors = (totals[..., place] for place in (0, 1, 3, 6))
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = _spread(rows, r, rr)
        return np.where(rows < 2, np.nan, np.where(spread > 0, 1 - errors / spread, (errors == 0).astype(np.float64)))


def spearman(answers: Answers, references: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The correlation of ranks; a row of weight w counts as w equal rows."""
    assert isinstance(answers, NumberAnswers)
    r, p = weighted_ranks(np.asarray(references), weights), weighted_ranks(answers.values, weights)
    rows = weights.sum(0)
    middle = (rows + 1) / 2  # the mean of all ranks
    r, p = r - middle, p - middle
    totals = [rows, *((weights * each).sum(0) for each in (r, p, r * r, p * p, r * p))]
    return pearson(np.stack(totals, axis=-1))


def weighted_ranks(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean ranks of rows that occur `weights` times, shape (rows, resamples)."""
    order = np.argsort(values, kind="stable")
    _, first, group = np.unique(values[order], return_index=True, return_inverse=True)
    together = np.add.reduceat(weights[order], first, axis=0)
    ranks = np.cumsum(together, axis=0) - together + (together + 1) / 2
    found = np.empty_like(ranks, shape=weights.shape)
    found[order] = ranks[group]
    return found


ONLY = (NumberAnswers,)
METRICS: dict[str, Metric] = {
    "pearson": Metric("Linear correlation.", ONLY, moments, pearson),
    "spearman": Metric("Correlation of ranks.", ONLY, weighted=spearman),
    "mse": Metric("Mean squared error.", ONLY, moments, mse, greater_is_better=False),
    "mae": Metric("Mean absolute error.", ONLY, moments, mae, greater_is_better=False),
    "r2": Metric("Share of the variance that is explained; 0 is predicting the mean.", ONLY, moments, r2),
}
