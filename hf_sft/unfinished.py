"""A run folder before it is finished: who has it, what is trained there, and whether that is what should be gone on with."""

import contextlib
import json
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_sft.checkpoints import FINISHED, differences, list_steps
from hf_sft.errors import RecipeError
from hf_sft.recipe import Recipe
from hf_sft.report import package_versions
from hf_sft.runs import CHECKPOINTS, Prepared, say

RECORD, LOCK = "run.json", "lock"
"""Below `checkpoints/`: what is trained, and what a living process holds."""
HARMLESS = ("report_to", "run_name", "logging_steps", "disable_tqdm", "save_minutes", "save_total_limit", "ddp_timeout")
"""Fields of `training` that change nothing of what is learned."""


@contextlib.contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder is this run's, as long as it lives. Where no checkpoint was written, nothing is left in the end.

    Raises `RecipeError` where another run has it.
    """
    there, below, problem = folder.is_dir(), folder / CHECKPOINTS, None
    with contextlib.ExitStack() as files:
        if PartialState().is_main_process:
            below.mkdir(parents=True, exist_ok=True)
            problem = _lock(files.enter_context((below / LOCK).open("a+", encoding="utf-8")))
        (problem,) = broadcast_object_list([problem])
        if problem:
            raise RecipeError(
                f"another run is at work in `{folder}`: {problem}.\n  Wait for it, or give another folder (output.folder=…)."
            )
        try:
            yield
        finally:
            if PartialState().is_main_process and newest_kept(folder) is None:
                shutil.rmtree(below, ignore_errors=True)
                if not there and folder.is_dir() and not any(folder.iterdir()):
                    folder.rmdir()


def newest_kept(folder: Path) -> Path | None:
    """The newest checkpoint of a run's last phase that has one, whole or not."""
    for phase in sorted((folder / CHECKPOINTS).glob("[0-9]*"), reverse=True):
        if (phase / FINISHED).is_dir():
            return phase / FINISHED
        if steps := list_steps(phase):
            return steps[-1]
    return None


def _lock(file: IO[str]) -> str | None:
    """Hold a file until it is closed, or this process is gone; gives who holds it already."""
    try:
        import fcntl
    except ImportError:  # not a Unix: nobody is kept out
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read() or "a process that says no more"
    except OSError:  # a file system without locks
        return None
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}")
    file.flush()
    return None


def with_date_of(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe with the date that an unfinished run of it writes, where its chat template writes one."""
    record = folder / CHECKPOINTS / RECORD
    if not record.is_file() or getattr(recipe.task, "date", "") is not None:
        return recipe
    then = json.loads(record.read_text(encoding="utf-8"))["recipe"]["task"].get("date")
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"date": then})})


def begin(prepared: Prepared, folder: Path, resume: bool, anyway: bool) -> Prepared:
    """Note what is trained; or, to go on, see that it is the same, and give it the machine that it began with.

    Raises `RecipeError` where something else would be trained than what was begun.
    """
    record, now = folder / CHECKPOINTS / RECORD, _describe(prepared)
    then = json.loads(record.read_text(encoding="utf-8")) if resume and record.is_file() else None
    PartialState().wait_for_everyone()  # all have read it
    if then is not None:
        changed = [each for part in ("recipe", "data", "packages") for each in differences(then[part], now[part], part)]
        if changed and not anyway:
            raise RecipeError(
                f"`{folder}` can't be gone on with as it was begun; what has changed:\n  "
                + "\n  ".join(changed)
                + "\n  Put that back; or say --resume-anyway, and what comes out is neither the one run nor the other."
            )
        for each in changed:
            say(f"gone on with although it has changed: {each}")
        return _as_begun(prepared, then["machine"], now["machine"])
    if PartialState().is_main_process:
        if resume:
            say(f"`{folder}` holds nothing to go on with: the run begins.")
        aside = record.with_name(f".{RECORD}")
        aside.write_text(json.dumps(now, indent=1), encoding="utf-8")
        aside.replace(record)
    return prepared


def _describe(prepared: Prepared) -> dict[str, Any]:
    recipe = prepared.recipe.model_dump(mode="json", exclude={"output": True})
    recipe["training"] = {name: value for name, value in recipe["training"].items() if name not in HARMLESS}
    machine = {**prepared.machine.facts(), "threads": torch.get_num_threads()}
    packages = {**package_versions(), "python": platform.python_version()}
    return {"recipe": recipe, "data": prepared.splits.fingerprints, "packages": packages, "machine": machine}


def _as_begun(prepared: Prepared, then: dict[str, Any], now: dict[str, Any]) -> Prepared:
    """With the machine's decisions of the beginning, and what is different aloud."""
    if then["processes"] != now["processes"]:
        said = f"begun by {then['processes']} process(es), gone on with by {now['processes']}: the same rows in the same steps"
        say(f"{said}; what dropout draws is not the same, and sums are rounded otherwise.")
    if then["device"] != now["device"]:
        say(f"begun on {then['device']}, gone on with on {now['device']}: dropout draws and sums are rounded otherwise.")
    decided = {name: then[name] for name in ("precision", "micro_batch_tokens")}
    for name, value in {**decided, "threads": then["threads"]}.items():
        if value != now[name]:
            say(f"{name}: {value}, as it was begun, and not {now[name]}.")
    torch.set_num_threads(then["threads"])
    return replace(prepared, machine=replace(prepared.machine, **decided))
