"""Characters that can't be read in a file's encoding."""

import json
from typing import Any

import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, Value

from hf_sft.data.data_source import DataSource
from hf_sft.errors import DataError, list_few

REPLACED = 0.01
"""The largest share of rows in which letters may be lost to a wrong encoding."""


def count_replaced(rows: Dataset, split: str, source: DataSource) -> list[str]:
    """A note on rows with U+FFFD, which stands for a letter that could not be read. Raises `DataError`."""
    lost: set[int] = set()
    for name, feature in rows.features.items():
        if isinstance(feature, Value) and feature.dtype in ("string", "large_string"):
            compute: Any = pc  # its functions are made when it is imported
            found = compute.match_substring(rows.data.table[name], "\ufffd")
            lost |= set(compute.indices_nonzero(compute.fill_null(found, False)).to_pylist())
        elif source.encoding and not isinstance(feature, Value | ClassLabel):
            lost |= {
                i for i, cell in enumerate(rows[name][:]) if "\ufffd" in json.dumps(cell, ensure_ascii=False, default=str)
            }
    if lost and source.encoding:
        return [explain_replaced(f"rows of split `{split}`", sorted(lost), len(rows), source.encoding)]
    few = list_few(sorted(lost))
    return [f"{len(lost)} row(s) of split `{split}` hold U+FFFD, a letter that was lost before ({few})."] if lost else []


def explain_replaced(what: str, lost: list[Any], count: int, encoding: str) -> str:
    """A note on rows or files that are not of an encoding. Raises `DataError` for more than a few."""
    message = f"{len(lost)} of {count} {what} are not {encoding}: what can't be read is U+FFFD ({list_few(lost)})."
    if len(lost) > REPLACED * count:
        raise DataError(
            f"{message}\n  Expected {REPLACED:.0%} at most.  Name the files' encoding (`data.encoding`): utf-8, cp1252 …"
        )
    return message
