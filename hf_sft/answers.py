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
class Scored(Answers):
    """Answers that are chosen from classes, by the classes' probabilities."""

    scores: np.ndarray
    """Probabilities, shape (rows, classes)."""
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: np.ndarray | slice) -> Self:
        return type(self)(self.scores[rows], self.names)

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.scores).all())

    def by_name(self) -> list[dict[str, float]]:
        """Of each row the probability of each class, to six places."""
        return [{name: round(float(p), 6) for name, p in zip(self.names, row, strict=True)} for row in self.scores]


@dataclass(frozen=True)
class ClassAnswers(Scored):
    """One class per row: the probabilities add up to 1. References are the classes' ids, shape (rows,)."""

    called: ClassVar[str] = "one class"
    nothing: ClassVar[dict[str, None]] = dict.fromkeys(("label", "score", "scores"))

    @cached_property
    def choices(self) -> np.ndarray:
        """The most probable class of each row, shape (rows,)."""
        return self.scores.argmax(-1)

    def as_json(self) -> list[dict[str, Any]]:
        best = [self.names[i] for i in self.choices]
        return [{"label": name, "score": row[name], "scores": row} for name, row in zip(best, self.by_name(), strict=True)]


@dataclass(frozen=True)
class SetAnswers(Scored):
    """Any number of classes per row, each with a probability of its own. References are 0 and 1, shape (rows, classes)."""

    called: ClassVar[str] = "any number of classes"
    nothing: ClassVar[dict[str, None]] = dict.fromkeys(("labels", "scores"))

    @cached_property
    def choices(self) -> np.ndarray:
        """1 for the classes above one half, shape (rows, classes)."""
        return (self.scores > 0.5).astype(np.int64)

    def as_json(self) -> list[dict[str, Any]]:
        chosen = [[name for name, yes in zip(self.names, row, strict=True) if yes] for row in self.choices]
        return [{"labels": labels, "scores": row} for labels, row in zip(chosen, self.by_name(), strict=True)]


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
