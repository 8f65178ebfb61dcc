"""A task defines what the model learns: which columns, what an example looks like, what an item of the loss is.

A new task is a new file here: `type: span_ranking` means `hf_sft/tasks/span_ranking.py`, with one class in it. A task of your
own may lie in any module: `type: my_lab.desk`. tests/contract/test_own_task.py has one of forty lines.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from datasets import Dataset
from torch import nn
from transformers import AutoTokenizer

from hf_sft.answers.contract import AnswerKind, Answers
from hf_sft.block import Block
from hf_sft.errors import DataError
from hf_sft.losses import Batch, Items, RowOutputs
from hf_sft.tasks.common.baselines import Fit
from hf_sft.tasks.common.generation import GenerationOptions
from hf_sft.tasks.common.labels import Labels


class TaskData(Block, ABC):
    """The data side of a task: columns, fields that the data decides, references."""

    type: str
    """The task: a file in hf_sft/tasks, or a dotted module name."""
    reads_files: ClassVar[bool] = False
    """True if inputs are files, whose paths the rows hold."""
    other_names: ClassVar[dict[str, str]] = {}
    """Other libraries' names for the task, each with this project's `type` and fields."""

    @property
    @abstractmethod
    def default_metrics(self) -> tuple[str, ...]:
        """Names from `hf-sft list metrics`. The first that needs no generated text is the default of `evaluation.best`."""

    @abstractmethod
    def columns(self) -> dict[str, tuple[str, ...]]:
        """The columns a row must have, by the field that names them: `{"text": ("sentence",), "label": ("label",)}`."""

    @abstractmethod
    def input_columns(self) -> tuple[str, ...]:
        """The columns that prediction needs."""

    def text_columns(self) -> tuple[str, ...]:
        """Columns whose cells must not be empty."""
        return self.input_columns()

    def optional_columns(self) -> tuple[str, ...]:
        """Columns that are read if the rows have them."""
        return ()

    def raw_columns(self) -> tuple[str, ...]:
        """Columns that the collator gets uncopied: too large for the cache of encoded examples (pictures)."""
        return ()

    def read(self, rows: Dataset, folder: Path) -> Dataset:
        """The rows in the form that the other methods expect, relative paths resolved against `folder`. Raises `DataError`."""
        return rows

    def divide(self, rows: Dataset) -> Dataset:
        """The rows of a split, long ones divided into several (documents)."""
        return rows

    def from_words(self, words: Sequence[str | None]) -> Dataset:
        """Rows from texts of the command line. Raises `DataError`."""
        columns = self.input_columns()
        if len(columns) > 1 and any(words):
            raise DataError(f"this run answers pairs: give rows with the columns {', '.join(columns)}.")
        return Dataset.from_dict(dict.fromkeys(columns, words))

    @abstractmethod
    def resolve(self, splits: dict[str, Dataset]) -> tuple[Self, Labels | None, list[str]]:
        """Read the data once, when it is loaded.

        Returns this task with the fields that `train` decides (`problem_type`), the classes (None if the task has none), and a
        note for each decision that could have been another, with how to change it.

        Raises `DataError`.
        """

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        """Indices of rows that can't be trained on, by the problem; `{}` if there are none."""
        return {}

    @abstractmethod
    def targets(self, rows: dict[str, list], labels: Labels | None) -> list[Any]:
        """The reference of each row, as the loss and the metrics need it."""

    @abstractmethod
    def references(self, rows: Dataset) -> list[Any]:
        """The references, as the data has them."""

    def texts(self, rows: Dataset) -> list[str]:
        """Each row as a text for a person."""
        return [" | ".join(map(str, row.values())) for row in rows.select_columns([*self.input_columns()]).to_list()]

    def identities(self, rows: Dataset) -> list[str]:
        """A key of each row's input; rows with equal keys are never on two sides of a made split."""
        return self.texts(rows)

    def baselines(self, train: Dataset, labels: Labels | None, processor: Any = None) -> dict[str, Fit]:
        """Baselines by name: each is fitted on `train` when called, and then answers rows.

        `processor` is for those that need the model's tokens.
        """
        return {}

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        """The smallest task and data set that show the task; the contract tests run on them.

        Needed for a task in hf_sft/tasks; optional for your own.
        """
        raise NotImplementedError


