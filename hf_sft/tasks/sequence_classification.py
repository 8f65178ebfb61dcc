"""Which class, which classes, or which number does a text, or a pair of texts, have?

The data: one text column, or two (`text_pair`), and a label:

- a column of class names, integers, booleans or a `ClassLabel`: one class per row;
- a column of lists of those, or several columns of 0 and 1 named in `label`: any number of classes per row;
- a column of lists of 0 and 1, all equally long: the same, written as a place for each class (`label_names` names them);
- a column of fractions: a number to regress on.

Which of the three it is (`problem_type`) is inferred from the column's type. Classes are always mapped by name, never by
position: splits whose `ClassLabel` orders differ are read rightly.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import torch
from datasets import ClassLabel, Dataset, LargeList, List, Value
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from scipy.special import expit, softmax
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from hf_sft.answers import AnswerKind, Answers, ClassAnswers, NumberAnswers, SetAnswers
from hf_sft.baselines import Answerer, Fit, of_classes, of_numbers, of_sets
from hf_sft.errors import DataError
from hf_sft.label_columns import (
    MULTI,
    NUMBERS,
    REGRESSION,
    SINGLE,
    ProblemType,
    as_list,
    find_label_names,
    find_problem_type,
    require_kind,
)
from hf_sft.losses import Items
from hf_sft.tasks import Batch, Labels, Task


class SequenceClassification(Task):
    """Classify a text or a pair of texts, with one class, several classes, or a number."""

    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    pipeline_tag: ClassVar[str] = "text-classification"
    peft_type: ClassVar[str | None] = "SEQ_CLS"
    other_names: ClassVar[dict[str, str]] = {
        "text_classification": "sequence_classification",
        "classification": "sequence_classification",
        **{
            name: f"sequence_classification, with `problem_type: {kind}` beside it"
            for name, kind in {"regression": REGRESSION, MULTI: MULTI}.items()
        },
        SINGLE: "sequence_classification",
    }

    text: str = "text"
    """The column of the text."""
    text_pair: str | None = None
    """The column of a second text, for tasks on pairs."""
    label: str | tuple[str, ...] = "label"
    """The column of the label; several columns of 0 and 1 for multi-label."""
    label_names: tuple[str, ...] | None = None
    """The classes of a column of lists of 0 and 1, in their order; their numbers when not given."""
    problem_type: ProblemType | None = None
    """Hugging Face's word for the kind of label; inferred from the column when not given."""
    max_length: int | None = Field(default=None, ge=4)
    """Tokens kept of a row (pairs lose from the longer side); as many as the checkpoint allows when not given."""

    @model_validator(mode="after")
    def _pair_is_two(self) -> Self:
        if self.text_pair == self.text:
            raise PydanticCustomError("text_pair", "must be another column than `text`; leave it out for single texts")
        return self

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return ("pearson", "spearman", "mse") if self.problem_type == REGRESSION else ("accuracy", "f1_macro")

    def columns(self) -> dict[str, tuple[str, ...]]:
        named = {"text": (self.text,), "text_pair": (self.text_pair,) if self.text_pair else ()}
        return {**named, "label": tuple(self._label_columns)}

    def input_columns(self) -> tuple[str, ...]:
        return (self.text, self.text_pair) if self.text_pair else (self.text,)

    @property
    def _label_columns(self) -> list[str]:
        return [self.label] if isinstance(self.label, str) else list(self.label)

    def resolve(self, splits: dict[str, Dataset]) -> tuple[Self, Labels | None, list[str]]:
        train = splits["train"]
        kind = self.problem_type or find_problem_type(train, self._label_columns)
        require_kind(train, self._label_columns, kind)
        names = find_label_names(train, self._label_columns, self.label_names)
        resolved = self.model_copy(update={"problem_type": kind, "label_names": names})
        return resolved, resolved._labels(train), self._remarks(resolved, train)

    def _remarks(self, resolved: Self, train: Dataset) -> list[str]:
        column = self._label_columns[0]
        feature = train.features[column]
        if resolved.label_names is not None and self.label_names is None:
            return [
                f"column `{column}` holds lists of 0 and 1: a place for each of {len(resolved.label_names)} classes, "
                "called by their numbers.  Name them: `task.label_names`."
            ]
        if self.problem_type is not None or not (isinstance(feature, Value) and feature.dtype.startswith(NUMBERS)):
            return []
        if resolved.problem_type == REGRESSION:
            return [
                f"column `{column}` holds fractions: a number to regress on.  "
                f"If its values are classes: `task.problem_type={SINGLE}`."
            ]
        return [
            f"column `{column}` holds whole numbers: each of the {len(set(train[column][:]) - {None})} is a class.  "
            f"If they are amounts: `task.problem_type={REGRESSION}`."
        ]

    def _labels(self, train: Dataset) -> Labels | None:
        if self.problem_type == REGRESSION:
            return None
        if len(self._label_columns) > 1:
            return Labels(tuple(self._label_columns))
        if self.label_names is not None:
            return Labels(self.label_names)
        feature = train.features[self._label_columns[0]]
        feature = feature.feature if isinstance(feature, List | LargeList) else feature
        if isinstance(feature, ClassLabel):
            return Labels(tuple(feature.names))
        values = {value for row in train[self._label_columns[0]] for value in as_list(row)} - {None, ""}
        names = tuple(str(value) for value in sorted(values))
        if len(names) < (1 if self.problem_type == MULTI else 2):
            raise DataError(
                f"column `{self._label_columns[0]}` of split `train` shows {len(names)} class(es): "
                f"{', '.join(names) or 'none'}.\n  Classification needs at least two.  Check `task.label` and the split."
            )
        return Labels(names)

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        problems: dict[str, list[int]] = {}

        def note(problem: str, row: int) -> None:
            problems.setdefault(problem, []).append(row)

        for column in self.input_columns():
            if column not in rows.column_names:
                continue
            for row, text in enumerate(rows[column]):
                if text is None or (isinstance(text, str) and not text.strip()):
                    note(f"column `{column}` is {'null' if text is None else 'empty'}", row)
                elif not isinstance(text, str):
                    note(f"column `{column}` holds {type(text).__name__}, not text,", row)
        for column in set(self._label_columns) & set(rows.column_names):
            for row, value in enumerate(rows[column]):
                problem = self._label_problem(value, labels)
                if problem:
                    note(f"column `{column}` {problem}", row)
        return problems

    def _label_problem(self, value: Any, labels: Labels | None) -> str | None:
        if value is None or value == "":
            return "is null or empty"
        if self.problem_type == REGRESSION:
            number = isinstance(value, int | float)
            return None if number and math.isfinite(value) else f"has the value {value!r}, which is no finite number,"
        if len(self._label_columns) > 1:
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

    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Adds `input_ids` (with `token_type_ids` where the processor has them), `truncated` and `labels`."""
        texts = [rows[column] for column in self.input_columns()]
        most = min(self.max_length or processor.model_max_length, processor.model_max_length)
        encoded = processor(*texts, truncation="longest_first", max_length=most, return_attention_mask=False)
        examples = dict(encoded)
        examples["truncated"] = [bool(encoding.overflowing) for encoding in encoded.encodings]
        if set(self._label_columns) <= set(rows):
            examples["labels"] = self.targets(rows, labels)
        return examples

    def targets(self, rows: dict[str, list], labels: Labels | None) -> list:
        columns = [rows[column] for column in self._label_columns]
        if labels is None:
            return [float(value) for value in columns[0]]
        if self.problem_type == SINGLE:
            return [labels.ids[str(value)] for value in columns[0]]
        return [[float(name in named) for name in labels.names] for named in self._named(columns)]

    def _named(self, columns: list[list]) -> list[list[str]]:
        """Of each row the classes that it has."""
        if len(columns) > 1 or self.label_names is not None:
            names = self.label_names or self._label_columns
            places = zip(*columns, strict=True) if len(columns) > 1 else columns[0]
            return [[name for name, value in zip(names, row, strict=True) if value] for row in places]
        return [[str(name) for name in as_list(value)] for value in columns[0]]

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        single = self.problem_type == SINGLE

        def collate(examples: list[dict[str, Any]]) -> Batch:
            inputs = [{k: v for k, v in example.items() if k in processor.model_input_names} for example in examples]
            batch = dict(pad_without_fast_tokenizer_warning(processor, inputs, return_tensors="pt"))
            if "labels" in examples[0]:
                dtype = torch.long if single else torch.float32
                batch["labels"] = torch.tensor([example["labels"] for example in examples], dtype=dtype)
            return batch

        return collate

    def items(self, model: nn.Module, batch: Batch) -> Items:
        return Items(self._logits(model, batch), batch["labels"])

    def keep(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """The logits of each row, float32, shape (labels,)."""
        return list(self._logits(model, batch).cpu().numpy())

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits.float()

    def answer_kind(self) -> AnswerKind:
        return {SINGLE: ClassAnswers, MULTI: SetAnswers, REGRESSION: NumberAnswers}[self.problem_type or SINGLE]

    def answer(self, kept: list[list[np.ndarray]], rows: Dataset, labels: Labels | None) -> Answers:
        logits = np.concatenate(kept).astype(np.float64)
        if labels is None:
            return NumberAnswers(logits[:, 0].astype(np.float32))
        if self.problem_type == SINGLE:
            return ClassAnswers(softmax(logits, axis=-1), labels.names)
        return SetAnswers(expit(logits), labels.names)

    def baselines(self, train: Dataset, labels: Labels | None) -> dict[str, Fit]:
        texts, targets = self.texts(train), self.targets(train[:], labels)
        if labels is None:
            methods = of_numbers(texts, targets)
        else:
            methods = (of_classes if self.problem_type == SINGLE else of_sets)(texts, targets, labels.names)
        return {name: partial(self._read_texts, fit) for name, fit in methods.items()}

    def _read_texts(self, fit: Fit) -> Answerer:
        answer = fit()
        return lambda rows: answer(self.texts(rows))

    def references(self, rows: Dataset) -> list[Any]:
        columns = [list(rows[column]) for column in self._label_columns]
        if self.problem_type == REGRESSION:
            return [float(value) for value in columns[0]]
        if self.problem_type == SINGLE:
            return [str(value) for value in columns[0]]
        return self._named(columns)

    def texts(self, rows: Dataset) -> list[str]:
        columns = [rows[column] for column in self.input_columns()]
        return ["\n".join(str(text) for text in row) for row in zip(*columns, strict=True)]

    def example_call(self) -> str:
        text = '[{"text": "One text.", "text_pair": "Another."}]' if self.text_pair else '["A text."]'
        every = ", top_k=None" if self.problem_type == MULTI else ""
        longest = f", max_length={self.max_length}" if self.max_length else ""
        return f"answer({text}{every}, truncation=True{longest})"

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        rows = {
            "text": ["a goal in the last minute", "shares fell again", "the match was lost", "the bank cut its rates"] * 4,
            "label": ["sport", "business", "sport", "business"] * 4,
        }
        return cls(type="sequence_classification"), Dataset.from_dict(rows)
