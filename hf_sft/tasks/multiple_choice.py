"""Which of some endings goes with a context: the next sentence, the answer to a question?

The data: a column of context; the endings as one column of lists, or as several columns; and a label that names the right one:
its place, counted from 0 or 1, a letter, or its text. Rows may have different numbers of endings. The model gives each ending
a logit of its own.
"""

from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar, Self

import numpy as np
import scipy
import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoModelForMultipleChoice
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from hf_sft.answers.choices import ChoiceAnswers, LabelBase, find_base, read_place, words_of
from hf_sft.answers.contract import AnswerKind, Answers
from hf_sft.errors import DataError
from hf_sft.losses import FAR, Items, RowOutputs
from hf_sft.tasks import Batch, Labels, Task
from hf_sft.tasks.common.baselines import Answerer, Fit
from hf_sft.tasks.common.windows import count_most


class MultipleChoice(Task):
    """Choose the ending that goes with a context."""

    auto_model: ClassVar[Any] = AutoModelForMultipleChoice
    pipeline_tag: ClassVar[str] = "multiple-choice"
    peft_type: ClassVar[str | None] = None
    other_names: ClassVar[dict[str, str]] = dict.fromkeys(("choice", "swag"), "multiple_choice")

    context: str = "context"
    """The column of what comes first: a context, or a question."""
    choices: str | tuple[str, ...] = "choices"
    """The column of the endings, a list for each row; or several columns, one for each ending."""
    label: str = "label"
    """The column that names the right ending."""
    label_base: LabelBase | None = None
    """How: by its place, counted from 0 or 1, by a `letter` (A is the first), or by its own `text`; found when not given."""
    max_length: int | None = Field(default=None, ge=8)
    """Maximum number of tokens of a context with one ending; the longer side is truncated. Default: the checkpoint's."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return ("accuracy",)

    @property
    def _choice_columns(self) -> tuple[str, ...]:
        return (self.choices,) if isinstance(self.choices, str) else self.choices

    def columns(self) -> dict[str, tuple[str, ...]]:
        return {"context": (self.context,), "choices": self._choice_columns, "label": (self.label,)}

    def input_columns(self) -> tuple[str, ...]:
        return (self.context, *self._choice_columns)

    def resolve(self, splits: dict[str, Dataset]) -> tuple[Self, Labels | None, list[str]]:
        if isinstance(self.choices, str) and not isinstance(next(iter(splits["train"][self.choices])), list | None):
            raise DataError(
                f"column `{self.choices}` (`task.choices`) holds {splits['train'].features[self.choices]}.\n"
                "  Expected a list of endings for each row.  For a column for each ending: `task.choices=[ONE, OTHER]`."
            )
        if self.label_base is not None:
            return self, None, []
        labels = [label for rows in splits.values() if self.label in rows.column_names for label in rows[self.label][:]]
        endings = [row for rows in splits.values() if self.label in rows.column_names for row in self._endings(rows)]
        base = find_base(labels, endings, self.label)
        notes = [f"column `{self.label}` counts endings from 1.  From 0: `task.label_base=0`."] if base == 1 else []
        return self.model_copy(update={"label_base": base}), None, notes

    def _endings(self, rows: Dataset | dict[str, list]) -> list[list[str]]:
        columns = [rows[column][:] for column in self._choice_columns]
        if isinstance(self.choices, str):
            return [list(endings or ()) for endings in columns[0]]
        return [list(endings) for endings in zip(*columns, strict=True)]

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        problems: dict[str, list[int]] = {}
        places = rows[self.label][:] if self.label in rows.column_names else None
        for row, (context, endings) in enumerate(zip(rows[self.context][:], self._endings(rows), strict=True)):
            problem = None
            if not isinstance(context, str) or not context.strip():
                problem = f"column `{self.context}` is empty, or no text,"
            elif any(not isinstance(ending, str) or not ending.strip() for ending in endings):
                problem = "an ending is empty, or no text,"
            elif len(endings) < 2:
                problem = f"there are less than two endings to choose from (`task.choices`: {', '.join(self._choice_columns)})"
            elif places is not None and self._place(places[row], endings) not in range(len(endings)):
                problem = f"column `{self.label}` has the value {places[row]!r}, which is the place of no ending,"
            if problem:
                problems.setdefault(problem, []).append(row)
        return problems

    def config_fields(self, labels: Labels | None) -> dict[str, Any]:
        return {}

    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """For each row the `input_ids` of its context with each ending, `truncated`, `cost` (of all endings), and `labels`."""
        endings = self._endings(rows)
        counts = [len(each) for each in endings]
        contexts = [context for context, count in zip(rows[self.context], counts, strict=True) for _ in range(count)]
        most = count_most(processor, self.max_length)
        flat = processor(
            contexts,
            [ending for each in endings for ending in each],
            truncation="longest_first",
            max_length=most,
            return_attention_mask=False,
        )
        ends = np.cumsum([0, *counts]).tolist()
        spans = [range(*span) for span in pairwise(ends)]
        examples: dict[str, list] = {name: [[column[i] for i in span] for span in spans] for name, column in flat.items()}
        cut = [bool(encoding.overflowing) for encoding in flat.encodings]
        examples["truncated"] = [any(cut[i] for i in span) for span in spans]
        examples["cost"] = [len(ids) * max(map(len, ids)) for ids in examples["input_ids"]]
        if self.label in rows:
            examples["labels"] = self.targets(rows, labels)
        return examples

    def targets(self, rows: dict[str, list], labels: Labels | None) -> list[int]:
        return [self._place(*pair) for pair in zip(rows[self.label], self._endings(rows), strict=True)]

    def _place(self, label: Any, endings: list[str]) -> int:
        return read_place(label, self.label_base, endings)

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        def collate(examples: list[dict[str, Any]]) -> Batch:
            names = [name for name in processor.model_input_names if name in examples[0]]
            flat = [
                dict(zip(names, parts, strict=True))
                for example in examples
                for parts in zip(*(example[name] for name in names), strict=True)
            ]
            batch = dict(pad_without_fast_tokenizer_warning(processor, flat, return_tensors="pt"))
            batch["endings"] = torch.tensor([len(example["input_ids"]) for example in examples])
            if "labels" in examples[0]:
                batch["labels"] = torch.tensor([example["labels"] for example in examples])
            return batch

        return collate

    def model_inputs(self, batch: Batch, processor: Any) -> Batch:
        return {name: tensor.unsqueeze(0) for name, tensor in super().model_inputs(batch, processor).items()}

    def items(self, model: nn.Module, batch: Batch) -> Items:
        counts = batch["endings"]
        real = torch.arange(int(counts.max()), device=counts.device) < counts[:, None]
        logits = self._logits(model, batch)
        spread = torch.full(real.shape, FAR, dtype=logits.dtype, device=logits.device).masked_scatter(real, logits)
        return Items(spread, batch["labels"], real)

    def inference_step(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """The logits of each row's endings, float32, shape (endings,)."""
        return list(map(np.asarray, torch.split(self._logits(model, batch).cpu(), batch["endings"].tolist())))

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Of all endings of all rows, shape (endings,): each goes through the model as a row of one choice."""
        inputs = {name: tensor.unsqueeze(1) for name, tensor in batch.items() if name not in ("labels", "endings")}
        return model(**inputs).logits.float().squeeze(1)

    def answer_kind(self) -> AnswerKind:
        return ChoiceAnswers

    def answer(self, outputs: RowOutputs, rows: Dataset, labels: Labels | None) -> Answers:
        return ChoiceAnswers([scipy.special.softmax(logits.astype(np.float64)) for (logits,) in outputs], self._endings(rows))

    def references(self, rows: Dataset) -> list[Any]:
        return self.targets(rows.select_columns([self.label, *self._choice_columns])[:], None)

    def baselines(self, train: Dataset, labels: Labels | None, processor: Any = None) -> dict[str, Fit]:
        def majority() -> Answerer:
            """The place that is right most often in train."""
            seen = Counter(self.targets(train[:], None))

            def answer(rows: Dataset) -> Answers:
                endings = self._endings(rows)
                shares = [np.array([1e-9 + seen[place] for place in range(len(each))]) for each in endings]
                return ChoiceAnswers([each / each.sum() for each in shares], endings)

            return answer

        def word_overlap() -> Answerer:
            """The ending of whose words most stand in the context."""

            def answer(rows: Dataset) -> Answers:
                endings, scores = self._endings(rows), []
                for context, each in zip(rows[self.context][:], endings, strict=True):
                    known = words_of(context)
                    shares = [len(words_of(ending) & known) / max(1, len(words_of(ending))) for ending in each]
                    scores.append((np.array(shares) + 1e-9) / (sum(shares) + 1e-9 * len(each)))
                return ChoiceAnswers(scores, endings)

            return answer

        return {"majority": majority, "word_overlap": word_overlap}

    def texts(self, rows: Dataset) -> list[str]:
        return ["\n".join([context, *each]) for context, each in zip(rows[self.context][:], self._endings(rows), strict=True)]

    def show(self, example: dict[str, Any], processor: Any, labels: Labels | None) -> str:
        """Each ending as the model gets it; the right one is marked."""
        shown = [" ".join(processor.convert_ids_to_tokens(ids)[-40:]) for ids in example["input_ids"]]
        right = example.get("labels")
        return "\n".join(f"{'→' if place == right else ' '} {place}: … {each}" for place, each in enumerate(shown))

    def example_call(self) -> str:
        endings = '["One ending.", "Another."]'
        named = [f'"{self.choices}": {endings}'] if isinstance(self.choices, str) else [f'"{c}": "…"' for c in self.choices]
        return f'hf_sft.predict(run, [{{"{self.context}": "A context.", {", ".join(named)}}}])'

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        endings = [
            ["the match", "the law passed"],
            ["shares rose", "a goal", "the actor"],
            ["law", "song"],
            ["a", "good reviews"],
        ]
        contexts = ["the coach was good", "the bank cut its rates", "the court ruled", "the film opened"]
        rows = {"context": contexts * 3, "choices": endings * 3, "label": [0, 0, 0, 1] * 3}
        return cls(type="multiple_choice"), Dataset.from_dict(rows)
