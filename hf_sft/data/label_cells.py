"""Labels as files have them: several classes in a cell, spaces around a name, -1 for no label, whole numbers as fractions."""

import ast
import json
from collections import Counter
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
from datasets import Dataset, LargeList, List, Value

from hf_sft.data.data_source import DataSource
from hf_sft.errors import DataError, list_few
from hf_sft.tasks.common.classification import Labelled
from hf_sft.tasks.common.labels import MULTI, REGRESSION, SINGLE, Labels, ProblemType, as_list

DELIMITERS = ("|", ";", ",")
"""What may stand between the classes of one cell."""
UNLABELLED = -1
"""The number that `datasets` writes where a row has no label."""


def read_labels(
    splits: dict[str, Dataset], task: Labelled, source: DataSource, known: Labels | None, drop: bool = True
) -> tuple[dict[str, Dataset], list[str]]:
    """The splits with labels as the task reads them: lists for several classes, names without outer spaces, whole numbers for
    classes, None for no label. And notes on what was changed.

    `known` are the classes of a finished run. `drop` leaves out rows whose label is -1, which is none; in a split that has no
    other label they stay. Raises `DataError` where one class and several are both possible.
    """
    kind, notes = task.problem_type, []
    for column in task.label_columns:
        having = {name: rows for name, rows in splits.items() if column in rows.column_names}
        if len(task.label_columns) == 1:
            having, split = _split_cells(having, column, kind, source.label_delimiter)
            notes += split
        having, stripped = _strip(having, column)
        notes += stripped
        having = _read_numbers(having, column, kind)
        if kind != REGRESSION and not task.minus_one_is_class:
            having, unlabelled = _find_unlabelled(having, column, known, drop)
            notes += unlabelled
        splits = {**splits, **having}
    return splits, notes


def change_column(rows: Dataset, column: str, change: Callable[[Any], Any], feature: Any) -> Dataset:
    """The rows with each cell of a column changed."""
    add: Any = Dataset.add_column  # a decorator hides what it takes
    return add(rows.remove_columns(column), column, [change(cell) for cell in rows[column][:]], feature=feature)


def _is_text(feature: Any) -> bool:
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def _cells(splits: dict[str, Dataset], column: str) -> Counter[Any]:
    return Counter(cell for rows in splits.values() for cell in rows[column][:] if cell not in (None, ""))


def _split_cells(
    splits: dict[str, Dataset], column: str, kind: ProblemType | None, delimiter: str | None
) -> tuple[dict[str, Dataset], list[str]]:
    texts = {name: rows for name, rows in splits.items() if _is_text(rows.features[column])}
    cells = _cells(texts, column)
    if delimiter is not None:
        lists = _to_lists(texts, column, lambda cell: [part for part in map(str.strip, cell.split(delimiter)) if part])
        return {**splits, **lists}, [f"column `{column}` holds the classes of a row, between {delimiter!r}."]
    if kind in (SINGLE, REGRESSION) or not cells:
        return splits, []
    lists = {cell: found for cell in cells if (found := read_list(cell)) is not None}
    if len(lists) == len(cells):
        note = (
            f"column `{column}` holds lists written as text, such as {next(iter(lists))}: the classes of a row.  "
            f"If each text is a class: `task.problem_type={SINGLE}`."
        )
        return {**splits, **_to_lists(texts, column, lists.__getitem__)}, [note]
    if lists:
        odd = next(cell for cell in cells if cell not in lists)
        raise DataError(
            f"column `{column}` holds lists written as text in some rows, such as {next(iter(lists))},\n"
            f"  and others in others, such as {odd!r}.  Expected a list in every row, or in none.\n"
            f"  If each text is a class: `task.problem_type={SINGLE}`."
        )
    for mark in DELIMITERS:
        parts = {part.strip() for cell in cells for part in cell.split(mark)} - {""}
        joined = [cell for cell in cells if mark in cell]
        if joined and len(parts) < len(cells) and (kind == MULTI or {*parts} & {*cells} or len(parts) < len(cells) / 2):
            count = sum(cells[cell] for cell in joined)
            raise DataError(
                f"column `{column}` holds {mark!r} in {count} cells, such as {joined[0]!r}, which can be read in two ways.\n"
                f"  As several of {len(parts)} classes ({list_few(sorted(parts))}):"
                f" `data.label_delimiter='{json.dumps(mark)}'`.\n"
                f"  As one of {len(cells)} classes: `task.problem_type={SINGLE}`."
            )
    return splits, []


