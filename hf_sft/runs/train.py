"""Train a recipe from beginning to end."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import IO, Any

from accelerate import PartialState
from torch import nn
from transformers import Trainer

from hf_sft.answers.contract import Answers
from hf_sft.config.process import same_threads
from hf_sft.errors import SaveError
from hf_sft.evaluation.evaluate import Evaluation, EvaluationAccumulator, evaluate_blocks
from hf_sft.evaluation.inference import answer_blocks
from hf_sft.hub import publish as hub
from hf_sft.hub.upload_checkpoints import sent_meanwhile
from hf_sft.models import reload_check
from hf_sft.models.loading import save_model
from hf_sft.models.unused import freeze_unused
from hf_sft.recipe.recipe import Output, dump_recipe, load_recipe
from hf_sft.redaction import for_terminal, hide_secrets
from hf_sft.reports.html import say_certificate
from hf_sft.reports.report import Report, read_report, write_report
from hf_sft.runs.facts import collect_facts
from hf_sft.runs.predict import answer_rows
from hf_sft.runs.prepare import Prepared, RecipeLike, as_recipe, log_main, prepare
from hf_sft.runs.resume import record_or_resume, require_same, with_date_of
from hf_sft.runs.seen_inputs import write_known
from hf_sft.storage.atomic_folder import UNWRITABLE, disk_errors
from hf_sft.storage.package_paths import path_of
from hf_sft.storage.run_folder import (
    CHECKPOINTS,
    RECIPE,
    RunFiles,
    claim_folder,
    lock_run_folder,
    newest_checkpoint,
    read_facts,
    remove_checkpoints,
    write_record,
)
from hf_sft.storage.strict_json import dump_json
from hf_sft.tasks import GenerationOptions
from hf_sft.tasks.common.baselines import Fit
from hf_sft.trainer.fit import fit_phases
from hf_sft.trainer.fit_config import FitState
from hf_sft.trainer.history import TrainingCurve
from hf_sft.trainer.signals import SignalHandler, say_after_launcher
from hf_sft.trainer.speedups.cpu_attention import cpu_attention
from hf_sft.trainer.speedups.cpu_dropout import cpu_dropout
from hf_sft.trainer.step_trainer import StepTrainer

TOKENS = 40
"""Maximum number of generated tokens for a prompt of the report."""
SAMPLES = 4
"""Number of prompts in the report, answered before and after training."""


def train(
    recipe: RecipeLike,
    overrides: Sequence[str] = (),
    trust_remote_code: bool = False,
    resume: bool = False,
    resume_anyway: bool = False,
) -> Report:
    """Run a recipe from beginning to end; its folder then holds the model, the report and the resolved recipe.

    With `resume` it goes on from the newest checkpoint in that folder, and begins where there is none; `resume_anyway` does so
    although the recipe, the data or the packages have changed. Raises `RecipeError`, `DataError`, `CheckpointError` or
    `HubError` before anything is written; `Diverged` when training diverges, `SaveError` when something can't be written, and
    `CheckpointError` when what was saved does not answer as what was trained. A signal raises `Interrupted`, after the step.
    """
    recipe = as_recipe(recipe, overrides, trust_remote_code)
    resume = resume or resume_anyway
    if resume and (facts := read_facts(folder := path_of(recipe.output.folder))) and (folder / RECIPE).is_file():
        require_same(recipe, load_recipe(folder / RECIPE, (), trust_remote_code), facts, folder)
        return say_finished(folder, recipe.output)
    with SignalHandler() as signal_handler:
        folder = claim_folder(recipe.output.folder, resume)
        if recipe.output.hub and PartialState().is_main_process:
            hub.check_rights(recipe.output.hub)
        prepared = prepare(with_date_of(recipe, folder) if resume else recipe)
        with lock_run_folder(folder, resume), explain_failure(folder), same_threads():
            prepared = record_or_resume(prepared, folder, resume, resume_anyway)
            return finish(prepared, folder, signal_handler, resume, trust_remote_code)


def say_finished(folder: Path, output: Output) -> Report:
    """Print that the run is finished, and how to publish it if that was not done."""
    log_main(f"`{folder}` holds a finished run: there is nothing left to train.")
    if output.hub:
        log_main(f"If it is not published yet:  {hub.say_how(folder, output.hub, None, **switches_of(output))}")
    if PartialState().is_main_process:
        remove_checkpoints(folder)
    return read_report(folder)


def switches_of(output: Output) -> dict[str, bool]:
    """Arguments of `hub.publish` from the recipe."""
    return {"private": output.private, "report": output.publish_report}


def finish(prepared: Prepared, folder: Path, signal_handler: SignalHandler, resume: bool, trusted: bool) -> Report:
    """Train, score and report, in a folder that this run has locked."""
    recipe, checkpoints, unpublished, files = prepared.recipe, folder / CHECKPOINTS, None, RunFiles(folder)
    before, untrained = write_samples(prepared, prepared.loaded.model), answer_untrained(prepared)
    to = recipe.output.hub if recipe.output.hub_checkpoints else None
    options: dict[str, Any] = {"signal_handler": signal_handler, "resume": resume}
    if (record := prepared.record) is not None:
        options["begun"] = partial(write_record, folder, record)
    configs = [prepared.fit_config(checkpoints, place, **options) for place in range(len(prepared.phases))]
    folders = [config.folder for config in configs]
    with sent_meanwhile(to, recipe.output.private, prepared.phases, folders) as phases:
        model, curves = fit_phases(phases, prepared.loaded, configs)
    if PartialState().is_main_process:  # before anything else that can fail
        with files.placed() as aside, disk_errors():
            save_model(model, prepared.loaded.model.config, prepared.processor, aside)
    certified = begin_certificate(prepared, model, files, trusted)
    prepared = prepared.calibrated(model)
    # Test first: its baselines are fitted on one core, while the certificate's process gets ready on another.
    baselines = {"test": {**simple_baselines(prepared), **untrained}, "validation": {}}
    evaluations = [evaluate_split(prepared, model, split, files, baselines[split]) for split in baselines][::-1]

    predict_unlabelled(prepared, model, files)
    samples = [(*first, after) for first, (_, after) in zip(before, write_samples(prepared, model), strict=True)]
    if PartialState().is_main_process:
        with files.placed() as aside:
            write_known(aside, prepared.splits, recipe.model)
        facts = collect_facts(prepared, curves, evaluations, certified())
        text, shown = (hide_secrets(dump_recipe(each)) for each in (prepared.recipe.absolute(), prepared.recipe))
        write_report(files, text, shown, facts, evaluations, samples)
        remove_checkpoints(folder)
        if "not_done" in facts["certificate"]:
            log_main(say_certificate(facts["certificate"]))
        else:
            reload_check.require(facts["certificate"], folder)
        if recipe.output.hub:
            unpublished = publish_or_say_how(folder, recipe.output, trusted)
    PartialState().wait_for_everyone()
    return replace(read_report(folder), unpublished=unpublished)


@contextlib.contextmanager
def explain_failure(folder: Path) -> Iterator[None]:
    """If a training is interrupted, or its files can't be written: print what there is and how to resume."""
    again = "To go on: the same command with --resume (Python: resume=True)."
    try:
        with disk_errors():
            yield
    except KeyboardInterrupt:
        checkpoint = newest_checkpoint(folder)
        message = (
            f"Interrupted.  `{checkpoint}` is kept.\n{again}"
            if checkpoint
            else "Interrupted, before there was anything to keep."
        )
        log_main(message)
        if PartialState().is_main_process:
            say_after_launcher(for_terminal(message))
        raise
    except OSError as error:
        if error.errno not in UNWRITABLE:
            raise
        checkpoint = newest_checkpoint(folder)
        there = f"`{checkpoint}` is kept" if checkpoint else "No checkpoint is there yet"
        raise SaveError(
            f"`{folder}` can't be written: {error.strerror}.  {there}.\n"
            f"  Make room there.  {again}\n"
            f"  Or elsewhere: cp -r {folder} OTHER, and the same command with --resume output.folder=OTHER."
        ) from None


