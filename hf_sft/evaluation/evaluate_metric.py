"""Our metrics with the interface of the `evaluate` library: no network, no remote code, nothing written."""

from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value
from pyarrow import ChunkedArray
from pyarrow.types import is_nested

from hf_sft.answers.contract import Answers, ClassAnswers, NumberAnswers, SetAnswers
from hf_sft.errors import RecipeError
from hf_sft.evaluation.bootstrap import measure
from hf_sft.metrics import find_metric


class LocalMetric(evaluate.Metric):
    """One metric: `add_batch`, then `compute`. It takes ids, 0 and 1 for each class, or numbers; `roc_auc` takes scores."""

    def __init__(self, name: str, kind: type[Answers], num_labels: int = 1):
        self._of = (name, kind, num_labels)
        # In memory, because evaluate's buffer is Arrow's: 16 bytes a row (label sets, scores: 8 per label and row),
        # no Python objects, and `compute` would read the whole file back anyway. Files would only bring locks,
        # collisions between processes and leftovers of killed ones.
        super().__init__(keep_in_memory=True, seed=0)
        self.info.module_name = name
        # `_compute` gets Arrow columns: lists would be objects, and "numpy" would make float32 of float64. Set here,
        # because MetricInfo refuses formats where a feature is a list.
        self.info.format = "arrow"

    def _build_data_dir(self) -> str:
        return ""  # evaluate makes an empty folder under HF_HOME even for a metric in memory

    def _info(self) -> evaluate.MetricInfo:
        name, kind, num_labels = self._of
        metric, length = find_metric(name, kind), num_labels if num_labels > 1 else -1
        number = Value("float64" if kind is NumberAnswers else "int64")
        references = List(number, length=length) if kind is SetAnswers else number
        predictions = List(Value("float64"), length=length) if metric.needs_scores else references
        return evaluate.MetricInfo(
            description=metric.description,
            citation="",
            inputs_description=f"\n\nFor answers of {kind.called}.",
            features=Features({"predictions": predictions, "references": references}),
        )

    def _compute(self, *, predictions: ChunkedArray, references: ChunkedArray, **kwargs: Any) -> dict[str, float]:
        name, kind, num_labels = self._of
        answered, referred = _read_column(predictions), _read_column(references)
        if kind is NumberAnswers:
            answers: Answers = NumberAnswers(answered)
        elif kind is SetAnswers:
            answers = SetAnswers(answered.astype(np.float64), ("",) * answered.shape[1])
        elif answered.ndim == 2:
            answers = ClassAnswers(answered, ("",) * answered.shape[1])
        else:
            classes = max([num_labels, *(answered + 1)])
            answers = ClassAnswers(np.eye(int(classes))[answered], ("",) * int(classes))
        return measure([name], answers, referred)


def _read_column(column: ChunkedArray) -> np.ndarray:
    """A column of numbers to shape (rows,), of lists to (rows, labels)."""
    array = column.combine_chunks()
    if is_nested(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), -1)
    return array.to_numpy(zero_copy_only=False)


def load_metric(name: str, kind: type[Answers], num_labels: int = 1) -> evaluate.Metric:
    """A metric for answers of one class, any number of classes, or numbers, as `evaluate` has it. Raises `RecipeError`."""
    find_metric(name, kind)
    if kind not in (ClassAnswers, SetAnswers, NumberAnswers):
        raise RecipeError(f"`{name}` is not offered as an `evaluate.Metric` for answers of {kind.called}.")
    return LocalMetric(name, kind, num_labels)
