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
from hf_sft.losses import Batch, Items
from hf_sft.tasks.common.baselines import Fit
from hf_sft.tasks.common.generation import GenerationOptions
from hf_sft.tasks.common.labels import Labels


class TaskData(Block, ABC):
    """What a task reads of rows: its columns, what they tell it, the true answers."""

    type: str
    """The task: a file in hf_sft/tasks, or a dotted module name."""
    reads_files: ClassVar[bool] = False
    """True if inputs are files, whose paths the rows hold."""
    other_names: ClassVar[dict[str, str]] = {}
    """What others call the task, and how to say that here."""

    @property
    @abstractmethod
    def default_metrics(self) -> tuple[str, ...]:
        """Names from `hf-sft list metrics`, best first: without `evaluation.best` the first that is a score is the best."""

    @abstractmethod
    def columns(self) -> dict[str, tuple[str, ...]]:
        """The columns a row must have, by the field that names them: `{"text": ("sentence",), "label": ("label",)}`."""

    @abstractmethod
    def input_columns(self) -> tuple[str, ...]:
        """The columns that a row must have to be predicted."""

    def text_columns(self) -> tuple[str, ...]:
        """Of rows that are read, the columns that must not be empty."""
        return self.input_columns()

    def optional_columns(self) -> tuple[str, ...]:
        """Columns that are read of rows that have them."""
        return ()

    def raw_columns(self) -> tuple[str, ...]:
        """Columns that the collator is given as the rows have them: what is too large to be written twice."""
        return ()

    def read(self, rows: Dataset, folder: Path) -> Dataset:
        """The rows in the form that this task works on; paths in them are seen from `folder` too. Raises `DataError`."""
        return rows

    def divide(self, rows: Dataset) -> Dataset:
        """The rows of a split in parts, where one is too much for a row."""
        return rows

    def from_words(self, words: Sequence[str | None]) -> Dataset:
        """Rows of what somebody types to be answered. Raises `DataError`."""
        columns = self.input_columns()
        if len(columns) > 1 and any(words):
            raise DataError(f"this run answers pairs: give rows with the columns {', '.join(columns)}.")
        return Dataset.from_dict(dict.fromkeys(columns, words))

    @abstractmethod
    def resolve(self, splits: dict[str, Dataset]) -> tuple[Self, Labels | None, list[str]]:
        """Look at the data once: this task with what `train` tells filled in (`problem_type`), the classes that it shows (None
        where the task has none), and what was read into the data that could be read otherwise, each with what to do then.

        Raises `DataError`.
        """

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        """Rows that can't be learned from, by what is wrong with them; `{}` when all is well."""
        return {}

    @abstractmethod
    def targets(self, rows: dict[str, list], labels: Labels | None) -> list[Any]:
        """The true answer of each row, as the loss and the metrics take it."""

    @abstractmethod
    def references(self, rows: Dataset) -> list[Any]:
        """The true answers, in the words of the data."""

    def texts(self, rows: Dataset) -> list[str]:
        """What a person would read of each row."""
        return [" | ".join(map(str, row.values())) for row in rows.select_columns([*self.input_columns()]).to_list()]

    def identities(self, rows: Dataset) -> list[str]:
        """What makes a row the same as another; equal ones never stand on two sides of a made split."""
        return self.texts(rows)

    def baselines(self, train: Dataset, labels: Labels | None, processor: Any = None) -> dict[str, Fit]:
        """Simple methods that answer the same question: each is fitted on `train` when called, and then answers rows.

        `processor` is for those that read the model's own tokens.
        """
        return {}

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        """The smallest task and data set that show what it is; the contract tests run on them.

        A task in hf_sft/tasks must have them; one of your own need not.
        """
        raise NotImplementedError


