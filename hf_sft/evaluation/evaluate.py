"""Rows to answers, a block at a time; their metrics with intervals, beside baselines on the same rows."""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from datasets import Dataset
from pydantic import model_validator
from pydantic_core import PydanticCustomError
from torch import nn
from tqdm.auto import tqdm

from hf_sft.answers.contract import Answers, Mistake
from hf_sft.block import Block as RecipeBlock
from hf_sft.config.machine import Machine
from hf_sft.data.examples import Block, cut_step, to_device
from hf_sft.evaluation.bootstrap import Score, Tally, draw_weights, paired
from hf_sft.metrics import find_metric
from hf_sft.tasks import Batch, Labels, Task, Writing
from hf_sft.tasks.common.baselines import Fit, ask_all, fit_all

WORST = 10
"""Mistakes that a report shows."""
MOST_CONFUSIONS = 50
"""Pairs of classes that report.json holds."""


class EvaluationPlan(RecipeBlock):
    """What is measured, and which of it chooses the best checkpoint."""

    metrics: tuple[str, ...] | None = None
    """Names from `hf-sft list metrics`, or `evaluate:NAME` for a module of that library; the task's own when not given."""
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
        best, _ = self.choose_by(task)
        return names if best in names else (best, *names) if self.best else (*names, best)

    def while_training(self, task: Task) -> tuple[str, ...]:
        """The metrics of the evaluations meanwhile, best first: texts are written there only where they choose."""
        best, _ = self.choose_by(task)
        names = tuple(dict.fromkeys((best, *self.names(task))))
        return names if needs_texts(best, task) else tuple(name for name in names if not needs_texts(name, task))

    def choose_by(self, task: Task) -> tuple[str, bool]:
        """The metric that chooses the best checkpoint, and whether greater is better; the first one that needs no texts,
        when not given, or the loss."""
        names = (name for name in self.metrics or task.default_metrics if not needs_texts(name, task))
        name = self.best or next(names, "loss")
        return name, find_metric(name, task.answer_kind()).greater_is_better


def needs_texts(metric: str, task: Task) -> bool:
    """Whether a metric is of texts that the model has to write."""
    return task.answer_kind().written and find_metric(metric, task.answer_kind()).needs_texts


@dataclass(frozen=True)
class Evaluation:
    """What was measured on one split."""

    split: str
    rows: int
    scores: dict[str, Score]
    baselines: dict[str, dict[str, Score]] = field(default_factory=dict)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    """Where rows have classes: `label`, `precision`, `recall`, `f1`, and how many there are of it."""
    confusions: list[dict[str, Any]] = field(default_factory=list)
    """Where rows have classes: `reference`, `prediction`, and how often, most frequent first, without what is right."""
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    """The wrong answers that the model was surest of: `row`, `text`, `reference`, `prediction`, `score`."""
    gaps: dict[str, dict[str, Score]] = field(default_factory=dict)
    """By baseline and metric: how far the model is above it, with the interval of that difference on the same rows."""
    unseen: dict[str, Score] = field(default_factory=dict)
    """The scores on the rows whose text train does not have, where it has some of them and not all."""
    notes: tuple[str, ...] = ()
    """What is to be said beside the scores: which rows they are of, baselines that could not be fitted."""

    def facts(self) -> dict[str, Any]:
        """What report.json says of the split."""
        said: dict[str, Any] = {"metrics": {self.split: _plain(self.scores)}}
        if self.unseen:
            said["unseen"] = {self.split: _plain(self.unseen)}
        for part in ("baselines", "gaps"):
            said[part] = {name: {self.split: _plain(scores)} for name, scores in getattr(self, part).items()}
        if self.per_class:
            said["per_class"] = {self.split: self.per_class}
            said["confusions"] = {self.split: self.confusions[:MOST_CONFUSIONS]}
        return said


def _plain(scores: dict[str, Score]) -> dict[str, dict[str, float]]:
    return {name: score.as_json() for name, score in scores.items()}


Kept: TypeAlias = list[list[np.ndarray]]
"""Of each row, what the task keeps of each of its examples; and then its text, where one is written."""
Write: TypeAlias = Callable[[Any, Dataset], Iterable[str]]
"""What a model writes for rows, on every process."""


def writer(task: Task, processor: Any, machine: Machine) -> Write | None:
    """The model's own texts, where a task's answers are such."""
    if not task.answer_kind().written:
        return None

    def write(model: Any, rows: Dataset) -> Iterator[str]:
        return (said["text"] for said in task.complete(model, rows, processor, Writing(), machine.micro_batch_tokens))

    return write


def run_blocks(
    model: nn.Module,
    blocks: Iterable[Block],
    keep: Callable[[nn.Module, Batch], list[np.ndarray]],
    machine: Machine,
    write: Write | None = None,
) -> Iterator[tuple[Dataset, Kept]]:
    """Run the model over blocks of rows; gives of each block its rows, and what the task keeps of them, on every process.

    Inside a block examples are sorted by cost and shared out between the processes; each is run once. Where the model shall
    `write` it does so in float32, as `predict` has it.
    """
    state = PartialState()
    with tqdm(desc="scoring", unit=" examples", disable=machine.quiet, leave=False) as bar:
        for examples, rows in blocks:
            ends = examples.starts[rows.start : rows.stop + 1]
            shares = cut_step(np.arange(ends[0], ends[-1]), examples.costs, machine.micro_batch_tokens, state.num_processes)
            mine: list[tuple[int, np.ndarray]] = []
            with evaluating(model, machine):
                for micro_batch in shares[state.process_index]:
                    kept = keep(model, to_device(examples.collate(micro_batch.places), state.device))
                    if micro_batch.counts:
                        mine.extend(zip(micro_batch.places, kept, strict=True))
                        bar.update(len(kept))
            by_place = dict(gather_object(mine))
            chosen, of_rows = examples.rows.select(rows), [[by_place[i] for i in range(*each)] for each in pairwise(ends)]
            if write is not None:
                model.eval()
                texts = list(tqdm(write(model, chosen), "writing", len(rows), False, disable=machine.quiet))
                of_rows = [[*of_row, np.array(text)] for of_row, text in zip(of_rows, texts, strict=True)]
            yield chosen, of_rows


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


