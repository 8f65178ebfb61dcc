"""Rows to examples, encoded once by one process and read from the cache by all, now and later."""

import inspect
import json
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, load_from_disk
from datasets.fingerprint import generate_random_fingerprint

from hf_sft.data.examples import BLOCK, Block, Examples
from hf_sft.data.row_hash import hash_rows
from hf_sft.data.splits import Splits
from hf_sft.errors import DataError, list_few
from hf_sft.storage.cache import cache_folder, digest, made_once
from hf_sft.tasks import Labels, Task

UNKNOWN = 0.05
"""The largest share of targets that a tokenizer may not know."""
CODE = ("hf_sft", "tokenizers", "transformers")


def encode_rows(rows: Dataset, task: Task, labels: Labels | None, processor: Any, of: str = "the input") -> Dataset:
    """Examples for the model: the task's columns, with the `row` and the `cost` of each, and how many `items` carry loss.

    Not cached. Raises `DataError` for rows `of` something that can't be encoded.
    """

    def encode(batch: dict[str, list], places: list[int]) -> dict[str, list]:
        examples = task.encode(batch, processor, labels)
        count = len(next(iter(examples.values())))
        tokens = [len(ids) for ids in examples["input_ids"]] if "input_ids" in examples else [1] * count
        of_row = [places[row] for row in examples.get("row", range(count))]
        if unknown is not None:
            examples |= _count_unknown(examples, unknown, "tokens" in task.writes)
        return {"cost": tokens, "items": [1] * count, "truncated": [False] * count, **examples, "row": of_row}

    columns_read, unknown = _select(rows, task), _unknown_id(processor)
    encoded = columns_read.map(
        encode,
        batched=True,
        with_indices=True,
        remove_columns=columns_read.column_names,
        load_from_cache_file=False,
        keep_in_memory=True,
        new_fingerprint=generate_random_fingerprint(),  # what is not cached needs no key, which would take 0.3 s
    )
    if backend := getattr(processor, "backend_tokenizer", None):
        # A fast tokenizer remembers how it truncated, and would be hashed and saved with that.
        backend.no_truncation()
    if "flaw" in encoded.column_names:
        _refuse_flaws(encoded, of)
    return encoded


def _unknown_id(processor: Any) -> int | None:
    """The token for what a tokenizer can't write; None where there is none, or where it means something else too."""
    unknown = getattr(processor, "unk_token_id", None)
    others = ("bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id", "cls_token_id", "mask_token_id")
    return None if unknown in [getattr(processor, name, None) for name in others] else unknown


def _count_unknown(examples: dict[str, list], unknown: int, writes: bool) -> dict[str, list[int]]:
    """Of each example how many tokens of its inputs and of its targets are unknown, and how many its targets are.

    Targets of a model that writes texts are its labels, where they are tokens of their own, or those of its inputs that carry
    loss.
    """
    counts: dict[str, list[int]] = {"unknown": [], "unknown_targets": [], "targets": []}
    labels, masks = examples.get("labels"), examples.get("loss_mask")
    for place, ids in enumerate(examples.get("input_ids", [])):
        parts = ids if ids and isinstance(ids[0], list) else [ids]
        counts["unknown"].append(sum(part.count(unknown) for part in parts))
        taught: list[int] = []
        if writes and labels is not None:
            taught = labels[place]
        elif writes:
            taught = [token for token, carries in zip(ids, masks[place], strict=True) if carries] if masks else ids
        counts["unknown_targets"].append(taught.count(unknown))
        counts["targets"].append(len(taught))
    return {name: column for name, column in counts.items() if column}


def _select(rows: Dataset, task: Task) -> Dataset:
    named = [column for columns in task.columns().values() for column in columns]
    return rows.select_columns([each for each in (*named, *task.optional_columns()) if each in rows.column_names])


def encode_blocks(rows: Dataset, task: Task, labels: Labels | None, processor: Any) -> Iterator[Block]:
    """Rows with their examples, block by block; a block is encoded when it is read. Not cached."""
    for start in range(0, len(rows), BLOCK):
        block = rows.select(range(start, min(start + BLOCK, len(rows))))
        yield read_examples(block, task, labels, processor), range(len(block))


def read_examples(rows: Dataset, task: Task, labels: Labels | None, processor: Any) -> Examples:
    """Rows with their examples. Not cached."""
    return Examples(rows, encode_rows(rows, task, labels, processor), task.collator(processor), task.raw_columns())


