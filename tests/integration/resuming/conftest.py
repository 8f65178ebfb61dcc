"""Fixtures of this folder."""

import os
import signal
from typing import Any

import pytest
import torch

from hf_sft.trainer.step_trainer import StepTrainer
from tests import stopping
from tests.processes import LONG


@pytest.fixture(scope="module")
def recipes(checkpoints, tmp_path_factory) -> dict[str, dict[str, Any]]:
    return stopping.recipes(checkpoints, tmp_path_factory.mktemp("recipes"))


@pytest.fixture(scope="module")
def unstopped(recipes, tmp_path_factory):
    """The weights' hash and the report of a recipe that nobody stops, by its name."""
    folder, found = tmp_path_factory.mktemp("unstopped"), {}

    def run(name: str) -> tuple[str, dict[str, Any]]:
        if name not in found:
            process = stopping.start(recipes[name], folder / name)
            process.join(LONG)
            assert process.exitcode == 0, stopping.said(folder / name)
            found[name] = stopping.fingerprint(folder / name)
        return found[name]

    return run


@pytest.fixture
def stop_in_step(monkeypatch):
    """Have this process sent a signal in the middle of a step, counted over all phases."""
    step = StepTrainer.training_step

    def arrange(number: int, sent: int = signal.SIGTERM) -> None:
        taken = []

        def signalled(self: StepTrainer, *how: Any) -> torch.Tensor:
            taken.append(1)
            if len(taken) == number:
                os.kill(os.getpid(), sent)
            return step(self, *how)

        monkeypatch.setattr(StepTrainer, "training_step", signalled)

    return arrange
