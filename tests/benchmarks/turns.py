"""Sides of a comparison take turns, each time in a process of its own: what else the machine does meets all of them."""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

SKIPPED = 5
"""Steps that are not counted: memory is taken, kernels are chosen."""


def take_turns(module: str, sides: Sequence[str], rounds: int, words: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Each side's printed figures (the last line, JSON) of each round."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for side in [*sides] * rounds:
        command = [sys.executable, "-m", module, *words, "--side", side]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{side} failed: {done.stderr[-2000:]}")
        found[side].append(json.loads(done.stdout.splitlines()[-1]))
        print(side, found[side][-1], flush=True)
    return found


def medians(found: dict[str, list[dict[str, float]]], figure: str) -> dict[str, float]:
    """Of each side the median over rounds."""
    return {side: statistics.median(each[figure] for each in runs) for side, runs in found.items()}


class Watch(TrainerCallback):
    """Notes, after each step, the time and how much was done."""

    def __init__(self, done: Callable[[], float]):
        self.done, self.noted = done, list[tuple[float, float]]()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.noted.append((time.perf_counter(), self.done()))

    def rate(self) -> float:
        """How much was done in a second, after the first steps."""
        (start, before), (end, after) = self.noted[SKIPPED - 1], self.noted[-1]
        return (after - before) / (end - start)
