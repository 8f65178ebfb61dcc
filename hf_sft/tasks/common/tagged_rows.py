"""Rows of words with tags, or of texts with spans that are marked."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from datasets import ClassLabel, Dataset, LargeList, List, Value
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from hf_sft.answers.marked_spans import NAMES, as_tuples, cuts_a_unit, flaw_of_spans, is_complete, read_spans, tag_units
from hf_sft.answers.tags import (
    OUTSIDE,
    UNTYPED,
    Scheme,
    count_repaired,
    find_scheme,
    is_iob1,
    is_mark,
    is_tag,
    name_tag,
    name_type,
    to_iob2,
)
from hf_sft.errors import DataError
from hf_sft.tasks import Labels, TaskData
from hf_sft.tasks.common.windows import Sentence, cut, flaw_of

UNMARKED = (-1, -100)
"""The numbers of words without a tag."""
INSIDE = 0.01
"""The share of spans that may begin or end inside a word where words are tagged."""


class TaggedRows(TaskData):
    """What a tagger reads of its rows."""

    words: str = "words"
    """The column of the words, a list for each row."""
    tags: str = "tags"
    """The column of the words' tags."""
    text: str | None = None
    """The column of the text, for data that marks spans of it."""
    spans: str | None = None
    """The column of the spans of `text`: lists of {start, end, label}."""
    scheme: Scheme | None = None
    """How tags mark entities: iob, iobes or bilou; plain for tags that mark none; read from the tags when not given."""
    units: Literal["words", "tokens"] | None = None
    """What of a text has a tag: its words, or the tokenizer's tokens; words when not given, unless spans cut them in train."""
    minus_one_is_class: bool | None = None
    """Whether the number -1 is a tag; otherwise it marks a word without one, and so does -100."""

    @model_validator(mode="after")
    def _words_or_text(self) -> Self:
        if (self.text is None) != (self.spans is None):
            field = "text" if self.text else "spans"
            raise PydanticCustomError(field, "`text` and `spans` go together; for lists of words say `words` and `tags`")
        return self

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return ("accuracy", "f1_macro") if self.scheme == "plain" else ("f1", "precision", "recall", "accuracy")

    def columns(self) -> dict[str, tuple[str, ...]]:
        if self.text and self.spans:
            return {"text": (self.text,), "spans": (self.spans,)}
        return {"words": (self.words,), "tags": (self.tags,)}

    def input_columns(self) -> tuple[str, ...]:
        return (self.text or self.words,)

    @property
    def _tag_column(self) -> str:
        return self.spans or self.tags

    def read(self, rows: Dataset, folder: Path) -> Dataset:
        return read_spans(rows, self.spans) if self.spans and self.spans in rows.column_names else rows

    def resolve(self, splits: dict[str, Dataset]) -> tuple[Self, Labels | None, list[str]]:
        train, column = splits["train"], self._tag_column
        self._require_lists(train)
        inner = train.features[column]
        inner = inner.feature if isinstance(inner, List | LargeList) else inner
        shown = inner.names if isinstance(inner, ClassLabel) else None
        if self.spans:
            tags = Counter(f"B-{label}" for spans in train[column][:] for *_, label in as_tuples(spans))
        else:
            tags = Counter(tag for row in _by_name(train, column) for tag in self._read_names(row or ()) if tag is not None)
        scheme = self.scheme or find_scheme(dict.fromkeys(shown, 1) if shown else tags)
        if not tags:
            field = "spans" if self.spans else "tags"
            raise DataError(f"column `{column}` of split `train` shows no tag.  Check `task.{field}`.")
        resolved, notes = self.model_copy(update={"scheme": scheme}), []
        if self.spans:
            resolved, notes = resolved._find_units(splits)
        names = tuple(shown or sorted(tags))
        if scheme != "plain":
            kinds = [name_type(name) for name in names if is_mark(name)]
            names = (OUTSIDE, *(f"{mark}-{kind}" for kind in dict.fromkeys(kinds) for mark in "BI"))
            if UNTYPED in kinds:
                notes.append(f"tags of column `{column}` have no type: their entities are called {UNTYPED}.")
        return resolved, Labels(names), notes if self.spans else [*notes, *resolved._say_repaired(splits)]

    def _find_units(self, splits: dict[str, Dataset]) -> tuple[Self, list[str]]:
        """Words, unless more than a few spans begin or end inside one."""
        if self.units is not None:
            return self, []
        counts = {}
        for name, rows in splits.items():
            if self._tag_column not in rows.column_names:
                continue
            both = zip(rows[self.input_columns()[0]][:], rows[self._tag_column][:], strict=True)
            known = [(cut(text)[1], spans or ()) for text, spans in both if isinstance(text, str)]
            pairs = [(units, span) for units, spans in known for span in spans if is_complete(span)]
            counts[name] = sum(cuts_a_unit(*pair) for pair in pairs), len(pairs)
        inside, total = counts["train"]
        if inside > INSIDE * total:
            reason = (
                f"{inside} of {total} spans of split `train` begin or end inside a word: the tokenizer's tokens are tagged."
            )
            return self.model_copy(update={"units": "tokens"}), [f"{reason}  Words instead: `task.units=words`."]
        notes = [
            f"{inside} of {total} spans of split `{name}` begin or end inside a word, and can't be answered by tags of words."
            for name, (inside, total) in counts.items()
            if inside
        ]
        return self.model_copy(update={"units": "words"}), [
            f"{note}  Tag tokens instead: `task.units=tokens`." for note in notes
        ]

    def _require_lists(self, train: Dataset) -> None:
        for field, columns in self.columns().items():
            feature: Any = train.features[columns[0]]
            is_list = isinstance(feature, List | LargeList)
            flat = is_list and isinstance(feature.feature, Value | ClassLabel)
            if field in ("words", "tags") and not flat:
                raise DataError(
                    f"column `{columns[0]}` (`task.{field}`) holds {feature}.  Expected a list for each row.\n"
                    "  For text with marked spans name `task.text` and `task.spans`; for one label for each row, use\n"
                    "  sequence_classification."
                )
            if field == "spans" and not (is_list and isinstance(feature.feature, dict)):
                raise DataError(
                    f"column `{columns[0]}` (`task.spans`) holds {feature}.  Expected lists of {{start, end, label}}."
                )

    def _say_repaired(self, splits: dict[str, Dataset]) -> list[str]:
        """What was read into tags that mark entities."""
        notes = []
        for name, rows in splits.items() if self.scheme != "plain" else ():
            if self.tags not in rows.column_names:
                continue
            sentences = [[tag for tag in self._read_names(tags or ()) if tag] for tags in _by_name(rows, self.tags)]
            count = sum(map(count_repaired, sentences))
            if count and is_iob1(sentences):
                notes.append(f"the tags of split `{name}` follow IOB1 (B- only where entities touch): they are read as IOB2.")
            elif count:
                notes.append(f"{count} tag(s) of split `{name}` go on with an entity that has not begun: each is read as B-.")
        return notes

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        problems: dict[str, list[int]] = {}
        input_column, column = self.input_columns()[0], self._tag_column
        tagged = rows[column][:] if column in rows.column_names else [None] * len(rows)
        for row, (cell, tags) in enumerate(zip(rows[input_column], tagged, strict=True)):
            problem = f"column `{input_column}` {flaw}" if (flaw := flaw_of(cell, bool(self.text))) else None
            if problem is None and column in rows.column_names:
                problem = self._tag_problem(cell, tags, labels)
            if problem:
                problems.setdefault(problem, []).append(row)
        return problems

    def _tag_problem(self, cell: Any, tags: Any, labels: Labels | None) -> str | None:
        column = self._tag_column
        if tags is None or any(tag is None for tag in tags):
            return f"column `{column}` is null, or holds a null,"
        if not self.spans and self.scheme == "plain" and tags and not any(tag is not None for tag in self._read_names(tags)):
            return f"column `{column}` has no tag, but only -1,"
        if self.spans:
            known = None if labels is None else {name[2:] for name in labels.names}
            return f"column `{column}` {flaw}" if (flaw := flaw_of_spans(cell, tags, known)) else None
        if len(tags) != len(cut(cell)[1]):
            return f"columns `{self.words}` and `{column}` differ in length"
        if self.scheme != "plain" and (odd := next((t for t in self._read_names(tags) if not is_tag(t)), None)):
            return f"column `{column}` has the tag {str(odd)!r}, which is neither O nor a prefix with a type,"
        named = [tag for tag in self._read_tags(tags) if tag is not None]
        unknown = next((tag for tag in named if labels is not None and tag not in labels.ids), None)
        return None if unknown is None else f"column `{column}` has the tag {unknown!r}, which `train` never shows,"

    def _tags_of(self, rows: dict[str, list], sentences: list[Sentence]) -> list[list[str | None]]:
        """Of each row the tags of its words, or of the units of its text."""
        if self.spans:
            pairs = zip(sentences, rows[self.spans], strict=True)
            return [[*tag_units(units, as_tuples(spans))] for (_, units), spans in pairs]
        return [self._read_tags(tags) for tags in rows[self.tags]]

    def _read_names(self, tags: Sequence[Any]) -> list[str | None]:
        """Tags as texts; None for numbers that mark a word without one."""
        unmarked = () if self.minus_one_is_class else UNMARKED
        return [None if tag is None or tag in unmarked else name_tag(str(tag)) for tag in tags]

    def _read_tags(self, tags: Sequence[Any]) -> list[str | None]:
        named = self._read_names(tags)
        return named if self.scheme == "plain" else [*to_iob2([tag or OUTSIDE for tag in named])]

    def references(self, rows: Dataset | dict[str, list]) -> list[Any]:
        """The tags of each row's words, or its spans."""
        if self.spans:
            return [[dict(zip(NAMES, span, strict=True)) for span in as_tuples(spans)] for spans in rows[self.spans][:]]
        return [self._read_tags(tags) for tags in rows[self.tags][:]]

    def targets(self, rows: dict[str, list], labels: Labels | None) -> list[Any]:
        if self.spans:
            return [as_tuples(spans) for spans in rows[self.spans]]
        assert labels is not None, "tags have names"
        return [[-1 if tag is None else labels.ids[tag] for tag in self._read_tags(tags)] for tags in rows[self.tags]]

    def _words(self, rows: Dataset) -> list[list[str]]:
        sentences = (cut(cell) for cell in rows[self.input_columns()[0]])
        return [[text[start:end] for start, end in places] for text, places in sentences]

    def texts(self, rows: Dataset) -> list[str]:
        return [cut(cell)[0] for cell in rows[self.input_columns()[0]]]


def _by_name(rows: Dataset, column: str) -> list[Any]:
    """Lists of tags, those of a `ClassLabel` by their names."""
    feature: Any = rows.features[column]
    inner = getattr(feature, "feature", None)
    if not isinstance(inner, ClassLabel):
        return rows[column][:]
    return [tags and [None if tag is None or tag < 0 else inner.int2str(tag) for tag in tags] for tags in rows[column][:]]
