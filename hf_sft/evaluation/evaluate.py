"""Evaluate a split: metrics with intervals, baselines on the same rows, scores by class, mistakes."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset

from hf_sft.answers.contract import Answers, Mistake
from hf_sft.evaluation.bootstrap import MetricAccumulator, Score, draw_weights, paired
from hf_sft.evaluation.inference import answer_blocks
from hf_sft.evaluation.plan import EvaluationPlan
from hf_sft.losses import RowOutputs
from hf_sft.tasks import Labels, Task
from hf_sft.tasks.common.baselines import Fit, ask_all, fit_all

WORST = 10
"""Number of mistakes in a report."""
MOST_CONFUSIONS = 50
"""Maximum number of confused pairs of classes in report.json."""


@dataclass(frozen=True)
class Evaluation:
    """The evaluation of one split."""

    split: str
    rows: int
    scores: dict[str, Score]
    baselines: dict[str, dict[str, Score]] = field(default_factory=dict)
    per_class: list[dict[str, Any]] = field(default_factory=list)
    """Where rows have classes: `label`, `precision`, `recall`, `f1`, and how many there are of it."""
    confusions: list[dict[str, Any]] = field(default_factory=list)
    """Where rows have classes: `reference`, `prediction`, and how often, most frequent first, without what is right."""
    mistakes: list[dict[str, Any]] = field(default_factory=list)
    """The wrong answers with the highest confidence: `row`, `text`, `reference`, `prediction`, `score`."""
    gaps: dict[str, dict[str, Score]] = field(default_factory=dict)
    """By baseline and metric: the model's score minus the baseline's, with the interval of the difference."""
    unseen: dict[str, Score] = field(default_factory=dict)
    """The scores on the rows whose text train does not have, where it has some of them and not all."""
    notes: tuple[str, ...] = ()
    """Notes beside the scores: which rows were scored, which baselines could not be fitted."""

    def facts(self) -> dict[str, Any]:
        """What report.json says of the split."""
        facts: dict[str, Any] = {"metrics": {self.split: _plain(self.scores)}}
        if self.unseen:
            facts["unseen"] = {self.split: _plain(self.unseen)}
        for part in ("baselines", "gaps"):
            facts[part] = {name: {self.split: _plain(scores)} for name, scores in getattr(self, part).items()}
        if self.per_class:
            facts["per_class"] = {self.split: self.per_class}
            facts["confusions"] = {self.split: self.confusions[:MOST_CONFUSIONS]}
        return facts


def _plain(scores: dict[str, Score]) -> dict[str, dict[str, float]]:
    return {name: score.as_json() for name, score in scores.items()}


class EvaluationAccumulator:
    """Accumulates the evaluation of one split, block by block; on the main process only."""

    def __init__(
        self,
        task: Task,
        labels: Labels | None,
        plan: EvaluationPlan,
        baselines: Mapping[str, Fit | Answers] = MappingProxyType({}),
        seen: np.ndarray | Sequence[int] = (),
    ):
        """`baselines` are fitted now, or are the answers of all rows already; `seen` are the rows whose input train has: the
        others are scored apart."""
        self.task, self.labels, self.seen = task, labels, np.array(seen, dtype=np.int64)
        self.names, self.kind = plan.names(task), task.answer_kind()
        baselines = baselines if PartialState().is_main_process else {}
        self._given = {name: each for name, each in baselines.items() if isinstance(each, Answers)}
        fits = {name: each for name, each in baselines.items() if not isinstance(each, Answers)}
        self._fitted, self._failed = fit_all(fits)
        self._tally, self._unseen = MetricAccumulator(self.names, self.kind), MetricAccumulator(self.names, self.kind)
        self._theirs = {name: MetricAccumulator(self.names, self.kind) for name in (*self._fitted, *self._given)}
        self._confusions: Counter[tuple[str | None, str | None]] = Counter()
        self._mistakes: list[Mistake] = []
        self._classes: Sequence[str] = ()
        self._rows = 0

    def add(self, rows: Dataset, answers: Answers) -> None:
        """The next rows, in the order of the split, and the model's answers to them."""
        start, self._rows = self._rows, self._rows + len(rows)
        references = self.kind.read_references(self.task.targets(rows[:], self.labels))
        weights = draw_weights(start, self._rows)
        self._tally.add(answers, references, weights)
        guessed = ask_all(self._fitted, rows, self._failed)
        guessed |= {name: each.take(slice(start, self._rows)) for name, each in self._given.items()}
        for name, guesses in guessed.items():
            self._theirs[name].add(guesses, references, weights)
        fresh = np.setdiff1d(np.arange(start, self._rows), self.seen) - start
        self._unseen.add(answers.take(fresh), references[fresh], weights[fresh])
        self._classes = answers.classes
        self._confusions += answers.confusions(references)
        wrong = worst(answers.mistakes(references))
        self._mistakes = worst([*self._mistakes, *_shown(wrong, start, rows, self.task)])

    def result(self, split: str) -> Evaluation:
        """The evaluation of all rows that were added."""
        # Baselines that failed on some rows are no longer among the fitted ones.
        answering = (*self._fitted, *self._given)
        scores, simple = self._tally.scores(), {name: self._theirs[name].scores() for name in answering}
        table, confusions = _by_class(self._classes, self._confusions, self.kind.count_unit)
        return Evaluation(
            split,
            rows=self._rows,
            scores=scores,
            baselines=simple,
            per_class=table,
            confusions=confusions,
            mistakes=[asdict(mistake) for mistake in self._mistakes],
            gaps={other: {name: paired(scores[name], score[name]) for name in self.names} for other, score in simple.items()},
            unseen=self._unseen.scores() if 0 < len(self.seen) < self._rows else {},
            notes=tuple(self._failed),
        )


