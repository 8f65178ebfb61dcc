"""Answers of a finished run, one per input row, in order."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset

from hf_sft.batching import Examples
from hf_sft.data import encode_rows
from hf_sft.errors import DataError
from hf_sft.evaluation import run_model
from hf_sft.run import load_run
from hf_sft.tasks import Task

KINDS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}


def predict(run: str | Path, inputs: str | Path | Sequence[str] | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers as design'd for `predictions/`: `row`, the answer, and `reference` where the input knows it.

    `inputs` is a file (csv, json, jsonl, parquet, txt), `-` for JSON or text lines on standard input, a list of texts, or
    a list of rows. Raises `RecipeError` and `DataError`.
    """
    finished = load_run(run)
    task = finished.task
    rows = _read(inputs, task)
    missing = [column for column in task.input_columns() if column not in rows.column_names]
    if missing:
        raise DataError(f"the input lacks column(s) {', '.join(missing)}.  It has: {', '.join(rows.column_names)}.")
    asked = rows.select_columns(list(task.input_columns()))
    invalid = [f"{problem} in row(s) {places[:5]}" for problem, places in task.invalid_rows(asked, finished.labels).items()]
    if invalid:
        raise DataError("the input can't be answered: " + "; ".join(invalid))
    examples = Examples(encode_rows(asked, task, finished.labels, finished.processor), task.collator(finished.processor))
    answers = task.decode(run_model(finished.model, examples, task, finished.machine), finished.labels)
    known = {column for field, columns in task.columns().items() if field == "label" for column in columns}
    if not known <= set(rows.column_names):
        return [{"row": row, **answer} for row, answer in enumerate(answers)]
    references = task.references(rows)
    return [{"row": row, **answer, "reference": references[row]} for row, answer in enumerate(answers)]


def _read(inputs: Any, task: Task) -> Dataset:
    if isinstance(inputs, str | Path) and str(inputs) == "-":
        lines = [line for line in sys.stdin.read().splitlines() if line.strip()]
        inputs = [json.loads(line) for line in lines] if lines and lines[0].lstrip().startswith("{") else lines
    if isinstance(inputs, str | Path):
        path = Path(inputs)
        if path.suffix not in KINDS or not path.is_file():
            raise DataError(f"`{path}`: expected a file ending in {', '.join(KINDS)}, or - for standard input.")
        return load_dataset(KINDS[path.suffix], data_files=str(path), split="train")  # pyright: ignore
    if not inputs:
        raise DataError("there is nothing to answer: no rows came in.")
    if isinstance(inputs[0], str):
        if len(task.input_columns()) > 1:
            raise DataError(f"this run answers pairs: give rows with the columns {', '.join(task.input_columns())}.")
        return Dataset.from_dict({task.input_columns()[0]: list(inputs)})
    return Dataset.from_list(list(inputs))
