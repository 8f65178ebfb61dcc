"""Nothing is lost: a run that was stopped, at whatever moment, ends as the run that nobody stopped, bit for bit."""

import errno
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as some
from safetensors.torch import load_file

import hf_sft
from hf_sft.cli import app
from hf_sft.config.machine import MICRO_BATCH_TOKENS
from hf_sft.errors import Diverged, SaveError
from hf_sft.storage import checkpoint_files as kept
from hf_sft.storage.atomic_folder import is_whole
from hf_sft.trainer import signals
from hf_sft.trainer.signals import Interrupted
from hf_sft.trainer.step_trainer import StepTrainer
from tests import processes, stopping, tiny
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


@pytest.mark.parametrize(
    ("name", "point", "number"),
    [
        ("full", "save", 3),
        ("full_bf16", "step", 11),
        ("lora", "evaluation", 3),
        ("head_only", "step", 8),
        ("two_phases", "step", 16),
        ("two_phases", "save", 1),
    ],
)
def test_a_run_that_was_killed_ends_in_the_bits_of_one_that_was_not(name, point, number, recipes, unstopped, tmp_path):
    """In a step, in the middle of a checkpoint's file, before an evaluation."""
    process = stopping.start(recipes[name], tmp_path / "run", at=(point, number, "kill"))
    process.join(LONG)
    assert process.exitcode == -signal.SIGKILL, stopping.said(tmp_path / "run")
    assert (tmp_path / "run" / "checkpoints" / "run.json").exists()
    again = stopping.start(recipes[name], tmp_path / "run", resume=True)
    again.join(LONG)
    assert again.exitcode == 0, stopping.said(tmp_path / "run")
    assert stopping.fingerprint(tmp_path / "run") == unstopped(name)
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "step", "sent", "status"),
    [
        ("full", 7, signal.SIGTERM, 143),
        ("full", 10, signal.SIGINT, 130),  # ends an epoch: its evaluation is not lost
        ("full_bf16", 8, signal.SIGUSR1, 143),
        ("lora", 2, signal.SIGTERM, 143),
        ("head_only", 11, signal.SIGINT, 130),
        ("two_phases", 3, signal.SIGTERM, 143),
        ("two_phases", 10, signal.SIGTERM, 143),  # ends the first phase
        ("two_phases", 17, signal.SIGUSR1, 143),
    ],
)
def test_a_signal_ends_the_step_and_is_answered_by_a_checkpoint(
    name, step, sent, status, recipes, unstopped, tmp_path, stop_in_step, capsys
):
    stop_in_step(step, sent)
    with pytest.raises(Interrupted) as stopped:
        stopping.train(recipes[name], tmp_path / "run")
    assert stopped.value.status == status
    phase, of_phase = (1, step - 10) if name == "two_phases" and step > 10 else (0, step)
    found = tmp_path / "run" / "checkpoints" / str(phase)
    newest = kept.list_steps(found)[-1] if kept.list_steps(found) else found / kept.FINISHED
    assert is_whole(newest) and newest.name in (f"checkpoint-{of_phase}", kept.FINISHED)
    said = capsys.readouterr().err
    assert f"Interrupted.  `{newest}` is kept.\nTo go on: the same command with --resume" in said
    assert signal.getsignal(sent) in (signal.SIG_DFL, signal.default_int_handler)
    with pytest.raises(
        hf_sft.RecipeError, match=r"holds an unfinished run\.\n  To go on with it: the same command with --resume"
    ):
        stopping.train(recipes[name], tmp_path / "run")
    stopping.train(recipes[name], tmp_path / "run", resume=True)
    assert stopping.fingerprint(tmp_path / "run") == unstopped(name)


