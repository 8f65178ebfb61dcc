"""What an answer can be: one class, a set of classes, a number. It decides which metrics fit and how a prediction is written.

The answers of many rows stand together, so that metrics are array arithmetic.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np


@dataclass(frozen=True)
class Mistake:
    """A wrong answer, as a person reads it."""

    row: int
    score: float
    """How sure the model was of what is wrong; for numbers how far off it is."""
    reference: str
    prediction: str
    scored: str = "with a score of"
    """The words before the score."""
    text: str | None = None
    """The model's input."""
    picture: str | None = None
    """The same as a picture, a `data:` address."""


class Answers(ABC):
    """What a model says of some rows. Their references are an array with a place for each row."""

    called: ClassVar[str]
    """The kind in a sentence: "answers of one class"."""
    null_answer: ClassVar[dict[str, None]]
    """The prediction for a row that can't be answered."""
    count_unit: ClassVar[str] = "rows"
    """What is counted by class."""
    stratified: ClassVar[bool] = False
    """Whether a reference is the name of one class, which made splits share evenly."""
    written: ClassVar[bool] = False
    """A model writes them token by token, which takes many passes."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def take(self, rows: np.ndarray | slice) -> Self:
        """The answers of some of the rows."""

    @abstractmethod
    def as_json(self) -> list[dict[str, Any]]:
        """One JSON-ready prediction per row."""

    @classmethod
    @abstractmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """The answers of several blocks of rows as one."""

    @property
    @abstractmethod
    def finite(self) -> bool:
        """Whether all are numbers: a model that has diverged says others."""

    @classmethod
    def read_references(cls, targets: Sequence[Any]) -> np.ndarray:
        """The task's targets of some rows as metrics take them."""
        return np.asarray(targets)

    @abstractmethod
    def for_evaluate(self, references: np.ndarray) -> tuple[list, list]:
        """Predictions and references as modules of the `evaluate` library take them."""

    @property
    def classes(self) -> tuple[str, ...]:
        """What is scored by class, where there is such a thing."""
        return ()

    def confusions(self, references: np.ndarray) -> Counter[tuple[str | None, str | None]]:
        """How often a class is answered where another, or the same, is right; None for no class."""
        return Counter()

    @abstractmethod
    def mistakes(self, references: np.ndarray) -> list[Mistake]:
        """All wrong answers; of numbers all."""


AnswerKind: TypeAlias = type[Answers]


class Judged(Answers):
    """Answers that are right or wrong."""

    @abstractmethod
    def right(self, references: np.ndarray) -> np.ndarray:
        """Of each row how many of its answers are right, and how many it has, shape (rows, 2)."""