class TaskModel(Block, ABC):
    """The model side of a task: rows to examples, examples to a batch, a forward pass to loss and answers."""

    auto_model: ClassVar[Any]
    """The `AutoModelFor…` class with the task's head."""
    auto_processor: ClassVar[Any] = AutoTokenizer
    """The class that turns a row into the model's inputs."""
    pipeline_tag: ClassVar[str]
    """The `transformers` pipeline for the trained model."""
    peft_type: ClassVar[str | None]
    """PEFT's task type, by which `AutoPeftModel…` finds the class of an adapter; None if PEFT has none."""
    no_loss_message: ClassVar[str | None] = None
    """Error text for rows without any loss token; None to accept them."""
    silent_share: ClassVar[float] = 0.0
    """With `no_loss_message`: the largest share of such rows in a split, if truncation removed their loss tokens."""

    def config_fields(self, labels: Labels | None) -> dict[str, Any]:
        """Fields of the model's config for the head (`id2label`, `problem_type`)."""
        return {} if labels is None else {"id2label": dict(enumerate(labels.names)), "label2id": labels.ids}

    def probe(self, model: nn.Module, processor: Any) -> tuple[Self, list[str]]:
        """This task with fields that a loaded model decides, found by trying it; and notes.

        Raises `CheckpointError` if the model can't do the task.
        """
        return self, []

    @abstractmethod
    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Rows to examples, for `Dataset.map(batched=True)`; pure. Rows without labels give examples without `labels`.

        Optional columns of the result, with their defaults: `row`, the index in `rows`, not decreasing (one example for each
        row); `cost`, its share of a micro-batch (number of tokens); `items`, how many items carry loss (1); `truncated`
        (False); `lost`, no example of the row has its answer (False); `shortened`, the answer's end is not learned (False);
        `silent`, truncation removed all loss tokens (False); `flaw`, why the row can't be encoded ("").
        """

    def joins(self) -> bool:
        """True if a training example holds several rows (packing): a step then counts examples."""
        return False

    def join(self, encoded: Dataset, processor: Any) -> Dataset:
        """Pack examples of single rows into training examples of several; `row` is then the number of the example."""
        raise NotImplementedError

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        """A function from examples to one batch, padded to the longest: the processor's inputs, and `labels` if there are any.

        It must not use a global random generator.
        """

        def collate(examples: list[dict[str, Any]]) -> Batch:
            names = {*processor.model_input_names, "labels"}
            return dict(
                processor.pad([{k: v for k, v in each.items() if k in names} for each in examples], return_tensors="pt")
            )

        return collate

    def model_inputs(self, batch: Batch, processor: Any) -> Batch:
        """The model's own inputs of a batch of one example, for callers that know no `items`."""
        return {name: batch[name] for name in processor.model_input_names if name in batch}

    @abstractmethod
    def items(self, model: nn.Module, batch: Batch) -> Items:
        """One forward pass: logits and targets of the items that carry loss, and nothing else."""

    @abstractmethod
    def inference_step(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """One forward pass: a small CPU array for each example."""

    @abstractmethod
    def answer_kind(self) -> AnswerKind:
        """The class of answers, which decides the metrics. The task must be resolved."""

    @abstractmethod
    def answer(self, outputs: RowOutputs, rows: Dataset, labels: Labels | None) -> Answers:
        """The rows' answers, from the outputs of the examples of each."""

    def calibrate(self, ran: Iterable[tuple[Dataset, RowOutputs]], labels: Labels | None) -> tuple[Self, list[str]]:
        """This task with fields that are chosen on validation after training (a threshold); and notes.

        `ran` gives rows with their outputs; the model runs only if it is iterated. Most tasks choose nothing.
        """
        return self, []


class Generates(Block, ABC):
    """For tasks whose models generate text; the defaults are for the others."""

    writes: ClassVar[dict[str, None]] = {}
    """What `complete` answers for a row without text; `{}` if the task generates none."""

    def complete(
        self, model: Any, rows: Dataset, processor: Any, how: GenerationOptions, budget: int
    ) -> Iterator[dict[str, Any]]:
        """The generated text of each row, on every process; only for tasks with `writes`.

        A batch has at most `budget` tokens. Raises `DataError` before the first batch.
        """
        raise NotImplementedError

    def control_tokens(self, processor: Any) -> list[int]:
        """Control tokens that the model learns to generate, like the one that ends a turn."""
        return []

    def written_prompt(self, row: Dataset, processor: Any) -> list[int] | None:
        """The prompt of a row for plain `generate`, as tokens; None for models that don't generate."""
        return None

    def prompts(self, rows: Dataset, processor: Any) -> Dataset:
        """Prompts for the report's samples, made from some rows; only for tasks with `writes`."""
        raise NotImplementedError


class Presentation(TaskData):
    """How a task shows rows and answers to a person."""

    def pictures(self, rows: Dataset) -> list[str | None]:
        """A small picture of each row as a `data:` address; None for rows without one."""
        return [None] * len(rows)

    def example_call(self) -> str:
        """Python for the model card that predicts one row: a pipeline `answer`, or hf_sft if transformers has none."""
        row = dict.fromkeys(self.input_columns(), "…")
        return f"hf_sft.predict(run, [{row!r}])"

    def show(self, example: dict[str, Any], processor: Any, labels: Labels | None) -> str:
        """An example as the model gets it, cut to a few lines; a token's label stands after it."""
        tokens, targets = processor.convert_ids_to_tokens(example["input_ids"]), example.get("labels")
        if isinstance(targets, list) and len(targets) == len(tokens) and labels is not None:
            tokens = [f"{t}/{labels.names[i]}" if i >= 0 else t for t, i in zip(tokens, targets, strict=True)]
            targets = "behind them"
        shown = " ".join(tokens[:60]) + (" …" if len(tokens) > 60 else "")
        return f"{shown}  [{len(tokens)} tokens, labels {targets}]"


class Task(TaskModel, Generates, Presentation):
    """The contract. A concrete task is a frozen pydantic model whose fields are its block of the recipe."""
