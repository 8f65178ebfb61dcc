"""What a checkpoint was trained on before, where it is a run of ours: a score on rows that it knows proves nothing.

A run folder keeps a number for each input that its weights have learned from, and those of the run that it began from. Tasks
with the same inputs share their numbers: a language model that has read a text and a classifier that is scored on it.
"""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from datasets import Dataset

from hf_sft.data.data_files import SPLITS
from hf_sft.data.splits import Splits
from hf_sft.models.checkpoint import Checkpoint, find_checkpoint
from hf_sft.tasks import Task

FILE = "trained_on.npy"


def mark_known(splits: Splits, checkpoint: Checkpoint) -> Splits:
    """Adds to `seen` the rows of validation and test that the checkpoint was trained on, with a note."""
    known = read_known(checkpoint)
    if not len(known):
        return splits
    seen, notes = dict(splits.seen), []
    for name in SPLITS[1:]:
        places = np.flatnonzero(np.isin(number_inputs(splits.rows[name], splits.task), known))
        if len(places):
            notes.append(
                f"{len(places)} of {len(splits.rows[name])} rows of split `{name}` have an input that `{checkpoint.name}` was "
                "trained on: the score on the other rows is given beside."
            )
            seen[name] = np.union1d(seen[name], places)
    return replace(splits, seen=seen, notes=(*splits.notes, *notes))


def write_known(folder: Path, splits: Splits, checkpoint: Checkpoint) -> None:
    """Into a run folder: what its weights have learned from."""
    known = np.union1d(number_inputs(splits.rows["train"], splits.task), read_known(checkpoint))
    np.save(folder / FILE, known, allow_pickle=False)


def read_known(checkpoint: Checkpoint) -> np.ndarray:
    """What a checkpoint's weights have learned from, as far as we were there; uint64, shape (inputs,)."""
    path = Path(find_checkpoint(checkpoint)) / FILE
    if checkpoint.checkpoint is None or not path.is_file():
        return np.array([], dtype=np.uint64)
    return np.load(path, allow_pickle=False)


def number_inputs(rows: Dataset, task: Task) -> np.ndarray:
    """A number for the input of each row, equal for equal ones; uint64, shape (rows,)."""
    hashes = [hashlib.blake2b(each.encode("utf-8", "surrogatepass"), digest_size=8).digest() for each in task.identities(rows)]
    return np.frombuffer(b"".join(hashes), dtype="<u8").astype(np.uint64)
