"""Rows with a label, whatever else they hold: one class, any number of classes, or a number.

- A column of class names, integers, booleans or a `ClassLabel`: one class per row;
- a column of lists of those, or several columns of 0 and 1 named in `label`: any number of classes per row;
- a column of lists of 0 and 1, all equally long: the same, written as a place for each class (`label_names` names them);
- a column of fractions: a number to regress on.

Which of the three it is (`problem_type`) is inferred from the column's type. Classes are always mapped by name, never by
position: splits whose `ClassLabel` orders differ are read rightly.
"""

import math
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import scipy
from datasets import ClassLabel, Dataset, LargeList, List, Value
from torch import Tensor, nn

from hf_sft.answers.contract import AnswerKind, Answers, ClassAnswers, NumberAnswers, SetAnswers
from hf_sft.block import Block
from hf_sft.errors import DataError, list_few
from hf_sft.losses import Items, RowOutputs
from hf_sft.tasks.common.baselines import Answerer, Features, Fit, of_classes, of_numbers, of_sets
from hf_sft.tasks.common.labels import (
    MULTI,
    NUMBERS,
    REGRESSION,
    SINGLE,
    Labels,
    ProblemType,
    alike,
    as_list,
    find_label_names,
    find_problem_type,
    require_classes,
    require_kind,
)

NEAR = 10.0
"""A mean and a standard deviation within this need no scale: a new head answers numbers of that size."""


