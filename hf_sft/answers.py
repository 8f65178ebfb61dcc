"""What an answer can be: one class, a set of classes, a number. It decides which metrics fit and how a prediction is written.

The answers of many rows stand together, so that metrics are array arithmetic.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np


class Answers(ABC):
    """What a model says of some rows."""

    called: ClassVar[str]
    """The kind in a sentence: "answers of one class"."""
    nothing: ClassVar[dict[str, None]]
    """The prediction for a row that can't be answered."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, rows: np.ndarray | slice) -> Self:
        """The answers of some of the rows."""

    @abstractmethod
    def as_json(self) -> list[dict[str, Any]]:
        """One JSON-ready prediction per row."""

    @property
    @abstractmethod
    def finite(self) -> bool:
        """Whether all are numbers: a model that has diverged says others."""


AnswerKind: TypeAlias = type[Answers]


@dataclass(frozen=True)
class ClassAnswers(Answers):
    """One class per row. References are the classes' ids, shape (rows,)."""

    called: ClassVar[str] = "one class"
    nothing: ClassVar[dict[str, None]] = dict.fromkeys(("label", "score", "scores"))

    scores: np.ndarray
    """Probabilities, shape (rows, classes)."""
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def choices(self) -> np.ndarray:
        """The most probable class of each row, shape (rows,)."""
        return self.scores.argmax(-1)

    def take(self, rows: np.ndarray | slice) -> Self:
        return type(self)(self.scores[rows], self.names)

    def as_json(self) -> list[dict[str, Any]]:
        best, named = [self.names[i] for i in self.choices], _by_name(self.scores, self.names)
        return [{"label": label, "score": row[label], "scores": row} for label, row in zip(best, named, strict=True)]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.scores).all())


@dataclass(frozen=True)
class SetAnswers(Answers):
    """Any number of classes per row. References are 0 and 1 for each class, shape (rows, classes)."""

    called: ClassVar[str] = "any number of classes"
    nothing: ClassVar[dict[str, None]] = dict.fromkeys(("labels", "scores"))

    scores: np.ndarray
    """Of each class its own probability, shape (rows, classes)."""
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    @cached_property
    def choices(self) -> np.ndarray:
        """1 for the classes above one half, shape (rows, classes)."""
        return (self.scores > 0.5).astype(np.int64)

    def take(self, rows: np.ndarray | slice) -> Self:
        return type(self)(self.scores[rows], self.names)

    def as_json(self) -> list[dict[str, Any]]:
        named = _by_name(self.scores, self.names)
        chosen = [[name for name, yes in zip(self.names, row, strict=True) if yes] for row in self.choices]
        return [{"labels": labels, "scores": row} for labels, row in zip(chosen, named, strict=True)]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.scores).all())


@dataclass(frozen=True)
class NumberAnswers(Answers):
    """A number per row. References are numbers, shape (rows,)."""

    called: ClassVar[str] = "numbers"
    nothing: ClassVar[dict[str, None]] = {"value": None}

    values: np.ndarray
    """Shape (rows,)."""

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray | slice) -> Self:
        return type(self)(self.values[rows])

    def as_json(self) -> list[dict[str, Any]]:
        return [{"value": float(value)} for value in self.values]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.values).all())


def _by_name(scores: np.ndarray, names: tuple[str, ...]) -> list[dict[str, float]]:
    return [{name: round(float(score), 6) for name, score in zip(names, row, strict=True)} for row in scores]
