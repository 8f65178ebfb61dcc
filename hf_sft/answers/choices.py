"""An ending chosen from those of its row: the answer, its place, and the words that it shares with its context."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, TypeAlias, get_args

import numpy as np

from hf_sft.answers.contract import Judged, Mistake
from hf_sft.answers.scripts import split_words
from hf_sft.errors import DataError

NOWHERE = -1


LabelBase: TypeAlias = Literal[0, 1, "letter", "text"]
"""How a label names an ending: by its place, counted from 0 or from 1, by a letter (A is the first), or by its own text."""


def read_place(value: Any, base: LabelBase | None = None, endings: Sequence[Any] = ()) -> int:
    """The place of the ending that a label names, counted from 0; -1 if it names none. Without a base: a place counted from 0,
    or a letter."""
    if isinstance(value, bool) or value is None:
        return NOWHERE
    text = str(value).strip()
    if base == "text":
        named = [place for place, ending in enumerate(endings) if str(ending).strip() == text]
        return named[0] if len(named) == 1 else NOWHERE
    if base != "letter" and re.fullmatch(r"\d{1,9}", text):
        return int(text) - (base or 0)
    if base in (None, "letter") and re.fullmatch("[A-Za-z]", text):
        return ord(text.upper()) - ord("A")
    return NOWHERE


def find_base(labels: Sequence[Any], endings: Sequence[Sequence[Any]], column: str) -> LabelBase:
    """How a column of labels names endings. Raises `DataError` if it names them in two ways, or may do so in either of two."""
    pairs = [(label, row) for label, row in zip(labels, endings, strict=True) if label is not None and str(label).strip()]
    fits = {base: [read_place(label, base, row) in range(len(row)) for label, row in pairs] for base in get_args(LabelBase)}
    numbers = [bool(re.fullmatch(r"\d{1,9}", str(label).strip())) for label, _ in pairs]
    if pairs and all(fits["text"]) and not (all(fits[0]) or all(fits[1])):
        return "text"
    if pairs and all(fits["letter"]):
        return "letter"
    if any(numbers) and not all(numbers):
        shown = [
            next(repr(label) for (label, _), number in zip(pairs, numbers, strict=True) if number == kind) for kind in (0, 1)
        ]
        raise DataError(
            f"column `{column}` names the right ending in two ways: {shown[0]} in {numbers.count(False)} rows, {shown[1]} in "
            f"{numbers.count(True)}.\n  Expected one: its place, a letter, or its text, in all rows."
        )
    if not all(numbers):
        return "letter" if sum(fits["letter"]) > sum(fits["text"]) else "text"
    if not pairs or any(str(label).strip() == "0" for label, _ in pairs):
        return 0
    if all(fits[1]) and not all(fits[0]):
        return 1
    if not all(fits[1]):
        return 0
    raise DataError(
        f"column `{column}` holds places of the right ending, and 0 never occurs, nor the number of endings.\n"
        "  If the first ending is 1: `task.label_base=1`.  If it is 0: `task.label_base=0`."
    )


def words_of(text: str) -> set[str]:
    """The words of a text, without case; the characters of scripts without spaces."""
    return {word for part in re.findall(r"\w+", text.casefold()) for word in split_words(part)}


@dataclass(frozen=True)
class ChoiceAnswers(Judged):
    """One of a row's endings. References are places, shape (rows,)."""

    called: ClassVar[str] = "one of a row's endings"
    null_answer: ClassVar[dict[str, None]] = dict.fromkeys(("choice", "scores"))

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
        return [
            Mistake(row, float(score), endings[true], endings[predicted]) for row, score, endings, true, predicted in found
        ]
