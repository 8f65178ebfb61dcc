"""Metrics with bootstrap intervals.

The resamples are a Poisson bootstrap: row i occurs in each of them as often as a Poisson number of mean 1 says, drawn from a
stream that belongs to i and the seed alone. So they depend on no cut and no process, and two models that are scored on the
same rows share them: the difference of their values, resample by resample, has an interval too. (Chamandy and others,
Estimating Uncertainty for Massive Data Streams, 2012.)
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_sft.answers.contract import Answers
from hf_sft.data.examples import BLOCK
from hf_sft.metrics import Metric, Stats, find_metric

RESAMPLES = 1000
LEVEL = 0.95
CHUNK = 2**20
"""Elements of an array over rows and resamples, where a metric needs all rows at once."""
_AT_MOST = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(16)])
"""The distribution function of a Poisson number of mean 1, at 0, 1, 2 …"""
_STEPS = np.floor(_AT_MOST * 2**32).astype(np.uint64).clip(max=2**32 - 1).astype(np.uint32)


@dataclass(frozen=True)
class Score:
    """A metric's value, its 95% interval over rows, and its value on each resample."""

    value: float
    low: float
    high: float
    resampled: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)

    def as_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def draw_weights(start: int, stop: int, seed: int = 0) -> np.ndarray:
    """The number of times that rows start … stop - 1 occur in each resample, uint8, shape (rows, resamples)."""
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


class MetricAccumulator:
    """Metrics of rows that come block by block. It stores sums; all answers only for metrics of ranks.

    Values are nan where a metric is undefined, on no rows, or when an answer is not finite. A metric's value does not depend
    on the other metrics, nor on how the rows are cut into blocks.
    """

    def __init__(self, names: Iterable[str], kind: type[Answers]):
        self.metrics = {name: find_metric(name, kind) for name in names}
        self._plain: dict[Stats, Any] = {}
        self._resampled: dict[Stats, Any] = {}
        self._blocks: list[tuple[Answers, np.ndarray, np.ndarray | None]] = []
        self._rows, self._finite = 0, True
        self._origin: float | None = None

    def add(self, answers: Answers, references: np.ndarray, weights: np.ndarray | None = None) -> None:
        """Rows with their references, and with how often they occur in each resample, shape (rows, resamples)."""
        self._finite &= answers.finite
        if not self._finite or not len(answers):
            return
        if self._origin is None:
            self._origin = float(references[0]) if references.dtype.kind == "f" and references.ndim == 1 else 0.0
        self._rows += len(answers)
        for stats in {metric.row_statistics for metric in self.metrics.values() if metric.row_statistics is not None}:
            by_row = stats(answers, references, self._origin)
            self._plain[stats] = self._plain.get(stats, 0) + by_row.sum(0, keepdims=True, dtype=np.float64)
            if weights is not None:
                # Counts are exact in float32, within a block.
                drawn = (weights.T.astype(by_row.dtype) @ by_row).astype(np.float64)
                self._resampled[stats] = self._resampled.get(stats, 0) + drawn
        if any(metric.row_statistics is None for metric in self.metrics.values()):
            self._blocks.append((answers, references, weights))

    @property
    def _defined(self) -> bool:
        return self._finite and self._rows > 0

    def values(self) -> dict[str, float]:
        """Each metric's value alone."""
        if not self._defined:
            return dict.fromkeys(self.metrics, np.nan)
        return {name: self._value(metric) for name, metric in self.metrics.items()}

    def scores(self, level: float = LEVEL) -> dict[str, Score]:
        """Each metric's value and interval; an interval leaves out resamples where the metric is undefined."""
        if not self._defined:
            return {name: Score(np.nan, np.nan, np.nan) for name in self.metrics}
        return {name: _score(self._value(metric), self._draw(metric), level) for name, metric in self.metrics.items()}

    def _value(self, metric: Metric) -> float:
        if metric.row_statistics is not None and metric.finalize is not None:
            return float(metric.finalize(self._plain[metric.row_statistics])[0])
        answers, references, _ = self._all
        if metric.corpus_value is not None:
            return metric.corpus_value(answers, references)
        assert metric.weighted is not None
        return float(metric.weighted(answers, references, np.ones((len(answers), 1)))[0])

    def _draw(self, metric: Metric) -> np.ndarray:
        """The values of resamples; of a metric that needs all rows at once, some resamples at a time."""
        if metric.row_statistics is not None and metric.finalize is not None:
            return metric.finalize(self._resampled[metric.row_statistics])
        if metric.weighted is None:
            return np.empty(0)
        answers, references, weights = self._all
        size = max(1, CHUNK // len(answers))
        chunks = [weights[:, start : start + size].astype(np.float64) for start in range(0, weights.shape[1], size)]
        return np.concatenate([metric.weighted(answers, references, chunk) for chunk in chunks])

    @property
    def _all(self) -> tuple[Answers, np.ndarray, np.ndarray]:
        if len(self._blocks) > 1:
            answers, references, weights = zip(*self._blocks, strict=True)
            drawn = None if weights[0] is None else np.concatenate(weights)
            self._blocks = [(type(answers[0]).join(answers), np.concatenate(references), drawn)]
        ((answers, references, drawn),) = self._blocks
        return answers, references, drawn if drawn is not None else np.empty((len(answers), 0))


def score_rows(
    names: Iterable[str], answers: Answers, references: Any, level: float = LEVEL, seed: int = 0
) -> dict[str, Score]:
    """Each metric's value and interval, of rows that are all there."""
    tally, references = MetricAccumulator(names, type(answers)), np.asarray(references)
    for start in range(0, len(answers), BLOCK):
        rows = slice(start, min(start + BLOCK, len(answers)))
        tally.add(answers.take(rows), references[rows], draw_weights(rows.start, rows.stop, seed))
    return tally.scores(level)


def measure(names: Iterable[str], answers: Answers, references: Any) -> dict[str, float]:
    """Each metric's value alone, of rows that are all there."""
    tally = MetricAccumulator(names, type(answers))
    tally.add(answers, np.asarray(references))
    return tally.values()


def paired(first: Score, second: Score, level: float = LEVEL) -> Score:
    """The first score minus the second, with its interval; both of the same rows."""
    return _score(first.value - second.value, first.resampled - second.resampled, level)


def _score(value: float, drawn: np.ndarray, level: float) -> Score:
    defined = drawn[~np.isnan(drawn)]
    if np.isnan(value) or not len(defined):
        return Score(value, np.nan, np.nan, drawn)
    low, high = np.percentile(defined, [50 * (1 - level), 50 * (1 + level)])
    return Score(value, float(low), float(high), drawn)