def _to_lists(splits: dict[str, Dataset], column: str, read: Callable[[str], list]) -> dict[str, Dataset]:
    values = [value for rows in splits.values() for cell in {*rows[column][:]} - {None, ""} for value in read(cell)]
    kind = "int64" if values and all(isinstance(value, int) for value in values) else "string"

    def change(cell: str | None) -> list | None:
        if cell is None or cell == "":
            return None
        return [value if kind == "int64" else str(value).strip() for value in read(cell)]

    return {name: change_column(rows, column, change, List(Value(kind))) for name, rows in splits.items()}


def read_list(cell: str) -> list | None:
    """The list that a text writes, in JSON or in Python; None for other texts."""
    if not (cell.strip().startswith("[") and cell.strip().endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            found = read(cell.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            continue
        return found if isinstance(found, list) and all(isinstance(value, str | int) for value in found) else None
    return None


def _strip(splits: dict[str, Dataset], column: str) -> tuple[dict[str, Dataset], list[str]]:
    """Spaces around a class's name are not part of it."""
    stripped = 0
    for name, rows in splits.items():
        feature: Any = rows.features[column]
        inner = feature.feature if isinstance(feature, List | LargeList) else feature
        if not _is_text(inner):
            continue
        cells = rows[column][:]
        if inner is feature:  # a name once, however many rows have it
            odd = {name for name in {*cells} - {None} if name != name.strip()}
            padded = sum(cell in odd for cell in cells) if odd else 0
        else:
            padded = sum(any(isinstance(v, str) and v != v.strip() for v in as_list(cell)) for cell in cells)
        if padded:
            stripped += padded
            change = _strip_each if inner is not feature else _strip_one
            splits = {**splits, name: change_column(rows, column, change, feature)}
    note = f"{stripped} label(s) of column `{column}` have spaces around them, which are not part of the class's name."
    return splits, [note] if stripped else []


def _strip_one(cell: str | None) -> str | None:
    return cell and cell.strip()


def _strip_each(cell: list[str | None] | None) -> list[str | None] | None:
    return cell and [_strip_one(value) for value in cell]


def _read_numbers(splits: dict[str, Dataset], column: str, kind: ProblemType | None) -> dict[str, Dataset]:
    """Decimals are fractions; fractions that are all whole, some of them missing, were whole numbers before (pandas)."""
    for name, rows in splits.items():
        feature: Any = rows.features[column]
        if isinstance(feature, Value) and feature.dtype.startswith("decimal"):
            splits = {**splits, name: change_column(rows, column, _to_float, Value("float64"))}
    floats = {
        name: rows
        for name, rows in splits.items()
        if isinstance(feature := rows.features[column], Value) and feature.dtype.startswith("float")
    }
    cells = [cell for rows in floats.values() for cell in rows[column][:]]
    missing = [cell is None or cell != cell for cell in cells]
    whole = all(is_missing or float(cell).is_integer() for cell, is_missing in zip(cells, missing, strict=True))
    if kind == REGRESSION or not whole or not any(missing) or all(missing):
        return splits
    return {**splits, **{name: change_column(rows, column, _to_int, Value("int64")) for name, rows in floats.items()}}


def _to_float(cell: Decimal | None) -> float | None:
    return None if cell is None else float(cell)


def _to_int(cell: float | None) -> int | None:
    return None if cell is None or cell != cell else int(cell)


def _find_unlabelled(
    splits: dict[str, Dataset], column: str, known: Labels | None, drop: bool
) -> tuple[dict[str, Dataset], list[str]]:
    """-1 beside 0, 1, … and no other negative number is no label."""
    whole = {
        name: rows
        for name, rows in splits.items()
        if isinstance(feature := rows.features[column], Value) and feature.dtype.startswith("int")
    }
    values = {cell for rows in whole.values() for cell in {*rows[column][:]} if cell is not None}
    is_mark = str(UNLABELLED) not in known.ids if known else 0 in values and min(values) == UNLABELLED
    if UNLABELLED not in values or not is_mark:
        return splits, []
    notes = []
    for name, rows in whole.items():
        marked = np.array([cell == UNLABELLED for cell in rows[column][:]])
        if drop and not marked.all():
            splits = {**splits, name: rows.select(np.flatnonzero(~marked))}
            if marked.any():
                notes.append(
                    f"{marked.sum()} of {len(rows)} rows of split `{name}` have the label -1, which is read as no label: they "
                    "are left out.  If -1 is a class: `task.minus_one_is_class=true`."
                )
        else:
            splits = {**splits, name: change_column(rows, column, _without_mark, rows.features[column])}
    return splits, notes


def _without_mark(cell: int | None) -> int | None:
    return None if cell == UNLABELLED else cell
