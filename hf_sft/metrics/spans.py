"""Metrics of spans, with the values of SQuAD's own script, as shares of 1: the best over a row's references."""

from functools import partial

import numpy as np

from hf_sft.answers.contract import Answers
from hf_sft.answers.spans import SpanAnswers
from hf_sft.metrics import Metric


def count(answers: Answers, references: np.ndarray, origin: float) -> np.ndarray:
    """Of each row exact match, overlap, and 1; then the same if it has an answer."""
    assert isinstance(answers, SpanAnswers)
    every = np.column_stack([answers.compare(references), np.ones(len(answers))])
    has = np.array([len(known) > 0 for known in references], dtype=np.float64).reshape(-1, 1)
    return np.concatenate([every, every * has], axis=1)


def mean(place: int, part: str, totals: np.ndarray) -> np.ndarray:
    every, has = totals[..., :3], totals[..., 3:]
    chosen = {"all": every, "answerable": has, "unanswerable": every - has}[part]
    with np.errstate(divide="ignore", invalid="ignore"):
        return chosen[..., place] / chosen[..., 2]


ONLY = (SpanAnswers,)
METRICS: dict[str, Metric] = {
    "exact_match": Metric(
        "Share of answers that are a reference's words, less articles.", ONLY, count, partial(mean, 0, "all")
    ),
    "f1": Metric("Mean over rows of the F1 of the words of answer and reference.", ONLY, count, partial(mean, 1, "all")),
    **{
        f"f1_{part}": Metric(f"The same, of {part} rows alone.", ONLY, count, partial(mean, 1, part))
        for part in ("answerable", "unanswerable")
    },
}
