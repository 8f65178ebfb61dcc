"""What a column of labels holds: one class, any number of classes, or a number; and what it can't be read as."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

from datasets import ClassLabel, Dataset, Json, LargeList, List, Value

from hf_sft.errors import DataError

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"
NUMBERS = ("int", "uint", "float", "decimal")
MANY = 20
"""Rows from which on a label of its own for each is taken for a mistake."""


@dataclass(frozen=True)
class Labels:
    """The classes in the order of the head's outputs; a label's id is its place here."""

    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def ids(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}


def as_list(value: Any) -> list:
    """The classes of a cell, whether it holds one or a list of them."""
    return value if isinstance(value, list) else [] if value is None else [value]


def find_problem_type(train: Dataset, columns: list[str]) -> ProblemType:
    """Which kind of label the columns hold, by their types. Raises `DataError` for what is none."""
    feature = train.features[columns[0]]
    inner = feature.feature if isinstance(feature, List | LargeList) else feature
    if isinstance(inner, Json):
        kinds = sorted({type(value).__name__ for row in train[columns[0]] for value in as_list(row)})
        raise DataError(
            f"column `{columns[0]}` holds values of several types ({', '.join(kinds)}).\n"
            "  Expected one: write all of them as text, or all as numbers, or all as lists."
        )
    if not isinstance(inner, ClassLabel | Value):
        raise DataError(
            f"column `{columns[0]}` holds {feature}, which is not a label.\n"
            "  Expected names, integers, a ClassLabel, lists of those, or fractions.  Point `task.label` at such a column."
        )
    if len(columns) > 1 or inner is not feature:
        return MULTI
    return REGRESSION if isinstance(inner, Value) and inner.dtype.startswith(("float", "decimal")) else SINGLE


def _holds_fractions(train: Dataset, column: str) -> bool:
    feature = train.features[column]
    if not isinstance(feature, Value) or not feature.dtype.startswith(("float", "decimal")):
        return False
    return any(value is not None and value not in (0, 1) for value in train[column][:])


def require_kind(train: Dataset, columns: list[str], kind: ProblemType) -> None:
    """Raises `DataError` when the columns can't be read as the recipe wants them."""
    feature = train.features[columns[0]]
    several = [column for column in columns if _holds_fractions(train, column)] if len(columns) > 1 else []
    if several:
        raise DataError(
            f"`task.label` names {len(columns)} columns, of which {', '.join(several)} hold decimal numbers.\n"
            "  A row can have one number to regress on: name one column, and train a run for each."
        )
    if kind != MULTI and (len(columns) > 1 or isinstance(feature, List | LargeList)):
        what = "several columns" if len(columns) > 1 else f"column `{columns[0]}`, which holds lists"
        raise DataError(
            f"`task.problem_type: {kind}` needs one value per row, but `task.label` names {what}.\n"
            f"  Name one column of single values, or use `{MULTI}`."
        )
    if kind == REGRESSION and not (isinstance(feature, Value) and feature.dtype.startswith(NUMBERS)):
        values = list(dict.fromkeys(str(value) for value in train[columns[0]] if value is not None))[:5]
        remedy = remedy_of_commas(values) or "Name a column of numbers"
        raise DataError(
            f"`task.problem_type: {kind}` needs numbers, but column `{columns[0]}` holds {', '.join(values)}.\n"
            f"  {remedy}, or use `{SINGLE}`."
        )


def remedy_of_commas(values: Sequence[str]) -> str | None:
    """What to do about commas in numbers, which stand before thousands in some countries and before tenths in others."""
    commas = [value for value in values if re.fullmatch(r"-?\d+(,\d+)+(\.\d+)?", value)]
    if not commas:
        return None
    if not all(re.fullmatch(r"-?\d{1,3}(,\d{3})+(\.\d+)?", value) for value in commas):
        return "Write decimal points instead of commas"
    plain, first = commas[0].replace(",", ""), commas[0]
    if first.count(",") > 1 or "." in first:
        return f"Write {plain} for {first}"
    return f"Write {plain} for {first}, or {float(first.replace(',', '.')):g} where the comma is a decimal point"


def require_classes(train: Dataset, column: str) -> None:
    """Raises `DataError` for a column of single values that are hardly classes: one for each row, or fractions as text."""
    feature = train.features[column]
    if not isinstance(feature, Value) or not feature.dtype.startswith((*NUMBERS, "string", "large_string")):
        return
    values = [value for value in train[column][:] if value not in (None, "")]
    different = list(dict.fromkeys(values))
    few, remedy = ", ".join(map(str, different[:3])), f"  If they are classes, say so: `task.problem_type={SINGLE}`."
    written = all(isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+([.,]\d*)?\s*", value) for value in different)
    if written and any(set(value) & {".", ","} for value in different):
        raise DataError(
            f"column `{column}` holds fractions that are written as text: {few}.\n"
            f"  To regress on them, write them as numbers, without quotes.  "
            f"{remedy_of_commas(different) or 'Write decimal points'}.\n{remedy}"
        )
    if len(values) >= MANY and 2 * len(different) > len(values):
        raise DataError(
            f"column `{column}` has {len(different):,} different values in {len(values):,} rows of train, like names: "
            f"{few}.\n  Expected the same few classes again and again.  Point `task.label` at another column.\n{remedy}"
        )


def find_label_names(train: Dataset, columns: list[str], names_given: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The classes of lists of 0 and 1, all equally long (multi-hot): the given names, or their numbers.

    None for everything else. Raises `DataError` for lists that can be read in two ways, or in none.
    """
    column = columns[0]
    feature: Any = train.features[column]
    inner = feature.feature if isinstance(feature, List | LargeList) else None
    if len(columns) > 1 or not (isinstance(inner, Value) and inner.dtype.startswith((*NUMBERS, "bool"))):
        if names_given is not None:
            raise DataError(
                f"`task.label_names` goes with a column of lists of 0 and 1, all equally long; `{column}` is none.\n"
                "  Leave it out: other classes bring their names."
            )
        return None
    lists = [row for row in train[column][:] if row is not None]
    lengths, values = {len(row) for row in lists}, {value for row in lists for value in row}
    if len(lengths) != 1 or not values <= {0, 1}:
        if names_given is None and inner.dtype.startswith(("int", "uint")):
            return None
        few = ", ".join(str(value) for value in sorted(values, key=str)[:5])
        raise DataError(
            f"column `{column}` holds lists of {inner.dtype}, of {len(lengths)} length(s), with the values {few}.\n"
            "  Expected lists of names or of whole numbers (the classes of a row), or lists of 0 and 1, all equally long\n"
            "  (a place for each class)."
        )
    (count,) = lengths
    if count == 1 and names_given is None:
        raise DataError(
            f"column `{column}` holds lists of one 0 or 1, which can be read in two ways.\n"
            "  As yes or no for one class: name it, `task.label_names=[NAME]`.\n"
            "  As the numbers of the classes 0 and 1: make it a column of numbers, without lists."
        )
    names = names_given or tuple(str(place) for place in range(count))
    if len(names) != count:
        raise DataError(f"`task.label_names` has {len(names)} names, but the lists of column `{column}` {count} places.")
    return names


def alike(names: Sequence[str]) -> list[list[str]]:
    """Names that differ only in case, in spaces, or in how Unicode writes them."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(" ".join(unicodedata.normalize("NFKC", name).casefold().split()), []).append(name)
    return [group for group in groups.values() if len(group) > 1]
