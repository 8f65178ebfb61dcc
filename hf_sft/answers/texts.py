"""Texts as answers: what a model writes of its own, and how far that is from what was to be written."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, ClassVar

import numpy as np

from hf_sft.answers.contract import Mistake
from hf_sft.answers.likelihoods import Likelihoods

ROUGE = ("rouge1", "rouge2", "rougeL")
"""The names of rouge-score."""
KEPT = 8192
"""Size of the cache of comparisons: a row is scored again among the unseen rows, and as a mistake."""


@dataclass(frozen=True)
class WrittenAnswers(Likelihoods):
    """Of each row how likely its target is, and what is written of its source. References are the targets, shape (rows,)."""

    called: ClassVar[str] = "texts"
    null_answer: ClassVar[dict[str, None]] = dict.fromkeys(("text", "loss", "tokens"))
    written: ClassVar[bool] = True

    texts: np.ndarray
    """Of each row what was written, shape (rows,), objects; None where nothing was."""

    @property
    def sums(self) -> np.ndarray:
        return np.column_stack([self.nats, self.tokens]).astype(np.float64)

    @classmethod
    def read_references(cls, targets: Sequence[Any]) -> np.ndarray:
        return as_texts(targets)

    def for_evaluate(self, references: np.ndarray) -> tuple[list, list]:
        return self.texts.tolist(), references.tolist()

    def as_json(self) -> list[dict[str, Any]]:
        pairs = zip(self.texts, self.sums.tolist(), strict=True)
        return [{"text": text, "loss": nats / max(1, count), "tokens": int(count)} for text, (nats, count) in pairs]

    def mistakes(self, references: np.ndarray) -> list[Mistake]:
        """All texts that are not their references, by how few of those' letters they have in common."""
        wrong = [row for row in range(len(self)) if self.texts[row] is not None and self.texts[row] != references[row]]
        if not wrong:
            return []
        grams = count_grams("chrf", self.texts[wrong], references[wrong])
        pairs = zip(wrong, score_grams("chrf", grams), strict=True)
        return [Mistake(i, 1 - chrf, references[i], self.texts[i], "short of a chrF of 1 by") for i, chrf in pairs]


def as_texts(texts: Sequence[str | None]) -> np.ndarray:
    """Shape (rows,), objects."""
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array


def compare_words(texts: Iterable[str], references: Iterable[str]) -> np.ndarray:
    """F1 of words, of pairs of words, and of the longest common subsequence, as rouge-score has them; shape (rows, 3)."""
    scores = [_compare(text, true) for text, true in zip(texts, references, strict=True)]
    return np.array(scores, dtype=np.float64).reshape(-1, len(ROUGE))


@lru_cache(KEPT)
def _compare(text: str, reference: str) -> tuple[float, ...]:
    scored = _rouge().score(reference, text)
    return tuple(scored[name].fmeasure for name in ROUGE)


# A corpus's score is public in sacrebleu; the sums that it is made of are private: two methods of its metrics' base class
# (2.6, sacrebleu/metrics/base.py). A test compares what they give with `corpus_score`.


def count_grams(name: str, texts: Iterable[str], references: Iterable[str]) -> np.ndarray:
    """What sacrebleu adds up over rows for `bleu` or `chrf`, shape (rows, numbers)."""
    return np.array([_count(name, text, true) for text, true in zip(texts, references, strict=True)], dtype=np.float64)


@lru_cache(KEPT)
def _count(name: str, text: str, reference: str) -> tuple[float, ...]:
    ((*counts,),) = _sacrebleu(name)._extract_corpus_statistics([text], [[reference]])
    return tuple(counts)


def score_grams(name: str, sums: np.ndarray) -> np.ndarray:
    """What sacrebleu makes of such sums, of shape (…, numbers): from 0 to 1, shape (…,)."""
    metric = _sacrebleu(name)
    flat = sums.reshape(-1, sums.shape[-1]).astype(np.int64).tolist()
    scores = [metric._compute_score_from_stats(each).score / 100 for each in flat]
    return np.array(scores, dtype=np.float64).reshape(sums.shape[:-1])


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer  # which imports nltk: half a second, before the first step

    return RougeScorer(ROUGE)


@cache
def _sacrebleu(name: str) -> Any:
    from sacrebleu.metrics.bleu import BLEU
    from sacrebleu.metrics.chrf import CHRF

    return {"bleu": BLEU(force=True), "chrf": CHRF()}[name]  # force: texts with spaces before full stops are no mistake