class Chosen(Judged):
    """Answers that are chosen from classes: one, or any number, for each row, or for each word of it."""

    names: tuple[str, ...]

    def right(self, references: np.ndarray) -> np.ndarray:
        predicted, true = self.chosen(references)
        right = predicted == true if predicted.ndim == 1 else (predicted == true).all(1)
        return self.sum_by_row(np.stack([right, np.ones(len(right))], axis=1), references)

    @abstractmethod
    def chosen(self, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The classes of each item, as answered and as referred to: ids, shape (items,), or 0 and 1, (items, classes)."""

    def count_items(self, references: np.ndarray) -> np.ndarray:
        """How many items `chosen` gives of each row, shape (rows,)."""
        return np.ones(len(references), dtype=np.int64)

    def sum_by_row(self, items: np.ndarray, references: np.ndarray) -> np.ndarray:
        """Numbers of shape (items, k) to (rows, k)."""
        counts = self.count_items(references)
        if (counts == 1).all():
            return items
        return np.stack([some.sum(0) for some in np.split(items, np.cumsum(counts)[:-1])])


def count_pairs(referred: np.ndarray, predicted: np.ndarray, names: tuple[str, ...]) -> Counter[tuple[str | None, str | None]]:
    """How often each true class and each predicted one, both ids, stand at one place."""
    pairs, counts = np.unique(np.stack([referred, predicted]), axis=1, return_counts=True)
    return Counter({(names[i], names[j]): int(n) for i, j, n in zip(*pairs, counts, strict=True)})


@dataclass(frozen=True)
class Scored(Chosen):
    """Answers that are chosen for each row, by the classes' probabilities."""

    scores: np.ndarray
    """Probabilities, shape (rows, classes)."""
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    @property
    @abstractmethod
    def choices(self) -> np.ndarray:
        """What is chosen for each row."""

    def chosen(self, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self.choices, references

    def for_evaluate(self, references: np.ndarray) -> tuple[list, list]:
        return self.choices.tolist(), references.astype(np.int64).tolist()

    def take(self, rows: np.ndarray | slice) -> Self:
        return type(self)(self.scores[rows], self.names)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return cls(np.concatenate([part.scores for part in parts]), parts[0].names)

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
    stratified: ClassVar[bool] = True
    null_answer: ClassVar[dict[str, None]] = dict.fromkeys(("label", "score", "scores"))

    @cached_property
    def choices(self) -> np.ndarray:
        """The most probable class of each row, shape (rows,)."""
        return self.scores.argmax(-1)

    def as_json(self) -> list[dict[str, Any]]:
        best = [self.names[i] for i in self.choices]
        return [{"label": name, "score": row[name], "scores": row} for name, row in zip(best, self.by_name(), strict=True)]

    @property
    def classes(self) -> tuple[str, ...]:
        return self.names

    def confusions(self, references: np.ndarray) -> Counter[tuple[str | None, str | None]]:
        return count_pairs(references, self.choices, self.names)

    def mistakes(self, references: np.ndarray) -> list[Mistake]:
        wrong = [(int(row), references[row], self.choices[row]) for row in np.flatnonzero(self.choices != references)]
        return [Mistake(row, float(self.scores[row, j]), self.names[i], self.names[j]) for row, i, j in wrong]


@dataclass(frozen=True)
class SetAnswers(Scored):
    """Any number of classes per row, each with a probability of its own. References are 0 and 1, shape (rows, classes)."""

    called: ClassVar[str] = "any number of classes"
    null_answer: ClassVar[dict[str, None]] = dict.fromkeys(("labels", "scores"))

    @cached_property
    def choices(self) -> np.ndarray:
        """1 for the classes above one half, shape (rows, classes)."""
        return (self.scores > 0.5).astype(np.int64)

    def as_json(self) -> list[dict[str, Any]]:
        chosen = [[name for name, yes in zip(self.names, row, strict=True) if yes] for row in self.choices]
        return [{"labels": labels, "scores": row} for labels, row in zip(chosen, self.by_name(), strict=True)]

    def mistakes(self, references: np.ndarray) -> list[Mistake]:
        wrong = self.choices != references
        sure = np.where(wrong, np.maximum(self.scores, 1 - self.scores), 0).max(-1, initial=0.0)
        rows = [int(row) for row in np.flatnonzero(wrong.any(-1))]
        return [Mistake(row, float(sure[row]), self._say(references[row]), self._say(self.choices[row])) for row in rows]

    def _say(self, chosen: np.ndarray) -> str:
        return ", ".join(name for name, yes in zip(self.names, chosen, strict=True) if yes) or "(none)"


@dataclass(frozen=True)
class NumberAnswers(Answers):
    """A number per row. References are numbers, shape (rows,)."""

    called: ClassVar[str] = "numbers"
    null_answer: ClassVar[dict[str, None]] = {"value": None}

    values: np.ndarray
    """Shape (rows,)."""

    def __len__(self) -> int:
        return len(self.values)

    def take(self, rows: np.ndarray | slice) -> Self:
        return type(self)(self.values[rows])

    def as_json(self) -> list[dict[str, Any]]:
        return [{"value": float(value)} for value in self.values]

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return cls(np.concatenate([part.values for part in parts]))

    def for_evaluate(self, references: np.ndarray) -> tuple[list, list]:
        return self.values.tolist(), references.tolist()

    def mistakes(self, references: np.ndarray) -> list[Mistake]:
        pairs = enumerate(zip(references, self.values, strict=True))
        return [Mistake(row, float(abs(p - r)), f"{r:.3f}", f"{p:.3f}", "off by") for row, (r, p) in pairs]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.values).all())
