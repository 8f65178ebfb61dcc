"""How good, and how sure: a metric's value on some rows, and on a thousand resamples of them.

The resamples are a Poisson bootstrap: row i occurs in each of them as often as a Poisson number of mean 1 says, drawn from a
stream that belongs to i and the seed alone. So they depend on no cut and no process, and two models that are scored on the
same rows share them: the difference of their values, resample by resample, has an interval too. (Chamandy and others,
Estimating Uncertainty for Massive Data Streams, 2012.)
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy.stats import poisson

from hf_sft.answers import Answers
from hf_sft.metrics import Metric, Stats, find_metric

RESAMPLES = 1000
LEVEL = 0.95
BLOCK = 2048
"""Rows whose weights are in memory at a time."""
CHUNK = 2**20
"""Elements of an array over rows and resamples, where a metric needs all rows at once."""
_STEPS = np.floor(poisson.cdf(np.arange(16), 1.0) * 2**32).astype(np.uint64).clip(max=2**32 - 1).astype(np.uint32)


@dataclass(frozen=True)
class Score:
    """A metric's value, with the ends of its 95% interval over rows and the value of each resample."""

    value: float
    low: float
    high: float
    resampled: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    def as_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def draw_weights(start: int, stop: int, seed: int = 0) -> np.ndarray:
    """How often rows start … stop - 1 occur in each resample, uint8, shape (rows, resamples)."""
    words = RESAMPLES // 2
    assert words % 4 == 0, "Philox gives four 64-bit words at a time"
    stream = np.random.Philox(key=seed)
    stream.advance(start * words // 4)
    bits = stream.random_raw((stop - start) * words).view(np.uint32).reshape(stop - start, RESAMPLES)
    counts = np.zeros(bits.shape, dtype=np.uint8)
    for step in _STEPS:
        more = bits >= step
        if not more.any():
            break
        counts += more
    return counts


def score_rows(
    names: Iterable[str], answers: Answers, references: Any, level: float = LEVEL, seed: int = 0
) -> dict[str, Score]:
    """Each metric's value and interval. Nan where it is undefined, on no rows, or when an answer is not finite.

    A metric's score does not depend on which others are asked for. Its interval leaves out resamples where it is undefined.
    """
    metrics = {name: find_metric(name, type(answers)) for name in names}
    references = np.asarray(references)
    if not len(answers) or not answers.finite:
        return {name: Score(np.nan, np.nan, np.nan) for name in metrics}
    plain, resampled = _add_up(metrics.values(), answers, references, seed)
    scores = {}
    for name, metric in metrics.items():
        if metric.weighted is None:
            value, drawn = _apply(metric, plain), _apply(metric, resampled)
        else:
            value, drawn = (
                metric.weighted(answers, references, np.ones((len(answers), 1))),
                _draw(metric, answers, references, seed),
            )
        scores[name] = _score(float(value[0]), drawn, level)
    return scores


def measure(names: Iterable[str], answers: Answers, references: Any) -> dict[str, float]:
    """Each metric's value alone."""
    metrics = {name: find_metric(name, type(answers)) for name in names}
    references = np.asarray(references)
    if not len(answers) or not answers.finite:
        return dict.fromkeys(metrics, np.nan)
    plain, _ = _add_up(metrics.values(), answers, references, seed=None)
    whole = np.ones((len(answers), 1))
    return {
        name: float((metric.weighted(answers, references, whole) if metric.weighted else _apply(metric, plain))[0])
        for name, metric in metrics.items()
    }


def paired(first: Score, second: Score, level: float = LEVEL) -> Score:
    """How much the first is above the second, both scored on the same rows."""
    return _score(first.value - second.value, first.resampled - second.resampled, level)


Totals = dict[Stats, np.ndarray]


def _add_up(metrics: Iterable[Metric], answers: Answers, references: np.ndarray, seed: int | None) -> tuple[Totals, Totals]:
    """The sums over rows, shape (1, k), and those of each resample, (resamples, k): once for all metrics that share them."""
    shared = {metric.stats for metric in metrics if metric.stats is not None}
    plain: Totals = {}
    resampled: Totals = {}
    origin = float(references.flat[0]) if references.dtype.kind == "f" and references.ndim == 1 else 0.0
    for start in range(0, len(answers) if shared else 0, BLOCK):
        rows = slice(start, min(start + BLOCK, len(answers)))
        weights = None if seed is None else draw_weights(rows.start, rows.stop, seed).T
        part = answers.take(rows)
        for stats in shared:
            found = stats(part, references[rows], origin)
            plain[stats] = plain.get(stats, 0) + found.sum(0, keepdims=True, dtype=np.float64)
            if weights is not None:
                # Counts are exact in float32, within a block.
                resampled[stats] = resampled.get(stats, 0) + (weights.astype(found.dtype) @ found).astype(np.float64)
    return plain, resampled


def _apply(metric: Metric, totals: Totals) -> np.ndarray:
    assert metric.stats is not None and metric.value is not None
    return metric.value(totals[metric.stats])


def _draw(metric: Metric, answers: Answers, references: np.ndarray, seed: int) -> np.ndarray:
    """The values of resamples of a metric that needs all rows at once, some resamples at a time."""
    assert metric.weighted is not None
    weights = np.concatenate([draw_weights(i, min(i + BLOCK, len(answers)), seed) for i in range(0, len(answers), BLOCK)])
    size = max(1, CHUNK // len(answers))
    chunks = [weights[:, start : start + size].astype(np.float64) for start in range(0, RESAMPLES, size)]
    return np.concatenate([metric.weighted(answers, references, chunk) for chunk in chunks])


def _score(value: float, drawn: np.ndarray, level: float) -> Score:
    defined = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not len(defined):
        return Score(value, np.nan, np.nan, drawn)
    low, high = np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])
    return Score(value, float(low), float(high), drawn)
