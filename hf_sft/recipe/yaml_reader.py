"""YAML 1.2, as much of it as a recipe needs, to plain values that know their lines. Nothing in it is evaluated.

ruamel.yaml cuts the text into events; values are built here, so that what YAML can do beyond mappings, lists, words and
numbers (anchors, aliases, merge keys, tags, dates) is refused where it stands instead of being loaded silently.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

Place = tuple[str | int, ...]
"""The way to a value: `("aids", 0, "patience")`."""

DEEPEST = 20
WORD = re.compile(r"[^\W\d][\w-]*")
DATE = re.compile(r"\d{4}-\d\d?-\d\d?([Tt\s].*)?")
INTEGER = re.compile(r"[-+]?[0-9]{1,400}|0o[0-7]+|0x[0-9a-fA-F]+")
FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
INFINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}


class NotYaml(Exception):
    """The text is not one YAML document: its message says why, `line` and `column` where, counted from 1."""

    def __init__(self, message: str, line: int, column: int):
        super().__init__(message)
        self.line, self.column = line, column


@dataclass(frozen=True)
class Problem:
    """Something wrong at one place of a recipe."""

    line: int
    place: Place
    message: str


@dataclass
class Document:
    """A value of dicts, lists and plain scalars; the line of each key and item; and what was refused."""

    value: Any = None
    lines: dict[Place, int] = field(default_factory=dict)
    refused: list[Problem] = field(default_factory=list)


def read_yaml(text: str) -> Document:
    """One document, or none: an empty text has the value None. Raises `NotYaml`."""
    document = Document()
    events = _events(text)
    next(events)  # the stream's start
    first = next(events)
    if isinstance(first, StreamEndEvent):
        return document
    if isinstance(first, DocumentStartEvent) and (first.version or first.tags):
        raise NotYaml("directives (%YAML, %TAG) are not part of a recipe", 1, 1)
    document.value = _Builder(events, document).build(next(events), ())
    _expect(events, DocumentEndEvent)
    _expect(events, StreamEndEvent)
    return document


def _expect(events: Iterator[Event], kind: type[Event]) -> None:
    event = next(events)
    if not isinstance(event, kind):
        raise NotYaml("a second document starts here; a recipe is one", _line(event), event.start_mark.column + 1)


def _events(text: str) -> Iterator[Event]:
    try:
        yield from YAML(typ="safe", pure=True).parse(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        hint = "; indent with spaces, not tabs" if "'\\t'" in str(error.problem) else ""
        raise NotYaml(f"{error.problem}{hint}", mark.line + 1, mark.column + 1) from None
    except YAMLError as error:  # a control character
        before = text[: getattr(error, "position", 0)]
        column = len(before) - before.rfind("\n")
        raise NotYaml(str(getattr(error, "reason", error)), before.count("\n") + 1, column) from None
    except RecursionError:
        raise NotYaml("is nested too deeply for a recipe", 1, 1) from None
    except (OverflowError, ValueError) as error:  # "\U99999999" reaches chr()
        raise NotYaml(f"an escape stands for no character: {error}", 1, 1) from None


def _line(event: Event) -> int:
    return event.start_mark.line + 1


class _Builder:
    """Values from events, with their lines written down in passing."""

    def __init__(self, events: Iterator[Event], document: Document):
        self.events, self.document = events, document

    def build(self, event: Event, place: Place) -> Any:
        if len(place) > DEEPEST:
            raise NotYaml("is nested too deeply for a recipe", _line(event), event.start_mark.column + 1)
        if isinstance(event, AliasEvent):
            return self.refuse(event, place, f"is an alias (*{event.anchor}); write the value out.")
        assert isinstance(event, ScalarEvent | SequenceStartEvent | MappingStartEvent)
        if event.anchor:
            self.refuse(event, place, f"has an anchor (&{event.anchor}), which recipes don't use; leave it out.")
        if event.tag:
            self.refuse(event, place, f"has a tag ({event.tag}), which recipes don't use; leave it out.")
        if isinstance(event, SequenceStartEvent):
            return self.build_list(place)
        if isinstance(event, MappingStartEvent):
            return self.build_mapping(place)
        if event.style is None and DATE.fullmatch(event.value):
            return self.refuse(event, place, f"is a date ({event.value}); put it in quotes if it is text.")
        return event.value if event.style else read_scalar(event.value)

    def build_list(self, place: Place) -> list:
        items = []
        while not isinstance(event := next(self.events), SequenceEndEvent):
            inside = (*place, len(items))
            self.document.lines[inside] = _line(event)
            items.append(self.build(event, inside))
        return items

    def build_mapping(self, place: Place) -> dict[str, Any]:
        mapping: dict[str, Any] = {}
        while not isinstance(event := next(self.events), MappingEndEvent):
            key = self.build_key(event, place)
            inside = (*place, key)
            if key in mapping:
                column, first = event.start_mark.column + 1, self.document.lines[inside]
                message = f"stands here a second time (column {column}); it is on line {first} too."
                self.document.refused.append(Problem(_line(event), inside, message))
                _Builder(self.events, Document()).build(next(self.events), inside)
            else:
                self.document.lines[inside] = _line(event)
                value = self.build(next(self.events), inside)
                if WORD.fullmatch(key):
                    mapping[key] = value
        return mapping

    def build_key(self, event: Event, place: Place) -> str:
        if not isinstance(event, ScalarEvent):
            key = f"*{event.anchor}" if isinstance(event, AliasEvent) else "?"
            _Builder(self.events, Document()).build(event, place)
            self.refuse(event, (*place, key), "is a key that is not a word.")
            return key
        key = event.value
        if key == "<<" and event.style is None:
            self.refuse(event, (*place, key), "is a merge key, which recipes don't use; write the fields out.")
        elif event.anchor or event.tag:
            self.refuse(event, (*place, key), "is a key with an anchor or a tag; leave them out.")
        elif not WORD.fullmatch(key) or not (event.style or isinstance(read_scalar(key), str)):
            self.refuse(event, (*place, key), "is a key that is not a word.")
        return key

    def refuse(self, event: Event, place: Place, message: str) -> None:
        self.document.refused.append(Problem(_line(event), place, message))


def read_scalar(text: str) -> Any:
    """A plain scalar by YAML 1.2's core schema: `2e-5` is a number, `no` a word."""
    if text in CONSTANTS:
        return CONSTANTS[text]
    if INTEGER.fullmatch(text):
        return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))
    if FLOAT.fullmatch(text):
        return float(text)
    return float(text.replace(".", "")) if INFINITE.fullmatch(text) else text
