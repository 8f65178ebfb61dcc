"""What has changed since a run was begun takes effect, or is named and refused."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import hf_sft
from hf_sft.config.machine import MICRO_BATCH_TOKENS
from hf_sft.storage import checkpoint_files as kept
from hf_sft.trainer.signals import Interrupted
from hf_sft.trainer.step_trainer import StepTrainer
from tests import stopping, tiny
from tests.integration.resuming.resuming_cases import stop_full
from tests.processes import LONG


def test_what_has_changed_is_named_and_refused_unless_it_is_wanted(recipes, tmp_path, stop_in_step, monkeypatch, capsys):
    stop_full(recipes, tmp_path / "run", stop_in_step)
    recipe = recipes["full"]
    other = {**recipe, "training": recipe["training"] | {"learning_rate": 1e-3, "save_minutes": 3}}
    with pytest.raises(hf_sft.RecipeError) as error:
        stopping.train(other, tmp_path / "run", resume=True)
    assert "\n  recipe.training.learning_rate: 0.003, and now 0.001\n" in str(error.value)
    assert "save_minutes" not in str(error.value) and "--resume-anyway" in str(error.value)
    with monkeypatch.context() as patch:
        patch.setattr("hf_sft.runs.resume.package_versions", lambda: {"torch": "9.9"})
        with pytest.raises(hf_sft.RecipeError, match=r"packages\.torch: .*, and now 9\.9"):
            stopping.train(recipe, tmp_path / "run", resume=True)
    train = Path(recipe["data"]["data_files"]["train"])
    before = train.read_text()
    try:
        train.write_text(before.replace("sport", "law", 1))
        with pytest.raises(hf_sft.RecipeError, match=r"data\.train: \w+, and now \w+"):
            stopping.train(recipe, tmp_path / "run", resume=True)
    finally:
        train.write_text(before)
    assert kept.list_steps(tmp_path / "run" / "checkpoints" / "0")
    stopping.train(other, tmp_path / "run", resume_anyway=True)
    assert "gone on with although it has changed: recipe.training.learning_rate" in capsys.readouterr().err


def test_other_processes_or_another_device_are_told_and_equal_ones_are_not(recipes, tmp_path, stop_in_step, capsys):
    stop_full(recipes, tmp_path / "run", stop_in_step, step=7)
    shutil.copytree(tmp_path / "run", tmp_path / "moved")
    begun = tmp_path / "moved" / "checkpoints" / "run.json"
    described = json.loads(begun.read_text())
    described["machine"] |= {"device": "cuda", "processes": 2}
    begun.write_text(json.dumps(described))
    capsys.readouterr()
    for name, told in (("run", False), ("moved", True)):
        stopping.train(recipes["full"], tmp_path / name, resume=True)
        said = capsys.readouterr().err
        assert ("begun by 2 process(es), gone on with by 1: the same rows in the same steps" in said) is told
        assert ("begun on cuda, gone on with on cpu: dropout draws and sums are rounded otherwise." in said) is told
        assert ("begun" in said) is told
    assert stopping.fingerprint(tmp_path / "run")[0] == stopping.fingerprint(tmp_path / "moved")[0]


@pytest.mark.parametrize("decided", ["precision", "threads", "micro_batch_tokens"])
def test_what_the_machine_decided_in_the_beginning_stays_where_it_is_gone_on_with(
    decided, recipes, tmp_path, stop_in_step, monkeypatch, capsys
):
    """Precision from the launcher, threads and micro-batches from the machine: the bits are those of a run that began so."""
    recipe = {**recipes["full"], "training": {**recipes["full"]["training"], "bf16": None, "micro_batch_tokens": None}}
    threads = torch.get_num_threads()

    def machine(of_the_beginning: bool) -> None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16" if of_the_beginning else "no")
        monkeypatch.setattr("hf_sft.config.machine._has_native_bf16", lambda device: False)
        if decided == "threads":
            torch.set_num_threads(1 if of_the_beginning else 2)
        if decided == "micro_batch_tokens":
            monkeypatch.setitem(MICRO_BATCH_TOKENS, "cpu", 50 if of_the_beginning else 1024)

    try:
        machine(True)
        stopping.train(recipe, tmp_path / "whole")
        stop_in_step(6)
        with pytest.raises(Interrupted):
            stopping.train(recipe, tmp_path / "run")
        monkeypatch.undo()
        machine(False)
        capsys.readouterr()
        step, threads_then = StepTrainer.training_step, []
        monkeypatch.setattr(
            StepTrainer, "training_step", lambda *how: threads_then.append(torch.get_num_threads()) or step(*how)
        )
        stopping.train(recipe, tmp_path / "run", resume=True)
        assert {*threads_then} == {1 if decided == "threads" else threads}
        assert torch.get_num_threads() == (2 if decided == "threads" else threads), "the program's own, afterwards"
        told = capsys.readouterr().err
        then, now = (stopping.fingerprint(tmp_path / name) for name in ("whole", "run"))
        assert now[0] == then[0]
        assert now[1]["environment"] == then[1]["environment"] and now[1]["environment"]["precision"] == "bf16"
        assert f"{decided}: {now[1]['environment'][decided]}, as it was begun, and not" in told
    finally:
        torch.set_num_threads(threads)


def rates(output: Path) -> list[float]:
    return json.loads((output / "report.json").read_text())["training"]["curves"][0]["learning_rates"]


@pytest.mark.parametrize(
    "changed",
    [
        {"learning_rate": 1e-3},
        {"learning_rate": 9e-3, "warmup_steps": 20},
        {"lr_scheduler_type": "cosine"},
        {"lr_scheduler_type": "constant_with_warmup", "learning_rate": 1e-4},
        {"num_train_epochs": 8},
    ],
    ids=str,
)
def test_a_changed_rate_takes_effect_at_the_next_step_and_the_report_has_every_steps(changed, recipes, tmp_path, stop_in_step):
    recipe = {**recipes["head_only"], "aids": []}
    other = {**recipe, "training": recipe["training"] | changed}
    for name, each in (("old", recipe), ("new", other)):
        stopping.train(each, tmp_path / name)
    stop_in_step(12)
    with pytest.raises(Interrupted):
        stopping.train(recipe, tmp_path / "run")
    stop_in_step(2)
    with pytest.raises(Interrupted):
        stopping.train(other, tmp_path / "run", resume_anyway=True)
    stopping.train(other, tmp_path / "run", resume=True)  # which by now is its own recipe
    assert rates(tmp_path / "run") == rates(tmp_path / "old")[:12] + rates(tmp_path / "new")[12:]
    assert rates(tmp_path / "run")[12:] != rates(tmp_path / "old")[12:]
    facts = json.loads((tmp_path / "run" / "report.json").read_text())
    (change,) = facts["training"]["changes"]
    assert change["after"] == "0/checkpoint-12"
    assert sorted(each.partition(":")[0] for each in change["changed"]) == sorted(
        f"recipe.training.{name}" for name in changed
    )
    assert any("resumed after 0/checkpoint-12 with a changed recipe" in note for note in facts["data"]["warnings"])


@pytest.mark.parametrize(
    "changed",
    [{"weight_decay": 0.5}, {"adam_beta1": 0.5}, {"adam_epsilon": 0.1}, {"optim": "sgd", "optim_args": "momentum=0.1"}],
    ids=str,
)
def test_what_else_the_recipe_says_of_the_optimizer_takes_effect_too(changed, recipes, tmp_path, stop_in_step, monkeypatch):
    recipe = {**recipes["full"], "aids": []}
    recipe["training"] = recipe["training"] | {"optim": changed.get("optim", "adamw_torch_fused")}
    if "optim" in changed:
        recipe["training"] |= {"optim_args": "momentum=0.9"}
    stop_in_step(12)
    with pytest.raises(Interrupted):
        stopping.train(recipe, tmp_path / "run")
    seen, step = [], StepTrainer.training_step

    def noted(self: StepTrainer, *given: Any) -> torch.Tensor:
        seen.append([{k: v for k, v in group.items() if k not in ("params", "lr")} for group in self._groups()])
        return step(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(StepTrainer, "training_step", noted)
        other = {**recipe, "training": recipe["training"] | changed}
        stopping.train(other, tmp_path / "run", resume_anyway=True)
        resumed, seen = seen, []
        patch.setattr(StepTrainer, "training_step", lambda self, *given: seen.append(self._read_rates()) or step(self, *given))
        stopping.train(other, tmp_path / "anew")
    fresh = [{k: v for k, v in group.items() if k != "lr"} for group in seen[0]]
    assert resumed and all(each == fresh for each in resumed)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"training": {"optim": "sgd"}},
            r"`training\.optim` can't change in the middle of a run \(.*: adamw.*, and now sgd\)",
        ),
        (
            {"training": {"lr_scheduler_type": "reduce_lr_on_plateau"}},
            r"`training\.lr_scheduler_type` can't change in the middle .* with LambdaLR, and this is ReduceLROnPlateau",
        ),
        ({"method": {"type": "lora"}}, r"`method\.type` can't change in the middle of a run"),
        ({"aids": [{"type": "layerwise_lr"}]}, r"does not fit the model, the method and the data that the recipe names now"),
    ],
    ids=str,
)
def test_a_change_that_cannot_take_effect_is_refused(changed, message, recipes, tmp_path, stop_in_step):
    recipe = recipes["full"]
    stop_full(recipes, tmp_path / "run", stop_in_step)
    other = {**recipe, **changed, "training": recipe["training"] | changed.get("training", {})}
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("checkpoint-*/*")}
    with pytest.raises(hf_sft.RecipeError, match=message):
        stopping.train(other, tmp_path / "run", resume_anyway=True)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("checkpoint-*/*")} == before
    stopping.train(recipe, tmp_path / "run", resume=True)


def test_a_finished_run_of_another_recipe_is_not_taken_for_this_ones(recipes, tmp_path, capsys, monkeypatch):
    recipe = recipes["head_only"]
    stopping.train(recipe, tmp_path / "run")
    before = contents(tmp_path / "run")
    other = {**recipe, "seed": 3, "training": recipe["training"] | {"batch_size": 5, "save_minutes": 1}}
    with pytest.raises(hf_sft.RecipeError) as error:
        stopping.train(other, tmp_path / "run", resume=True)
    assert "holds a finished run of another recipe; what has changed:" in str(error.value)
    assert "recipe.seed: 0, and now 3" in str(error.value)
    assert "recipe.training.batch_size: 8, and now 5" in str(error.value)
    assert "save_minutes" not in str(error.value)
    again = hf_sft.train({**recipe, "output": {"folder": str(tmp_path / "run")}}, resume=True)
    assert again.facts["recipe"]["seed"] == 0
    hf_sft.train(tmp_path / "run" / "recipe.yaml", resume=True)  # the resolved one is the same
    with pytest.raises(hf_sft.RecipeError, match=r"recipe\.seed: 0, and now 4"):
        hf_sft.train(tmp_path / "run" / "recipe.yaml", ["seed=4"], resume=True)
    assert contents(tmp_path / "run") == before


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_micro_batches_that_memory_has_cut_stay_so_when_it_goes_on(recipes, tmp_path, stop_in_step, monkeypatch, capsys):
    from hf_sft.tasks.sequence_classification import SequenceClassification

    items = SequenceClassification.items

    def in_room(self: Any, model: Any, batch: Any) -> Any:
        if model.training and batch["input_ids"].numel() > 30:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        return items(self, model, batch)

    monkeypatch.setattr(SequenceClassification, "items", in_room)
    stop_full(recipes, tmp_path / "run", stop_in_step, step=7)
    assert "from now on micro-batches of 16 tokens" in capsys.readouterr().err
    stopping.train(recipes["full"], tmp_path / "run", resume=True)
    assert "Out of memory" not in capsys.readouterr().err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["training"]["phases"][0]["micro_batch_tokens"] == 16


def test_begun_by_two_processes_it_goes_on_by_one_and_when_one_dies_the_other_says_so(checkpoints, tmp_path, capsys):
    """Without dropout: the same rows in the same steps, so the same weights but for rounding."""
    files = tiny.write_rows(tmp_path / "data", tiny.PROBLEMS[0], train=40)
    training = {"max_steps": 4000, "optim": "adamw_torch", "learning_rate": 1e-4, "eval_strategy": "steps", "eval_steps": 20}
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "whole", training=training)
    process = stopping.launch(recipe, tmp_path / "run")
    phase = tmp_path / "run" / "checkpoints" / "0"
    while not kept.list_steps(phase) and process.poll() is None:
        time.sleep(0.02)
    workers = [int(pid) for pid in subprocess.check_output(["pgrep", "-P", str(process.pid)], text=True).split()]
    (second,) = [pid for pid in workers if b"\0RANK=1\0" in b"\0" + Path(f"/proc/{pid}/environ").read_bytes()]
    os.kill(second, signal.SIGKILL)
    assert process.wait(LONG) != 0
    said = stopping.said(tmp_path / "run")
    assert re.search(r"another process of this run has ended|Interrupted\.  `.*` is kept\.", said), said[-3000:]
    stop = kept.step_of(kept.list_steps(phase)[-1]) + 3
    whole = {**recipe, "training": recipe["training"] | {"max_steps": stop}}
    hf_sft.train(whole)
    stopping.train(whole, tmp_path / "run", resume_anyway=True)
    assert "begun by 2 process(es), gone on with by 1: the same rows in the same steps" in capsys.readouterr().err
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "run"))
    apart = sum(float((one[name] - two[name]).square().sum()) for name in one)
    assert apart / sum(float(tensor.square().sum()) for tensor in one.values()) < 1e-10
    curves = [json.loads((tmp_path / each / "report.json").read_text())["training"]["curves"][0] for each in ("whole", "run")]
    assert [(curve["examples"], curve["tokens"]) for curve in curves] == [(curves[0]["examples"], curves[0]["tokens"])] * 2
