"""Entities as spans of a text: how files write them, which units of the text they cover, and how they are scored.

A model answers with a tag for each unit of a text, a word or a token. Scores compare the characters of its entities with the
file's own spans, whatever the units are.
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import numpy as np
from datasets import Dataset, Json, LargeList, List, Value

from hf_sft.answers.tags import OUTSIDE, EntityAnswers, Span, read_entities

NAMES = {
    "start": ("start", "start_offset", "begin"),
    "end": ("end", "end_offset", "stop"),
    "label": ("label", "type", "entity", "entity_type", "entity_group", "tag"),
}
"""What files call the parts of a span."""
SPANS: Any = List({"start": Value("int64"), "end": Value("int64"), "label": Value("string")})
Unit: TypeAlias = tuple[int, int]
"""The first character of a word or token, and the one after its last."""


def read_spans(rows: Dataset, column: str) -> Dataset:
    """The rows with spans as lists of `{start, end, label}`, also those with doccano's names, or lists like `[0, 7, "PER"]`.

    A column that holds something else is left as it is.
    """
    feature: Any = rows.features[column]
    if not isinstance(feature, Json | List | LargeList) or feature == SPANS:
        return rows
    cells = [None if cell is None else [_read_span(span) for span in cell] for cell in rows[column][:]]
    if any(span is None for cell in cells for span in cell or ()):
        return rows
    add: Any = Dataset.add_column  # a decorator hides what it takes
    return add(rows.remove_columns(column), column, cells, feature=SPANS)


def _read_span(span: Any) -> dict[str, Any] | None:
    if isinstance(span, list | tuple):
        return dict(zip(NAMES, [*span[:2], str(span[2])], strict=True)) if len(span) == 3 else None
    if not isinstance(span, dict):
        return None
    found = {part: next((span[name] for name in names if name in span), None) for part, names in NAMES.items()}
    label = found["label"]
    return {**found, "label": None if label is None else str(label)}


def flaw_of_spans(text: str, spans: list[dict[str, Any]], known: Container[str] | None) -> str | None:
    """What is wrong with the spans of a row's text; None if nothing is."""
    last = 0
    for span in sorted(spans, key=lambda span: (span.get("start") or 0, span.get("end") or 0)):
        start, end, label = (span.get(name) for name in NAMES)
        if not isinstance(start, int) or not isinstance(end, int) or not 0 <= start < end <= len(text):
            return "has a span that does not lie in the text"
        if not text[start:end].strip():
            return "has a span without a word"
        if start < last:
            return "has spans that overlap"
        if known is not None and str(label) not in known:
            return f"has the label {label!r}, which `train` never shows,"
        last = end
    return None


def is_complete(span: dict[str, Any]) -> bool:
    """Whether a span has a beginning and an end."""
    return isinstance(span.get("start"), int) and isinstance(span.get("end"), int)


def cuts_a_unit(units: Sequence[Unit], span: dict[str, Any]) -> bool:
    """Whether a span begins or ends inside a unit."""
    return any(start < edge < end for edge in (span["start"], span["end"]) for start, end in units)


def tag_units(units: Sequence[Unit], spans: Sequence[Span]) -> list[str]:
    """The tags of units: one that spans touch belongs to the one that covers most of it."""
    tags, owners = [], [_find_owner(unit, spans) for unit in units]
    for before, owner in zip([None, *owners], owners, strict=False):
        tags.append(OUTSIDE if owner is None else f"{'I' if owner == before else 'B'}-{spans[owner][2]}")
    return tags


def _find_owner(unit: Unit, spans: Sequence[Span]) -> int | None:
    covered = [min(unit[1], end) - max(unit[0], start) for start, end, _ in spans]
    best = max(range(len(spans)), key=covered.__getitem__, default=None)
    return best if best is not None and covered[best] > 0 else None


def as_tuples(spans: Sequence[dict[str, Any]] | None) -> list[Span]:
    """Spans as first character, the one after the last, and type."""
    return [(span["start"], span["end"], str(span["label"])) for span in spans or () if span.get("label") is not None]


@dataclass(frozen=True)
class TextEntityAnswers(EntityAnswers):
    """Entities of texts. References are the file's own spans, lists of tuples, an array of objects, shape (rows,)."""

    called: ClassVar[str] = "the entities of a text"

    texts: list[str] = field(repr=False, default_factory=list)
    units: list[list[Unit]] = field(repr=False, default_factory=list)
    """Of each row where its words or tokens are."""

    _parts: ClassVar[tuple[str, ...]] = ("scores", "words", "places", "texts", "units")

    @classmethod
    def read_references(cls, targets: Sequence[Any]) -> np.ndarray:
        references = np.empty(len(targets), dtype=object)
        references[:] = targets
        return references

    def chosen(self, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        ids = {name: i for i, name in enumerate(self.names)}
        # A label that train does not show is never right.
        true = [[ids.get(tag, len(ids)) for tag in tag_units(*pair)] for pair in zip(self.units, references, strict=True)]
        return np.concatenate(self.choices), np.concatenate([np.asarray(each, dtype=np.int64) for each in true])

    def count_items(self, references: np.ndarray) -> np.ndarray:
        return np.array([len(units) for units in self.units])

    def for_evaluate(self, references: np.ndarray) -> tuple[list, list]:
        return self.tags, [tag_units(*pair) for pair in zip(self.units, references, strict=True)]

    @cached_property
    def entities(self) -> list[list[Span]]:
        """Of each row its entities, by characters."""
        return [
            [(units[start][0], units[end - 1][1], kind) for start, end, kind in read_entities(tags)]
            for tags, units in zip(self.tags, self.units, strict=True)
        ]

    def referred(self, references: np.ndarray) -> list[list[Span]]:
        return [list(spans) for spans in references]

    def _show(self, row: int, start: int, end: int, kind: str) -> dict[str, Any]:
        inside = [i for i, (first, last) in enumerate(self.units[row]) if start <= first and last <= end]
        score = float(self.scores[row].max(-1)[inside].mean())
        return {"type": kind, "start": start, "end": end, "text": self.texts[row][start:end], "score": round(score, 6)}

    def _mistakes_of(self, row: int, reference: Any) -> tuple[str, str, float, str] | None:
        true, predicted = {*reference}, {*self.entities[row]}
        if true == predicted:
            return None
        wrong = {place for start, end, _ in true ^ predicted for place in range(start, end)}
        units = [i for i, (start, end) in enumerate(self.units[row]) if wrong & {*range(start, end)}]
        score = float(self.scores[row].max(-1)[units].sum())
        first, second = (_mark_spans(self.texts[row], sorted(spans)) for spans in (true, predicted))
        return first, second, score, f"{len(true ^ predicted)} wrong or missing entities, in tags whose scores add up to"


def _mark_spans(text: str, spans: Sequence[Span]) -> str:
    """The text, its entities in brackets with their types."""
    parts, last = [], 0
    for start, end, kind in spans:
        parts += [text[last:start], f"[{text[start:end]}]{kind}"]
        last = end
    return "".join([*parts, text[last:]])
