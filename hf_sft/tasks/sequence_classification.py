"""Which class, which classes, or which number does a text, or a pair of texts, have?

The data: one text column, or two (`text_pair`), and a label:

- a column of class names, integers, booleans or a `ClassLabel`: one class per row;
- a column of lists of those, or several columns of 0 and 1 named in `label`: any number of classes per row;
- a column of fractions: a number to regress on.

Which of the three it is (`problem_type`) is inferred from the column's type. Classes are always mapped by name, never by
position: splits whose `ClassLabel` orders differ are read rightly.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from datasets import ClassLabel, Dataset, LargeList, List, Value
from pydantic import Field
from scipy.special import expit, log_softmax, logit, softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForSequenceClassification
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from hf_sft.errors import DataError
from hf_sft.tasks import Batch, Labels, Task

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]


class SequenceClassification(Task):
    """Classify a text or a pair of texts, with one class, several classes, or a number."""

    auto_model: ClassVar[Any] = AutoModelForSequenceClassification
    pipeline_tag: ClassVar[str] = "text-classification"
    peft_type: ClassVar[str] = "SEQ_CLS"

    text: str = "text"
    """The column of the text."""
    text_pair: str | None = None
    """The column of a second text, for tasks on pairs."""
    label: str | tuple[str, ...] = "label"
    """The column of the label; several columns of 0 and 1 for multi-label."""
    problem_type: ProblemType | None = None
    """Hugging Face's word for the kind of label; inferred from the column when not given."""
    max_length: int | None = Field(default=None, ge=4)
    """Tokens kept of a row (pairs lose from the longer side); as many as the checkpoint allows when not given."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return ("pearson", "spearman", "mse") if self.problem_type == "regression" else ("accuracy", "f1_macro")

    def columns(self) -> dict[str, tuple[str, ...]]:
        named = {"text": (self.text,), "text_pair": (self.text_pair,) if self.text_pair else ()}
        return {**named, "label": tuple(self._label_columns)}

    def input_columns(self) -> tuple[str, ...]:
        return (self.text, self.text_pair) if self.text_pair else (self.text,)

    @property
    def _label_columns(self) -> list[str]:
        return [self.label] if isinstance(self.label, str) else list(self.label)

    def resolve(self, train: Dataset) -> Self:
        if self.problem_type is not None:
            return self
        return self.model_copy(update={"problem_type": self._infer_problem_type(train)})

    def _infer_problem_type(self, train: Dataset) -> ProblemType:
        if len(self._label_columns) > 1:
            return "multi_label_classification"
        feature = train.features[self._label_columns[0]]
        if isinstance(feature, List | LargeList):
            return "multi_label_classification"
        if isinstance(feature, Value) and feature.dtype.startswith(("float", "decimal")):
            return "regression"
        if isinstance(feature, ClassLabel | Value):
            return "single_label_classification"
        raise DataError(
            f"column `{self._label_columns[0]}` holds {feature}, which is not a label.\n"
            "  Expected names, integers, a ClassLabel, lists of those, or fractions.  Point `task.label` at such a column."
        )

    def labels(self, train: Dataset) -> Labels | None:
        if self.problem_type == "regression":
            return None
        if len(self._label_columns) > 1:
            return Labels(tuple(self._label_columns))
        feature = train.features[self._label_columns[0]]
        feature = feature.feature if isinstance(feature, List | LargeList) else feature
        if isinstance(feature, ClassLabel):
            return Labels(tuple(feature.names))
        column = train[self._label_columns[0]]
        values = {value for row in column for value in (row if isinstance(row, list) else [row])} - {None, ""}
        names = tuple(str(value) for value in sorted(values))
        if len(names) < (1 if self.problem_type == "multi_label_classification" else 2):
            raise DataError(
                f"column `{self._label_columns[0]}` of split `train` shows {len(names)} class(es): "
                f"{', '.join(names) or 'none'}.\n  Classification needs at least two.  Check `task.label` and the split."
            )
        return Labels(names)

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {}

        def note(problem: str, row: int) -> None:
            found.setdefault(problem, []).append(row)

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
        return found

    def _label_problem(self, value: Any, labels: Labels | None) -> str | None:
        if value is None or value == "":
            return "is null or empty"
        if self.problem_type == "regression":
            number = isinstance(value, int | float)
            return None if number and math.isfinite(value) else f"has the value {value!r}, which is no finite number,"
        if len(self._label_columns) > 1:
            return None if value in (0, 1) else f"has the value {value!r}, which is neither 0 nor 1,"
        values = value if isinstance(value, list) else [value]
        unknown = next((name for name in values if labels is not None and str(name) not in labels.ids), None)
        return None if unknown is None else f"has the value {str(unknown)!r}, which `train` never shows,"

    def config_fields(self, labels: Labels | None) -> dict[str, Any]:
        names = labels.names if labels else ("LABEL_0",)
        id2label = dict(enumerate(names))
        return {"problem_type": self.problem_type, "id2label": id2label, "label2id": {n: i for i, n in id2label.items()}}

    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Adds `input_ids` (with `token_type_ids` where the processor has them), `truncated` and `labels`."""
        texts = [rows[column] for column in self.input_columns()]
        encoded = processor(*texts, truncation="longest_first", max_length=self.max_length, return_attention_mask=False)
        examples = dict(encoded)
        examples["truncated"] = [bool(encoding.overflowing) for encoding in encoded.encodings]
        if set(self._label_columns) <= set(rows):
            examples["labels"] = self._encode_labels([rows[column] for column in self._label_columns], labels)
        return examples

    def _encode_labels(self, columns: list[list], labels: Labels | None) -> list:
        if labels is None:
            return [float(value) for value in columns[0]]
        if self.problem_type == "single_label_classification":
            return [labels.ids[str(value)] for value in columns[0]]
        if len(columns) > 1:
            return [[float(value) for value in row] for row in zip(*columns, strict=True)]
        return [[float(name in {str(v) for v in row}) for name in labels.names] for row in columns[0]]

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        single = self.problem_type == "single_label_classification"

        def collate(examples: list[dict[str, Any]]) -> Batch:
            inputs = [{k: v for k, v in example.items() if k in processor.model_input_names} for example in examples]
            batch = dict(pad_without_fast_tokenizer_warning(processor, inputs, return_tensors="pt"))
            if "labels" in examples[0]:
                dtype = torch.long if single else torch.float32
                batch["labels"] = torch.tensor([example["labels"] for example in examples], dtype=dtype)
            return batch

        return collate

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits, labels = self.output(model, batch), batch["labels"]
        if self.problem_type == "regression":
            return functional.mse_loss(logits.squeeze(-1), labels, reduction="sum")
        if self.problem_type == "single_label_classification":
            return functional.cross_entropy(logits, labels, reduction="sum")
        # An item is a row, so a row's loss is the mean over its labels: transformers' own BCE, made independent of the cut.
        return functional.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / labels.shape[-1]

    def num_items(self, batch: Batch) -> int:
        return len(batch["labels"])

    def output(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits, float32, shape (rows, labels)."""
        return model(**{key: value for key, value in batch.items() if key != "labels"}).logits.float()

    def answers(self, output: np.ndarray) -> np.ndarray:
        if self.problem_type == "regression":
            return output[:, 0]
        if self.problem_type == "single_label_classification":
            return output.argmax(-1)
        return (output > 0).astype(np.int64)

    def scores(self, output: np.ndarray) -> np.ndarray:
        if self.problem_type == "regression":
            return output[:, 0]
        output = output.astype(np.float64)
        return softmax(output, axis=-1) if self.problem_type == "single_label_classification" else expit(output)

    def decode(self, output: np.ndarray, labels: Labels | None) -> list[dict[str, Any]]:
        if labels is None:
            return [{"value": float(value)} for value in output[:, 0]]
        named = [
            {name: round(float(score), 6) for name, score in zip(labels.names, row, strict=True)}
            for row in self.scores(output)
        ]
        if self.problem_type == "multi_label_classification":
            return [{"labels": [n for n, s in row.items() if s > 0.5], "scores": row} for row in named]
        best = [labels.names[i] for i in output.argmax(-1)]
        return [{"label": b, "score": row[b], "scores": row} for b, row in zip(best, named, strict=True)]

    def references(self, rows: Dataset) -> list[Any]:
        columns = [rows[column] for column in self._label_columns]
        if self.problem_type == "regression":
            return [float(value) for value in columns[0]]
        if self.problem_type == "single_label_classification":
            return [str(value) for value in columns[0]]
        if len(columns) == 1:
            return [[str(name) for name in row] for row in columns[0]]
        return [
            [name for name, value in zip(self._label_columns, row, strict=True) if value] for row in zip(*columns, strict=True)
        ]

    def texts(self, rows: Dataset) -> list[str]:
        columns = [rows[column] for column in self.input_columns()]
        return ["\n".join(str(text) for text in row) for row in zip(*columns, strict=True)]

    def baselines(self, train: Dataset, rows: Dataset, labels: Labels | None) -> dict[str, np.ndarray]:
        """The majority class (or the mean), and TF-IDF with logistic (or ridge) regression, all at sklearn's defaults
        but for sublinear counts of words and pairs of words."""
        known = np.array(self._encode_labels([list(train[column]) for column in self._label_columns], labels))
        words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2 if len(train) > 500 else 1)
        texts, asked = self.texts(train), self.texts(rows)
        if labels is None:
            ridge = make_pipeline(words, Ridge()).fit(texts, known)
            mean = np.full((len(rows), 1), known.mean())
            return {"mean": mean, "tfidf_ridge": ridge.predict(asked).reshape(-1, 1)}
        if self.problem_type == "single_label_classification":
            shares = np.bincount(known, minlength=len(labels)) / len(known)
            model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000)).fit(texts, known)
            logits = np.full((len(rows), len(labels)), -np.inf)
            logits[:, model.classes_] = model.predict_log_proba(asked)
            majority = np.tile(np.log(np.maximum(shares, 1e-9)), (len(rows), 1))
            return {"majority": majority, "tfidf_logreg": log_softmax(np.maximum(logits, -30.0), axis=-1)}
        shares = np.clip(known.mean(0), 1e-9, 1 - 1e-9)
        each = make_pipeline(words, OneVsRestClassifier(LogisticRegression(C=10.0, max_iter=1000))).fit(texts, known)
        chances = np.clip(each.predict_proba(asked), 1e-9, 1 - 1e-9)
        return {"majority": np.tile(logit(shares), (len(rows), 1)), "tfidf_logreg": logit(chances)}

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        rows = {
            "text": ["a goal in the last minute", "shares fell again", "the match was lost", "the bank cut its rates"] * 4,
            "label": ["sport", "business", "sport", "business"] * 4,
        }
        return cls(type="sequence_classification"), Dataset.from_dict(rows)
