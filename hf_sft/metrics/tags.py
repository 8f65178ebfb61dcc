"""Metrics of entities, with seqeval's values in strict IOB2: an entity is right when its words and its type are."""

import numpy as np

from hf_sft.answers.contract import Answers
from hf_sft.answers.tags import EntityAnswers
from hf_sft.metrics import Metric, ratio


def count(answers: Answers, references: np.ndarray, origin: float) -> np.ndarray:
    """Of each row its entities: found rightly, found, and referred to; then 1."""
    assert isinstance(answers, EntityAnswers)
    pairs = zip(answers.entities, answers.referred(references), strict=True)
    counts = [(len({*found} & {*true}), len(found), len(true), 1) for found, true in pairs]
    return np.array(counts, dtype=np.float32).reshape(len(answers), 4)


def precision(totals: np.ndarray) -> np.ndarray:
    return _rate(totals, totals[..., 0], totals[..., 1])


def recall(totals: np.ndarray) -> np.ndarray:
    return _rate(totals, totals[..., 0], totals[..., 2])


def f1(totals: np.ndarray) -> np.ndarray:
    return _rate(totals, 2 * totals[..., 0], totals[..., 1] + totals[..., 2])


def _rate(totals: np.ndarray, above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.where(totals[..., 3] > 0, ratio(above, below), np.nan)


ONLY = (EntityAnswers,)
METRICS: dict[str, Metric] = {
    "f1": Metric("Harmonic mean of precision and recall of entities.", ONLY, count, f1),
    "precision": Metric("Share of the entities found that are right, in words and type.", ONLY, count, precision),
    "recall": Metric("Share of the true entities that were found, in words and type.", ONLY, count, recall),
}
