"""Inference in blocks of some thousand rows, so that memory does not grow with their number."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm

from hf_sft.answers.contract import Answers
from hf_sft.config.machine import Machine
from hf_sft.data.examples import Block, cut_step, to_device
from hf_sft.losses import RowOutputs
from hf_sft.tasks import Batch, GenerationOptions, Labels, Task

Write: TypeAlias = Callable[[Any, Dataset], Iterable[str]]
"""Generates a text for each row, on every process."""


def writer(task: Task, processor: Any, machine: Machine) -> Write | None:
    """A function that generates texts, if the task's answers are generated; else None."""
    if not task.answer_kind().written:
        return None

    def write(model: Any, rows: Dataset) -> Iterator[str]:
        return (
            answer["text"] for answer in task.complete(model, rows, processor, GenerationOptions(), machine.micro_batch_tokens)
        )

    return write


def run_blocks(
    model: nn.Module,
    blocks: Iterable[Block],
    inference_step: Callable[[nn.Module, Batch], list[np.ndarray]],
    machine: Machine,
    write: Write | None = None,
) -> Iterator[tuple[Dataset, RowOutputs]]:
    """Run the model over blocks of rows; gives the rows of each block with their outputs, on every process.

    Inside a block examples are sorted by cost and shared out between the processes; each is run once. Where the model shall
    `write` it does so in float32, as `predict` has it.
    """
    state = PartialState()
    with tqdm(desc="scoring", unit=" examples", disable=machine.quiet, leave=False) as bar:
        for examples, rows in blocks:
            ends = examples.starts[rows.start : rows.stop + 1]
            shares = cut_step(np.arange(ends[0], ends[-1]), examples.costs, machine.micro_batch_tokens, state.num_processes)
            mine: list[tuple[int, np.ndarray]] = []
            with evaluating(model, machine):
                for micro_batch in shares[state.process_index]:
                    outputs = inference_step(model, to_device(examples.collate(micro_batch.places), state.device))
                    if micro_batch.counts:
                        mine.extend(zip(micro_batch.places, outputs, strict=True))
                        bar.update(len(outputs))
            by_place = dict(gather_object(mine))
            chosen, of_rows = examples.rows.select(rows), [[by_place[i] for i in range(*each)] for each in pairwise(ends)]
            if write is not None:
                model.eval()
                texts = list(tqdm(write(model, chosen), "writing", len(rows), False, disable=machine.quiet))
                of_rows = [[*of_row, np.array(text)] for of_row, text in zip(of_rows, texts, strict=True)]
            yield chosen, of_rows


@contextlib.contextmanager
def evaluating(model: nn.Module, machine: Machine):
    """Eval mode, no gradients, the run's precision; the modules' modes are put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), machine.autocast():
            yield
    finally:
        for module in training:
            module.training = True


def answer_blocks(
    ran: Iterable[tuple[Dataset, RowOutputs]], task: Task, labels: Labels | None
) -> Iterator[tuple[int, Dataset, Answers]]:
    """Of each block the number of its first row, its rows, and their answers; on the main process alone."""
    start = 0
    for rows, outputs in ran:
        if PartialState().is_main_process:
            yield start, rows, task.answer(outputs, rows, labels)
        start += len(rows)
