"""Sides of a comparison take turns, each in a process of its own with empty caches: what else runs meets all of them."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from transformers import TrainerCallback

SKIPPED = 5
"""Steps that are not counted: memory is taken, kernels are chosen."""


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
    """Notes the time after each step, of so many rows."""

    def __init__(self, rows: int):
        self.rows, self.noted = rows, list[float]()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.noted.append(time.perf_counter())

    def rate(self) -> float:
        """Rows per second, after the first steps."""
        counted = self.noted[SKIPPED - 1 :]
        return self.rows * (len(counted) - 1) / (counted[-1] - counted[0])
