"""Tokenizers, sentences and rows with tags."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from hf_sft.tasks.token_classification import TokenClassification


def task(**fields: Any) -> TokenClassification:
    return TokenClassification(type="token_classification", **fields)


def answered(found, rows, labels, processor):
    """What a model that knows each unit's true tag answers, and those tags, from the examples themselves."""
    examples = found.encode(rows[:], processor, labels)
    kept, tags = [[] for _ in range(len(rows))], [[] for _ in range(len(rows))]
    for row, ids, places, *units in zip(*(examples[n] for n in ("row", "labels", "words", "starts", "ends")), strict=True):
        true = [ids[place] for place in places]
        kept[row].append(np.column_stack([*units, np.log(np.eye(len(labels))[true] + 0.01)]))
        tags[row] += [labels.names[i] for i in true]
    return found.answer(kept, rows, labels), tags


def load(folder: Path, train: list[dict], test: list[dict], fields: dict | None = None, **data: Any) -> Any:
    from hf_sft.data.data_source import DataSource
    from hf_sft.data.splits import load_splits

    files = {}
    for name, rows in (("train", train), ("validation", train), ("test", test)):
        files[name] = str(folder / f"{name}.jsonl")
        Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_splits(DataSource(dataset="json", data_files=files, **data), task(**(fields or {})))
