"""The inputs of a phase's training, and the state that speed-ups may replace."""

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
from hf_sft.evaluation.inference import Write
from hf_sft.losses import Batch, Items, RowOutputs
from hf_sft.methods import Phase
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.trainer.history import TrainingCurve
from hf_sft.trainer.signals import SignalHandler


@dataclass(frozen=True)
class TaskHooks:
    """What the trainer needs of a task and an evaluation plan."""

    items: Callable[[nn.Module, Batch], Items]
    inference_step: Callable[[nn.Module, Batch], list[np.ndarray]]
    score: Callable[[Iterable[tuple[Dataset, RowOutputs]]], dict[str, float]]
    """The metrics of rows with their outputs of `inference_step`; the same on every process."""
    read: Callable[[Dataset], Examples]
    """Encodes rows."""
    best: tuple[str, bool]
    """The metric that chooses the checkpoint, and whether greater is better."""
    write: Write | None = None
    """Generates the model's texts; None unless `best` needs them."""


@dataclass(frozen=True)
class FitState:
    """The model and its examples; a speed-up replaces parts of it during the training."""

    phase: Phase
    loaded: LoadedModel
    model: Any
    """The result of `phase.prepare`."""
    examples: dict[str, Examples]
    curve: TrainingCurve
    in_step: tuple[Callable[[], AbstractContextManager[Any]], ...] = ()
    """Contexts that the forward and backward passes of each step run in."""


@dataclass(frozen=True)
class FitConfig:
    """The fixed inputs of a phase's training."""

    examples: dict[str, Examples]
    hooks: TaskHooks
    machine: Machine
    processor: Any
    folder: Path
    """For its checkpoints."""
    seed: int
    logs: Path | None = None
    """For trackers (TensorBoard …)."""
    speedups: "Sequence[Speedup] | None" = None
    """None for all: `fit.SPEEDUPS`."""
    signal_handler: SignalHandler | None = None
    """Signal handler; None if the phase need not be resumable."""
    begun: Callable[[], None] | None = None
    """Called by the main process before the first step, when what it resumes from has been loaded."""
    resume: bool = False
    """Continue from the newest checkpoint, if there is one."""


Speedup: TypeAlias = Callable[[FitState, FitConfig], AbstractContextManager[FitState]]
"""A context manager around a training, which trains with the state that it yields. The results must be equal; if the speed-up
does not apply, it yields the state unchanged."""
