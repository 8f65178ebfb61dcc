"""Which tag does each word have: names of people and places, parts of speech?

The data is one of two:

- a column of lists of words and one of lists of tags, equally long (a `ClassLabel`, names or integers);
- a column of text and one of character spans: lists of `{start, end, label}`, `end` being the character after the last.

Tags that mark entities may follow IOB1, IOB2, IOBES or BILOU; they are read as IOB2, and answered so. An I- that goes on with
nothing begins an entity, and is counted. Of a word's sub-words the first carries the tag. A sentence that is longer than the
model takes goes through overlapping windows, and each word is answered once, in the window that shows most on both its sides.
"""

import re
from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import scipy
import torch
from datasets import ClassLabel, Dataset, LargeList, List, Value
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from hf_sft.answers import AnswerKind, Answers
from hf_sft.baselines import Answerer, Fit
from hf_sft.errors import DataError
from hf_sft.losses import Items
from hf_sft.tags import OUTSIDE, EntityAnswers, Scheme, TagAnswers, count_repaired, find_scheme, is_iob1, to_iob2
from hf_sft.tasks import Batch, Labels, Task
from hf_sft.words import cut, cut_windows, flaw_of, flaw_of_spans, tag_spans

NOTHING = -100
"""The label of a token without loss."""


class TokenClassification(Task):
    """Give each word a tag: entities, or parts of speech."""

    auto_model: ClassVar[Any] = AutoModelForTokenClassification
    pipeline_tag: ClassVar[str] = "token-classification"
    peft_type: ClassVar[str | None] = "TOKEN_CLS"
    other_names: ClassVar[dict[str, str]] = dict.fromkeys(
        ("ner", "named_entity_recognition", "pos", "tagging", "sequence_labeling", "sequence_tagging"), "token_classification"
    )

    words: str = "words"
    """The column of the words, a list for each row."""
    tags: str = "tags"
    """The column of the words' tags."""
    text: str | None = None
    """The column of the text, for data that marks spans of it."""
    spans: str | None = None
    """The column of the spans of `text`: lists of {start, end, label}."""
    scheme: Scheme | None = None
    """How tags mark entities: iob, iobes or bilou; plain for tags that mark none; read from the tags when not given."""
    max_length: int | None = Field(default=None, ge=8)
    """Tokens of a window; as many as the checkpoint allows when not given."""

    @model_validator(mode="after")
    def _words_or_text(self) -> Self:
        if (self.text is None) != (self.spans is None):
            field = "text" if self.text else "spans"
            raise PydanticCustomError(field, "`text` and `spans` go together; for lists of words say `words` and `tags`")
        return self

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return ("accuracy", "f1_macro") if self.scheme == "plain" else ("f1", "precision", "recall", "accuracy")

    def columns(self) -> dict[str, tuple[str, ...]]:
        if self.text and self.spans:
            return {"text": (self.text,), "spans": (self.spans,)}
        return {"words": (self.words,), "tags": (self.tags,)}

    def input_columns(self) -> tuple[str, ...]:
        return (self.text or self.words,)

    @property
    def _tag_column(self) -> str:
        return self.spans or self.tags

    def resolve(self, splits: dict[str, Dataset]) -> tuple[Self, Labels | None, list[str]]:
        train, column = splits["train"], self._tag_column
        self._require_lists(train)
        inner = train.features[column]
        inner = inner.feature if isinstance(inner, List | LargeList) else inner
        shown = inner.names if isinstance(inner, ClassLabel) else None
        if self.spans:
            tags = {f"B-{span['label']}" for row in train[column][:] for span in row or () if span.get("label") is not None}
        else:
            tags = {str(tag) for tags in _by_name(train, column) for tag in tags or () if tag is not None}
        scheme = self.scheme or find_scheme(shown or tags)
        if not tags:
            field = "spans" if self.spans else "tags"
            raise DataError(f"column `{column}` of split `train` shows no tag.  Check `task.{field}`.")
        names = tuple(shown or sorted(tags))
        if scheme != "plain":
            kinds = [name[2:] for name in names if name != OUTSIDE]
            names = (OUTSIDE, *(f"{mark}-{kind}" for kind in dict.fromkeys(kinds) for mark in "BI"))
        resolved = self.model_copy(update={"scheme": scheme})
        return resolved, Labels(names), [] if self.spans else resolved._say_repaired(splits)

    def _require_lists(self, train: Dataset) -> None:
        for field, columns in self.columns().items():
            feature: Any = train.features[columns[0]]
            is_list = isinstance(feature, List | LargeList)
            flat = is_list and isinstance(feature.feature, Value | ClassLabel)
            if field in ("words", "tags") and not flat:
                raise DataError(
                    f"column `{columns[0]}` (`task.{field}`) holds {feature}.  Expected a list for each row.\n"
                    "  For text with marked spans name `task.text` and `task.spans`; for one label for each row, use\n"
                    "  sequence_classification."
                )
            if field == "spans" and not (is_list and isinstance(feature.feature, dict)):
                raise DataError(
                    f"column `{columns[0]}` (`task.spans`) holds {feature}.  Expected lists of {{start, end, label}}."
                )

    def _say_repaired(self, splits: dict[str, Dataset]) -> list[str]:
        """What was read into tags that mark entities."""
        said = []
        for name, rows in splits.items() if self.scheme != "plain" else ():
            if self.tags not in rows.column_names:
                continue
            sentences = [[str(tag) for tag in tags or () if tag] for tags in _by_name(rows, self.tags)]
            count = sum(map(count_repaired, sentences))
            if count and is_iob1(sentences):
                said.append(f"the tags of split `{name}` follow IOB1 (B- only where entities touch): they are read as IOB2.")
            elif count:
                said.append(f"{count} tag(s) of split `{name}` go on with an entity that has not begun: each is read as B-.")
        return said

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        problems: dict[str, list[int]] = {}
        asked, column = self.input_columns()[0], self._tag_column
        tagged = rows[column][:] if column in rows.column_names else [None] * len(rows)
        for row, (cell, tags) in enumerate(zip(rows[asked], tagged, strict=True)):
            problem = f"column `{asked}` {flaw}" if (flaw := flaw_of(cell, bool(self.text))) else None
            if problem is None and column in rows.column_names:
                problem = self._tag_problem(cell, tags, labels)
            if problem:
                problems.setdefault(problem, []).append(row)
        return problems

    def _tag_problem(self, cell: Any, tags: Any, labels: Labels | None) -> str | None:
        column = self._tag_column
        if tags is None or any(tag is None for tag in tags):
            return f"column `{column}` is null, or holds a null,"
        if self.spans:
            known = None if labels is None else {name[2:] for name in labels.names}
            return f"column `{column}` {flaw}" if (flaw := flaw_of_spans(cell, tags, known)) else None
        if len(tags) != len(cut(cell)[1]):
            return f"columns `{self.words}` and `{column}` differ in length"
        if self.scheme != "plain" and (odd := next((t for t in tags if not re.fullmatch("O|[BIESLU]-.+", str(t))), None)):
            return f"column `{column}` has the tag {str(odd)!r}, which is neither O nor a prefix with a type,"
        unknown = next((tag for tag in self._read_tags(tags) if labels is not None and tag not in labels.ids), None)
        return None if unknown is None else f"column `{column}` has the tag {unknown!r}, which `train` never shows,"

    def config_fields(self, labels: Labels | None) -> dict[str, Any]:
        id2label = dict(enumerate(labels.names if labels else ()))
        return {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}}

    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Windows of rows: `input_ids` (with `token_type_ids` where the processor has them), `words` (the places of the
        tokens that answer for a word), and `labels`, one for each token."""
        sentences = [cut(cell) for cell in rows[self.input_columns()[0]]]
        windows = cut_windows(sentences, processor, self.max_length)
        examples = {name: column for name, column in windows.items() if name in (*processor.model_input_names, "row", "words")}
        examples["items"] = [len(places) for places in windows["words"]]
        examples["truncated"] = [False] * len(windows["row"])
        if self._tag_column in rows:
            targets = self.targets(rows, labels)
            examples["labels"] = []
            for row, ids, places, numbers in zip(*(windows[n] for n in ("row", "input_ids", "words", "numbers")), strict=True):
                tokens = [NOTHING] * len(ids)
                for place, number in zip(places, numbers, strict=True):
                    tokens[place] = targets[row][number]
                examples["labels"].append(tokens)
        return examples

    def _read_tags(self, tags: list) -> list[str]:
        named = [str(tag) for tag in tags]
        return named if self.scheme == "plain" else to_iob2(named)

    def references(self, rows: Dataset | dict[str, list]) -> list[list[str]]:
        if self.text and self.spans:
            pairs = zip(rows[self.text][:], rows[self.spans][:], strict=True)
            return [tag_spans(cut(text)[1], spans) for text, spans in pairs]
        return [self._read_tags(tags) for tags in rows[self.tags][:]]

    def targets(self, rows: dict[str, list], labels: Labels | None) -> list[list[int]]:
        assert labels is not None, "tags have names"
        return [[labels.ids[tag] for tag in tags] for tags in self.references(rows)]

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        def collate(examples: list[dict[str, Any]]) -> Batch:
            inputs = [{k: v for k, v in example.items() if k in processor.model_input_names} for example in examples]
            batch = dict(pad_without_fast_tokenizer_warning(processor, inputs, return_tensors="pt"))
            shape = batch["input_ids"].shape
            batch["words"] = torch.zeros(shape, dtype=torch.bool)
            labelled = "labels" in examples[0]
            if labelled:
                batch["labels"] = torch.full(shape, NOTHING)
            for i, example in enumerate(examples):
                batch["words"][i, example["words"]] = True
                if labelled:
                    batch["labels"][i, : len(example["labels"])] = torch.tensor(example["labels"])
            return batch

        return collate

    def items(self, model: nn.Module, batch: Batch) -> Items:
        return Items(self._logits(model, batch)[batch["words"]], batch["labels"][batch["words"]])

    def keep(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """The logits of the words that each window answers for, float32, shape (words, tags)."""
        logits = self._logits(model, batch)[batch["words"]].cpu().numpy()
        return np.split(logits, np.cumsum(batch["words"].sum(1).cpu().numpy())[:-1])

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(**{name: tensor for name, tensor in batch.items() if name not in ("labels", "words")}).logits.float()

    def answer_kind(self) -> AnswerKind:
        return TagAnswers if self.scheme == "plain" else EntityAnswers

    def answer(self, kept: list[list[np.ndarray]], rows: Dataset, labels: Labels | None) -> Answers:
        return self._answer(
            [scipy.special.softmax(np.concatenate(parts).astype(np.float64), axis=-1) for parts in kept], rows, labels
        )

    def _answer(self, scores: list[np.ndarray], rows: Dataset, labels: Labels | None) -> TagAnswers:
        assert labels is not None, "tags have names"
        cells = rows[self.input_columns()[0]]
        sentences = [cut(cell) for cell in cells]
        words = [[text[start:end] for start, end in places] for text, places in sentences]
        places = [found if isinstance(cell, str) else None for cell, (_, found) in zip(cells, sentences, strict=True)]
        kind = TagAnswers if self.scheme == "plain" else EntityAnswers
        return kind(scores, labels.names, words, places)

    def baselines(self, train: Dataset, labels: Labels | None, processor: Any = None) -> dict[str, Fit]:
        assert labels is not None, "tags have names"
        number = len(labels)

        def most_frequent_tag() -> Answerer:
            """The tag that a word has most often in train; the most frequent of all for other words."""
            words = self._words(train)
            seen: dict[str, Counter[int]] = {}
            overall: Counter[int] = Counter()
            for sentence, ids in zip(words, self.targets(train[:], labels), strict=True):
                overall.update(ids)
                for word, tag in zip(sentence, ids, strict=True):
                    seen.setdefault(word, Counter())[tag] += 1

            def share(word: str) -> np.ndarray:
                counts = seen.get(word, overall)
                return np.bincount(list(counts), list(counts.values()), number) / counts.total()

            return lambda rows: self._answer([np.stack([*map(share, s)]) for s in self._words(rows)], rows, labels)

        return {"most_frequent_tag": most_frequent_tag}

    def _words(self, rows: Dataset) -> list[list[str]]:
        sentences = (cut(cell) for cell in rows[self.input_columns()[0]])
        return [[text[start:end] for start, end in places] for text, places in sentences]

    def texts(self, rows: Dataset) -> list[str]:
        return [cut(cell)[0] for cell in rows[self.input_columns()[0]]]

    def example_call(self) -> str:
        return 'answer("A text.", aggregation_strategy="first")'

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        rows = {
            "words": [["the", "coach", "was", "good"], ["the", "bank", "cut", "its", "rates"], ["shares", "fell"]] * 4,
            "tags": [["O", "B-ROLE", "O", "O"], ["O", "B-FIRM", "O", "O", "B-SUM"], ["B-SUM", "O"]] * 4,
        }
        return cls(type="token_classification"), Dataset.from_dict(rows)


def _by_name(rows: Dataset, column: str) -> list[Any]:
    """Lists of tags, those of a `ClassLabel` by their names."""
    feature: Any = rows.features[column]
    inner = getattr(feature, "feature", None)
    if not isinstance(inner, ClassLabel):
        return rows[column][:]
    return [tags and [None if tag is None or tag < 0 else inner.int2str(tag) for tag in tags] for tags in rows[column][:]]
