"""The story of a run, top to bottom."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import Trainer

from hf_sft import hub
from hf_sft.batching import Examples
from hf_sft.curves import TrainingCurve
from hf_sft.data import encode_rows, load_rows, load_splits
from hf_sft.errors import RecipeError
from hf_sft.evaluation import Evaluation, evaluate_outputs, run_model
from hf_sft.models import save_model
from hf_sft.recipe import Output, Recipe, dump_recipe, load_recipe
from hf_sft.report import Report, gather_facts, read_report, write_report
from hf_sft.run import Run, as_recipe, claim_folder, load_run, prepare, say
from hf_sft.trainer import StepTrainer, fit


def train(recipe: Recipe | str | Path, overrides: Sequence[str] = (), trust_remote_code: bool = False) -> Report:
    """Run a recipe from beginning to end; its folder then holds the model, the report and the resolved recipe.

    Raises `RecipeError`, `DataError` or `CheckpointError`, before anything is written.
    """
    recipe = as_recipe(recipe, overrides, trust_remote_code)
    folder = claim_folder(recipe.output.folder)
    run = prepare(recipe)
    task, plan, checkpoints = run.splits.task, recipe.evaluation, folder / "checkpoints"

    model, curves = run.loaded.model, []
    for phase in run.phases:
        model, curve = fit(phase, run.loaded, run.processor, run.encoded, task, plan, run.machine, checkpoints, recipe.seed)
        curves.append(curve)
    evaluations = [evaluate_split(run, model, split) for split in ("validation", "test")]

    if PartialState().is_main_process:
        save_model(model, run.loaded.model.config, run.processor, folder)
        shutil.rmtree(checkpoints, ignore_errors=True)
        texts = {e.split: task.texts(run.splits.rows[e.split]) for e in evaluations}
        write_report(folder, dump_recipe(run.recipe), collect_facts(run, curves, evaluations), evaluations, texts)
        if recipe.output.hub:
            publish_or_say_how(folder, recipe.output)
    PartialState().wait_for_everyone()
    return read_report(folder)


def build_trainer(recipe: Recipe | str | Path, overrides: Sequence[str] = (), trust_remote_code: bool = False) -> Trainer:
    """The recipe's first phase as a `transformers.Trainer`, before `.train()`, to do with as you like."""
    run = prepare(as_recipe(recipe, overrides, trust_remote_code))
    phase, checkpoints = run.phases[0], Path(run.recipe.output.folder) / "checkpoints"
    collate = run.splits.task.collator(run.processor)
    examples = {name: Examples(run.encoded[name], collate) for name in ("train", "validation")}
    return StepTrainer(
        phase,
        run.loaded,
        phase.prepare(run.loaded),
        run.processor,
        examples,
        run.splits.task,
        run.recipe.evaluation,
        run.machine,
        checkpoints,
        run.recipe.seed,
        TrainingCurve(phase.name),
    )


def evaluate_split(run: Run, model: Any, split: str) -> Evaluation:
    """Score one split; the test split beside its baselines."""
    task, rows, encoded = run.splits.task, run.splits.rows[split], run.encoded[split]
    output = run_model(model, Examples(encoded, task.collator(run.processor)), task, run.machine)
    train = run.splits.rows["train"] if split == "test" else None
    return evaluate_outputs(split, output, encoded, rows, task, run.splits.labels, run.recipe.evaluation, train)


def collect_facts(run: Run, curves: list[TrainingCurve], evaluations: list[Evaluation]) -> dict[str, Any]:
    """The content of report.json."""
    recipe = run.recipe.model_dump(mode="json")
    return gather_facts(recipe, run.loaded, run.splits, run.encoded, curves, evaluations, run.machine)


def publish_or_say_how(folder: Path, output: Output) -> None:
    """The run is whole on disk: whatever the Hub says, it is not lost."""
    assert output.hub is not None
    try:
        say(f"published: {hub.publish(folder, output.hub, output.private)}")
    except Exception as error:  # whatever goes wrong on the network; the run is finished and must say so
        private = " --private" if output.private else ""
        say(f"NOT published: {str(error).strip().splitlines()[0] if str(error) else type(error).__name__}")
        say(f"The run is whole in {folder}/.  To publish it later:  hf-sft publish {folder} {output.hub}{private}")


def evaluate(run: str | Path, split: str = "test", data: Sequence[str] = ()) -> Evaluation:
    """Score a finished run on one of its own splits, or on other data given as `key=value` over its data block.

    Raises `RecipeError` and `DataError`.
    """
    finished = load_run(run)
    task, labels, plan = finished.task, finished.labels, finished.recipe.evaluation
    if data:
        other = load_recipe(finished.folder / "recipe.yaml", [f"data.{word}" for word in data])
        rows = load_rows(other.data, task, labels)
    else:
        if split not in ("train", "validation", "test"):
            raise RecipeError(f"split `{split}` is none of train, validation, test.")
        rows = load_splits(finished.recipe.data, task).rows[split]
    encoded = encode_rows(rows, task, labels, finished.processor)
    output = run_model(finished.model, Examples(encoded, task.collator(finished.processor)), task, finished.machine)
    return evaluate_outputs("data" if data else split, output, encoded, rows, task, labels, plan)
