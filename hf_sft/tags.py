"""A tag for each word: how tags mark entities, and what answers of tags are.

Inside the house entities are marked by IOB2 alone: B- at their first word, I- at the others, O outside.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from seqeval.scheme import IOB2, Tokens

from hf_sft.answers import Chosen, Mistake, count_pairs

Scheme: TypeAlias = Literal["plain", "iob", "iobes", "bilou"]
OUTSIDE = "O"
AS_IOB = {"S": "B", "E": "I", "U": "B", "L": "I"}
"""The other schemes' prefixes (single, end; unit, last) in IOB2."""
Span: TypeAlias = tuple[int, int, str]
"""The first word of an entity, the one after its last, and its type."""


def find_scheme(tags: Iterable[str]) -> Scheme:
    """How tags mark entities, by their prefixes; plain where they mark none, as parts of speech."""
    prefixes = {tag[0] if re.fullmatch("[BIESLU]-.+", tag) else tag for tag in tags} - {OUTSIDE}
    if not prefixes or not prefixes <= set("BIESLU"):
        return "plain"
    return "bilou" if prefixes & set("LU") else "iobes" if prefixes & set("ES") else "iob"


def to_iob2(tags: Sequence[str]) -> list[str]:
    """The tags of a sentence, whichever scheme they follow, in IOB2: an I- that goes on with nothing begins an entity."""
    written, before = [], OUTSIDE
    for tag in tags:
        prefix, kind = AS_IOB.get(tag[0], tag[0]), tag[2:]
        goes_on = prefix == "I" and before in (f"B-{kind}", f"I-{kind}")
        before = OUTSIDE if tag == OUTSIDE else f"{'I' if goes_on else 'B'}-{kind}"
        written.append(before)
    return written


def count_repaired(tags: Sequence[str]) -> int:
    """How many I- (or E-, L-) have no beginning before them."""
    return sum(AS_IOB.get(tag[0], tag[0]) == "I" and iob[0] == "B" for tag, iob in zip(tags, to_iob2(tags), strict=True))


def is_iob1(sentences: Iterable[Sequence[str]]) -> bool:
    """Whether B- stands only where two entities of one type touch, as in CoNLL's old files, and I- begins all others."""
    begun = False
    for tags in sentences:
        for before, tag in zip((OUTSIDE, *tags), tags, strict=False):
            touches = before[2:] == tag[2:] and before != OUTSIDE
            if tag[0] == "B" and not touches:
                return False
            begun = begun or (tag[0] == "I" and not touches)
    return begun


def read_entities(tags: Sequence[str]) -> list[Span]:
    """The entities of a sentence, as seqeval reads IOB2 strictly: an I- without a beginning is none."""
    return [(entity.start, entity.end, entity.tag) for entity in Tokens(list(tags), IOB2).entities]


