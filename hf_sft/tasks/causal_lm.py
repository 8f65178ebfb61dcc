"""How likely is the next token?

The data: a column of texts, each a document. A document begins with the tokenizer's first token and ends with its last one,
where it has such. In training documents are packed: into blocks of `max_length` tokens, each document with positions of its
own, and none sees another. In evaluation a document stands alone; one that is longer than the model takes goes through
windows, each of which sees the last `stride` tokens of the one before, and every token is counted once.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from datasets import Dataset
from pydantic import Field

from hf_sft.answers.contract import AnswerKind, Answers
from hf_sft.answers.likelihoods import TextAnswers
from hf_sft.losses import RowOutputs
from hf_sft.tasks import Labels, Task
from hf_sft.tasks.common.baselines import Fit
from hf_sft.tasks.common.causal import Carried, NextToken, flat, gram_baselines, join_pieces
from hf_sft.tasks.common.generation import GenerationOptions
from hf_sft.tasks.common.text_only import Unlabelled
from hf_sft.tasks.common.windows import count_most

PART = 4096
"""Characters of a row, at most, when all the data is one long text."""
WORDS = 8
"""Of a text, as a prompt for the report."""
TOKENS = 40
"""That go on with a prompt, when nobody says how many."""


class CausalLm(NextToken, Unlabelled, Task):
    """Predict the next token: go on with pre-training, or begin it."""

    no_loss_message: ClassVar[str | None] = "have fewer than two tokens, so none that can be predicted"
    other_names: ClassVar[dict[str, str]] = dict.fromkeys(("clm", "language_modeling", "text_generation"), "causal_lm")

    max_length: int | None = Field(default=None, ge=8)
    """Tokens of a block, and of a window; as many as the checkpoint allows when not given."""
    stride: int = Field(default=128, ge=0)
    """Tokens of the window before that a window of a long document sees again, in evaluation; at most half a window."""
    packing: bool = True
    """Train on blocks of several documents; `training.batch_size` counts blocks then. Otherwise a row is a document."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return ("perplexity", "bits_per_byte")

    def divide(self, rows: Dataset) -> Dataset:
        """One long text is cut, at empty lines or at least at the ends of lines, into rows of some thousand characters."""
        if len(rows) != 1 or not isinstance(rows[0][self.text], str) or len(rows[0][self.text]) <= 2 * PART:
            return rows
        parts = list(_cut(rows[0][self.text]))
        others = {name: rows[name][:] * len(parts) for name in rows.column_names}
        return Dataset.from_dict({**others, self.text: parts, "part": range(len(parts))})

    def resolve(self, splits: dict[str, Dataset]) -> tuple[Self, Labels | None, list[str]]:
        cut = [(name, len(rows)) for name, rows in splits.items() if "part" in rows.column_names]
        return self, None, [f"split `{name}` is one long text: it was cut into {count} rows." for name, count in cut]

    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Windows of documents: `input_ids`, and `lengths`: those of the pieces that stand in it, one here; `context`: how
        many of its first tokens were predicted by the window before."""
        most = count_most(processor, self.max_length)
        seen = min(self.stride, most // 2)
        examples: dict[str, list] = {
            name: [] for name in ("input_ids", "lengths", "context", "row", "items", "truncated", "slid")
        }
        for row, tokens in enumerate(_tokens(rows[self.text][:], processor)):
            for start in range(0, max(1, len(tokens) - seen), most - seen):
                window, context = tokens[start : start + most], seen if start else 0
                examples["input_ids"].append(window)
                examples["lengths"].append([len(window)])
                examples["context"].append(context)
                examples["items"].append(len(window) - max(1, context))
                examples["row"].append(row)
                examples["truncated"].append(False)
                examples["slid"].append(len(tokens) > most)
        return examples

    def join(self, encoded: Dataset, processor: Any) -> Dataset:
        """Blocks of pieces: a document is torn only where it is longer than a block."""
        table: Any = encoded.with_format("arrow")[:]
        (tokens, ends), of_row = flat(table["input_ids"]), np.asarray(table["row"])
        fresh = np.ones(len(tokens), dtype=bool)  # those that the window before has not
        for start, context in zip(ends[:-1], np.asarray(table["context"]), strict=True):
            fresh[start : start + context] = False
        places = np.repeat(of_row, np.diff(ends))[fresh]
        begins, most = np.flatnonzero(np.diff(places, prepend=-1)), count_most(processor, self.max_length)
        documents = zip(begins, [*begins[1:], len(places)], strict=True)
        starts, stops = np.array([(at, min(at + most, end)) for begin, end in documents for at in range(begin, end, most)]).T
        return join_pieces({"input_ids": tokens[fresh]}, starts, stops, most)

    def answer_kind(self) -> AnswerKind:
        return TextAnswers

    def answer(self, outputs: RowOutputs, rows: Dataset, labels: Labels | None) -> Answers:
        sums = np.array([np.sum(windows, axis=0, dtype=np.float64) for windows in outputs])
        return self._said(sums[:, 0], sums[:, 1], rows)

    def _said(self, nats: np.ndarray, tokens: np.ndarray, rows: Dataset) -> TextAnswers:
        return TextAnswers(nats, tokens, np.array([float(len(text.encode())) for text in rows[self.text][:]]))

    def baselines(self, train: Dataset, labels: Labels | None, processor: Any = None) -> dict[str, Fit]:
        def read(rows: Dataset) -> list[Carried]:
            return [(document, [1] * len(document)) for document in _tokens(rows[self.text][:], processor)]

        return gram_baselines(read, self._said, train, len(processor))

    def complete(
        self, model: Any, rows: Dataset, processor: Any, how: GenerationOptions, budget: int
    ) -> Iterator[dict[str, Any]]:
        """How each text goes on, until the document ends; of a prompt that leaves no room the end is read."""

        def prompts(room: int) -> list[list[int]]:
            return [ids[-room:] for ids in processor(rows[self.text][:], verbose=False)["input_ids"]]

        return self._write(model, prompts, processor, how.at_most(TOKENS), {processor.eos_token_id}, budget)

    def written_prompt(self, row: Dataset, processor: Any) -> list[int] | None:
        prompt = self.prompts(row, processor)
        return processor(prompt[0][self.text])["input_ids"][-processor.model_max_length // 2 :] if len(prompt) else None

    def prompts(self, rows: Dataset, processor: Any) -> Dataset:
        """The first words of each text."""
        begun = [re.match(rf"\s*(?:\S+\s+){{0,{WORDS - 1}}}\S+", text) for text in rows[self.text][:]]
        return Dataset.from_dict({self.text: [each.group() for each in begun if each]})

    def show(self, example: dict[str, Any], processor: Any, labels: Labels | None) -> str:
        """A block's tokens, and how many documents stand in it."""
        tokens = processor.convert_ids_to_tokens(example["input_ids"])
        shown = " ".join(tokens[:60]) + (" …" if len(tokens) > 60 else "")
        return f"{shown}  [{len(tokens)} tokens, {len(example['lengths'])} piece(s) of documents]"

    def example_call(self) -> str:
        return 'answer("Once upon a time", max_new_tokens=40)'

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        texts = ["the coach was good", "the bank cut its rates again", "the court ruled", "shares fell in the last minute"] * 3
        return cls(type="causal_lm"), Dataset.from_dict({"text": texts})


def _tokens(texts: Sequence[str], processor: Any) -> Iterator[list[int]]:
    """Of each document its tokens, between the tokenizer's first and last one where it has such."""
    first = processor.bos_token_id if processor.bos_token_id is not None else processor.eos_token_id
    begin, end = ([] if each is None else [each] for each in (first, processor.eos_token_id))
    for ids in processor(list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]:
        yield [*begin, *ids, *end]


def _cut(text: str) -> Iterator[str]:
    """Parts of at most PART characters, between paragraphs or else between lines; a longer line is a part."""
    paragraphs = re.split(r"(?<=\n\n)", text)
    pieces = [piece for each in paragraphs for piece in ([each] if len(each) <= PART else each.splitlines(keepends=True))]
    part = ""
    for piece in pieces:
        if part.strip() and len(part) + len(piece) > PART:
            yield part
            part = ""
        part += piece
    if part.strip():
        yield part
