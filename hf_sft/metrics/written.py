"""Metrics of texts that a model writes: rouge-score's and sacrebleu's own values, as shares of 1."""

from functools import partial

import numpy as np

from hf_sft.answers.contract import Answers
from hf_sft.answers.texts import WrittenAnswers, compare_words, count_grams, score_grams
from hf_sft.metrics import Metric
from hf_sft.metrics.likelihoods import share


def add_words(answers: Answers, references: np.ndarray, origin: float) -> np.ndarray:
    """Of each row the three values of ROUGE, and 1."""
    assert isinstance(answers, WrittenAnswers)
    return np.column_stack([compare_words(answers.texts, references), np.ones(len(answers))])


def add_exact(answers: Answers, references: np.ndarray, origin: float) -> np.ndarray:
    assert isinstance(answers, WrittenAnswers)
    return np.column_stack([answers.texts == references, np.ones(len(answers))]).astype(np.float64)


def add_grams(name: str, answers: Answers, references: np.ndarray, origin: float) -> np.ndarray:
    """Of each row what sacrebleu adds up for a metric of its own."""
    assert isinstance(answers, WrittenAnswers)
    return count_grams(name, answers.texts, references)


ONLY = (WrittenAnswers,)
METRICS: dict[str, Metric] = {
    "rouge_1": Metric("Mean over rows of the F1 of words, by rouge-score.", ONLY, add_words, partial(share, 0, -1)),
    "rouge_2": Metric("Mean over rows of the F1 of pairs of words, by rouge-score.", ONLY, add_words, partial(share, 1, -1)),
    "rouge_l": Metric(
        "Mean over rows of the F1 of the longest common subsequence of words, by rouge-score.",
        ONLY,
        add_words,
        partial(share, 2, -1),
    ),
    "chrf": Metric(
        "F-score of n-grams of letters over all rows, by sacrebleu.",
        ONLY,
        partial(add_grams, "chrf"),
        partial(score_grams, "chrf"),
    ),
    "bleu": Metric("BLEU over all rows, by sacrebleu (13a).", ONLY, partial(add_grams, "bleu"), partial(score_grams, "bleu")),
    "exact_match": Metric("Share of texts that are the reference to the letter.", ONLY, add_exact, partial(share, 0, -1)),
}
