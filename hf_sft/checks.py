"""The dry run: everything that training would do, on 32 rows, so that what can go wrong goes wrong now."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device, set_seed

from hf_sft.batching import Examples
from hf_sft.encoding import encode_rows
from hf_sft.errors import CheckpointError
from hf_sft.models import load_model, load_processor
from hf_sft.recipe import Recipe
from hf_sft.run import apply_aids, as_recipe, claim_folder
from hf_sft.splitting import load_splits
from hf_sft.tasks import Batch
from hf_sft.training import resolve_machine

TRIED = 32


@dataclass
class Findings:
    """What the dry run saw: facts for the reader, and warnings that `--strict` counts."""

    facts: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def check(recipe: Recipe | str | Path, overrides: Sequence[str] = (), trust_remote_code: bool = False) -> Findings:
    """Resolve everything, encode 32 rows and show one, build the model, run one forward and backward pass.

    Writes nothing. Raises `RecipeError`, `DataError` or `CheckpointError` where training would.
    """
    recipe = as_recipe(recipe, overrides, trust_remote_code)
    claim_folder(recipe.output.folder)
    machine = resolve_machine(recipe.training)
    found = Findings()

    splits = load_splits(recipe.data, recipe.task)
    task, labels = splits.task, splits.labels
    found.facts["metrics"] = ", ".join(recipe.evaluation.names(task))
    found.facts["rows"] = ", ".join(f"{len(rows):,} {name}" for name, rows in splits.rows.items())
    found.facts["labels"] = ", ".join(labels.names) if labels else "a number"
    found.facts["problem type"] = str(getattr(task, "problem_type", "—"))
    found.warnings += splits.notes

    processor = load_processor(recipe.model)
    few = splits.rows["train"].select(range(min(TRIED, len(splits.rows["train"]))))
    encoded = encode_rows(few, task, labels, processor)
    truncated = sum(encoded["truncated"][:])
    if truncated:
        found.warnings.append(f"{truncated} of the first {len(few)} rows are longer than the model is shown and are cut.")
    found.facts["first row"] = task.texts(few.select([0]))[0][:200]
    found.facts["as the model sees it"] = show_example(processor, encoded[0])

    set_seed(recipe.seed)
    loaded = load_model(recipe.model, task, labels, processor)
    found.facts["new parameters"] = ", ".join(loaded.new) or "none: the checkpoint brings them all"
    phases = apply_aids(recipe.method.phases(task, recipe.training), recipe.aids)
    examples = Examples(encoded, task.collator(processor))
    for phase in phases:
        model = phase.prepare(loaded).to(machine.device)
        moving = [p for p in model.parameters() if p.requires_grad]
        sizes = sum(p.numel() for p in moving), sum(p.numel() for p in model.parameters())
        found.facts[f"{phase.name}: parameters that move"] = f"{sizes[0]:,} of {sizes[1]:,} ({sizes[0] / sizes[1]:.1%})"
        epochs, steps = phase.training.num_train_epochs, phase.training.max_steps
        per_epoch = math.ceil(len(splits.rows["train"]) / phase.training.batch_size)
        total = steps if steps > 0 else math.ceil(per_epoch * epochs)
        found.facts[f"{phase.name}: optimizer steps"] = (
            f"{total:,} of {phase.training.batch_size} rows ({per_epoch:,} an epoch)"
        )
        batch: Batch = send_to_device(examples.collate(tuple(range(min(4, len(few))))), machine.device)  # pyright: ignore
        with machine.autocast():
            loss = task.loss(model, batch) / task.num_items(batch)
        loss.backward()
        if not torch.isfinite(loss):
            raise CheckpointError(f"the loss of the first rows is {loss.item()}.  Check the checkpoint, or use fp32.")
        found.facts[f"{phase.name}: loss of the first rows"] = f"{loss.item():.4f}"
    found.facts["machine"] = f"{machine.processes} process(es) on {machine.device}, {machine.precision}"
    return found


def show_example(processor: Any, example: dict[str, Any]) -> str:
    """The tokens of an example, as the model gets them, cut to a few lines."""
    tokens = processor.convert_ids_to_tokens(example["input_ids"]) if "input_ids" in example else []
    shown = " ".join(tokens[:60]) + (" …" if len(tokens) > 60 else "")
    return f"{shown}  [{len(tokens)} tokens, labels {example.get('labels')}]"
