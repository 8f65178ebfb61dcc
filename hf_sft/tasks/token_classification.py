"""Which tag does each word have: names of people and places, parts of speech?

The data is one of two:

- a column of lists of words and one of lists of tags, equally long (a `ClassLabel`, names or integers);
- a column of text and one of character spans: lists of `{start, end, label}`, `end` being the character after the last (or
  doccano's `start_offset` and `end_offset`, or lists like `[0, 7, "PER"]`). Scores compare entities with the file's own spans.

Tags that mark entities may follow IOB1, IOB2, IOBES or BILOU; they are read as IOB2, and answered so. An I- that goes on with
nothing begins an entity, and is counted. Of a word's sub-words the first carries the tag. A sentence that is longer than the
model takes goes through overlapping windows, and each word is answered once, in the window that shows most on both its sides.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, ClassVar, Self

import numpy as np
import scipy
import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from hf_sft.answers.contract import AnswerKind, Answers
from hf_sft.answers.marked_spans import TextEntityAnswers, Unit, cuts_a_unit
from hf_sft.answers.tags import EntityAnswers, TagAnswers
from hf_sft.losses import Items, RowOutputs
from hf_sft.tasks import Batch, Labels, Task
from hf_sft.tasks.common.baselines import Answerer, Fit
from hf_sft.tasks.common.tagged_rows import TaggedRows
from hf_sft.tasks.common.windows import cut, cut_tokens, cut_windows

NOTHING = -100
"""The label of a token without loss."""


class TokenClassification(TaggedRows, Task):
    """Give each word a tag: entities, or parts of speech."""

    auto_model: ClassVar[Any] = AutoModelForTokenClassification
    pipeline_tag: ClassVar[str] = "token-classification"
    peft_type: ClassVar[str | None] = "TOKEN_CLS"
    other_names: ClassVar[dict[str, str]] = dict.fromkeys(
        ("ner", "named_entity_recognition", "pos", "tagging", "sequence_labeling", "sequence_tagging"), "token_classification"
    )

    max_length: int | None = Field(default=None, ge=8)
    """Tokens of a window; as many as the checkpoint allows when not given."""

    def config_fields(self, labels: Labels | None) -> dict[str, Any]:
        id2label = dict(enumerate(labels.names if labels else ()))
        return {"id2label": id2label, "label2id": {name: i for i, name in id2label.items()}}

    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Windows of rows: `input_ids` (with `token_type_ids` where the processor has them), `words` (the places of the
        tokens that answer for a word), and `labels`, one for each token. Of texts with spans also `starts` and `ends`, the
        characters of each word, or token."""
        sentences = [cut(cell) for cell in rows[self.input_columns()[0]]]
        if self.units == "tokens":
            sentences = [(text, cut_tokens(text, processor)) for text, _ in sentences]
        windows = cut_windows(sentences, processor, self.max_length)
        examples = {name: column for name, column in windows.items() if name in (*processor.model_input_names, "row", "words")}
        examples["items"] = [len(places) for places in windows["words"]]
        examples["truncated"] = [False] * len(windows["row"])
        numbered = list(zip(windows["row"], windows["numbers"], strict=True))
        if self.spans:
            for place, name in enumerate(("starts", "ends")):
                examples[name] = [[sentences[row][1][number][place] for number in numbers] for row, numbers in numbered]
        if self._tag_column in rows:
            assert labels is not None, "tags have names"
            tagged = [[NOTHING if tag is None else labels.ids[tag] for tag in tags] for tags in self._tags_of(rows, sentences)]
            examples["labels"] = []
            for (row, numbers), ids, places in zip(numbered, windows["input_ids"], windows["words"], strict=True):
                tokens = [NOTHING] * len(ids)
                for place, number in zip(places, numbers, strict=True):
                    tokens[place] = tagged[row][number]
                examples["labels"].append(tokens)
            examples["items"] = [sum(label != NOTHING for label in tokens) for tokens in examples["labels"]]
        if self.spans and self.spans in rows:
            pairs = zip(sentences, rows[self.spans], strict=True)
            inside = [any(cuts_a_unit(units, span) for span in spans) for (_, units), spans in pairs]
            examples["inside"] = [inside[row] for row in windows["row"]]
        return examples

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        def collate(examples: list[dict[str, Any]]) -> Batch:
            inputs = [{k: v for k, v in example.items() if k in processor.model_input_names} for example in examples]
            batch = dict(pad_without_fast_tokenizer_warning(processor, inputs, return_tensors="pt"))
            shape = batch["input_ids"].shape
            batch["words"] = torch.zeros(shape, dtype=torch.bool)
            for name in [name for name in ("starts", "ends") if name in examples[0]]:
                batch[name] = torch.zeros(shape, dtype=torch.long)
                for i, example in enumerate(examples):
                    batch[name][i, example["words"]] = torch.tensor(example[name], dtype=torch.long)
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
        carries = batch["words"] & (batch["labels"] != NOTHING)
        return Items(self._logits(model, batch)[carries], batch["labels"][carries])

    def inference_step(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """The logits of the words that each window answers for, float32, shape (words, tags); of texts with spans with each
        word's first character, and the one after its last, before them, float64, shape (words, 2 + tags)."""
        words = batch["words"]
        found = self._logits(model, batch)[words].cpu().numpy()
        if "starts" in batch:
            found = np.column_stack([batch["starts"][words].cpu().numpy(), batch["ends"][words].cpu().numpy(), found])
        return np.split(found, np.cumsum(words.sum(1).cpu().numpy())[:-1])

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        ours = ("labels", "words", "starts", "ends")
        return model(**{name: tensor for name, tensor in batch.items() if name not in ours}).logits.float()

    def answer_kind(self) -> AnswerKind:
        return TextEntityAnswers if self.spans else TagAnswers if self.scheme == "plain" else EntityAnswers

    def answer(self, outputs: RowOutputs, rows: Dataset, labels: Labels | None) -> Answers:
        parts = [np.concatenate(windows).astype(np.float64) for windows in outputs]
        units = [[(int(start), int(end)) for start, end in part[:, :2]] for part in parts] if self.spans else None
        logits = [part[:, 2:] for part in parts] if self.spans else parts
        return self._answer([scipy.special.softmax(each, axis=-1) for each in logits], rows, labels, units)

    def _answer(
        self, scores: list[np.ndarray], rows: Dataset, labels: Labels | None, units: list[list[Unit]] | None = None
    ) -> TagAnswers:
        """Answers of rows whose words are at `units`; of all their words if it is None."""
        assert labels is not None, "tags have names"
        cells = rows[self.input_columns()[0]]
        sentences = [cut(cell) for cell in cells]
        found = units or [places for _, places in sentences]
        texts = [text for text, _ in sentences]
        words = [[text[start:end] for start, end in places] for text, places in zip(texts, found, strict=True)]
        places = [each if isinstance(cell, str) else None for cell, each in zip(cells, found, strict=True)]
        if self.spans:
            return TextEntityAnswers(scores, labels.names, words, places, texts, found)
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
            sentences = [cut(cell) for cell in train[self.input_columns()[0]]]
            for sentence, tags in zip(words, self._tags_of(train[:], sentences), strict=True):
                for word, tag in zip(sentence, tags, strict=True):
                    if tag is not None:
                        overall[labels.ids[tag]] += 1
                        seen.setdefault(word, Counter())[labels.ids[tag]] += 1

            def share(word: str) -> np.ndarray:
                counts = seen.get(word, overall)
                return np.bincount(list(counts), list(counts.values()), number) / counts.total()

            return lambda rows: self._answer([np.stack([*map(share, s)]) for s in self._words(rows)], rows, labels)

        return {"most_frequent_tag": most_frequent_tag}

    def example_call(self) -> str:
        return 'answer("A text.", aggregation_strategy="first")'

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        rows = {
            "words": [["the", "coach", "was", "good"], ["the", "bank", "cut", "its", "rates"], ["shares", "fell"]] * 4,
            "tags": [["O", "B-ROLE", "O", "O"], ["O", "B-FIRM", "O", "O", "B-SUM"], ["B-SUM", "O"]] * 4,
        }
        return cls(type="token_classification"), Dataset.from_dict(rows)
