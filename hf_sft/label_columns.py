"""What a column of labels holds: one class, any number of classes, or a number; and what it can't be read as."""

import re
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


def require_kind(train: Dataset, columns: list[str], kind: ProblemType) -> None:
    """Raises `DataError` when the columns can't be read as the recipe wants them."""
    feature = train.features[columns[0]]
    if kind != MULTI and (len(columns) > 1 or isinstance(feature, List | LargeList)):
        what = "several columns" if len(columns) > 1 else f"column `{columns[0]}`, which holds lists"
        raise DataError(
            f"`task.problem_type: {kind}` needs one value per row, but `task.label` names {what}.\n"
            f"  Name one column of single values, or use `{MULTI}`."
        )
    if kind == REGRESSION and not (isinstance(feature, Value) and feature.dtype.startswith(NUMBERS)):
        values = list(dict.fromkeys(str(value) for value in train[columns[0]] if value is not None))[:5]
        comma = any(re.fullmatch(r"-?\d+,\d+", value) for value in values)
        remedy = "Write decimal points instead of commas" if comma else "Name a column of numbers"
        raise DataError(
            f"`task.problem_type: {kind}` needs numbers, but column `{columns[0]}` holds {', '.join(values)}.\n"
            f"  {remedy}, or use `{SINGLE}`."
        )


def require_classes(train: Dataset, column: str) -> None:
    """Raises `DataError` for a column of single values that are hardly classes: one for each row, or fractions as text."""
    feature = train.features[column]
    if not isinstance(feature, Value) or not feature.dtype.startswith((*NUMBERS, "string", "large_string")):
        return
    values = [value for value in train[column][:] if value not in (None, "")]
    different = list(dict.fromkeys(values))
    few, said = ", ".join(map(str, different[:3])), f"  If they are classes, say so: `task.problem_type={SINGLE}`."
    written = all(isinstance(value, str) and re.fullmatch(r"\s*[-+]?\d+([.,]\d*)?\s*", value) for value in different)
    if written and any(set(value) & {".", ","} for value in different):
        raise DataError(
            f"column `{column}` holds fractions that are written as text: {few}.\n"
            f"  To regress on them, write them as numbers, with decimal points and without quotes.\n{said}"
        )
    if len(values) >= MANY and 2 * len(different) > len(values):
        raise DataError(
            f"column `{column}` has {len(different):,} different values in {len(values):,} rows of train, like names: "
            f"{few}.\n  Expected the same few classes again and again.  Point `task.label` at another column.\n{said}"
        )


def find_label_names(train: Dataset, columns: list[str], asked: tuple[str, ...] | None) -> tuple[str, ...] | None:
    """The classes of lists of 0 and 1, all equally long (multi-hot): those that are asked for, or their numbers.

    None for everything else. Raises `DataError` for lists that can be read in two ways, or in none.
    """
    column = columns[0]
    feature: Any = train.features[column]
    inner = feature.feature if isinstance(feature, List | LargeList) else None
    if len(columns) > 1 or not (isinstance(inner, Value) and inner.dtype.startswith((*NUMBERS, "bool"))):
        if asked is not None:
            raise DataError(
                f"`task.label_names` goes with a column of lists of 0 and 1, all equally long; `{column}` is none.\n"
                "  Leave it out: other classes bring their names."
            )
        return None
    lists = [row for row in train[column][:] if row is not None]
    lengths, values = {len(row) for row in lists}, {value for row in lists for value in row}
    if len(lengths) != 1 or not values <= {0, 1}:
        if asked is None and inner.dtype.startswith(("int", "uint")):
            return None
        few = ", ".join(str(value) for value in sorted(values, key=str)[:5])
        raise DataError(
            f"column `{column}` holds lists of {inner.dtype}, of {len(lengths)} length(s), with the values {few}.\n"
            "  Expected lists of names or of whole numbers (the classes of a row), or lists of 0 and 1, all equally long\n"
            "  (a place for each class)."
        )
    (count,) = lengths
    if count == 1 and asked is None:
        raise DataError(
            f"column `{column}` holds lists of one 0 or 1, which can be read in two ways.\n"
            "  As yes or no for one class: name it, `task.label_names=[NAME]`.\n"
            "  As the numbers of the classes 0 and 1: make it a column of numbers, without lists."
        )
    names = asked or tuple(str(place) for place in range(count))
    if len(names) != count:
        raise DataError(f"`task.label_names` has {len(names)} names, but the lists of column `{column}` {count} places.")
    return names
