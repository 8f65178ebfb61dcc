"""How likely texts are: an answer that is neither right nor wrong."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self

import numpy as np

from hf_sft.answers import Answers, Mistake


@dataclass(frozen=True)
class TextAnswers(Answers):
    """Of each row how likely its text is. There are no references."""

    called: ClassVar[str] = "how likely a text is"
    nothing: ClassVar[dict[str, None]] = dict.fromkeys(("loss", "tokens", "bits_per_byte"))

    nats: np.ndarray
    """The negative log-likelihood of the row's tokens, all together, shape (rows,)."""
    tokens: np.ndarray
    """How many of them were predicted, shape (rows,)."""
    bytes: np.ndarray
    """Of the text in UTF-8, shape (rows,)."""

    def __len__(self) -> int:
        return len(self.nats)

    def take(self, rows: np.ndarray | slice) -> Self:
        return type(self)(self.nats[rows], self.tokens[rows], self.bytes[rows])

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.nats).all())

    def as_json(self) -> list[dict[str, Any]]:
        rows = zip(self.nats.tolist(), self.tokens.tolist(), self.bytes.tolist(), strict=True)
        return [
            {"loss": nats / max(1, count), "tokens": int(count), "bits_per_byte": nats / np.log(2) / max(1, size)}
            for nats, count, size in rows
        ]

    def for_evaluate(self, references: np.ndarray) -> tuple[list, list]:
        return self.nats.tolist(), references.tolist()

    def mistakes(self, references: np.ndarray) -> list[Mistake]:
        return []