def test_stopped_before_the_first_step_nothing_is_left_and_with_resume_it_begins(recipes, tmp_path, monkeypatch, capsys):
    def interrupt(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr("hf_sft.runs.train.fit_phases", interrupt)
        stopping.train(recipes["lora"], tmp_path / "run")
    assert "Interrupted, before there was anything to keep." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    stopping.train(recipes["lora"], tmp_path / "run", resume=True)
    assert "holds nothing to go on with: the run begins." in capsys.readouterr().err
    (tmp_path / "run" / "checkpoints" / "0").mkdir(parents=True)  # as it is when the very last moment is missing
    stopping.train(recipes["lora"], tmp_path / "run", resume=True)
    assert "holds a finished run: there is nothing left to train." in capsys.readouterr().err
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_second_signal_ends_the_process_at_once(recipes, tmp_path):
    """In a step that never ends: one signal waits for its end, a second one does not."""
    process = stopping.start(recipes["full"], tmp_path / "run", at=("step", 3, "stay"))
    for mark in ("there", "heard"):
        while not (tmp_path / f"run.{mark}").exists() and process.is_alive():
            time.sleep(0.02)
        time.sleep(0 if mark == "there" else 1.1 * signals.TWICE)
        assert process.is_alive(), stopping.said(tmp_path / "run")
        os.kill(process.pid, signal.SIGTERM)
    process.join(LONG)
    assert process.exitcode == -signal.SIGTERM


def stop_full(recipes: dict[str, dict[str, Any]], output: Path, stop_in_step: Any, step: int = 12, **changes: Any) -> None:
    stop_in_step(step)
    recipe = recipes["full"]
    with pytest.raises(Interrupted):
        stopping.train({**recipe, "training": recipe["training"] | changes}, output)


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(how, recipes, unstopped, tmp_path, stop_in_step, capsys):
    stop_full(recipes, tmp_path / "run", stop_in_step)
    phase = tmp_path / "run" / "checkpoints" / "0"
    assert [path.name for path in kept.list_steps(phase)] == ["checkpoint-5", "checkpoint-10", "checkpoint-12"]
    files = sorted(path.name for path in (phase / "checkpoint-12").iterdir())
    assert files == ["model.safetensors", "state.json", "state.safetensors", "sums.json"]
    for number, name in enumerate(files):
        shutil.copytree(tmp_path / "run", tmp_path / f"run{number}")
        stopping.damage(tmp_path / f"run{number}" / "checkpoints" / "0" / "checkpoint-12" / name, how)
        stopping.train(recipes["full"], tmp_path / f"run{number}", resume=True)
        said = capsys.readouterr().err
        assert "checkpoint-12` is damaged: going back behind it." in said and "goes on after step 10." in said
        assert stopping.fingerprint(tmp_path / f"run{number}") == unstopped("full")
    for path in kept.list_steps(phase):
        stopping.damage(path / "model.safetensors", how)
    stop_in_step(7)
    with pytest.raises(Interrupted):
        stopping.train(recipes["full"], tmp_path / "run", resume=True)
    assert [(path.name, is_whole(path)) for path in kept.list_steps(phase)] == [("checkpoint-5", True), ("checkpoint-7", True)]
    stopping.train(recipes["full"], tmp_path / "run", resume=True)
    assert stopping.fingerprint(tmp_path / "run") == unstopped("full")


def test_where_the_best_is_damaged_it_goes_back_behind_it(recipes, unstopped, tmp_path, stop_in_step, capsys):
    stop_full(recipes, tmp_path / "run", stop_in_step)
    phase = tmp_path / "run" / "checkpoints" / "0"
    best = kept.read_state(phase / "checkpoint-12")["best_step"]
    stopping.damage(phase / f"checkpoint-{best}" / "model.safetensors", "flipped")
    stopping.train(recipes["full"], tmp_path / "run", resume=True)
    assert f"checkpoint-{best}` is damaged" in (said := capsys.readouterr().err)
    assert re.search(r"goes on after step (\d+)", said) is None or int(re.findall(r"after step (\d+)", said)[0]) < best
    assert stopping.fingerprint(tmp_path / "run") == unstopped("full")


def test_checkpoints_hold_no_code_and_can_be_read_by_others(recipes, tmp_path, stop_in_step, monkeypatch):
    stop_full(recipes, tmp_path / "run", stop_in_step)
    files = [path for path in (tmp_path / "run" / "checkpoints" / "0").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    os.umask(mask := os.umask(0))
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}
    assert {stat.S_IMODE(path.parent.stat().st_mode) for path in files} == {0o777 & ~mask}
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    stopping.train(recipes["full"], tmp_path / "run", resume=True)


def test_a_checkpoint_is_written_when_some_minutes_have_passed_and_changes_nothing(recipes, unstopped, tmp_path, monkeypatch):
    written, write = [], kept.write

    def note(path: Path, *parts: Any) -> None:
        written.append(path.name)
        write(path, *parts)

    monkeypatch.setattr(kept, "write", note)
    recipe = recipes["full"]
    stopping.train({**recipe, "training": recipe["training"] | {"save_minutes": 1e-9}}, tmp_path / "run")
    assert written[:11] == [f"checkpoint-{step}" for step in range(1, 12)]
    weights, _ = stopping.fingerprint(tmp_path / "run")
    assert weights == unstopped("full")[0]


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


def test_two_runs_in_one_folder_are_kept_apart_by_a_lock_that_the_dead_do_not_hold(recipes, tmp_path):
    first = stopping.start(recipes["full"], tmp_path / "run", slowly=0.2)
    stopping.wait_until_begun(tmp_path / "run", first.is_alive)
    with pytest.raises(hf_sft.RecipeError, match=f"another run is at work in `.*`: process {first.pid} on "):
        stopping.train(recipes["full"], tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "checkpoints" / "run.json").exists()
    first.kill()
    first.join()
    stopping.train(recipes["full"], tmp_path / "run", resume=True)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_or_one_that_may_only_be_read_costs_no_training(number, recipes, unstopped, tmp_path, monkeypatch, capsys):
    """Of all checkpoints only the first finds room: the best is kept in memory, and what is saved at the end is the same."""
    write = kept.write

    def full(path: Path, *parts: Any) -> None:
        if path.name != "checkpoint-5":
            raise OSError(number, os.strerror(number))
        write(path, *parts)

    monkeypatch.setattr(kept, "write", full)
    stopping.train(recipes["full"], tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count(f"checkpoint-10` can't be written: {os.strerror(number)}.  `") == 1 == said.count("can't be written")
    assert "checkpoint-5` is kept; the training goes on." in said
    assert stopping.fingerprint(tmp_path / "run") == unstopped("full")


def test_a_disk_that_is_full_at_the_end_leaves_what_can_be_gone_on_with_elsewhere(
    recipes, unstopped, tmp_path, monkeypatch, capsys
):
    write = kept.write

    def full(path: Path, *parts: Any) -> None:
        if path.name == kept.FINISHED:
            raise FULL
        write(path, *parts)

    def save(*_: Any) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(kept, "write", full)
        patch.setattr("hf_sft.runs.train.save_model", save)
        with pytest.raises(SaveError) as error:
            stopping.train(recipes["full"], tmp_path / "run")
    assert re.search(r"can't be written: No space left on device\.  `.*/checkpoint-\d+` is kept", str(error.value))
    told = rf"The checkpoint `{tmp_path}/run/checkpoints/0/{kept.FINISHED}` can't be written: No space left on device\."
    assert re.search(told, capsys.readouterr().err)
    assert f"cp -r {tmp_path / 'run'} OTHER, and the same command with --resume output.folder=OTHER" in str(error.value)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    stopping.train(recipes["full"], tmp_path / "other", resume=True)
    assert stopping.fingerprint(tmp_path / "other") == unstopped("full")


def test_what_safetensors_says_of_a_full_disk_is_understood(recipes, tmp_path):
    """A limit on the size of files, which is a real error of the disk: no checkpoint fits, and no model."""
    process = processes.SERVER.Process(target=_limited, args=(recipes["full"], tmp_path / "run"))
    process.start()
    process.join(LONG)
    said = stopping.said(tmp_path / "run")
    assert process.exitcode == 2 and "SaveError" in said and "can't be written: File too large" in said, said
    assert "there is none yet; the training goes on." in said and "Traceback" not in said


def _limited(recipe: dict[str, Any], output: Path) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    stopping._child(recipe, output, 0.0, None, {}, f"{output}.said")


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


STATES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(),
    lambda inner: some.lists(inner) | some.tuples(inner, inner) | some.dictionaries(some.text() | some.integers(), inner),
    max_leaves=20,
)


@given(STATES)
@settings(max_examples=50, deadline=None)
def test_a_state_comes_back_as_it_was(state):
    tensors: dict[str, torch.Tensor] = {}
    assert kept.unpack(json.loads(json.dumps(kept.pack(state, tensors))), tensors) == state


def test_tensors_and_arrays_come_back_and_what_would_need_code_is_refused():
    state = {"a": [torch.arange(3), (np.arange(4, dtype=np.uint32), np.float64(0.1))], 3: torch.zeros(())}
    tensors: dict[str, torch.Tensor] = {}
    found = kept.unpack(json.loads(json.dumps(kept.pack(state, tensors))), tensors)
    assert torch.equal(found["a"][0], state["a"][0]) and found[3].shape == ()
    assert found["a"][1][0].dtype == np.uint32 and found["a"][1][1] == 0.1
    with pytest.raises(TypeError, match="can't be kept in a checkpoint"):
        kept.pack({"f": len}, {})


def test_the_command_line_goes_on_too_with_the_right_exit_status(recipes, tmp_path):
    recipe = {**recipes["lora"], "output": {"folder": str(tmp_path / "run")}}
    recipe["training"] = recipe["training"] | {"num_train_epochs": 400, "disable_tqdm": True}
    recipe["aids"] = []
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "hf_sft", "train", str(tmp_path / "r.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not list((tmp_path / "run").glob("checkpoints/0/checkpoint-*")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    last = process.communicate(timeout=LONG)[1].strip().splitlines()[-1]
    assert process.returncode == 143 and last == "To go on: the same command with --resume (Python: resume=True)."
    with pytest.raises(hf_sft.RecipeError, match=r"It holds an unfinished one: train it with --resume\."):
        app(["predict", str(tmp_path / "run"), "a goal"], standalone_mode=False)
    with pytest.raises(hf_sft.RecipeError, match=r"recipe\.training\.num_train_epochs: 400\.0, and now 2\.0"):
        app(["train", str(tmp_path / "r.yaml"), "training.num_train_epochs=2", "--resume"], standalone_mode=False)


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


def test_what_to_do_stands_below_the_traceback_of_a_launcher(tmp_path):
    worker = "from hf_sft.trainer.signals import say_after_launcher; say_after_launcher('To go on: --resume')"
    launcher = f"""
import os, subprocess, sys, time
subprocess.run([sys.executable, "-c", {worker!r}], env={{**os.environ, "TORCHELASTIC_RUN_ID": "none"}}, check=True)
time.sleep(0.3)
raise SystemExit("the launcher's own words")
"""
    for program, lines in ((launcher, ["the launcher's own words", "To go on: --resume"]), (worker, [])):
        with (tmp_path / "said").open("w") as said:
            subprocess.run([sys.executable, "-c", program], stderr=said, check=False)
        until = time.monotonic() + LONG
        while (tmp_path / "said").read_text().splitlines() != lines and time.monotonic() < until:
            time.sleep(0.05)
        assert (tmp_path / "said").read_text().splitlines() == lines