def build_trainer(recipe: RecipeLike, overrides: Sequence[str] = (), trust_remote_code: bool = False) -> Trainer:
    """The recipe's first phase as a `transformers.Trainer`, before `.train()`, for your own use."""
    prepared = prepare(as_recipe(recipe, overrides, trust_remote_code))
    phase, folder = prepared.phases[0], Path(prepared.recipe.output.folder) / CHECKPOINTS
    model, config = phase.prepare(prepared.loaded), prepared.fit_config(folder)
    freeze_unused(model, prepared.loaded.unused)
    state = FitState(phase, prepared.loaded, model, prepared.examples, TrainingCurve(phase.name))
    # These two only name contexts that each step enters: nothing of them ends here.
    with cpu_dropout(state, config) as state, cpu_attention(state, config) as state:
        return StepTrainer(state, config)


def answer_untrained(prepared: Prepared) -> dict[str, Answers]:
    """The answers of the untrained checkpoint of a language model on test, as a baseline."""
    task, model = prepared.splits.task, prepared.loaded.model
    if not task.writes or prepared.loaded.new or prepared.recipe.model.from_config:
        return {}
    nn.Module.to(model, prepared.machine.device)
    blocks = [answers for _, _, answers in answer_blocks(prepared.run(model, "test"), task, prepared.splits.labels)]
    return {"checkpoint": task.answer_kind().join(blocks)} if blocks else {}


