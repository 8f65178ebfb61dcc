"""Dropout on a CPU, from a few random numbers: PyTorch draws one for each element, on one thread, for a third of a step.

Four elements share the bits of one 64-bit number, so the probability is exact to 2**-17. The numbers come from PyTorch's own
generator: the same seed drops the same elements, and a resumed run goes on where it was.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from hf_sft.trainer.fit_config import FitConfig, FitState

LANES, RANGE = 4, 2**16


@contextlib.contextmanager
def cpu_dropout(state: FitState, config: FitConfig) -> Iterator[FitState]:
    """On a CPU, `drop` in place of PyTorch's dropout while a step is taken.

    Not with activation checkpointing, which would meet other random numbers when it computes activations again, and not with
    torch.compile, whose graph would break at each dropout.
    """
    training = state.phase.training
    if config.machine.device == "cpu" and not training.activation_checkpointing and not training.torch_compile:
        state.curve.dropout = "hf_sft"
        state = replace(state, in_step=(*state.in_step, CpuDropout))
    yield state


class CpuDropout(TorchFunctionMode):
    """While this is active, `torch.nn.functional.dropout` (and so `nn.Dropout`) is `drop`."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is functional.dropout:
            return drop(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def __exit__(self, *raised: Any) -> None:
        # PyTorch takes the mode off while it runs: an interrupt may come just then, and must not become another error.
        interrupted = raised[0] is not None and issubclass(raised[0], KeyboardInterrupt)
        with contextlib.suppress(*([RuntimeError] if interrupted else [])):
            super().__exit__(*raised)


def drop(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero each element with probability `p` and scale the others by 1 / (1 - p)."""
    if not training or p == 0.0:
        return input
    if p == 1.0:
        return input * 0.0
    bits = torch.empty(-(-input.numel() // LANES), dtype=torch.int64).random_(-(2**63), None)
    lanes = bits.view(torch.int16)[: input.numel()].view(input.shape)
    mask = lanes >= round(p * RANGE) - RANGE // 2
    return input.mul(mask).mul_(1 / (1 - p))
