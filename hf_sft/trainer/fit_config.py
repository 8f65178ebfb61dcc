"""What a phase is trained with, and what speed-ups may replace."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from datasets import Dataset
from torch import nn

from hf_sft.config.machine import Machine
from hf_sft.data.examples import Examples
from hf_sft.evaluation.inference import RowOutputs, Write
from hf_sft.losses import Batch, Items
from hf_sft.methods import Phase
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.trainer.history import TrainingCurve
from hf_sft.trainer.signals import SignalHandler


@dataclass(frozen=True)
class TaskHooks:
    """All that a training knows of its task and its evaluation plan."""

    items: Callable[[nn.Module, Batch], Items]
    inference_step: Callable[[nn.Module, Batch], list[np.ndarray]]
    score: Callable[[Iterable[tuple[Dataset, RowOutputs]]], dict[str, float]]
    """The metrics of rows by what `keep` returned for them, on every process the same."""
    read: Callable[[Dataset], Examples]
    """Examples of rows as the data has them."""
    best: tuple[str, bool]
    """The metric that chooses the checkpoint, and whether greater is better."""
    write: Write | None = None
    """Generates the model's texts; None unless `best` needs them."""


@dataclass(frozen=True)
class FitState:
    """What is trained, and on what; a speed-up replaces parts of it for the length of the training."""

    phase: Phase
    loaded: LoadedModel
    model: Any
    """What `phase.prepare` made of the loaded model."""
    examples: dict[str, Examples]
    curve: TrainingCurve
    in_step: tuple[Callable[[], AbstractContextManager[Any]], ...] = ()
    """Contexts that the forward and backward passes of each step run in."""


@dataclass(frozen=True)
class FitConfig:
    """Where and with what a phase is trained."""

    examples: dict[str, Examples]
    hooks: TaskHooks
    machine: Machine
    processor: Any
    folder: Path
    """Of its checkpoints."""
    seed: int
    logs: Path | None = None
    """Where trackers write."""
    speedups: "Sequence[Speedup] | None" = None
    """None for all: `fit.SPEEDUPS`."""
    signal_handler: SignalHandler | None = None
    """Signal handler; None if the phase need not be resumable."""
    begun: Callable[[], None] | None = None
    """Called by the main process before the first step, when what it resumes from has been loaded."""
    resume: bool = False
    """Continue from the newest checkpoint, if there is one."""


Speedup: TypeAlias = Callable[[FitState, FitConfig], AbstractContextManager[FitState]]
"""Faster, and the same numbers: while its context is active the phase is trained with what it yields. Where it does not apply
it yields the state as it was given."""
