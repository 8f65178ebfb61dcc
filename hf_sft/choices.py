"""An ending chosen from those of its row: the answer, its place, and the words that it shares with its context."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np

from hf_sft.answers import Judged, Mistake

NOWHERE = -1


def read_place(value: Any) -> int:
    """The place that a label says, counted from 0: a number, its digits, or a letter; -1 for what says none."""
    if isinstance(value, bool) or value is None:
        return NOWHERE
    if isinstance(value, int):
        return value
    text = str(value).strip()
    if re.fullmatch(r"\d{1,9}", text):
        return int(text)
    return ord(text.upper()) - ord("A") if re.fullmatch("[A-Za-z]", text) else NOWHERE


def words_of(text: str) -> set[str]:
    """The words of a text, without case."""
    return set(re.findall(r"\w+", text.casefold()))


@dataclass(frozen=True)
class ChoiceAnswers(Judged):
    """One of a row's endings. References are places, shape (rows,)."""

    called: ClassVar[str] = "one of a row's endings"
    nothing: ClassVar[dict[str, None]] = dict.fromkeys(("choice", "scores"))

    scores: list[np.ndarray]
    """Of each row the probabilities of its endings, shape (endings,)."""
    endings: list[list[str]]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: np.ndarray | slice) -> Self:
        chosen = np.arange(len(self))[rows]
        return type(self)([self.scores[i] for i in chosen], [self.endings[i] for i in chosen])

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return cls([each for part in parts for each in part.scores], [each for part in parts for each in part.endings])

    @property
    def finite(self) -> bool:
        return all(bool(np.isfinite(scores).all()) for scores in self.scores)

    @cached_property
    def choices(self) -> np.ndarray:
        """The place of the most probable ending of each row."""
        return np.array([scores.argmax() for scores in self.scores], dtype=np.int64)

    def right(self, references: np.ndarray) -> np.ndarray:
        return np.stack([self.choices == references, np.ones(len(self))], axis=1)

    def for_evaluate(self, references: np.ndarray) -> tuple[list, list]:
        return self.choices.tolist(), references.tolist()

    def as_json(self) -> list[dict[str, Any]]:
        pairs = zip(self.choices, self.scores, strict=True)
        return [{"choice": int(choice), "scores": [round(float(p), 6) for p in scores]} for choice, scores in pairs]

    def mistakes(self, references: np.ndarray) -> list[Mistake]:
        wrong = [int(row) for row in np.flatnonzero(self.choices != references)]
        found = [(row, self.scores[row].max(), self.endings[row], int(references[row]), self.choices[row]) for row in wrong]
        return [Mistake(row, float(score), endings[true], endings[said]) for row, score, endings, true, said in found]
