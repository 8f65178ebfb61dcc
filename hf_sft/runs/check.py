"""The dry run: all that training would do, on 32 rows."""

import contextlib
import math
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from hf_sft.hub import publish as hub
from hf_sft.runs.prepare import Prepared, RecipeLike, as_recipe, prepare
from hf_sft.storage.package_paths import path_of
from hf_sft.storage.run_folder import claim_folder, is_taken
from hf_sft.trainer.fit import IN_STEPS, fit_phases
from hf_sft.trainer.history import TrainingCurve

TRIED = 32


@dataclass
class Findings:
    """The result of the dry run: facts, and warnings, which `--strict` turns into errors."""

    facts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def check(recipe: RecipeLike, overrides: Sequence[str] = (), trust_remote_code: bool = False) -> Findings:
    """Prepare a training with 32 rows of each split, and run two steps of each phase with the same trainer, one evaluation and
    one checkpoint, in a temporary folder.

    Writes nothing else but caches. Raises what training would before its first step.
    """
    recipe = as_recipe(recipe, overrides, trust_remote_code)
    findings = Findings()
    if is_taken(path_of(recipe.output.folder)):
        findings.warnings.append(f"output folder `{recipe.output.folder}` is not empty: training will ask for another one.")
    else:
        claim_folder(recipe.output.folder)
    if recipe.output.hub and PartialState().is_main_process:
        findings.facts["published to"] = hub.check_rights(recipe.output.hub)
    prepared = prepare(recipe, TRIED, tell=lambda _: None)  # it is all among the findings
    splits, labels, machine, rows = prepared.splits, prepared.splits.labels, prepared.machine, prepared.splits.rows
    findings.facts["metrics"] = ", ".join(recipe.evaluation.names(splits.task))
    findings.facts["rows"] = ", ".join(f"{len(split):,} {name}" for name, split in rows.items())
    findings.facts["answers"] = splits.task.answer_kind().called
    if labels:
        findings.facts["labels"] = ", ".join(labels.names)
    given, inferred = recipe.task.model_dump(), splits.task.model_dump()
    findings.facts |= {name.replace("_", " "): str(value) for name, value in inferred.items() if value != given[name]}
    findings.warnings += [*splits.notes, *prepared.loaded.notes]
    findings.warnings += prepared.examples["train"].remarks("first rows")
    findings.facts["first row"] = splits.task.texts(rows["train"].select([0]))[0][:200]
    (first,) = prepared.examples["train"].take((0,))
    findings.facts["as the model sees it"] = splits.task.show(first, prepared.processor, labels)
    findings.facts["new parameters"] = ", ".join(prepared.loaded.new) or "none: the checkpoint brings them all"
    for phase, curve in zip(prepared.phases, _rehearse(prepared), strict=True):
        moving = curve.trainable / curve.parameters
        findings.facts[f"{phase.name}: parameters that move"] = f"{curve.trainable:,} of {curve.parameters:,} ({moving:.1%})"
        epochs, steps = phase.training.num_train_epochs, phase.training.max_steps
        # Where rows are joined, there are as many examples of a row as there are of the first ones.
        of_a_row = len(prepared.examples["train"]) / min(TRIED, len(rows["train"])) if splits.task.joins() else 1
        per_epoch = math.ceil(len(rows["train"]) * of_a_row / phase.training.batch_size)
        total = steps if steps > 0 else math.ceil(per_epoch * epochs)
        findings.facts[f"{phase.name}: optimizer steps"] = (
            f"{total:,} of {phase.training.batch_size} rows ({per_epoch:,} an epoch)"
        )
        findings.facts[f"{phase.name}: loss of the first rows"] = f"{curve.losses[0]:.4f}"
    findings.facts["machine"] = f"{machine.processes} process(es) on {machine.device}, {machine.precision}"
    return findings


def _rehearse(prepared: Prepared) -> list[TrainingCurve]:
    """Two steps of each phase, without trackers. Some errors occur in the second step only, like parameters without a gradient
    when several processes wait for it."""
    once = {"max_steps": 2, "report_to": "none"}
    phases = tuple(replace(phase, training=phase.training.model_copy(update=once)) for phase in prepared.phases)
    with _passing_folder() as folder:
        configs = [prepared.fit_config(folder, place, speedups=IN_STEPS, logs=None) for place in range(len(phases))]
        return fit_phases(phases, prepared.loaded, configs)[1]


@contextlib.contextmanager
def _passing_folder() -> Iterator[Path]:
    """A temporary folder for all processes, made and removed by the main one."""
    state = PartialState()
    name = broadcast_object_list([tempfile.mkdtemp() if state.is_main_process else None])[0]
    try:
        yield Path(str(name))
        state.wait_for_everyone()
    finally:
        if state.is_main_process:
            shutil.rmtree(str(name), ignore_errors=True)
