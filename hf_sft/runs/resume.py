"""The record of an unfinished run, and the comparison with it when the run is resumed."""

import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from hf_sft.errors import RecipeError
from hf_sft.recipe.recipe import Recipe
from hf_sft.redaction import hide_secrets, in_all
from hf_sft.reports.report import package_versions
from hf_sft.runs.prepare import Prepared, log_main
from hf_sft.storage.checkpoint_files import differences
from hf_sft.storage.run_folder import CHECKPOINTS, newest_checkpoint, read_record, write_record

HARMLESS = ("report_to", "run_name", "logging_steps", "disable_tqdm", "save_minutes", "save_total_limit", "ddp_timeout")
"""Fields of `training` that don't change the result."""
FIXED = ("recipe.training.optim", "recipe.method.type")
"""Fields that must not change when a checkpoint is resumed."""


def with_date_of(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with the date of its unfinished run, if its chat template writes the date."""
    record = read_record(folder)
    if record is None or getattr(recipe.task, "date", "") is not None:
        return recipe
    then = record["recipe"]["task"].get("date")
    return recipe.model_copy(update={"task": recipe.task.model_copy(update={"date": then})})


def record_or_resume(prepared: Prepared, folder: Path, resume: bool, anyway: bool) -> Prepared:
    """Record what is trained; or, to resume, compare it with the record, and take the machine's decisions from there.

    Raises `RecipeError` where something else would be trained than what was begun, unless that is wanted `anyway`: then
    `record` of what is given back is to be written as soon as the checkpoint has proved to fit.
    """
    now = _describe(prepared)
    then = read_record(folder) if resume else None
    PartialState().wait_for_everyone()  # all have read it
    if then is None:
        if PartialState().is_main_process:
            if resume:
                log_main(f"`{folder}` holds nothing to go on with: the run begins.")
            write_record(folder, now)
        return prepared
    changed = [each for part in ("recipe", "data", "packages") for each in differences(then[part], now[part], part)]
    if changed and not anyway:
        raise RecipeError(
            f"`{folder}` can't be gone on with as it was begun; what has changed:\n  "
            + "\n  ".join(changed)
            + "\n  Put that back; or say --resume-anyway: what comes after the checkpoint is trained by the new recipe."
        )
    for each in changed:
        if (field := each.partition(":")[0]) in FIXED:
            raise RecipeError(
                f"`{field.removeprefix('recipe.')}` can't change in the middle of a run ({each}).\n"
                "  Put it back, or begin anew in another folder (output.folder=…)."
            )
    for each in changed:
        log_main(f"gone on with although it has changed: {each}")
    changes = then.get("changes", [])
    if changed:
        checkpoint = newest_checkpoint(folder)
        changes = [
            *changes,
            {"after": checkpoint and checkpoint.relative_to(folder / CHECKPOINTS).as_posix(), "changed": changed},
        ]
        then = {**now, "machine": then["machine"], "changes": changes}
    notes = [f"resumed after {each['after']} with a changed recipe: {'; '.join(each['changed'])}." for each in changes]
    splits = replace(prepared.splits, notes=(*prepared.splits.notes, *notes))
    prepared = replace(prepared, splits=splits, changes=tuple(changes), record=then if changed else None)
    return _as_begun(prepared, then["machine"], now["machine"])


def require_same(recipe: Recipe, resolved: Recipe, facts: dict[str, Any], folder: Path) -> None:
    """Raises `RecipeError` where a finished run was made by another recipe than this one, as given or as resolved."""
    now, given = (
        _of_recipe(in_all(recipe.absolute().model_dump(mode="json"), hide_secrets)),
        _of_recipe(facts.get("given", {})),
    )
    if now in (given, _of_recipe(resolved.model_dump(mode="json"))):
        return
    changed = "\n  ".join(differences(given, now, "recipe"))
    raise RecipeError(
        f"`{folder}` holds a finished run of another recipe; what has changed:\n  {changed}\n"
        "  Put that back to see its report; or train it elsewhere: output.folder=…"
    )


def _of_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    """The fields of a recipe that decide the result."""
    training = {name: value for name, value in recipe.get("training", {}).items() if name not in HARMLESS}
    return {name: value for name, value in recipe.items() if name != "output"} | {"training": training}


def _describe(prepared: Prepared) -> dict[str, Any]:
    recipe = in_all(_of_recipe(prepared.recipe.absolute().model_dump(mode="json")), hide_secrets)
    machine = {**prepared.machine.facts(), "threads": torch.get_num_threads()}
    packages = {**package_versions(), "python": platform.python_version()}
    return {"recipe": recipe, "data": prepared.splits.fingerprints, "packages": packages, "machine": machine}


def _as_begun(prepared: Prepared, then: dict[str, Any], now: dict[str, Any]) -> Prepared:
    """With the machine's decisions of the run's beginning; prints what is different now."""
    if then["processes"] != now["processes"]:
        change = (
            f"begun by {then['processes']} process(es), gone on with by {now['processes']}: the same rows in the same steps"
        )
        log_main(f"{change}; what dropout draws is not the same, and sums are rounded otherwise.")
    if then["device"] != now["device"]:
        log_main(f"begun on {then['device']}, gone on with on {now['device']}: dropout draws and sums are rounded otherwise.")
    decided = {name: then[name] for name in ("precision", "micro_batch_tokens")}
    for name, value in {**decided, "threads": then["threads"]}.items():
        if value != now[name]:
            log_main(f"{name}: {value}, as it was begun, and not {now[name]}.")
    torch.set_num_threads(then["threads"])
    return replace(prepared, machine=replace(prepared.machine, **decided))