def simple_baselines(prepared: Prepared) -> dict[str, Fit]:
    """The task's baselines; only on the main process, which scores."""
    if not PartialState().is_main_process:
        return {}
    return prepared.splits.task.baselines(prepared.splits.rows["train"], prepared.splits.labels, prepared.processor)


def evaluate_split(
    prepared: Prepared, model: Any, split: str, files: RunFiles, baselines: Mapping[str, Fit | Answers]
) -> Evaluation:
    """Score one split, beside its baselines; its predictions are written to the run folder."""
    splits, plan = prepared.splits, prepared.recipe.evaluation
    accumulator = EvaluationAccumulator(splits.task, splits.labels, plan, baselines, splits.seen[split])
    with written_lines(files, f"predictions/{split}.jsonl") as write:
        return evaluate_blocks(split, prepared.run(model, split), accumulator, write)


def predict_unlabelled(prepared: Prepared, model: Any, files: RunFiles) -> None:
    """Answer the rows of a test split without labels, into the run folder."""
    splits, machine = prepared.splits, prepared.machine
    if splits.unlabelled is None:
        return
    answers = answer_rows(splits.unlabelled, splits.task, splits.labels, prepared.processor, model, machine)
    with written_lines(files, "predictions/unlabelled.jsonl") as write:
        for row, answer in enumerate(answers):
            write({"row": row, **answer})


def write_samples(prepared: Prepared, model: Any) -> list[tuple[str, str]]:
    """A few prompts from the test split with the generated texts; called on every process."""
    task, rows, processor = prepared.splits.task, prepared.splits.rows["test"], prepared.processor
    if not task.writes:
        return []
    prompts = task.prompts(rows.select(range(min(SAMPLES, len(rows)))), processor)
    how = GenerationOptions(min(TOKENS, processor.model_max_length // 2))
    completions = task.complete(model.eval(), prompts, processor, how, prepared.machine.micro_batch_tokens)
    return [(prompt, each["text"]) for prompt, each in zip(task.texts(prompts), completions, strict=True)]


def begin_certificate(prepared: Prepared, model: Any, files: RunFiles, trusted: bool) -> Callable[[], dict[str, Any]]:
    """Start the reload check of the saved model in a process of its own; returns a function that waits for its result."""
    if not PartialState().is_main_process:
        return dict
    splits, checkpoint = prepared.splits, prepared.recipe.model.absolute()
    probed = splits.rows["test"], splits.task, prepared.processor, checkpoint

    def write() -> None:
        with files.placed() as aside, disk_errors():
            reload_check.write_probes(aside, model, *probed)

    return reload_check.start(files.folder, files.folder, prepared.machine.device, write, trusted)


@contextlib.contextmanager
def written_lines(files: RunFiles, name: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A writer of JSON lines, whose file is made with the first line."""
    with contextlib.ExitStack() as opened:
        written: list[IO[str]] = []

        def write(line: dict[str, Any]) -> None:
            if not written:
                path = opened.enter_context(files.placed()) / name
                path.parent.mkdir()
                written.append(opened.enter_context(path.open("w", encoding="utf-8")))
            written[0].write(dump_json(line) + "\n")

        yield write


def publish_or_say_how(folder: Path, output: Output, trusted: bool) -> str | None:
    """Publish the run, which is complete on disk. Returns an error of the Hub with the command to publish later, or None."""
    assert output.hub is not None
    switches = switches_of(output)
    try:
        log_main(hub.publish(folder, output.hub, revision=None, trust_remote_code=trusted, **switches).summary)
    except Exception as error:  # whatever goes wrong on the network; the run is finished and must say so
        reason = hide_secrets(str(error).strip()) or type(error).__name__
        later = hub.say_how(folder, output.hub, None, **switches)
        return f"NOT published: {reason}\nThe run is whole in {folder}/.  To publish it later:  {later}"
    return None