class Labelled(Block):
    """The part of a task that is about the label: its fields, its classes, its loss and its answers."""

    simple_features: ClassVar[Features]
    """What baselines make of their inputs."""

    label: str | tuple[str, ...] = "label"
    """The column of the label; several columns of 0 and 1 for multi-label."""
    label_names: tuple[str, ...] | None = None
    """The classes of a column of lists of 0 and 1, in their order; their numbers when not given."""
    problem_type: ProblemType | None = None
    """Hugging Face's word for the kind of label; inferred from the column when not given."""
    scale: tuple[float, float] | None = None
    """Mean and standard deviation by which numbers are standardised in the loss; train's, where they are far from 0 and 1."""
    minus_one_is_class: bool | None = None
    """Whether the number -1 is a class; when not given it is no label where it stands beside 0, 1, … and no other negative."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return ("pearson", "spearman", "mse") if self.problem_type == REGRESSION else ("accuracy", "f1_macro")

    @property
    def in_parts(self) -> bool:
        """Whether a row may have several examples, whose answers are averaged by their shares of it."""
        return False

    @property
    def label_columns(self) -> list[str]:
        """The columns of the label."""
        return [self.label] if isinstance(self.label, str) else list(self.label)

    def resolve(self, splits: dict[str, Dataset]) -> tuple[Self, Labels | None, list[str]]:
        train = splits["train"]
        kind = self.problem_type or find_problem_type(train, self.label_columns)
        require_kind(train, self.label_columns, kind)
        if kind == SINGLE and self.problem_type is None:
            require_classes(train, self.label_columns[0])
        names = find_label_names(train, self.label_columns, self.label_names)
        scale = self.scale or (_find_scale(train[self.label_columns[0]][:]) if kind == REGRESSION else None)
        resolved = self.model_copy(update={"problem_type": kind, "label_names": names, "scale": scale})
        return resolved, resolved._labels(train), self._remarks(resolved, train)

    def _remarks(self, resolved: Self, train: Dataset) -> list[str]:
        column = self.label_columns[0]
        feature = train.features[column]
        labels = None if resolved.problem_type == REGRESSION else resolved._labels(train)
        if labels is not None and (groups := alike(labels.names)):
            few = list_few(["; ".join(map(repr, group)) for group in groups])
            return [
                f"column `{column}` has classes that differ only in case, spaces or Unicode form: {few}.  "
                "Each is a class of its own: write them alike if they are one."
            ]
        if resolved.label_names is not None and self.label_names is None:
            return [
                f"column `{column}` holds lists of 0 and 1: a place for each of {len(resolved.label_names)} classes, "
                "called by their numbers.  Name them: `task.label_names`."
            ]
        if self.problem_type is not None or not (isinstance(feature, Value) and feature.dtype.startswith(NUMBERS)):
            return []
        if resolved.problem_type == REGRESSION:
            return [
                f"column `{column}` holds decimal numbers: a number to regress on.  "
                f"If its values are classes: `task.problem_type={SINGLE}`."
            ]
        return [
            f"column `{column}` holds whole numbers: each of the {len(set(train[column][:]) - {None})} is a class.  "
            f"If they are amounts: `task.problem_type={REGRESSION}`."
        ]

    def _labels(self, train: Dataset) -> Labels | None:
        if self.problem_type == REGRESSION:
            return None
        if len(self.label_columns) > 1:
            return Labels(tuple(self.label_columns))
        if self.label_names is not None:
            return Labels(self.label_names)
        feature = train.features[self.label_columns[0]]
        feature = feature.feature if isinstance(feature, List | LargeList) else feature
        if isinstance(feature, ClassLabel):
            return Labels(tuple(feature.names))
        values = {value for row in train[self.label_columns[0]][:] for value in as_list(row)} - {None, ""}
        names = tuple(str(value) for value in sorted(values))
        if len(names) < (1 if self.problem_type == MULTI else 2):
            raise DataError(
                f"column `{self.label_columns[0]}` of split `train` shows {len(names)} class(es): "
                f"{', '.join(names) or 'none'}.\n  Classification needs at least two.  Check `task.label` and the split."
            )
        return Labels(names)

    def invalid_labels(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        """Rows whose label can't be learned from, by what is wrong with it; `{}` for rows without labels."""
        problems: dict[str, list[int]] = {}
        for column in set(self.label_columns) & set(rows.column_names):
            values, judge = rows[column][:], partial(self._label_problem, labels=labels)
            if isinstance(rows.features[column], Value):  # a value once, however many rows have it
                judge = {value: judge(value) for value in {*values}}.get
            for row, problem in enumerate(map(judge, values)):
                if problem:
                    problems.setdefault(f"column `{column}` {problem}", []).append(row)
        return problems

    def _label_problem(self, value: Any, labels: Labels | None) -> str | None:
        if value is None or value == "":
            return "is null or empty"
        if self.problem_type == REGRESSION:
            number = isinstance(value, int | float)
            return None if number and math.isfinite(value) else f"has the value {value!r}, which is no finite number,"
        if len(self.label_columns) > 1:
            return None if value in (0, 1) else f"has the value {value!r}, which is neither 0 nor 1,"
        if self.label_names is not None:
            good = isinstance(value, list) and len(value) == len(self.label_names) and set(value) <= {0, 1}
            return None if good else f"has the value {value!r}, not {len(self.label_names)} times 0 or 1,"
        unknown = next((name for name in as_list(value) if labels is not None and str(name) not in labels.ids), None)
        return None if unknown is None else f"has the value {str(unknown)!r}, which `train` never shows,"

    def config_fields(self, labels: Labels | None) -> dict[str, Any]:
        names = labels.names if labels else ("LABEL_0",)
        id2label = dict(enumerate(names))
        return {"problem_type": self.problem_type, "id2label": id2label, "label2id": {n: i for i, n in id2label.items()}}

    def targets(self, rows: dict[str, list], labels: Labels | None) -> list:
        columns = [rows[column][:] for column in self.label_columns]
        if labels is None:
            return [float(value) for value in columns[0]]
        if self.problem_type == SINGLE:
            return [labels.ids[str(value)] for value in columns[0]]
        return [[float(name in named) for name in labels.names] for named in self._named(columns)]

    def _named(self, columns: list[list]) -> list[list[str]]:
        """Of each row the classes that it has."""
        if len(columns) > 1 or self.label_names is not None:
            names = self.label_names or self.label_columns
            places = zip(*columns, strict=True) if len(columns) > 1 else columns[0]
            return [[name for name, value in zip(names, row, strict=True) if value] for row in places]
        return [[str(name) for name in as_list(value)] for value in columns[0]]

    def items(self, model: nn.Module, batch: dict[str, Tensor]) -> Items:
        mean, deviation = self.scale or (0.0, 1.0)
        targets = (batch["labels"] - mean) / deviation if self.scale else batch["labels"]
        return Items(self._logits(model, batch), targets, weights=batch.get("share"))

    def inference_step(self, model: nn.Module, batch: dict[str, Tensor]) -> list[np.ndarray]:
        """The logits of each example, float32, shape (labels,), and behind them its share of its row if it is a part."""
        logits = self._logits(model, batch).cpu().numpy()
        return list(np.column_stack([logits, batch["share"].cpu().numpy()]) if "share" in batch else logits)

    def _logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(**{name: tensor for name, tensor in batch.items() if name not in ("labels", "share")}).logits.float()

    def answer_kind(self) -> AnswerKind:
        return {SINGLE: ClassAnswers, MULTI: SetAnswers, REGRESSION: NumberAnswers}[self.problem_type or SINGLE]

    def answer(self, outputs: RowOutputs, rows: Dataset, labels: Labels | None) -> Answers:
        numbers = np.concatenate([np.stack(parts) for parts in outputs]).astype(np.float64)
        if self.in_parts:
            shares, numbers = numbers[:, -1:], self._read_logits(numbers[:, :-1])
            starts = np.cumsum([0, *map(len, outputs[:-1])])
            numbers = np.add.reduceat(numbers * shares, starts) / np.add.reduceat(shares, starts)
        else:
            numbers = self._read_logits(numbers)
        if labels is None:
            return NumberAnswers(numbers[:, 0].astype(np.float32))
        return (ClassAnswers if self.problem_type == SINGLE else SetAnswers)(numbers, labels.names)

    def _read_logits(self, logits: np.ndarray) -> np.ndarray:
        """Probabilities, or numbers in the data's units, of logits, shape (examples, labels)."""
        if self.problem_type == REGRESSION:
            mean, deviation = self.scale or (0.0, 1.0)
            return logits * deviation + mean
        return scipy.special.softmax(logits, axis=-1) if self.problem_type == SINGLE else scipy.special.expit(logits)

    def simple_inputs(self, rows: Dataset) -> Any:
        """What the baselines are given of rows, as `simple_features` takes it."""
        raise NotImplementedError

    def baselines(self, train: Dataset, labels: Labels | None, processor: Any = None) -> dict[str, Fit]:
        inputs, targets = self.simple_inputs(train), self.targets(train.select_columns(self.label_columns)[:], labels)
        if labels is None:
            methods = of_numbers(inputs, targets, self.simple_features)
        else:
            fit = of_classes if self.problem_type == SINGLE else of_sets
            methods = fit(inputs, targets, labels.names, self.simple_features)
        return {name: partial(self._read_inputs, fit) for name, fit in methods.items()}

    def in_own_units(self, call: str) -> str:
        """The Python that asks a pipeline for an answer, with numbers in the data's own units."""
        if self.scale is None:
            return call
        mean, deviation = self.scale
        return f'[{mean!r} + {deviation!r} * each["score"] for each in {call}]'

    def _read_inputs(self, fit: Fit) -> Answerer:
        answer = fit()
        return lambda rows: answer(self.simple_inputs(rows))

    def references(self, rows: Dataset) -> list[Any]:
        columns = [rows[column][:] for column in self.label_columns]
        if self.problem_type == REGRESSION:
            return [float(value) for value in columns[0]]
        if self.problem_type == SINGLE:
            return [str(value) for value in columns[0]]
        return self._named(columns)


def _find_scale(cells: list[Any]) -> tuple[float, float] | None:
    """Mean and standard deviation of numbers that a head would take many steps to reach; None for others."""
    numbers = np.array([cell for cell in cells if cell is not None and math.isfinite(cell)], dtype=np.float64)
    if not len(numbers) or numbers.std() == 0 or (NEAR >= numbers.std() >= 1 / NEAR and abs(numbers.mean()) <= NEAR):
        return None
    return float(numbers.mean()), float(numbers.std())
