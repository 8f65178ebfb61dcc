"""Predictions, metrics with intervals, per-class results, and baselines on the same rows."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset
from pydantic import model_validator
from pydantic_core import PydanticCustomError
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_sft.answers import ClassAnswers
from hf_sft.baselines import answer_simply
from hf_sft.batching import Examples, cut_step, to_device
from hf_sft.block import Block
from hf_sft.metrics import find_metric, list_metrics
from hf_sft.scoring import Score, paired, score_rows
from hf_sft.tasks import Batch, Labels, Task
from hf_sft.training import Machine


class EvaluationPlan(Block):
    """What is measured, and which of it chooses the best checkpoint."""

    metrics: tuple[str, ...] | None = None
    """Names from `hf-sft list metrics`; the task's own when not given."""
    best: str | None = None
    """The metric that chooses the checkpoint on validation; the first when not given."""

    @model_validator(mode="after")
    def _best_is_measured(self) -> "EvaluationPlan":
        if self.metrics is not None and self.best is not None and self.best not in self.metrics:
            raise PydanticCustomError("best", "`best: {best}` is not among `metrics`", {"best": self.best})
        return self

    def names(self, task: Task) -> tuple[str, ...]:
        """The metrics to compute, best first where it isn't listed. Raises `RecipeError` for one that doesn't fit the task."""
        names = self.metrics or task.default_metrics
        for name in names:
            find_metric(name, task.answer_kind())
        return names if self.best is None or self.best in names else (self.best, *names)

    def choose_by(self, task: Task) -> tuple[str, bool]:
        """The metric that chooses the best checkpoint, and whether greater is better."""
        name = self.best or self.names(task)[0]
        return name, list_metrics()[name].greater_is_better


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one split."""

    split: str
    scores: dict[str, Score]
    baselines: dict[str, dict[str, Score]] = field(default_factory=dict)
    predictions: list[dict[str, Any]] = field(default_factory=list)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    """For single labels: `label`, `precision`, `recall`, `f1`, `rows`."""
    confusions: list[dict[str, Any]] = field(default_factory=list)
    """For single labels: `reference`, `prediction`, `rows`, most frequent first, without the diagonal."""
    gaps: dict[str, dict[str, Score]] = field(default_factory=dict)
    """By baseline and metric: how far the model is above it, with the interval of that difference on the same rows."""
    unseen: dict[str, Score] = field(default_factory=dict)
    """The scores on the rows whose text train does not have, where it has some of them and not all."""
    notes: tuple[str, ...] = ()
    """What is to be said beside the scores: which rows they are of, baselines that could not be fitted."""


def run_model(
    model: nn.Module, examples: Examples, output_of: Callable[[nn.Module, Batch], Tensor], machine: Machine
) -> np.ndarray:
    """The output (the task's `output`) for every row, shape (rows, …), in the rows' order, on every process.

    Rows are sorted by length and shared out between the processes; each is run once.
    """
    state = PartialState()
    shares = cut_step(np.arange(len(examples)), examples.costs, machine.micro_batch_tokens, state.num_processes)
    rows: list[int] = []
    outputs: list[np.ndarray] = []
    with evaluating(model, machine):
        for micro_batch in tqdm(shares[state.process_index], desc="scoring", disable=machine.quiet, leave=False):
            batch = to_device(examples.collate(micro_batch.rows), state.device)
            output = output_of(model, batch).float().cpu().numpy()
            if micro_batch.counts:
                rows.extend(micro_batch.rows)
                outputs.append(output)
    shared = gather_object([(rows, np.concatenate(outputs) if outputs else None)])
    parts = [(places, output) for places, output in shared if output is not None and places]
    ordered = np.empty((len(examples), *np.shape(parts[0][1])[1:]), dtype=np.float32)
    for places, output in parts:
        ordered[places] = output
    return ordered


@contextlib.contextmanager
def evaluating(model: nn.Module, machine: Machine):
    """Eval mode, no gradients, the run's precision; the modules' modes are put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), machine.autocast():
            yield
    finally:
        for module in training:
            module.training = True


def evaluate_outputs(
    split: str,
    output: np.ndarray,
    encoded: Dataset,
    rows: Dataset,
    task: Task,
    labels: Labels | None,
    plan: EvaluationPlan,
    train: Dataset | None = None,
    seen: np.ndarray | None = None,
) -> Evaluation:
    """Everything that is said about one split; baselines when `train` is given, and apart from the rows `seen` there."""
    known = np.asarray(encoded.with_format("numpy")["labels"][:])
    names, answers = plan.names(task), task.answers(output, labels)
    guesses, failed = answer_simply(task, train, rows, labels) if train is not None else ({}, [])
    unseen = np.setdiff1d(np.arange(len(rows)), np.array([]) if seen is None else seen)
    written = zip(answers.as_json(), task.references(rows), strict=True)
    predictions = [{"row": row, **answer, "reference": reference} for row, (answer, reference) in enumerate(written)]
    per_class, confusions = _per_class(answers, known) if isinstance(answers, ClassAnswers) else ([], [])
    scores = score_rows(names, answers, known)
    baselines = {name: score_rows(names, task.answers(guess, labels), known) for name, guess in guesses.items()}
    return Evaluation(
        split,
        scores,
        baselines,
        predictions,
        per_class,
        confusions,
        {other: {name: paired(scores[name], theirs[name]) for name in names} for other, theirs in baselines.items()},
        score_rows(names, answers.take(unseen), known[unseen]) if 0 < len(unseen) < len(rows) else {},
        tuple(failed),
    )


def _per_class(answers: ClassAnswers, known: np.ndarray) -> tuple[list[dict], list[dict]]:
    names = answers.names
    ids = list(range(len(names)))
    columns: Any = precision_recall_fscore_support(known, answers.choices, labels=ids, zero_division=0.0)  # pyright: ignore[reportArgumentType]
    table = [
        {"label": name, "precision": float(p), "recall": float(r), "f1": float(f), "rows": int(n)}
        for name, p, r, f, n in zip(names, *map(list, columns), strict=True)
    ]
    counts = confusion_matrix(known, answers.choices, labels=ids)
    np.fill_diagonal(counts, 0)
    pairs = sorted(zip(*np.nonzero(counts), strict=True), key=lambda pair: -counts[pair])
    confused = [{"reference": names[i], "prediction": names[j], "rows": int(counts[i, j])} for i, j in pairs]
    return table, confused
