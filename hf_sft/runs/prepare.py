"""Prepare a run up to its first step; load a finished run."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from accelerate import PartialState
from accelerate.utils import set_seed
from datasets import Dataset
from peft import PeftModel
from torch import nn

from hf_sft.config.machine import Machine, resolve_machine
from hf_sft.data.encoding import encode_splits, read_examples
from hf_sft.data.examples import Examples
from hf_sft.data.splits import Splits, load_splits
from hf_sft.errors import CheckpointError, RecipeError
from hf_sft.evaluation.evaluate import measure_blocks
from hf_sft.evaluation.inference import Write, run_blocks, writer
from hf_sft.evaluation.plan import needs_texts
from hf_sft.losses import RowOutputs
from hf_sft.methods import Phase
from hf_sft.metrics import FOREIGN
from hf_sft.models.checkpoint import Checkpoint, hash_weights, pin
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.models.loading import is_adapter, load_model, load_processor
from hf_sft.models.new_tokenizer import NewTokenizer, trained_tokenizer
from hf_sft.models.unused import find_untrained_tokens, find_unused
from hf_sft.recipe.recipe import Recipe, load_recipe, read_recipe
from hf_sft.redaction import for_terminal
from hf_sft.runs.seen_inputs import mark_known
from hf_sft.storage.foreign_code import HOW
from hf_sft.storage.package_paths import path_of
from hf_sft.storage.run_folder import LOGS, RECIPE, read_facts, read_record
from hf_sft.tasks import Labels, Task
from hf_sft.trainer.fit_config import FitConfig, TaskHooks
from hf_sft.trainer.upstream import require_known_trainer

RecipeLike: TypeAlias = Recipe | dict[str, Any] | str | Path
"""A recipe, a dict as YAML would give it, or a file."""


@dataclass(frozen=True)
class Prepared:
    """All objects of a run before the first step."""

    given: Recipe
    """The caller's recipe."""
    recipe: Recipe
    """Resolved: every default filled in, with the commits of checkpoint and data set."""
    splits: Splits
    processor: Any
    examples: dict[str, Examples]
    loaded: LoadedModel
    machine: Machine
    phases: tuple[Phase, ...]
    changes: tuple[dict[str, Any], ...] = ()
    """Where it was resumed with another recipe: `after` which checkpoint, and what had `changed`."""
    record: dict[str, Any] | None = None
    """The run's record with the newest of these changes, to be written when the first step is about to be taken."""

    @property
    def hooks(self) -> TaskHooks:
        """What the trainer needs of the task and the evaluation plan."""
        task, labels, plan = self.splits.task, self.splits.labels, self.recipe.evaluation

        def score(ran: Iterable[tuple[Dataset, RowOutputs]]) -> dict[str, float]:
            return measure_blocks(ran, task, labels, plan.while_training(task))

        def read(rows: Dataset) -> Examples:
            return read_examples(rows, task, labels, self.processor)

        best = plan.choose_by(task)
        write = self.write if needs_texts(best[0], task) else None
        return TaskHooks(task.items, task.inference_step, score, read, best, write)

    @property
    def write(self) -> Write | None:
        """Generates texts, for tasks whose answers are generated; None for others."""
        return writer(self.splits.task, self.processor, self.machine)

    def run(self, model: nn.Module, split: str) -> Iterator[tuple[Dataset, RowOutputs]]:
        """The model's outputs on a split, with generated texts if the task's answers are generated."""
        return run_blocks(model, self.examples[split].blocks(), self.splits.task.inference_step, self.machine, self.write)

    def calibrated(self, model: nn.Module) -> "Prepared":
        """With the task's fields that are chosen on validation for a trained model."""
        task, labels = self.splits.task, self.splits.labels
        chosen, notes = task.calibrate(
            run_blocks(model, self.examples["validation"].blocks(), task.inference_step, self.machine), labels
        )
        splits = replace(self.splits, task=chosen, notes=(*self.splits.notes, *notes))
        return replace(self, recipe=self.recipe.model_copy(update={"task": chosen}), splits=splits)

    def fit_config(self, folder: Path, phase: int = 0, **others: Any) -> FitConfig:
        """The `FitConfig` of a phase, whose checkpoints are below `folder`. `others` are fields of `FitConfig`."""
        seed, tracked = self.recipe.seed + 1_000_000 * phase, self.recipe.training.report_to not in ("none", ("none",), ())
        logs = folder.parent / LOGS / str(phase) if tracked else None
        below = folder / str(phase)
        return FitConfig(self.examples, self.hooks, self.machine, self.processor, below, seed, **{"logs": logs, **others})


