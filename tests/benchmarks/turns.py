"""Sides of a comparison take turns, each in a process of its own with empty caches: what else runs meets all of them."""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

from transformers import TrainerCallback

SKIPPED = 5
"""Steps that are not counted: memory is taken, kernels are chosen."""


def ask(sides: Sequence[str], steps: int, methods: Sequence[str] = ("full",)) -> tuple[argparse.Namespace, list[str]]:
    """The command line of a benchmark on rows with a label; and the words that tell a side's process of it."""
    asked = argparse.ArgumentParser()
    asked.add_argument("data")
    asked.add_argument("--label", default="category")
    asked.add_argument("--batch-size", type=int, default=32)
    asked.add_argument("--steps", type=int, default=steps)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--method", choices=methods, default=methods[0])
    asked.add_argument("--side", choices=sides)
    given = asked.parse_args()
    words = [f"--{name.replace('_', '-')}={getattr(given, name)}" for name in ("label", "batch_size", "steps", "method")]
    return given, [given.data, *words]


def take_turns(module: str, sides: Sequence[str], rounds: int, words: Sequence[str]) -> dict[str, list[dict[str, float]]]:
    """Each side's printed figures (the last line, JSON) of each round."""
    found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
    for side in [*sides] * rounds:
        command = [sys.executable, "-m", module, *words, "--side", side]
        with tempfile.TemporaryDirectory() as empty:
            done = subprocess.run(command, env={**os.environ, "HF_HOME": empty}, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{side} failed: {done.stderr[-2000:]}")
        found[side].append(json.loads(done.stdout.splitlines()[-1]))
        print(side, found[side][-1], flush=True)
    return found


def medians(found: dict[str, list[dict[str, float]]], figure: str) -> dict[str, float]:
    """Of each side the median over rounds."""
    return {side: statistics.median(each[figure] for each in runs) for side, runs in found.items()}


class Watch(TrainerCallback):
    """Notes, after each step, the time and how much was done: so many rows in each, or as `done` says."""

    def __init__(self, rows: int = 0, done: Callable[[], float] | None = None):
        self.rows, self.done, self.noted = rows, done, list[tuple[float, float]]()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.noted.append((time.perf_counter(), self.done() if self.done else state.global_step * self.rows))

    def rate(self) -> float:
        """How much was done in a second, after the first steps."""
        (start, before), (end, after) = self.noted[SKIPPED - 1], self.noted[-1]
        return (after - before) / (end - start)
