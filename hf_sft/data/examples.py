"""An optimizer step's rows -> length-sorted micro-batches under a token budget, the same number on every process.

How a step is cut changes nothing that is learned: the loss is a sum over items, divided by the whole step's items.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import Sampler

from hf_sft.tasks import Batch

BOOKKEEPING = (
    "row",
    "cost",
    "items",
    "truncated",
    "lost",
    "slid",
    "silent",
    "shortened",
    "flaw",
    "inside",
    "forgotten",
    "spelled",
    "unknown",
    "unknown_targets",
    "targets",
)
"""Columns of examples that are no inputs of the model."""
BLOCK = 2048
"""Number of rows in a block of evaluation: memory does not grow with the number of all rows."""
BESIDE = 8
"""The fixed cost of a micro-batch: the time of an eighth of the budget's tokens.

Measured where the budget is 1024 (MiniLM, bfloat16, two cores): 15 ms, and 0.122 ms for each token, forward and backward. A
step of 32 rows of banking77, 522 tokens, becomes 709 with padding in 2.3 micro-batches. Filling one after the other up to the
budget, 1.9 of them, took a fifth more time.
"""


@dataclass(frozen=True)
class MicroBatch:
    """The examples of one forward pass. `counts` is False for a stand-in that keeps processes in step and adds nothing."""

    places: tuple[int, ...]
    counts: bool
    step_items: int
    """Number of items that carry loss in the whole optimizer step, over all processes; 0 in evaluation."""
    draw: tuple[int, ...]
    """Key of random draws (masks): seed and epoch; empty in evaluation."""


def to_device(batch: Batch, device: Any) -> Batch:
    """The batch on the model's device."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


def cut_step(
    places: np.ndarray,
    costs: np.ndarray,
    budget: int,
    processes: int = 1,
    step_items: int = 0,
    draw: tuple[int, ...] = (),
) -> list[list[MicroBatch]]:
    """One list of micro-batches per process, all equally long (sharded models hang otherwise).

    Examples are sorted by cost and dealt in turn, so that processes hold some of like cost and one cut serves them all.
    A micro-batch's number of examples times its largest cost is at most `budget`, or it holds one example. Of all such cuts
    the fastest is taken; the time of a micro-batch is that of its tokens with padding, plus an eighth of the budget.
    """
    ordered = places[np.argsort(-costs[places], kind="stable")]
    bounds = _cheapest_bounds(costs[ordered[::processes]], budget, budget / BESIDE)
    shares = [ordered[process::processes] for process in range(processes)]
    return [
        [_micro_batch(share[start:end], ordered[-1], step_items, draw) for start, end in pairwise(bounds)] for share in shares
    ]