@dataclass(frozen=True)
class TagAnswers(Chosen):
    """One tag for each word. References are lists of the tags' ids, an array of objects, shape (rows,)."""

    called: ClassVar[str] = "one tag for each word"
    nothing: ClassVar[dict[str, None]] = dict.fromkeys(("words", "tags", "scores"))
    counted: ClassVar[str] = "words"

    scores: list[np.ndarray]
    """Of each row the probabilities, shape (words, tags)."""
    names: tuple[str, ...]
    words: list[list[str]]
    places: list[list[tuple[int, int]] | None] = field(repr=False)
    """Where words stand in a row's text: first character, and the one after the last; None for rows of words."""

    def __len__(self) -> int:
        return len(self.scores)

    def take(self, rows: np.ndarray | slice) -> Self:
        chosen = np.arange(len(self))[rows]
        scores, words, places = ([part[i] for i in chosen] for part in (self.scores, self.words, self.places))
        return type(self)(scores, self.names, words, places)

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        scores, words, places = ([each for part in parts for each in getattr(part, n)] for n in ("scores", "words", "places"))
        return cls(scores, parts[0].names, words, places)

    @classmethod
    def read_references(cls, targets: Sequence[Any]) -> np.ndarray:
        references = np.empty(len(targets), dtype=object)
        references[:] = [np.asarray(ids, dtype=np.int64) for ids in targets]
        return references

    @property
    def finite(self) -> bool:
        return all(bool(np.isfinite(scores).all()) for scores in self.scores)

    @cached_property
    def choices(self) -> list[np.ndarray]:
        """Of each row the most probable tag of each word."""
        return [scores.argmax(-1) for scores in self.scores]

    @cached_property
    def tags(self) -> list[list[str]]:
        """The same by name."""
        return [self.read_tags(ids) for ids in self.choices]

    def read_tags(self, ids: np.ndarray) -> list[str]:
        """Tags by name."""
        return [self.names[i] for i in ids]

    def chosen(self, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.concatenate(self.choices), np.concatenate(list(references))

    def for_evaluate(self, references: np.ndarray) -> tuple[list, list]:
        return self.tags, [self.read_tags(ids) for ids in references]

    def sum_by_row(self, items: np.ndarray) -> np.ndarray:
        ends = np.cumsum([len(scores) for scores in self.scores])[:-1]
        return np.stack([words.sum(0) for words in np.split(items, ends)])

    def as_json(self) -> list[dict[str, Any]]:
        written = []
        for words, tags, scores in zip(self.words, self.tags, self.scores, strict=True):
            written.append({"words": words, "tags": tags, "scores": [round(float(p), 6) for p in scores.max(-1, initial=0)]})
        return written

    @property
    def classes(self) -> tuple[str, ...]:
        return self.names

    def confusions(self, references: np.ndarray) -> Counter[tuple[str | None, str | None]]:
        predicted, referred = self.chosen(references)
        return count_pairs(referred, predicted, self.names)

    def mistakes(self, references: np.ndarray) -> list[Mistake]:
        """Rows with wrong tags; their score is the sum of those tags' probabilities."""
        listed = []
        for row, (ids, choices, scores) in enumerate(zip(references, self.choices, self.scores, strict=True)):
            wrong = ids != choices
            if wrong.any():
                reference, prediction = (self._mark(self.words[row], self.read_tags(each), wrong) for each in (ids, choices))
                score, scored = float(scores.max(-1)[wrong].sum()), f"{int(wrong.sum())} wrong tag(s), whose scores add up to"
                listed.append(Mistake(row, score, reference, prediction, scored))
        return listed

    def _mark(self, words: list[str], tags: list[str], wrong: np.ndarray) -> str:
        """The sentence, with a tag at each word where the two taggings differ."""
        return " ".join(f"{word}/{tag}" if differs else word for word, tag, differs in zip(words, tags, wrong, strict=True))


@dataclass(frozen=True)
class EntityAnswers(TagAnswers):
    """One tag for each word, by which entities are marked."""

    called: ClassVar[str] = "one tag for each word, which mark entities"
    nothing: ClassVar[dict[str, None]] = dict.fromkeys(("words", "tags", "scores", "entities"))
    counted: ClassVar[str] = "entities"

    @cached_property
    def entities(self) -> list[list[Span]]:
        """Of each row what its tags mark."""
        return [read_entities(tags) for tags in self.tags]

    def referred(self, references: np.ndarray) -> list[list[Span]]:
        """Of each row what the true tags mark."""
        return [read_entities(self.read_tags(ids)) for ids in references]

    def as_json(self) -> list[dict[str, Any]]:
        """`start` and `end` count words, or the characters of a row that is text; the score is the mean of its tags'."""
        return [
            {**answer, "entities": [self._show(row, *span) for span in self.entities[row]]}
            for row, answer in enumerate(super().as_json())
        ]

    def _show(self, row: int, start: int, end: int, kind: str) -> dict[str, Any]:
        places, score = self.places[row], float(self.scores[row].max(-1)[start:end].mean())
        first, last = (start, end) if places is None else (places[start][0], places[end - 1][1])
        text = " ".join(self.words[row][start:end])
        return {"type": kind, "start": first, "end": last, "text": text, "score": round(score, 6)}

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(name[2:] for name in self.names if name != OUTSIDE))

    def confusions(self, references: np.ndarray) -> Counter[tuple[str | None, str | None]]:
        """Entities of the same words by their types; an entity that is missing, or too much, is taken for None."""
        pairs: Counter[tuple[str | None, str | None]] = Counter()
        for true, said in zip(self.referred(references), self.entities, strict=True):
            types = [{(start, end): kind for start, end, kind in spans} for spans in (true, said)]
            pairs.update((types[0].get(place), types[1].get(place)) for place in {*types[0], *types[1]})
        return pairs

    def _mark(self, words: list[str], tags: list[str], wrong: np.ndarray) -> str:
        """The sentence, its entities in brackets with their types."""
        marked = list(words)
        for start, end, kind in read_entities(tags):
            marked[start] = f"[{marked[start]}"
            marked[end - 1] = f"{marked[end - 1]}]{kind}"
        return " ".join(marked)
