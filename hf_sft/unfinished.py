"""What an unfinished run trains, and whether a resumed one trains the same."""

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hf_sft.checkpoints import differences
from hf_sft.errors import RecipeError
from hf_sft.recipe import Recipe
from hf_sft.report import package_versions
from hf_sft.run_folder import read_record, write_record
from hf_sft.runs import Prepared, say

HARMLESS = ("report_to", "run_name", "logging_steps", "disable_tqdm", "save_minutes", "save_total_limit", "ddp_timeout")
"""Fields of `training` that change nothing of what is learned."""


def with_date_of(recipe: Recipe, folder: Path) -> Recipe:
    """A recipe with the date that an unfinished run of it writes, where its chat template writes one."""
    record = read_record(folder)
    if record is None or getattr(recipe.task, "date", "") is not None:
        return recipe
    then = record["recipe"]["task"].get("date")
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"date": then})})


def begin(prepared: Prepared, folder: Path, resume: bool, anyway: bool) -> Prepared:
    """Note what is trained; or, to go on, see that it is the same, and give it the machine that it began with.

    Raises `RecipeError` where something else would be trained than what was begun.
    """
    now = _describe(prepared)
    then = read_record(folder) if resume else None
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
        write_record(folder, now)
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