def encode_splits(splits: Splits, processor: Any, few: int | None = None) -> dict[str, Examples]:
    """Each split's rows (its first `few`, if given) and their examples, memory-mapped from the cache.

    The key holds the rows, the task with its code, the processor, and the versions of what encodes.
    """
    names = json.dumps(splits.labels.names if splits.labels else None)
    how = digest(_hash_processor(processor), splits.task.model_dump_json(), names, hash_code(type(splits.task)))
    encoded, collate = {}, splits.task.collator(processor)
    for name, rows in splits.rows.items():
        rows = rows if few is None else rows.select(range(min(few, len(rows))))
        joined = name == "train" and splits.task.joins()
        columns_read = _select(rows, splits.task)
        known = few is None and {*columns_read.column_names} == {*rows.column_names}
        of_rows = splits.fingerprints[name] if known else hash_rows(columns_read)
        folder = cache_folder("encoded") / digest(of_rows, how, f"joined: {joined}")

        def make(aside: Path, rows: Dataset = rows, name: str = name, joined: bool = joined) -> None:
            made = encode_rows(rows, splits.task, splits.labels, processor, f"split `{name}`")
            _require_items(made, len(rows), name, splits.task)
            _refuse_unknown(made, name)
            (splits.task.join(made, processor) if joined else made).save_to_disk(str(aside))

        found: Any = load_from_disk(str(made_once(folder, make)))
        encoded[name] = Examples(found if joined else rows, found, collate, splits.task.raw_columns())
    return encoded


def _refuse_flaws(encoded: Dataset, of: str) -> None:
    """Raises `DataError`, with all flaws at once."""
    places: dict[str, list[int]] = {}
    for row, flaw in zip(encoded["row"][:], encoded["flaw"][:], strict=True):
        if flaw:
            places.setdefault(flaw, []).append(row)
    if places:
        listed = [f"{len(rows)} row(s) of {of}, each of which {flaw}: {list_few(rows)}" for flaw, rows in places.items()]
        raise DataError(
            "\n".join([*listed, "  Mend them, or leave them out: `data.keep` names a column that is false there."])
        )


def _refuse_unknown(encoded: Dataset, split: str) -> None:
    """Raises `DataError` where a tokenizer can't write too much of what a model is to learn to write."""
    if "unknown_targets" not in encoded.column_names:
        return
    counts, total = np.array(encoded["unknown_targets"][:]), sum(encoded["targets"][:])
    if counts.sum() > UNKNOWN * total:
        rows = list(dict.fromkeys(np.array(encoded["row"][:])[counts > 0].tolist()))
        raise DataError(
            f"{counts.sum():,} of {total:,} target tokens of split `{split}` are unknown to the tokenizer, more than "
            f"{UNKNOWN:.0%}: in row(s) {list_few(rows)}.\n  The model can't learn to write them: take a checkpoint whose "
            "tokenizer knows them, or write the targets otherwise."
        )


def _require_items(encoded: Dataset, count: int, split: str, task: Task) -> None:
    """Raises `DataError` for rows without tokens, and for rows without any loss token if the task needs one."""
    num_items = np.bincount(encoded["row"][:], weights=encoded["items"][:], minlength=count)
    empty = np.flatnonzero(np.bincount(encoded["row"][:], weights=encoded["cost"][:], minlength=count) == 0).tolist()
    silent = np.flatnonzero(num_items <= 0).tolist() if task.no_loss_message is not None else []
    if "silent" in encoded.column_names:
        cut = [row for row, is_so in zip(encoded["row"][:], encoded["silent"][:], strict=True) if is_so]
        if len(cut) > task.silent_share * count:
            raise DataError(
                f"{len(cut)} of {count} rows of split `{split}` are cut before what carries loss, more than "
                f"{task.silent_share:.0%}: {list_few(cut)}\n  Give them more room (`task.max_length`), or leave them out: "
                "`data.keep` names a column that is false there."
            )
        silent = sorted({*silent} - {*cut})
    if silent := silent or empty:
        raise DataError(
            f"{len(silent)} row(s) of split `{split}` {task.no_loss_message or 'give no token'}: {list_few(silent)}\n"
            "  Mend them, or leave them out: `data.keep` names a column that is false there."
        )


def hash_code(kind: type) -> str:
    """Equal for equal sources of this package and of the class's module, and equal versions of what they call."""
    module = sys.modules[kind.__module__]
    try:
        source = inspect.getsource(module)
    except (OSError, TypeError):  # typed at a prompt
        source = repr(module)
    versions = (f"{package} {version(package.replace('_', '-'))}" for package in CODE)
    return digest(source, _hash_package(), *versions)


@cache
def _hash_package() -> str:
    return hash_sources(Path(__file__).parents[1])


def hash_sources(folder: Path) -> str:
    """Equal for the same Python files with the same content."""
    files = sorted(folder.rglob("*.py"))
    return digest(*(part for path in files for part in (path.relative_to(folder).as_posix(), path.read_bytes())))


def _hash_processor(processor: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return digest(*(part for path in files for part in (path.name, path.read_bytes())))