class TaskModel(Block, ABC):
    """What a task does with a model: rows to examples, examples to a batch, a forward pass to loss and answers."""

    auto_model: ClassVar[Any]
    """The `AutoModelFor…` that brings the head."""
    auto_processor: ClassVar[Any] = AutoTokenizer
    """What makes the model's inputs of a row."""
    pipeline_tag: ClassVar[str]
    """The pipeline that answers with the finished model."""
    peft_type: ClassVar[str | None]
    """PEFT's word for the task, so that its own loader finds the right class for an adapter; None where it has none."""
    no_loss_message: ClassVar[str | None] = None
    """What to say of rows of which no item carries loss; None where that is no harm."""
    silent_share: ClassVar[float] = 0.0
    """With `no_loss_message`: the share of a split's rows that may be such, since they are cut before what carries loss."""

    def config_fields(self, labels: Labels | None) -> dict[str, Any]:
        """What the model's config must say about the head (`id2label`, `problem_type`)."""
        return {} if labels is None else {"id2label": dict(enumerate(labels.names)), "label2id": labels.ids}

    def probe(self, model: nn.Module, processor: Any) -> tuple[Self, list[str]]:
        """This task with fields that a loaded model decides, found by trying it; and notes.

        Raises `CheckpointError` where it can't.
        """
        return self, []

    @abstractmethod
    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Rows to examples; pure, for `Dataset.map(batched=True)`. Rows without labels give examples without them.

        An example may say its `row` (its place in `rows`, never falling; one example for each row otherwise), its `cost`
        (what it takes of a micro-batch; its tokens otherwise), its `items` (how many of them carry loss; one otherwise),
        whether it is `truncated` (not otherwise), whether its row's answer is `lost` (none of the row's examples has it) or
        `shortened` (not learned to its end), or it is `silent` (cut before what carries loss), and by which `flaw` its row
        can't be encoded ("" where it can).
        """

    def joins(self) -> bool:
        """Whether training examples are of several rows: then they are what a step counts as rows."""
        return False

    def join(self, encoded: Dataset, processor: Any) -> Dataset:
        """Training examples of several rows, from those of single ones; `row` is then the number of the example."""
        raise NotImplementedError

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        """Examples to one batch, padded to its longest: the processor's inputs, and `labels` where there are some. No global
        randomness."""

        def collate(examples: list[dict[str, Any]]) -> Batch:
            names = {*processor.model_input_names, "labels"}
            return dict(
                processor.pad([{k: v for k, v in each.items() if k in names} for each in examples], return_tensors="pt")
            )

        return collate

    def model_inputs(self, batch: Batch, processor: Any) -> Batch:
        """Of a batch of one example what its model takes, whoever calls it."""
        return {name: batch[name] for name in processor.model_input_names if name in batch}

    @abstractmethod
    def items(self, model: nn.Module, batch: Batch) -> Items:
        """One forward pass: the logits and targets of what carries loss, and nothing else."""

    @abstractmethod
    def inference_step(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """One forward pass: a small CPU array for each example."""

    @abstractmethod
    def answer_kind(self) -> AnswerKind:
        """What an answer is; it decides which metrics fit. Of a resolved task."""

    @abstractmethod
    def answer(self, outputs: list[list[np.ndarray]], rows: Dataset, labels: Labels | None) -> Answers:
        """The rows' answers, from the outputs of the examples of each."""

    def calibrate(
        self, ran: Iterable[tuple[Dataset, list[list[np.ndarray]]]], labels: Labels | None
    ) -> tuple[Self, list[str]]:
        """This task with fields that are chosen on validation after training (a threshold); and notes.

        `ran` gives rows with their outputs; the model runs only if it is iterated. Most tasks choose nothing.
        """
        return self, []


class Generates(Block, ABC):
    """For tasks whose models generate text. The others inherit this as it is."""

    writes: ClassVar[dict[str, None]] = {}
    """What `complete` answers a row without text by; tasks whose answers are no texts have none."""

    def complete(
        self, model: Any, rows: Dataset, processor: Any, how: GenerationOptions, budget: int
    ) -> Iterator[dict[str, Any]]:
        """What the model writes for each row, on every process, where `writes` says something.

        It is given `budget` tokens at a time. Raises `DataError` before the first.
        """
        raise NotImplementedError

    def control_tokens(self, processor: Any) -> list[int]:
        """Tokens with a meaning of their own that the model is taught to write, as the one that ends a turn."""
        return []

    def written_prompt(self, row: Dataset, processor: Any) -> list[int] | None:
        """The prompt of a row for plain `generate`, as tokens; None for models that don't generate."""
        return None

    def prompts(self, rows: Dataset, processor: Any) -> Dataset:
        """What a report asks the model to write about, made from some rows, where `writes` says something."""
        raise NotImplementedError


class Presentation(TaskData):
    """How a task shows rows and answers to a person."""

    def pictures(self, rows: Dataset) -> list[str | None]:
        """What a person would look at of each row, small, as `data:` addresses."""
        return [None] * len(rows)

    def example_call(self) -> str:
        """The Python that asks for an answer: a pipeline, called `answer`, or hf_sft where transformers has no pipeline."""
        row = dict.fromkeys(self.input_columns(), "…")
        return f"hf_sft.predict(run, [{row!r}])"

    def show(self, example: dict[str, Any], processor: Any, labels: Labels | None) -> str:
        """An example as the model gets it, cut to a few lines; a token's own label stands behind it."""
        tokens, targets = processor.convert_ids_to_tokens(example["input_ids"]), example.get("labels")
        if isinstance(targets, list) and len(targets) == len(tokens) and labels is not None:
            tokens = [f"{t}/{labels.names[i]}" if i >= 0 else t for t, i in zip(tokens, targets, strict=True)]
            targets = "behind them"
        shown = " ".join(tokens[:60]) + (" …" if len(tokens) > 60 else "")
        return f"{shown}  [{len(tokens)} tokens, labels {targets}]"


class Task(TaskModel, Generates, Presentation):
    """The contract. A concrete task is a frozen pydantic model whose fields are its block of the recipe."""
