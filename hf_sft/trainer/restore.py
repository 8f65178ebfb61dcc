"""Restore weights and curves from a checkpoint."""

import contextlib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from torch import Tensor

from hf_sft.errors import RecipeError, first_line
from hf_sft.trainer.history import TrainingCurve

COUNTED = ("examples", "tokens", "padded_tokens")
"""Fields of a curve that each process counts for itself."""


@contextlib.contextmanager
def fitting(path: Path) -> Iterator[None]:
    """Turn errors of a checkpoint that does not fit the recipe into `RecipeError`."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as error:
        raise RecipeError(
            f"`{path}` does not fit the model, the method and the data that the recipe names now: {first_line(error)}\n"
            "  Put them back, or begin anew in another folder (output.folder=…)."
        ) from error


def load_weights(model: Any, weights: dict[str, Tensor]) -> None:
    """Load weights into a model with exactly these trainable parameters. Raises `RuntimeError`."""
    unknown = model.load_state_dict(weights, strict=False).unexpected_keys
    lacking = [name for name, p in model.named_parameters() if p.requires_grad and name not in weights]
    if unknown or lacking:
        raise RuntimeError(f"it holds parameters of another model, or method: {(unknown or lacking)[:3]}")


def restore_curve(curve: TrainingCurve, state: dict[str, Any]) -> None:
    """The stored curve. Counts of a process go to that process, or all to the first if the number of processes has changed."""
    for field in fields(curve):
        setattr(curve, field.name, state["curve"][field.name])
    now = PartialState()
    for name in COUNTED:
        theirs = [counts[name] for counts in state["counts"]]
        own = theirs[now.process_index] if len(theirs) == now.num_processes else sum(theirs) if now.is_main_process else 0
        setattr(curve, name, own)
