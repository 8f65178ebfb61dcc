"""Answers of a finished run, one per input row, in order."""

import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from hf_sft.config.machine import Machine
from hf_sft.data.data_files import KINDS, kind_of
from hf_sft.data.data_source import DataSource
from hf_sft.data.encoding import encode_blocks
from hf_sft.data.label_cells import read_labels
from hf_sft.data.sources import load_source
from hf_sft.errors import DataError, RecipeError
from hf_sft.evaluation.inference import answer_blocks, run_blocks
from hf_sft.recipe.recipe import load_recipe
from hf_sft.runs.prepare import Run, load_run
from hf_sft.storage.package_paths import path_of
from hf_sft.tasks import GenerationOptions, Labels, Task
from hf_sft.tasks.common.classification import Labelled

STDIN = "-"
FORMAT = ("encoding", "delimiter", "quoting")
"""Fields of the data block for the format of a file."""
FILE = "file"
"""A column with the file of each row; answers have it too."""


def predict(
    run: str | Path,
    inputs: str | Path | Sequence[str] | Sequence[dict[str, Any]],
    strict: bool = False,
    trust_remote_code: bool = False,
    writing: GenerationOptions | None = None,
    data: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Answers as in `predictions/`: `row`, the answer, and `reference` where the input knows it; on the main process.

    `inputs` is a file (csv, tsv, json, jsonl, parquet, arrow, txt), `-` for standard input (lines of text, lines of JSON,
    or one JSON array), a list of texts, or a list of rows; where the task is about pictures also a picture, a folder of them,
    or a list of such. A language model goes on with a text, as `writing` says, or fills its masks. A row without text keeps
    its place and its answer is None; `strict` refuses it. A file is read with the run's encoding, delimiter and quoting, or
    with those in `data`: `key=value` words like `encoding=cp1252`. Raises `RecipeError` and `DataError`.
    """
    return list(answer(run, inputs, strict, trust_remote_code, writing, data))


def answer(
    run: str | Path,
    inputs: str | Path | Sequence[str] | Sequence[dict[str, Any]],
    strict: bool = False,
    trust_remote_code: bool = False,
    writing: GenerationOptions | None = None,
    data: Sequence[str] = (),
) -> Iterator[dict[str, Any]]:
    """As `predict`, one answer after the other; what is wrong with the input is raised before the first."""
    finished = load_run(run, trust_remote_code)
    if writing is not None and not finished.task.writes:
        raise RecipeError(f"`{run}` does not write: it answers with {finished.task.answer_kind().called}.")
    task, columns = finished.task, list(finished.task.input_columns())
    try:
        rows = _read(inputs, task, _read_format(finished.folder, data))
    except UnicodeEncodeError as error:
        shown = ascii(error.object[max(0, error.start - 20) : error.end + 20])
        raise DataError(
            f"the input holds half of a surrogate pair, which is no character: {shown}.  Expected Unicode."
        ) from None
    if not len(rows):
        raise DataError("there is nothing to answer: no rows came in.")
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise DataError(f"the input lacks column(s) {', '.join(missing)}.  It has: {', '.join(rows.column_names)}.")
    files = rows["file"] if FILE in rows.column_names else None
    folder = path_of(inputs).parent if isinstance(inputs, str | Path) else Path()
    beside = [column for column in task.optional_columns() if column in rows.column_names]
    read_rows = task.read(rows.select_columns([*columns, *beside]), folder)
    filled = range(len(rows)) if strict else _list_filled(read_rows, task)
    invalid = task.invalid_rows(read_rows.select(filled), finished.labels)
    if invalid:
        problems = "; ".join(f"{problem} in row(s) {[filled[i] for i in places[:5]]}" for problem, places in invalid.items())
        raise DataError(f"the input can't be answered: {problems}")
    references = _references(task, rows, finished, folder)
    answers = answer_rows(
        read_rows, task, finished.labels, finished.processor, finished.model, finished.machine, writing, filled=filled
    )
    for row, answered in enumerate(answers):
        named = {"row": row, "file": files[row]} if files else {"row": row}
        yield {**named, **answered, **({"reference": references[row]} if references else {})}


def answer_rows(
    rows: Dataset,
    task: Task,
    labels: Labels | None,
    processor: Any,
    model: Any,
    machine: Machine,
    writing: GenerationOptions | None = None,
    filled: Sequence[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """The answer of each row, in order, on the main process; all processes iterate. Rows that are not `filled`, by default
    those without text, get the answer None."""
    filled = _list_filled(rows, task) if filled is None else filled
    some, nothing = rows.select(filled), dict(task.writes or task.answer_kind().null_answer)
    if task.writes:
        answers = task.complete(model, some, processor, writing or GenerationOptions(), machine.micro_batch_tokens)
    else:
        ran = run_blocks(model, encode_blocks(some, task, labels, processor), task.inference_step, machine)
        answers = chain.from_iterable(block.as_json() for _, _, block in answer_blocks(ran, task, labels))
    if not PartialState().is_main_process:
        for _ in answers:  # of which it runs its share
            pass
        return
    answered = {*filled}
    for row in range(len(rows)):
        yield next(answers) if row in answered else nothing


def _list_filled(rows: Dataset, task: Task) -> list[int]:
    """Indices of the rows that have a text in each input column."""
    blank = {i for column in task.text_columns() for i, cell in enumerate(rows[column]) if _is_blank(cell)}
    return [i for i in range(len(rows)) if i not in blank]


def _is_blank(cell: Any) -> bool:
    return cell is None or not (cell if isinstance(cell, list) else str(cell).strip())


def _references(task: Task, rows: Dataset, run: Run, folder: Path) -> list[Any]:
    """The references, None for rows without one; [] if the input has no such column."""
    if isinstance(task, Labelled):
        rows = read_labels({"input": rows}, task, run.recipe.data, run.labels, drop=False)[0]["input"]
    named = (column for names in task.columns().values() for column in names)
    columns = [column for column in named if column not in task.input_columns()]
    if not columns:  # an input may hold its reference: a conversation's last turn
        known = task.references(rows)
        return known if any(each is not None for each in known) else []
    if not set(columns) <= set(rows.column_names):
        return []
    labelled = [i for i, values in enumerate(zip(*(rows[column][:] for column in columns), strict=True)) if None not in values]
    known = rows.select(labelled)
    try:
        by_row = dict(zip(labelled, task.references(known if task.reads_files else task.read(known, folder)), strict=True))
    except (TypeError, ValueError) as error:
        raise DataError(f"column(s) {', '.join(columns)} of the input hold no labels of this task: {error}") from None
    return [by_row.get(i) for i in range(len(rows))]


def _read_format(run: Path, words: Sequence[str]) -> DataSource:
    """A run's data block, with another encoding, delimiter or quoting where `words` say so. Raises `RecipeError`."""
    for word in words:
        if word.partition("=")[0] not in FORMAT:
            raise RecipeError(f"`--data {word}`: expected {', '.join(f'{name}=VALUE' for name in FORMAT)}.")
    return load_recipe(run / "recipe.yaml", [f"data.{word}" for word in words]).data


def _read(inputs: Any, task: Task, source: DataSource) -> Dataset:
    if isinstance(inputs, str | Path):
        if str(inputs) == STDIN:
            return _read_text(sys.stdin.buffer.read(), "standard input", task, source)
        return _read_file(inputs, task, source)
    rows = list(inputs)
    if all(isinstance(row, dict) for row in rows):
        return Dataset.from_list(rows)
    odd = next((i for i, row in enumerate(rows) if not (row is None or isinstance(row, str))), None)
    if odd is not None:
        raise DataError(f"row {odd} is {rows[odd]!r}: expected only texts, or only rows (a dict by column).")
    return task.from_words(rows)


def _read_file(path: str | Path, task: Task, source: DataSource) -> Dataset:
    path = path_of(path)
    if task.reads_files and kind_of(path) is None:
        return task.from_words([str(path)])
    if kind_of(path) is None or not path.is_file():
        there = "there is no such file" if kind_of(path) else "its name says not what it holds"
        raise DataError(f"`{path}`: {there}.  Expected a file ending in {', '.join(KINDS)}, or - for standard input.")
    if path.suffix.lower() == ".txt":
        return _read_text(path.read_bytes(), f"`{path}`", task, source)
    file = DataSource(dataset=str(path), **{name: getattr(source, name) for name in FORMAT})
    brought, *_ = load_source(file, task.input_columns())
    return next(iter(brought.values()))


def _read_text(content: bytes, where: str, task: Task, source: DataSource) -> Dataset:
    """Lines of text, lines of JSON objects, or one JSON array of either. An empty line keeps its place."""
    encoding = source.encoding or "utf-8-sig"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        expected = encoding if source.encoding else "UTF-8"
        raise DataError(
            f"{where} is not {expected} text (line {line}).  Save it as {expected}, or name its encoding: "
            "--data encoding=cp1252."
        ) from None
    lines = text.removesuffix("\n").split("\n") if text else []
    lines = [line.removesuffix("\r") for line in lines]
    first = text.lstrip()[:1]
    if first == "[":
        try:
            return _read(json.loads(text), task, source)
        except json.JSONDecodeError:
            pass  # a text may begin with a bracket
    if first != "{":
        return task.from_words(lines)
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line) if line.strip() else dict.fromkeys(task.input_columns())
        except json.JSONDecodeError as error:
            raise DataError(f"{where}, line {number}: {error.msg}; expected a JSON object on each line.") from None
        if not isinstance(row, dict):
            raise DataError(f"{where}, line {number}: expected a JSON object, as on the lines before.")
        rows.append(row)
    return Dataset.from_list(rows)


def write_lines(lines: Iterable[str], output: Path | None) -> None:
    """To a file, which is there whole or not at all; to a pipe or a device; or to standard output if there is no `output`."""
    if output is None:
        try:
            for line in lines:
                print(line, end="")
            if sys.stdout is not None:
                sys.stdout.flush()
        except BrokenPipeError:  # who reads has read enough, like `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return
    if output.exists() and not (output.resolve().is_file() and output.is_file()):  # a pipe or a device
        with output.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        return
    target = output.resolve()
    part = target.with_name(f"{target.name}.part")
    try:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(lines)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
