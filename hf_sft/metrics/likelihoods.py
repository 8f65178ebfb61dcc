"""Metrics of how likely texts are: of all tokens together, so that a long text counts for more than a short one."""

from functools import partial

import numpy as np

from hf_sft.answers import Answers
from hf_sft.likelihoods import TextAnswers
from hf_sft.metrics import Metric


def add_up(answers: Answers, references: np.ndarray, origin: float = 0.0) -> np.ndarray:
    """Nats, tokens and bytes of each row."""
    assert isinstance(answers, TextAnswers)
    return np.column_stack([answers.nats, answers.tokens, answers.bytes]).astype(np.float64)


def per(place: int, totals: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return totals[..., 0] / totals[..., place]


def perplexity(totals: np.ndarray) -> np.ndarray:
    return np.exp(per(1, totals))


def bits_per_byte(totals: np.ndarray) -> np.ndarray:
    return per(2, totals) / np.log(2)


LOWER = {"measures": (TextAnswers,), "stats": add_up, "greater_is_better": False}
METRICS: dict[str, Metric] = {
    "perplexity": Metric("How many tokens the next one is chosen among, as it were.", value=perplexity, **LOWER),
    "bits_per_byte": Metric("Bits for each byte of text: comparable between tokenizers.", value=bits_per_byte, **LOWER),
    "loss": Metric("Mean negative log-likelihood of a token, in nats.", value=partial(per, 1), **LOWER),
}
