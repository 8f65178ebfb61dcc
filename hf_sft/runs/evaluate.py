"""Score a finished run again: on its own splits, or on other data."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from hf_sft.data.data_files import SPLITS
from hf_sft.data.data_source import DataSource
from hf_sft.data.encoding import encode_blocks
from hf_sft.data.row_hash import hash_rows
from hf_sft.data.splits import load_rows, load_splits
from hf_sft.errors import RecipeError
from hf_sft.evaluation.evaluate import Evaluation, EvaluationAccumulator, evaluate_blocks
from hf_sft.evaluation.inference import run_blocks, writer
from hf_sft.recipe.recipe import load_recipe
from hf_sft.redaction import HIDDEN
from hf_sft.runs.prepare import load_run
from hf_sft.storage.run_folder import RECIPE

ONLY_FOR_TRAINING = ("splits", "rows", "rows_per_label", "group", "stratify", "seed")
"""Fields of the data block that don't apply to other data."""


def evaluate(
    run: str | Path, split: str | None = None, data: Sequence[str] = (), trust_remote_code: bool = False
) -> Evaluation:
    """Score a finished run on one of its own splits (test when not given), or on other data.

    Other data is given as `key=value` words over the run's data block; of several splits `split` names one. Raises
    `RecipeError` and `DataError`.
    """
    notes = []
    finished = load_run(run, trust_remote_code)
    task, labels, plan = finished.task, finished.labels, finished.recipe.evaluation
    if data:
        source, notes = _read_other_data(finished.folder, data)
        name, rows, read = load_rows(source, task, labels, split)
        notes += read
    else:
        if HIDDEN in (where := str(finished.recipe.data.data_files)):
            raise RecipeError(
                f"the address of this run's data held a secret, which run folders don't keep: {where}\n"
                "  Give it again: --data data_files=ADDRESS"
            )
        name = split or "test"
        if name not in SPLITS:
            raise RecipeError(f"split `{name}` is none of train, validation, test.")
        splits = load_splits(finished.recipe.data, task)
        rows, before = splits.rows[name], finished.facts["data"].get("fingerprints", {}).get(name)
        if before is not None and before != hash_rows(rows):
            notes.append(f"the rows of split `{name}` are not those that the run was made with: the data has changed since.")
    blocks = encode_blocks(rows, task, labels, finished.processor)
    write = writer(task, finished.processor, finished.machine)
    ran = run_blocks(finished.model, blocks, task.inference_step, finished.machine, write)
    evaluation = evaluate_blocks("data" if data else name, ran, EvaluationAccumulator(task, labels, plan))
    return replace(evaluation, notes=(f"split `{name}`, {len(rows):,} rows.", *notes, *evaluation.notes))


def _read_other_data(run: Path, words: Sequence[str]) -> tuple[DataSource, list[str]]:
    """The run's data block with some fields changed, and notes. Raises `RecipeError` for fields that only training reads."""
    for word in words:
        if (field := word.partition("=")[0].partition(".")[0]) in ONLY_FOR_TRAINING:
            raise RecipeError(
                f"`--data {word}`: `{field}` has no meaning for rows that are only scored.\n"
                "  Name the split to score with --split, and the rows with `keep` or a file of their own."
            )
    source = load_recipe(run / RECIPE, [f"data.{word}" for word in words]).data
    named = {word.partition("=")[0] for word in words}
    if not source.keep or "keep" in named:
        return source, []
    note = f"`data.keep: {source.keep}` of the recipe is for its own rows; for these say `--data keep=COLUMN`."
    return source.model_copy(update={"keep": None}), [note]
