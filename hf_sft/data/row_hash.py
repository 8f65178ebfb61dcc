"""What tells rows from others: a hash of their values."""

from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset

from hf_sft.storage.cache import digest
from hf_sft.tasks.common.images import hash_image


def hash_rows(rows: Dataset) -> str:
    """Equal for equal columns with equal values, whatever file they came from and however it was cut."""
    parts: list[str | bytes] = []
    stored: Any = rows.data  # taken from directly: `datasets` would hand over each row as a chunk of its own
    table = stored.table.select(sorted(rows.column_names))
    # `_indices` says which rows of its table a data set has (datasets 5, arrow_dataset.py); nothing public does.
    every = np.arange(len(rows)) if rows._indices is None else rows._indices.column(0).to_numpy()
    for start in range(0, len(rows), 1000):
        places = every[start : start + 1000]
        first, last = int(places.min()), int(places.max())
        # Taken row by row, so that equal values lie in equal buffers; where they are, so that it looks through no more.
        taken = _hash_files(table.slice(first, last - first + 1).take(places - first).combine_chunks())
        kinds = [(f.name, pa.string() if pa.types.is_large_string(f.type) else f.type) for f in taken.schema]
        parts += [str(kinds), *(batch.serialize().to_pybytes() for batch in taken.cast(pa.schema(kinds)).to_batches())]
        parts = [digest(*parts)]
    return digest(*parts)


def _hash_files(table: Any) -> pa.Table:
    """The table with hashes in place of files, which are read: the same path may hold something else today."""
    for place, column in enumerate(table.schema):
        if pa.types.is_struct(column.type) and {each.name for each in column.type} == {"bytes", "path"}:
            table = table.set_column(
                place, column.name, pa.array(map(hash_image, table[column.name].to_pylist()), pa.string())
            )
    return table
