"""Which class, which classes, or which number does a text, or a pair of texts, have?

The data: one text column, or two (`text_pair`), and a label, as `hf_sft/tasks/common/classification.py` reads it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from datasets import Dataset, Value
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from transformers import AutoModelForSequenceClassification
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from hf_sft.tasks import Batch, Labels, Task
from hf_sft.tasks.common.baselines import WORDS, Features
from hf_sft.tasks.common.classification import Labelled
from hf_sft.tasks.common.labels import MULTI, REGRESSION, SINGLE
from hf_sft.tasks.common.windows import OVERLAP, count_most, shorten


class SequenceClassification(Labelled, Task):
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

    simple_features: ClassVar[Features] = WORDS

    text: str | tuple[str, ...] = "text"
    """The column of the text; or several, which are put together, a line for each."""
    text_pair: str | None = None
    """The column of a second text, for tasks on pairs."""
    max_length: int | None = Field(default=None, ge=4)
    """Maximum number of tokens of a row; of a pair the longer side is truncated. Default: the checkpoint's maximum."""

    long: Literal["cut", "windows"] = "cut"
    """What is done with longer texts: `cut` keeps their beginning; `windows` reads all, in overlapping windows (of a pair the
    second text), each trained on by its share of the row, and averages the answers by length."""

    @model_validator(mode="after")
    def _columns_differ(self) -> Self:
        if self.text_pair in self._parts or len({*self._parts}) < len(self._parts) or not self._parts:
            raise PydanticCustomError("text_pair", "must be another column than `text`; leave it out for single texts")
        if shared := {*self.input_columns()} & {*self.label_columns}:
            message = "must be another column than that of the label, `{column}`"
            raise PydanticCustomError("text", message, {"column": min(shared)})
        return self

    def columns(self) -> dict[str, tuple[str, ...]]:
        named = {"text": self._parts, "text_pair": (self.text_pair,) if self.text_pair else ()}
        return {**named, "label": tuple(self.label_columns)}

    def input_columns(self) -> tuple[str, ...]:
        return (*self._parts, self.text_pair) if self.text_pair else self._parts

    @property
    def _parts(self) -> tuple[str, ...]:
        return (self.text,) if isinstance(self.text, str) else self.text

    def text_columns(self) -> tuple[str, ...]:
        """The first column of the text, which holds all of it once rows are read, and that of the second text."""
        return (self._parts[0], self.text_pair) if self.text_pair else self._parts[:1]

    def read(self, rows: Dataset, folder: Path) -> Dataset:
        if len(self._parts) == 1:
            return rows
        cells = zip(*(rows[column][:] for column in self._parts), strict=True)
        texts = ["\n".join(str(part) for part in parts if part is not None and str(part).strip()) for parts in cells]
        add: Any = Dataset.add_column  # a decorator hides what it takes
        first = self._parts[0]
        rows = add(rows.rename_column(first, f"{first}, alone"), first, texts, feature=Value("string"))
        return rows.remove_columns(f"{first}, alone")

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        problems: dict[str, list[int]] = {}

        def note(problem: str, row: int) -> None:
            problems.setdefault(problem, []).append(row)

        for column in self.text_columns():
            if column not in rows.column_names:
                continue
            for row, text in enumerate(rows[column][:]):
                if text is None or (isinstance(text, str) and not text.strip()):
                    note(f"column `{column}` is {'null' if text is None else 'empty'}", row)
                elif not isinstance(text, str):
                    note(f"column `{column}` holds {type(text).__name__}, not text,", row)
        return problems | self.invalid_labels(rows, labels)

    @property
    def in_parts(self) -> bool:
        return self.long == "windows"

    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Adds `input_ids` (with `token_type_ids` where the processor has them), `truncated` and `labels`; of windows also
        `row` and their `share` of its tokens."""
        texts = [rows[column] for column in self.text_columns()]
        most = count_most(processor, self.max_length)
        if self.in_parts:
            examples = self._encode_windows(texts, processor, most)
        else:
            encoded = processor(*texts, truncation="longest_first", max_length=most, return_attention_mask=False)
            examples = {**encoded, "truncated": [bool(encoding.overflowing) for encoding in encoded.encodings]}
        if set(self.label_columns) <= set(rows):
            targets = self.targets(rows, labels)
            examples["labels"] = [targets[row] for row in examples["row"]] if self.in_parts else targets
        return examples

    def _encode_windows(self, texts: list[list[str]], processor: Any, most: int) -> dict[str, list]:
        inner = most - processor.num_special_tokens_to_add(pair=len(texts) > 1)
        if len(texts) > 1:  # the first text leaves half of a window to the second
            inner -= inner // 2
            texts = [[shorten(text, processor, inner) for text in texts[0]], texts[1]]
        windows = processor(
            *texts,
            truncation="only_second" if len(texts) > 1 else True,
            max_length=most,
            stride=int(OVERLAP * inner),
            return_overflowing_tokens=True,
            return_attention_mask=False,
        )
        examples: dict[str, list] = {name: column for name, column in windows.items() if name in processor.model_input_names}
        of_row = list(windows["overflow_to_sample_mapping"])
        lengths = np.array([sum(part == len(texts) - 1 for part in each.sequence_ids) for each in windows.encodings])
        lengths = np.maximum(1, lengths)
        examples["row"], examples["truncated"] = of_row, [False] * len(of_row)
        examples["share"] = (lengths / np.bincount(of_row, weights=lengths)[of_row]).tolist()
        examples["items"] = [int(row != before) for before, row in zip([None, *of_row], of_row, strict=False)]
        return examples

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        single = self.problem_type == SINGLE

        def collate(examples: list[dict[str, Any]]) -> Batch:
            inputs = [{k: v for k, v in example.items() if k in processor.model_input_names} for example in examples]
            batch = dict(pad_without_fast_tokenizer_warning(processor, inputs, return_tensors="pt"))
            if "labels" in examples[0]:
                dtype = torch.long if single else torch.float32
                batch["labels"] = torch.tensor([example["labels"] for example in examples], dtype=dtype)
            if "share" in examples[0]:
                batch["share"] = torch.tensor([example["share"] for example in examples], dtype=torch.float32)
            return batch

        return collate

    def simple_inputs(self, rows: Dataset) -> list[str]:
        return self.texts(rows)

    def texts(self, rows: Dataset) -> list[str]:
        columns = [map(str, rows[column][:]) for column in self.text_columns()]
        return ["\n".join(row) for row in zip(*columns, strict=True)]

    def example_call(self) -> str:
        text = '[{"text": "One text.", "text_pair": "Another."}]' if self.text_pair else '["A text."]'
        every = ", top_k=None" if self.problem_type == MULTI else ""
        longest = f", max_length={self.max_length}" if self.max_length else ""
        first = "  # of a long text the first window; `hf-sft predict` reads all of it" if self.in_parts else ""
        return self.in_own_units(f"answer({text}{every}, truncation=True{longest})") + first

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        rows = {
            "text": ["a goal in the last minute", "shares fell again", "the match was lost", "the bank cut its rates"] * 4,
            "label": ["sport", "business", "sport", "business"] * 4,
        }
        return cls(type="sequence_classification"), Dataset.from_dict(rows)