def answer_blocks(
    ran: Iterable[tuple[Dataset, Kept]], task: Task, labels: Labels | None
) -> Iterator[tuple[int, Dataset, Answers]]:
    """Of each block the number of its first row, its rows, and their answers; on the main process alone."""
    start = 0
    for rows, kept in ran:
        if PartialState().is_main_process:
            yield start, rows, task.answer(kept, rows, labels)
        start += len(rows)


def measure_blocks(
    ran: Iterable[tuple[Dataset, Kept]], task: Task, labels: Labels | None, names: Sequence[str]
) -> dict[str, float]:
    """The metrics' values, on every process the same."""
    tally = Tally(names, task.answer_kind())
    for _, rows, answers in answer_blocks(ran, task, labels):
        tally.add(answers, task.answer_kind().read_references(task.targets(rows[:], labels)))
    return _from_main(tally.values())


def evaluate_blocks(
    split: str,
    ran: Iterable[tuple[Dataset, Kept]],
    task: Task,
    labels: Labels | None,
    plan: EvaluationPlan,
    baselines: dict[str, Fit] | None = None,
    seen: np.ndarray | None = None,
    write: Callable[[dict[str, Any]], None] | None = None,
) -> Evaluation:
    """Everything that is said about one split, on every process the same.

    Beside its baselines, which are fitted now; the rows that are not `seen` in train are scored apart. Predictions go to
    `write`, in order, on the main process, which alone decodes and scores.
    """
    names, kind = plan.names(task), task.answer_kind()
    rivals, failed = fit_all(baselines if baselines and PartialState().is_main_process else {})
    tally, unseen, theirs = Tally(names, kind), Tally(names, kind), {name: Tally(names, kind) for name in rivals}
    confusions: Counter[tuple[str | None, str | None]] = Counter()
    mistakes: list[Mistake] = []
    seen_rows, total, classes = np.array([] if seen is None else seen, dtype=np.int64), 0, ()
    for start, rows, answers in answer_blocks(ran, task, labels):
        total = start + len(rows)
        references = kind.read_references(task.targets(rows[:], labels))
        weights = draw_weights(start, total)
        tally.add(answers, references, weights)
        for name, guesses in ask_all(rivals, rows, failed).items():
            theirs[name].add(guesses, references, weights)
        fresh = np.setdiff1d(np.arange(start, total), seen_rows) - start
        unseen.add(answers.take(fresh), references[fresh], weights[fresh])
        classes, confusions = answers.classes, confusions + answers.confusions(references)
        wrong = worst(answers.mistakes(references))
        mistakes = worst([*mistakes, *_shown(wrong, start, rows, task)])
        if write:
            said = zip(answers.as_json(), task.references(rows), strict=True)
            for row, (answer, reference) in enumerate(said, start=start):
                write({"row": row, **answer, "reference": reference})
    scores, simple = tally.scores(), {name: theirs[name].scores() for name in rivals}
    evaluation = Evaluation(
        split,
        total,
        scores,
        simple,
        *_by_class(classes, confusions, kind.counted),
        [asdict(mistake) for mistake in mistakes],
        {other: {name: paired(scores[name], score[name]) for name in names} for other, score in simple.items()},
        unseen.scores() if 0 < len(seen_rows) < total else {},
        tuple(failed),
    )
    return _from_main(evaluation)


def worst(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """Those that the model was surest of, or that are furthest off."""
    return sorted(mistakes, key=lambda mistake: -mistake.score)[:WORST]


def _shown(mistakes: list[Mistake], start: int, rows: Dataset, task: Task) -> list[Mistake]:
    """Mistakes of a block of rows, the first of which has the number `start`, with what was asked."""
    asked = rows.select([mistake.row for mistake in mistakes])
    return [
        replace(mistake, row=start + mistake.row, text=text, picture=picture)
        for mistake, text, picture in zip(mistakes, task.texts(asked), task.pictures(asked), strict=True)
    ]


def _from_main(value: Any) -> Any:
    """The main process's value, on all."""
    return broadcast_object_list([value])[0]


def _by_class(
    classes: Sequence[str], pairs: Counter[tuple[str | None, str | None]], counted: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Precision, recall and F1 of each class, zero where there is nothing to divide by; and what is taken for what."""
    referred, answered = Counter(), Counter()
    for (reference, prediction), count in pairs.items():
        referred[reference] += count
        answered[prediction] += count
    table = []
    for name in classes:
        hits, said, true = pairs[name, name], answered[name], referred[name]
        rates = {"precision": (hits, said), "recall": (hits, true), "f1": (2 * hits, said + true)}
        table.append({"label": name, **{rate: a / b if b else 0.0 for rate, (a, b) in rates.items()}, counted: true})
    places = {name: place for place, name in enumerate((*classes, None))}
    wrong = sorted((pair for pair in pairs if pair[0] != pair[1]), key=lambda pair: (-pairs[pair], *map(places.get, pair)))
    return table, [{"reference": i, "prediction": j, counted: pairs[i, j]} for i, j in wrong]
