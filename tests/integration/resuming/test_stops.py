"""A run that was stopped, at whatever moment, ends as the run that nobody stopped, bit for bit."""

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import yaml

import hf_sft
from hf_sft.cli import app
from hf_sft.storage import checkpoint_files as kept
from hf_sft.storage.atomic_folder import is_intact
from hf_sft.trainer import signals
from hf_sft.trainer.signals import Interrupted
from tests import stopping
from tests.processes import LONG


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
    assert is_intact(newest) and newest.name in (f"checkpoint-{of_phase}", kept.FINISHED)
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
