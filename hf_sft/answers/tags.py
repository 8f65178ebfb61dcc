"""A tag for each word: how tags mark entities, and what answers of tags are.

Inside the house entities are marked by IOB2 alone: B- at their first word, I- at the others, O outside.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, Self, TypeAlias

import numpy as np
from seqeval.scheme import IOB2, Tokens

from hf_sft.answers.contract import Chosen, Mistake, count_pairs

Scheme: TypeAlias = Literal["plain", "iob", "iobes", "bilou"]
OUTSIDE = "O"
UNTYPED = "ENTITY"
"""The type of entities whose tags name none."""
PREFIXES = frozenset("BIESLU")
MISTAKEN = 0.05
"""The largest share of tags that may be mistakes."""
AS_IOB = {"S": "B", "E": "I", "U": "B", "L": "I"}
"""The other schemes' prefixes (single, end; unit, last) in IOB2."""
Span: TypeAlias = tuple[int, int, str]
"""The first word of an entity, the one after its last, and its type."""


def is_mark(tag: str) -> bool:
    """Whether a tag is one of an entity: a prefix with a type."""
    return re.fullmatch("[BIESLU]-.+", tag) is not None


def is_tag(tag: str | None) -> bool:
    """Whether a tag may stand among those that mark entities."""
    return tag is not None and (tag == OUTSIDE or is_mark(tag))


def name_tag(tag: str) -> str:
    """A tag with its type: B, I, … without one are of the type `UNTYPED`."""
    return f"{tag}-{UNTYPED}" if tag in PREFIXES else tag


def name_type(tag: str) -> str:
    """The type of an entity's tag."""
    return name_tag(tag)[2:]


def find_scheme(tags: Iterable[str]) -> Scheme:
    """How tags mark entities, by their prefixes; plain where they mark none, as parts of speech. A `Counter` counts.

    A few tags of another form are mistakes (`0` for `O`), which the rows are refused for.
    """
    counts = Counter(tags)
    prefixes = {tag[0] for tag in counts if is_mark(tag)}
    odd = sum(count for tag, count in counts.items() if not is_tag(tag))
    if not prefixes or odd > MISTAKEN * counts.total():
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
    """One tag for each word. References are arrays of the tags' ids, -1 for words without one; an array of objects."""

    called: ClassVar[str] = "one tag for each word"
    null_answer: ClassVar[dict[str, None]] = dict.fromkeys(("words", "tags", "scores"))
    count_unit: ClassVar[str] = "words"

    scores: list[np.ndarray]
    """Of each row the probabilities, shape (words, tags)."""
    names: tuple[str, ...]
    words: list[list[str]]
    places: list[list[tuple[int, int]] | None] = field(repr=False)
    """Where words stand in a row's text: first character, and the one after the last; None for rows of words."""

    def __len__(self) -> int:
        return len(self.scores)

    _parts: ClassVar[tuple[str, ...]] = ("scores", "words", "places")
    """Fields with a value for each row."""

    def take(self, rows: np.ndarray | slice) -> Self:
        chosen = np.arange(len(self))[rows]
        return replace(self, **{name: [getattr(self, name)[i] for i in chosen] for name in self._parts})

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        return replace(parts[0], **{name: [each for part in parts for each in getattr(part, name)] for name in cls._parts})

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
        """Tags by name; of words without one outside any entity."""
        return [self.names[i] if i >= 0 else OUTSIDE for i in ids]

    def chosen(self, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        answered, true = np.concatenate(self.choices), np.concatenate(list(references))
        return answered[true >= 0], true[true >= 0]

    def for_evaluate(self, references: np.ndarray) -> tuple[list, list]:
        return self.tags, [self.read_tags(ids) for ids in references]

    def count_items(self, references: np.ndarray) -> np.ndarray:
        return np.array([int((ids >= 0).sum()) for ids in references])

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
        found = [(row, self._mistakes_of(row, reference)) for row, reference in enumerate(references)]
        return [Mistake(row, wrong[2], wrong[0], wrong[1], wrong[3]) for row, wrong in found if wrong is not None]

    def _mistakes_of(self, row: int, reference: Any) -> tuple[str, str, float, str] | None:
        """The true tags of a row and the answered ones, as text, the score, and the words before it; None if all are right."""
        wrong = (reference >= 0) & (reference != self.choices[row])
        if not wrong.any():
            return None
        named = (self.read_tags(reference), self.read_tags(self.choices[row]))
        true, predicted = (self._mark(self.words[row], tags, wrong) for tags in named)
        score = float(self.scores[row].max(-1)[wrong].sum())
        return true, predicted, score, f"{int(wrong.sum())} wrong tag(s), whose scores add up to"

    def _mark(self, words: list[str], tags: list[str], wrong: np.ndarray) -> str:
        """The sentence, with a tag at each word where the two taggings differ."""
        return " ".join(f"{word}/{tag}" if differs else word for word, tag, differs in zip(words, tags, wrong, strict=True))


@dataclass(frozen=True)
class EntityAnswers(TagAnswers):
    """One tag for each word, by which entities are marked."""

    called: ClassVar[str] = "one tag for each word, which mark entities"
    null_answer: ClassVar[dict[str, None]] = dict.fromkeys(("words", "tags", "scores", "entities"))
    count_unit: ClassVar[str] = "entities"

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
        for true, predicted in zip(self.referred(references), self.entities, strict=True):
            types = [{(start, end): kind for start, end, kind in spans} for spans in (true, predicted)]
            pairs.update((types[0].get(place), types[1].get(place)) for place in {*types[0], *types[1]})
        return pairs

    def _mark(self, words: list[str], tags: list[str], wrong: np.ndarray) -> str:
        """The sentence, its entities in brackets with their types."""
        marked = list(words)
        for start, end, kind in read_entities(tags):
            marked[start] = f"[{marked[start]}"
            marked[end - 1] = f"{marked[end - 1]}]{kind}"
        return " ".join(marked)