@dataclass(frozen=True)
class Run:
    """A finished run, loaded from its folder."""

    folder: Path
    recipe: Recipe
    facts: dict[str, Any]
    """The content of report.json."""
    task: Task
    labels: Labels | None
    processor: Any
    model: Any
    machine: Machine


def as_recipe(recipe: RecipeLike, overrides: Sequence[str] = (), trust_remote_code: bool = False) -> Recipe:
    """A recipe from a file or a dict with overrides; a `Recipe` is returned unchanged.

    Code that hf_sft does not bring (a checkpoint's, a metric's, a task's) runs only when the recipe and the caller both ask
    for it.
    """
    if isinstance(recipe, dict):
        recipe = read_recipe(recipe, overrides, trust_remote_code)
    elif not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe, overrides, trust_remote_code)
    elif overrides:
        raise RecipeError("overrides go with a recipe file; a Recipe is changed with `model_copy(update=…)`.")
    plan = recipe.evaluation
    foreign = [name for name in (*(plan.metrics or ()), plan.best) if name and name.startswith(FOREIGN)]
    if foreign and not trust_remote_code:
        raise RecipeError(f"the metric `{foreign[0]}` is code, which the recipe alone can't have run.\n  {HOW}")
    if recipe.model.trust_remote_code and not trust_remote_code:
        raise RecipeError(
            f"`model.trust_remote_code` is true in the recipe, which is not enough to run a checkpoint's own code.\n  {HOW}"
        )
    return recipe


def prepare(recipe: Recipe, rows: int | None = None, tell: Callable[[str], None] | None = None) -> Prepared:
    """Data, processor, examples (of all rows, or of the first `rows` of each split), model, phases. Writes only caches.

    Notes go to `tell` as soon as they are known; to standard error if it is None.
    """
    tell, given = tell or log_main, recipe
    require_known_trainer()
    _require_adapter_that_fits(recipe)
    machine = resolve_machine(recipe.training)
    recipe, splits = _resolve(recipe, tell)
    processor, splits, loaded = _load(recipe, splits)
    examples, loaded = _encode(recipe, splits, processor, loaded, rows)
    for note in loaded.notes:
        tell(note)
    if loaded.new:
        tell(f"new, since the checkpoint does not bring it: {', '.join(loaded.new)}")
    recipe, phases, shared = _plan(recipe, splits)
    for note in shared:
        tell(note)
    loaded = replace(loaded, notes=(*loaded.notes, *shared))
    return Prepared(given, recipe, splits, processor, examples, loaded, machine, phases)


def _resolve(recipe: Recipe, tell: Callable[[str], None]) -> tuple[Recipe, Splits]:
    """The recipe with its checkpoint's commit, and the rows of its data with what they tell the task."""
    recipe = recipe.model_copy(update={"model": pin(recipe.model)})
    splits = mark_known(load_splits(recipe.data, recipe.task), recipe.model)
    recipe.evaluation.names(splits.task)  # refuses metrics that don't fit before the long part begins
    given, resolved = recipe.task.model_dump(), splits.task.model_dump()
    read = [f"{name}: {value}, from the data" for name, value in resolved.items() if value != given[name]]
    for note in (*read, *splits.notes):
        tell(note)
    return recipe, splits


def _load(recipe: Recipe, splits: Splits) -> tuple[Any, Splits, LoadedModel]:
    """The processor, the task as processor and model can do it, and the model."""
    longest, train, trained = getattr(splits.task, "max_length", None), splits.rows["train"], None
    if isinstance(recipe.model.tokenizer, NewTokenizer):
        trained = trained_tokenizer(recipe.model.tokenizer, lambda: splits.task.texts(train), splits.fingerprints["train"])
    processor = load_processor(recipe.model, longest, splits.task.auto_processor, trained)
    task = splits.task
    if longest and (positions := processor.model_max_length) < longest:
        if "max_length" in recipe.task.model_fields_set:
            taken = f"`{recipe.model.name}` takes {positions} tokens"
            raise RecipeError(
                f"`task.max_length` is {longest}, but {taken}.  Lower it, or leave it out: then it is that many."
            )
        task = task.model_copy(update={"max_length": positions})
    set_seed(recipe.seed)
    loaded = load_model(recipe.model, task, splits.labels, processor)
    task, notes = task.probe(loaded.model, processor)
    return processor, replace(splits, task=task), replace(loaded, notes=(*loaded.notes, *notes))


def _encode(
    recipe: Recipe, splits: Splits, processor: Any, loaded: LoadedModel, rows: int | None
) -> tuple[dict[str, Examples], LoadedModel]:
    """Examples of all rows, or of the first `rows` of each split; and the model without parts that no example reaches."""
    task, examples = splits.task, encode_splits(splits, processor, rows)
    unused, notes = find_unused(loaded, examples["train"], task.items)
    untrained = {*loaded.untrained_tokens, *find_untrained_tokens(loaded, task.control_tokens(processor))}
    loaded = replace(loaded, unused=unused, untrained_tokens=tuple(sorted(untrained)), notes=(*loaded.notes, *notes))
    return examples, recipe.method.reshape(loaded, recipe.model, examples["train"], task.items)


