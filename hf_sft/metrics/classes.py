"""Metrics of classes and of sets of classes, with scikit-learn's values."""

from functools import partial

import numpy as np

from hf_sft.answers.contract import Answers, Chosen, ClassAnswers, Judged, SetAnswers
from hf_sft.metrics import Metric, ratio

ANY, SCORED, SINGLE = (Chosen,), (ClassAnswers, SetAnswers), (ClassAnswers,)


def count(answers: Answers, references: np.ndarray, origin: float) -> np.ndarray:
    """Of each row and class: predicted rightly, predicted, referred to; then: items, items with a set."""
    assert isinstance(answers, Chosen)
    predicted, referred = answers.chosen(references)
    sets = predicted.ndim == 2
    if not sets:
        every = np.arange(max(len(answers.names), int(referred.max(initial=0)) + 1))
        predicted, referred = predicted[:, None] == every, referred[:, None] == every
    ones = np.ones((len(predicted), 1))
    parts = (predicted & referred if not sets else predicted * referred, predicted, referred, ones, ones * sets)
    return answers.sum_by_row(np.concatenate([part.astype(np.float32) for part in parts], axis=1), references)


def _split(totals: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    hits, predicted, referred = np.split(totals[..., :-2], 3, axis=-1)
    return hits, predicted, referred, totals[..., -2], totals[..., -1]


def _where_rows(totals: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.where(totals[..., -2] > 0, values, np.nan)


def judge(answers: Answers, references: np.ndarray, origin: float) -> np.ndarray:
    """Of each row how many answers are right, and how many there are."""
    assert isinstance(answers, Judged)
    return answers.right(references).astype(np.float32)


def accuracy(totals: np.ndarray) -> np.ndarray:
    right, answers = totals[..., 0], totals[..., 1]
    return np.where(answers > 0, ratio(right, answers), np.nan)


def rate(kind: str, average: str, totals: np.ndarray) -> np.ndarray:
    """Precision, recall or F1. As in scikit-learn, macro is the mean over the classes that references or predictions show;
    over all for sets."""
    hits, predicted, referred, _, sets = _split(totals)
    above, below = {
        "precision": (hits, predicted),
        "recall": (hits, referred),
        "f1": (2 * hits, predicted + referred),
    }[kind]
    if average == "micro":
        return _where_rows(totals, ratio(above.sum(-1), below.sum(-1)))
    shown = (predicted + referred > 0) | (sets > 0)[..., None]
    weights = referred if average == "weighted" else shown
    return _where_rows(totals, ratio((ratio(above, below) * weights).sum(-1), weights.sum(-1)))


def matthews(totals: np.ndarray) -> np.ndarray:
    hits, predicted, referred, rows, _ = _split(totals)
    spread = [np.sqrt(np.maximum(rows**2 - (counts**2).sum(-1), 0)) for counts in (predicted, referred)]
    return _where_rows(totals, ratio(hits.sum(-1) * rows - (predicted * referred).sum(-1), spread[0] * spread[1]))


def roc_auc(answers: Answers, references: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes that some rows have and some have not; ties count half. Of two classes one is computed."""
    assert isinstance(answers, ClassAnswers | SetAnswers)
    scores = answers.scores
    if isinstance(answers, SetAnswers):
        ranked = [(references[:, k] == 1, scores[:, k]) for k in range(scores.shape[1])]
    else:
        ranked = [(references == k, scores[:, k]) for k in ([1] if scores.shape[1] == 2 else range(scores.shape[1]))]
    total, defined = np.zeros(weights.shape[1]), np.zeros(weights.shape[1])
    for positive, score in ranked:
        without = np.flatnonzero(~positive)
        without = without[np.argsort(score[without])]
        below = np.zeros((len(without) + 1, weights.shape[1]))
        np.cumsum(weights[without], axis=0, out=below[1:])
        left, right = (np.searchsorted(score[without], score[positive], side=side) for side in ("left", "right"))
        won = (weights[positive] * (below[left] + below[right])).sum(0) / 2
        pairs = below[-1] * weights[positive].sum(0)
        total += ratio(won, pairs)
        defined += pairs > 0
    with np.errstate(invalid="ignore"):
        return total / defined


_RATES = {
    "precision": "share of what was predicted that is right",
    "recall": "share of what is true that was predicted",
    "f1": "harmonic mean of precision and recall",
}
_AVERAGES = {
    "micro": "all labels counted together",
    "macro": "mean over labels, each counting the same",
    "weighted": "mean over labels, by their rows",
}
METRICS: dict[str, Metric] = {
    "accuracy": Metric(
        "Share of rows that are right (multi-label: in every label), of tags that are.", (Judged,), judge, accuracy
    ),
    **{
        f"{kind}_{average}": Metric(f"{meaning[0].upper()}{meaning[1:]}; {over}.", ANY, count, partial(rate, kind, average))
        for kind, meaning in _RATES.items()
        for average, over in _AVERAGES.items()
    },
    "matthews": Metric("Correlation of classes; 0 is chance, whatever their shares.", SINGLE, count, matthews),
    "roc_auc": Metric(
        "Chance that a row with the label scores above one without; mean over the labels that rows differ in.",
        SCORED,
        weighted=roc_auc,
        needs_scores=True,
    ),
}
