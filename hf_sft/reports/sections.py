"""What a page is made of: sections with a title, and in them tables, figures, lists and text."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from markupsafe import Markup


@dataclass(frozen=True)
class Table:
    """Cells that are written out already."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str | None]]
    """Rows of as many cells; None is shown as an empty cell."""
    texts: int = 1
    """How many columns, from the left, hold text; the others hold numbers."""
    caption: str = ""
    marked: int = 0
    """How many rows, from the top, stand out."""


@dataclass(frozen=True)
class Figures:
    """Figures that stand side by side where there is room."""

    kind: ClassVar[str] = "figures"
    drawn: Sequence[Markup]


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    words: str


@dataclass(frozen=True)
class Pairs:
    """Names, each with a description."""

    kind: ClassVar[str] = "pairs"
    pairs: Mapping[str, str]


@dataclass(frozen=True)
class Lines:
    """A list of remarks."""

    kind: ClassVar[str] = "lines"
    lines: Sequence[str]


@dataclass(frozen=True)
class Quote:
    """A row of the data, with comments."""

    place: str
    words: str
    remark: str
    text: str | None
    picture: str | None = None
    """A `data:` address."""


@dataclass(frozen=True)
class Quotes:
    """Rows of the data in an order that matters."""

    kind: ClassVar[str] = "quotes"
    quotes: Sequence[Quote]


@dataclass(frozen=True)
class Code:
    """Lines that are shown as they are."""

    kind: ClassVar[str] = "code"
    text: str


Part: TypeAlias = Table | Figures | Text | Pairs | Lines | Quotes | Code


@dataclass(frozen=True)
class Section:
    """A title, and what stands below it."""

    title: str
    parts: Sequence[Part]
