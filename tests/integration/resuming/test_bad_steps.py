"""A step whose loss or gradient is not finite."""

import json
import re
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from hf_sft.errors import Diverged
from hf_sft.trainer.step_trainer import StepTrainer
from tests import stopping


def poison(monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...], what: str) -> list[torch.Tensor]:
    """Have the loss, or the gradient alone, of some steps be no number; gives the weights after each step."""
    taken, seen, step = [], [], StepTrainer.training_step

    def poisoned(self: StepTrainer, model: Any, inputs: Any, count: Any = None) -> torch.Tensor:
        seen.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        loss = step(self, model, inputs, count)
        taken.append(1)
        if len(taken) in steps:
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.fill_(float("nan"))
            if what == "loss":
                loss.fill_(float("nan"))
        return loss

    monkeypatch.setattr(StepTrainer, "training_step", poisoned)
    return seen


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_step_without_numbers_ends_the_run_with_its_rows_and_the_last_good_checkpoint(
    what, recipes, unstopped, tmp_path, monkeypatch
):
    with monkeypatch.context() as patch:
        poison(patch, (8,), what)
        with pytest.raises(Diverged) as error:
            stopping.train(recipes["full"], tmp_path / "run")
    said = str(error.value)
    assert f"the {what} of step 8 is nan: the training has diverged" in said
    (rows,) = re.findall(r"The step's rows of train: ([\d, ]+)\.", said)
    order = np.random.default_rng((0, 1)).permutation(40)[16:24]
    assert [int(row) for row in rows.split(", ")] == sorted(order.tolist())
    assert "The last good checkpoint is `" in said and "checkpoint-5`: --resume" in said
    stopping.train(recipes["full"], tmp_path / "run", resume=True)
    assert stopping.fingerprint(tmp_path / "run") == unstopped("full")


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_as_many_such_steps_as_the_recipe_says_are_left_out(what, recipes, tmp_path, monkeypatch):
    seen = poison(monkeypatch, (8, 11), what)
    recipe = recipes["full"]
    allowed = {**recipe, "training": recipe["training"] | {"max_skipped_steps": 2, "warmup_steps": 0}}
    stopping.train(allowed, tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["training"]["phases"][0]["skipped"] == [8, 11]
    unmoved = [step for step in range(1, len(seen)) if torch.equal(seen[step - 1], seen[step])]
    assert unmoved == [8, 11]
    weights = load_file(tmp_path / "run" / "model.safetensors").values()
    assert all(bool(torch.isfinite(tensor).all()) for tensor in weights)
    with pytest.raises(Diverged, match="of step 11 is nan"):
        poison(monkeypatch, (8, 11), what)
        stopping.train({**recipe, "training": recipe["training"] | {"max_skipped_steps": 1}}, tmp_path / "second")