def measure_blocks(
    ran: Iterable[tuple[Dataset, RowOutputs]], task: Task, labels: Labels | None, names: Sequence[str]
) -> dict[str, float]:
    """The metrics' values, on every process the same."""
    tally = MetricAccumulator(names, task.answer_kind())
    for _, rows, answers in answer_blocks(ran, task, labels):
        tally.add(answers, task.answer_kind().read_references(task.targets(rows[:], labels)))
    return _from_main(tally.values())


def evaluate_blocks(
    split: str,
    ran: Iterable[tuple[Dataset, RowOutputs]],
    accumulator: EvaluationAccumulator,
    write: Callable[[dict[str, Any]], None] | None = None,
) -> Evaluation:
    """The evaluation of one split; the same on every process.

    Predictions go to `write`, in order, on the main process, which alone decodes and scores.
    """
    task = accumulator.task
    for start, rows, answers in answer_blocks(ran, task, accumulator.labels):
        accumulator.add(rows, answers)
        if write:
            for row, (answer, reference) in enumerate(zip(answers.as_json(), task.references(rows), strict=True), start=start):
                write({"row": row, **answer, "reference": reference})
    return _from_main(accumulator.result(split))


def worst(mistakes: Iterable[Mistake]) -> list[Mistake]:
    """The mistakes with the highest confidence, or with the largest error."""
    return sorted(mistakes, key=lambda mistake: -mistake.score)[:WORST]


def _shown(mistakes: list[Mistake], start: int, rows: Dataset, task: Task) -> list[Mistake]:
    """Mistakes of a block of rows, the first of which is row `start`, with their inputs."""
    wrong_rows = rows.select([mistake.row for mistake in mistakes])
    return [
        replace(mistake, row=start + mistake.row, text=text, picture=picture)
        for mistake, text, picture in zip(mistakes, task.texts(wrong_rows), task.pictures(wrong_rows), strict=True)
    ]


def _from_main(value: Any) -> Any:
    """The main process's value, on all."""
    return broadcast_object_list([value])[0]


def _by_class(
    classes: Sequence[str], pairs: Counter[tuple[str | None, str | None]], counted: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Precision, recall and F1 of each class, zero if the divisor is zero; and the confused pairs."""
    referred, answered = Counter(), Counter()
    for (reference, prediction), count in pairs.items():
        referred[reference] += count
        answered[prediction] += count
    table = []
    for name in classes:
        hits, predicted, true = pairs[name, name], answered[name], referred[name]
        rates = {"precision": (hits, predicted), "recall": (hits, true), "f1": (2 * hits, predicted + true)}
        table.append({"label": name, **{rate: a / b if b else 0.0 for rate, (a, b) in rates.items()}, counted: true})
    places = {name: place for place, name in enumerate((*classes, None))}
    wrong = sorted((pair for pair in pairs if pair[0] != pair[1]), key=lambda pair: (-pairs[pair], *map(places.get, pair)))
    return table, [{"reference": i, "prediction": j, counted: pairs[i, j]} for i, j in wrong]
