"""Runs that are stopped at some moment, gone on with, and compared with the one that nobody stopped."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from tests import ROOT, tiny
from tests.processes import LONG, SERVER


def dropping(checkpoint: Path, folder: Path, share: float = 0.1) -> Path:
    """The tiny checkpoint with dropout: what is drawn counts."""
    if folder.is_dir():
        return folder
    folder.mkdir(parents=True)
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config |= {name: share for name in config if "drop" in name and isinstance(config[name], float)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def recipes(checkpoints: dict[str, Path], folder: Path) -> dict[str, dict[str, Any]]:
    """Dropout, early stopping, the best checkpoint chosen, AdamW: all that has to be remembered; by name, without output."""
    files = tiny.write_rows(folder / "data", tiny.PROBLEMS[0], train=40)
    found = {}
    for name, family, method, bf16, strategy in (
        ("full", "bert", "full", False, {"eval_strategy": "epoch"}),
        ("full_bf16", "gpt2", "full", True, {"eval_strategy": "steps", "eval_steps": 4}),
        ("lora", "bert", "lora", False, {"eval_strategy": "steps", "eval_steps": 3}),
        ("head_only", "bert", "head_only", False, {"eval_strategy": "epoch"}),
        ("two_phases", "bert", "lp_ft", True, {"eval_strategy": "epoch"}),
    ):
        training = {"optim": "adamw_torch_fused", "learning_rate": 3e-3, "lr_scheduler_type": "linear", "bf16": bf16}
        training |= {"warmup_steps": 3, "max_steps": -1, "num_train_epochs": 6, "batch_size": 8, "micro_batch_tokens": 64}
        checkpoint = dropping(checkpoints[family], folder / f"dropping-{family}")
        aids = [{"type": "early_stopping", "patience": 4}]
        made = tiny.recipe(checkpoint, files, folder / name, method, training=training | strategy, aids=aids)
        if name == "two_phases":
            made["method"]["head"] = {"num_train_epochs": 2}
        found[name] = made
    return found


def train(recipe: dict[str, Any], output: Path, **how: Any) -> None:
    import hf_sft

    hf_sft.train({**recipe, "output": {"folder": str(output)}}, **how)


At: TypeAlias = tuple[str, int, str]
"""At which `step`, `save` or `evaluation`, counted from 1, a process is killed (`kill`), or stays for ever (`stay`)."""


def _child(recipe: dict[str, Any], output: Path, slowly: float, at: At | None, how: dict[str, Any], told: str) -> None:
    from hf_sft.trainer import step_trainer as trainer
    from hf_sft.trainer.signals import Interrupted

    with open(told, "w") as said:
        os.dup2(said.fileno(), 2)
    tiny.train_quickly()
    steps, step = Path(f"{output}.steps"), trainer.StepTrainer.training_step

    def counted(*how: Any) -> Any:
        with steps.open("a") as taken:
            taken.write(".")
        return step(*how)

    trainer.StepTrainer.training_step = counted
    slow_down(slowly)
    if at is not None:
        _end_at(output, *at)
    try:
        train(recipe, output, **how)
    except Interrupted as interrupted:
        os._exit(interrupted.status)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    os._exit(0)


def _end_at(output: Path, point: str, number: int, what: str) -> None:
    from hf_sft.storage import checkpoint_files as checkpoints
    from hf_sft.trainer import step_trainer as trainer

    step = (trainer.StepTrainer, "training_step")
    owner, name = {"step": step, "save": (checkpoints, "save_file"), "evaluation": (trainer.StepTrainer, "evaluate")}[point]
    function, calls = getattr(owner, name), []

    def ended(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == number and what == "kill":
            if point == "save":  # when half of the file is there
                function(*args, **kwargs)
                os.truncate(args[1], Path(args[1]).stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        while len(calls) == number and what == "stay":
            Path(f"{output}.heard" if args[0].signal_handler.signal_number else f"{output}.there").touch()
            time.sleep(0.02)
        return function(*args, **kwargs)

    setattr(owner, name, ended)


def slow_down(seconds: float) -> None:
    """Have each step, save and evaluation take so much longer, so that none is missed."""
    from hf_sft.evaluation import inference
    from hf_sft.storage import checkpoint_files as checkpoints
    from hf_sft.trainer import step_trainer as trainer

    for module, name in ((trainer.StepTrainer, "training_step"), (checkpoints, "save_file"), (inference, "cut_step")):
        setattr(module, name, _slow(getattr(module, name), seconds))


def _slow(function: Any, seconds: float) -> Any:
    def slowed(*args: Any, **kwargs: Any) -> Any:
        time.sleep(seconds / 2)
        result = function(*args, **kwargs)
        time.sleep(seconds / 2)
        return result

    return slowed


def start(recipe: dict[str, Any], output: Path, slowly: float = 0.0, at: At | None = None, **how: Any) -> Any:
    """A process that trains; what it says is in `OUTPUT.said`. One that stays writes `OUTPUT.there`, and `OUTPUT.heard` when
    it was sent a signal."""
    process = SERVER.Process(target=_child, args=(recipe, output, slowly, at, how, f"{output}.said"))
    process.start()
    return process


def count_steps(output: Path) -> int:
    """That were begun so far, over all processes that were started for it."""
    steps = Path(f"{output}.steps")
    return steps.stat().st_size if steps.exists() else 0


def said(output: Path) -> str:
    return Path(f"{output}.said").read_text()


def launch(recipe: dict[str, Any], output: Path, **how: Any) -> subprocess.Popen[bytes]:
    """The recipe by two processes, in a group of their own; what they say is in `OUTPUT.said`. `how` is as train_cases.py
    takes it."""
    cases = Path(f"{output}.json")
    cases.write_text(json.dumps([{**recipe, "output": {"folder": str(output)}}]))
    config = ["--config_file", str(ROOT / "accelerate_configs" / "cpu_multi.yaml")]
    program = [str(ROOT / "tests" / "train_cases.py"), str(cases), json.dumps(how)]
    with Path(f"{output}.said").open("a") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "accelerate.commands.launch", *config, *program],
            start_new_session=True,
            stdout=said,
            stderr=said,
        )


def stop_after(process: Any, output: Path, seconds: float, number: int) -> int | None:
    """Send a signal so long after training began; gives the exit status."""
    wait_until_begun(output, process.is_alive)
    time.sleep(seconds)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, number)
    process.join(LONG)
    return process.exitcode


def wait_until_begun(output: Path, alive: Callable[[], bool]) -> None:
    """Until a run takes its first steps, or is dead."""
    while alive() and not (output / "checkpoints" / "run.json").exists():
        time.sleep(0.005)


def fingerprint(output: Path) -> tuple[str, dict[str, Any]]:
    """Of a finished run the hash of its weights, and its report without times."""
    weights = hashlib.sha256((output / "model.safetensors").read_bytes()).hexdigest()
    facts = json.loads((output / "report.json").read_text())
    facts["files"] = {
        name: None if name in DATED or name.startswith("probes/rows/") else h for name, h in facts["files"].items()
    }
    return weights, _timeless(facts)


TIMES = ("seconds", "examples_per_second", "tokens_per_second", "peak_memory_bytes", "output")
DATED = ("README.md", "report.html", "recipe.yaml")
"""Files that say how long it took, and where it is."""


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(each) for name, each in value.items() if name not in TIMES}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def damage(path: Path, how: str) -> None:
    """Truncate a file, or flip one bit in its middle."""
    content = bytearray(path.read_bytes())
    if how == "truncated":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2] ^= 4
    path.write_bytes(bytes(content))