def _plan(recipe: Recipe, splits: Splits) -> tuple[Recipe, tuple[Phase, ...], list[str]]:
    """The resolved recipe, its phases, and notes."""
    train, steps = splits.rows["train"], recipe.training.max_steps
    phases, notes = recipe.method.phases(splits.task, recipe.training, len(train)), []
    shares = {phase.name: phase.training.max_steps for phase in phases}
    if len(shares) > 1 and steps == sum(shares.values()):
        listed = ", ".join(f"{share:,} for phase {name}" for name, share in shares.items())
        notes = [f"`training.max_steps: {steps}` is shared between the phases: {listed}."]
    for aid in recipe.aids:
        phases = tuple(aid.apply(phase, splits.task, train) for phase in phases)
    training = phases[-1].training
    if steps > 0:  # shared out again when the recipe is run again
        training = training.model_copy(update={"max_steps": steps})
    resolved = {"data": splits.source, "task": splits.task, "training": training}
    return recipe.model_copy(update=resolved), phases, notes


def _require_adapter_that_fits(recipe: Recipe) -> None:
    """Raises `RecipeError` if an adapter can't be saved for this checkpoint."""
    merged = getattr(recipe.method, "merge", True)
    if recipe.model.load_in_4bit and merged:
        raise RecipeError(
            "`model.load_in_4bit`: weights in 4 bits can neither move nor take updates in.\n"
            "  Use `method: {type: lora, merge: false}`."
        )
    if recipe.model.add_tokens and not merged:
        raise RecipeError("`model.add_tokens` changes what an adapter is put on.  Use `method.merge=true`, or `method: full`.")
    base = recipe.model.checkpoint
    if recipe.output.hub and not merged and base and not base.startswith("package:") and path_of(base).is_dir():
        raise RecipeError(
            f"`output.hub`: an adapter on `{base}`, a folder of this machine, can't be loaded by others.\n"
            "  Use `method.merge=true`; or leave `output.hub` out, and publish the run later: hf-sft publish … --with-base"
        )
    passing = "random weights" if recipe.model.from_config else "a GGUF file" if recipe.model.gguf_file else None
    if passing and not merged:
        raise RecipeError(f"an adapter on {passing} can't be loaded again.  Use `method.merge=true`, or `method: full`.")


def load_run(folder: str | Path, trust_remote_code: bool = False) -> Run:
    """Read a finished run back; an adapter is put on its base checkpoint.

    Raises `RecipeError` when it is none, or when it would run code that is not ours and the caller does not ask for that.
    """
    folder = path_of(folder)
    facts = read_facts(folder)
    if facts is None or not (folder / RECIPE).is_file():
        unfinished = " It holds an unfinished one: train it with --resume." if read_record(folder) else ""
        raise RecipeError(f"`{folder}` holds no finished run: a run folder has recipe.yaml and report.json.{unfinished}")
    recipe = as_recipe(folder / RECIPE, trust_remote_code=trust_remote_code)
    names = facts["data"]["labels"]
    labels = Labels(tuple(names)) if names else None
    adapter = is_adapter(folder)
    here = Checkpoint(checkpoint=str(folder), trust_remote_code=recipe.model.trust_remote_code)
    if adapter:
        _require_same_base(folder, recipe.model, facts["checkpoint"].get("weights"))
    processor = load_processor(here, auto=recipe.task.auto_processor)
    loaded = load_model(recipe.model if adapter else here, recipe.task, labels, processor)
    model: Any = PeftModel.from_pretrained(loaded.model, str(folder)) if adapter else loaded.model
    machine = resolve_machine(recipe.training)
    return Run(folder, recipe, facts, recipe.task, labels, processor, model.eval().to(machine.device), machine)


def _require_same_base(folder: Path, base: Checkpoint, trained_on: str | None) -> None:
    """Raises `CheckpointError` where the weights below an adapter are not those that it was trained on."""
    if trained_on is not None and (now := hash_weights(base)) != trained_on:
        there = "are others now" if now else "are not there"
        raise CheckpointError(
            f"`{folder}` holds an adapter, and the weights of its base `{base.name}` {there}: it would answer otherwise.\n"
            "  Put the base back that it was trained on, or train again."
        )


def log_main(*lines: str) -> None:
    """Print lines to standard error, on the main process only."""
    if PartialState().is_main_process:
        print(*map(for_terminal, lines), sep="", file=sys.stderr, flush=True)