def _cheapest_bounds(falling: np.ndarray, budget: int, overhead: float) -> list[int]:
    """0, and the end of each micro-batch of a step; `falling` are the costs of its examples in falling order."""
    count = len(falling)
    least, end_of = np.zeros(count + 1), np.zeros(count, dtype=np.int64)
    for start in range(count - 1, -1, -1):
        most = min(count - start, max(1, budget // max(1, int(falling[start]))))
        totals = np.arange(1, most + 1) * falling[start] + least[start + 1 : start + 1 + most]
        size = most - int(np.argmin(totals[::-1]))  # of equals the longest
        least[start], end_of[start] = totals[size - 1] + overhead, start + size
    bounds = [0]
    while bounds[-1] < count:
        bounds.append(int(end_of[bounds[-1]]))
    return bounds


def _micro_batch(places: np.ndarray, stand_in: int, step_items: int, draw: tuple[int, ...]) -> MicroBatch:
    counts = len(places) > 0
    return MicroBatch(tuple(int(place) for place in (places if counts else [stand_in])), counts, step_items, draw)


class Examples(TorchDataset):
    """Rows and their examples, one or several for each row; gives batches for micro-batches."""

    def __init__(
        self,
        rows: Dataset,
        encoded: Dataset,
        collate: Callable[[list[dict[str, Any]]], Batch],
        raw: tuple[str, ...] = (),
    ):
        self.rows, self.encoded, self.raw = rows, encoded, rows.select_columns(list(raw)) if raw else None
        """`raw` are the columns that the collator gets uncopied."""
        self.collate_examples = collate
        self._columns = encoded.select_columns([n for n in encoded.column_names if n not in BOOKKEEPING])
        numbers: Any = encoded.with_format("arrow")[:]  # "numpy" would make an object of each number
        self.costs, self.items, self._row = (numbers[name].to_numpy().astype(np.int64) for name in ("cost", "items", "row"))
        self.starts: list[int] = np.searchsorted(self._row, np.arange(len(rows) + 1)).tolist()
        """The examples of row i are those from starts[i] to starts[i + 1]."""

    def __len__(self) -> int:
        return len(self.costs)

    def row_of(self, place: int) -> int:
        """The index of an example's row."""
        return int(self._row[place])

    def count_rows(self, what: str) -> int:
        """How many rows are `truncated`, `lost` (no example has their answer), or `slid` over."""
        if what not in self.encoded.column_names:
            return 0
        pairs = zip(self.encoded["row"][:], self.encoded[what][:], strict=True)
        return len({row for row, is_so in pairs if is_so})

    def remarks(self, rows: str) -> list[str]:
        """Notes on rows that the model does not see whole; `rows` names the rows."""
        phrases = {
            "truncated": "are longer than the model is shown, and are cut",
            "lost": "have an answer that no window holds whole",
            "shortened": "have a longer target than the model learns to write, and are learned up to there",
            "silent": "are cut before what carries loss, and teach nothing",
            "inside": "have a span that begins or ends inside a word or token, where no answer can",
            "forgotten": "have thoughts before earlier answers, which the chat template leaves out",
            "spelled": "spell control tokens, which stay text",
            "slid": "are longer than the model takes, and are scored with a sliding context",
        }
        counts = {what: self.count_rows(what) for what in phrases}
        found = [f"{count} of {len(self.rows)} {rows} {phrases[what]}." for what, count in counts.items() if count]
        if "unknown" in self.encoded.column_names and (unknown := sum(self.encoded["unknown"][:])):
            total = int(self.encoded_tokens)
            found.append(f"{unknown:,} of {total:,} tokens ({unknown / total:.1%}) of {rows} are unknown to the tokenizer.")
        return found

    @property
    def encoded_tokens(self) -> int:
        """The tokens of all examples, special ones included."""
        table: Any = self.encoded.with_format("arrow")[:]
        column = table["input_ids"].combine_chunks()
        while hasattr(column, "values"):
            column = column.flatten()
        return len(column)

    def __getitem__(self, micro_batch: MicroBatch) -> tuple[Batch, MicroBatch]:
        return self.collate(micro_batch.places, micro_batch.draw), micro_batch

    def collate(self, places: tuple[int, ...], draw: tuple[int, ...] = ()) -> Batch:
        """The batch of some examples, each with its key for random draws if the task draws."""
        examples = self.take(places)
        return self.collate_examples([{**example, "draw": draw} for example in examples] if draw else examples)

    def blocks(self) -> "Iterator[Block]":
        """The rows in blocks of `BLOCK`."""
        for start in range(0, len(self.rows), BLOCK):
            yield self, range(start, min(start + BLOCK, len(self.rows)))

    def take(self, places: tuple[int, ...]) -> list[dict[str, Any]]:
        columns = self._columns[list(places)] if self._columns.column_names else {}
        if self.raw is not None:
            columns |= self.raw[self._row[list(places)]]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


Block: TypeAlias = tuple[Examples, range]
"""A range of rows with all their examples, for evaluation."""


class StepSampler(Sampler[list[MicroBatch]]):
    """Yields, for each optimizer step, this process's micro-batches. All examples of a row are in one step.

    The order of rows depends on the seed and the epoch alone. The last step of an epoch may be smaller.
    """

    def __init__(self, examples: Examples, batch_size: int, budget: int, seed: int, process: int, processes: int):
        self.costs, self.items, self.starts = examples.costs, examples.items, examples.starts
        self.batch_size, self.budget, self.seed = batch_size, budget, seed
        self.process, self.processes = process, processes
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return -(-(len(self.starts) - 1) // self.batch_size)

    def __iter__(self) -> Iterator[list[MicroBatch]]:
        order = np.random.default_rng((self.seed, self.epoch)).permutation(len(self.starts) - 1)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            examples = np.concatenate([range(self.starts[row], self.starts[row + 1]) for row in rows])
            step_items = int(self.items[examples].sum())
            draw = (self.seed, self.epoch)
            yield cut_step(examples, self.costs, self.budget, self.processes, step_items, draw)[self.process]
