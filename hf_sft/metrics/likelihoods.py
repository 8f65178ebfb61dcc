"""Metrics of how likely tokens are: of all together, so that a long text counts for more than a short one."""

from functools import partial

import numpy as np

from hf_sft.answers.contract import Answers
from hf_sft.answers.likelihoods import Likelihoods, MaskedAnswers, TextAnswers
from hf_sft.metrics import Metric


def add_up(answers: Answers, references: np.ndarray, origin: float) -> np.ndarray:
    assert isinstance(answers, Likelihoods)
    return answers.sums


def share(above: int, below: int, totals: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return totals[..., above] / totals[..., below]


def perplexity(totals: np.ndarray) -> np.ndarray:
    return np.exp(share(0, 1, totals))


def bits_per_byte(totals: np.ndarray) -> np.ndarray:
    return share(0, 2, totals) / np.log(2)


LOWER = {"row_statistics": add_up, "greater_is_better": False, "needs_texts": False}
METRICS: dict[str, Metric] = {
    "perplexity": Metric(
        "Among how many tokens the right one is chosen, as it were.", (Likelihoods,), finalize=perplexity, **LOWER
    ),
    "bits_per_byte": Metric(
        "Bits for each byte of text: comparable between tokenizers.", (TextAnswers,), finalize=bits_per_byte, **LOWER
    ),
    "loss": Metric(
        "Mean negative log-likelihood of a token, in nats.", (Likelihoods,), finalize=partial(share, 0, 1), **LOWER
    ),
    "accuracy_at_5": Metric(
        "Share of masked tokens that are among the model's first five.", (MaskedAnswers,), add_up, partial(share, 3, 1)
    ),
}
