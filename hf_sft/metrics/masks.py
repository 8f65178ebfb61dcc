"""What masked tokens have under a name that others' answers have too."""

from functools import partial

from hf_sft.answers.likelihoods import MaskedAnswers
from hf_sft.metrics import Metric
from hf_sft.metrics.likelihoods import add_up, share

METRICS: dict[str, Metric] = {
    "accuracy": Metric("Share of masked tokens that the model names first.", (MaskedAnswers,), add_up, partial(share, 2, 1)),
}
