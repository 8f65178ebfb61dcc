"""How likely texts, or tokens of them, are: answers that are neither right nor wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

from hf_sft.answers.contract import Answers, Mistake


@dataclass(frozen=True)
class Likelihoods(Answers):
    """Of each row sums over its tokens. There are no references."""

    nats: np.ndarray
    """The negative log-likelihood of the predicted tokens, all together, shape (rows,)."""
    tokens: np.ndarray
    """How many were predicted, shape (rows,)."""

    def __len__(self) -> int:
        return len(self.nats)

    @property
    def sums(self) -> np.ndarray:
        """All that is summed, shape (rows, fields)."""
        return np.column_stack([getattr(self, field.name) for field in fields(self)]).astype(np.float64)

    def take(self, rows: np.ndarray | slice) -> Self:
        return type(self)(*(getattr(self, field.name)[rows] for field in fields(self)))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.nats).all())

    def for_evaluate(self, references: np.ndarray) -> tuple[list, list]:
        return self.nats.tolist(), references.tolist()

    def mistakes(self, references: np.ndarray) -> list[Mistake]:
        return []


@dataclass(frozen=True)
class TextAnswers(Likelihoods):
    """Of each row how likely its text is."""

    called: ClassVar[str] = "how likely a text is"
    null_answer: ClassVar[dict[str, None]] = dict.fromkeys(("loss", "tokens", "bits_per_byte"))

    bytes: np.ndarray
    """Of the text in UTF-8, shape (rows,)."""

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"loss": nats / max(1, count), "tokens": int(count), "bits_per_byte": nats / np.log(2) / max(1, size)}
            for nats, count, size in self.sums.tolist()
        ]


@dataclass(frozen=True)
class TurnAnswers(Likelihoods):
    """Of each row how likely what its assistant says is, as far as the model is shown it."""

    called: ClassVar[str] = "how likely an assistant's words are"
    null_answer: ClassVar[dict[str, None]] = dict.fromkeys(("loss", "tokens"))

    def as_json(self) -> list[dict[str, Any]]:
        return [{"loss": nats / max(1, count), "tokens": int(count)} for nats, count in self.sums.tolist()]


@dataclass(frozen=True)
class MaskedAnswers(Likelihoods):
    """Of each row how likely its masked tokens are."""

    called: ClassVar[str] = "which tokens are masked"
    null_answer: ClassVar[dict[str, None]] = dict.fromkeys(("loss", "tokens", "accuracy"))

    first: np.ndarray
    """How many tokens the model names first, shape (rows,)."""
    five: np.ndarray
    """How many are among its first five, shape (rows,)."""

    def as_json(self) -> list[dict[str, Any]]:
        return [
            {"loss": nats / max(1, count), "tokens": int(count), "accuracy": first / max(1, count)}
            for nats, count, first, _ in self.sums.tolist()
        ]
