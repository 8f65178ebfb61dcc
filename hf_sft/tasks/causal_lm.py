"""How likely is the next token?

The data: a column of texts, each a document. A document begins with the tokenizer's first token and ends with its last one,
where it has such. In training documents are packed: into blocks of `max_length` tokens, each document with positions of its
own, and none sees another. In evaluation a document stands alone; one that is longer than the model takes goes through
windows, each of which sees the last `stride` tokens of the one before, and every token is counted once.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModelForCausalLM

from hf_sft.answers import AnswerKind, Answers
from hf_sft.baselines import Answerer, Fit
from hf_sft.errors import CheckpointError, RecipeError
from hf_sft.likelihoods import TextAnswers
from hf_sft.losses import Items
from hf_sft.packing import Grams, pack
from hf_sft.tasks import Batch, Labels, Task, Writing
from hf_sft.unlabelled import Unlabelled
from hf_sft.words import count_most

PART = 4096
"""Characters of a row, at most, when all the data is one long text."""
TOLERANCE = 1e-4
"""The largest difference of logits that still is rounding, in float32."""
WORDS = 8
"""Of a text, as a prompt for the report."""
BIGRAM = 5.0
"""How many occurrences of a unigram model's word a bigram baseline's counts are mixed with."""


class CausalLm(Unlabelled, Task):
    """Predict the next token: go on with pre-training, or begin it."""

    auto_model: ClassVar[Any] = AutoModelForCausalLM
    pipeline_tag: ClassVar[str] = "text-generation"
    peft_type: ClassVar[str | None] = "CAUSAL_LM"
    nothing: ClassVar[str | None] = "have fewer than two tokens, so none that can be predicted"
    writes: ClassVar[dict[str, None]] = {"text": None, "tokens": None}
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

    def probe(self, model: nn.Module, processor: Any) -> tuple[Self, list[str]]:
        ids = torch.arange(12).remainder(max(1, len(processor) - 1))
        first, second, changed = ids[:7], ids[7:], torch.cat([ids[:7], ids[7:].flip(0)])
        with torch.no_grad():
            alone = torch.cat([self._all_logits(model, each) for each in (first, second)])
            if not torch.allclose(self._all_logits(model, changed)[:7], alone[:7], atol=TOLERANCE, rtol=TOLERANCE):
                raise CheckpointError(
                    f"{type(model).__name__} sees the tokens that it should predict: it is no causal language model.\n"
                    "  Take a checkpoint like GPT-2 or Llama, or the task masked_lm."
                )
            if not self.packing:
                return self, []
            try:
                positions = torch.cat([torch.arange(len(each)) for each in (first, second)])
                apart = float((self._all_logits(model, ids, positions) - alone).abs().max())
            except (TypeError, ValueError) as error:
                reason = f"it takes no positions ({error})"
            else:
                reason = f"packed documents would see each other (logits {apart:.1e} apart)"
                if apart <= TOLERANCE:
                    return self, []
        return self.model_copy(update={"packing": False}), [f"{type(model).__name__} can't be packed exactly: {reason}."]

    def _all_logits(self, model: nn.Module, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        batch = {"input_ids": ids[None], "predicts": torch.ones(1, len(ids), dtype=torch.bool)}
        return self._logits(model, batch if positions is None else {**batch, "position_ids": positions[None]})

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

    def joins(self) -> bool:
        return self.packing

    def join(self, encoded: Dataset, processor: Any) -> Dataset:
        """Blocks of pieces: a document is torn only where it is longer than a block."""
        table: Any = encoded.with_format("arrow")[:]
        column, most = table["input_ids"].combine_chunks(), count_most(processor, self.max_length)
        tokens, ends, of_row = column.values.to_numpy(), column.offsets.to_numpy(), np.asarray(table["row"])
        fresh = np.ones(len(tokens), dtype=bool)  # those that the window before has not
        for start, context in zip(ends[:-1], np.asarray(table["context"]), strict=True):
            fresh[start : start + context] = False
        flat, places = tokens[fresh], np.repeat(of_row, np.diff(ends))[fresh]
        begins = np.flatnonzero(np.diff(places, prepend=-1))
        documents = zip(begins, [*begins[1:], len(flat)], strict=True)
        starts, stops = np.array([(at, min(at + most, end)) for begin, end in documents for at in range(begin, end, most)]).T
        lengths = stops - starts
        blocks = pack(lengths, most)
        pieces = [flat[starts[piece] : stops[piece]] for block in blocks for piece in block]
        sizes = np.array([lengths[block].sum() for block in blocks])
        offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
        joined = pa.ListArray.from_arrays(offsets, np.concatenate(pieces))
        return Dataset(
            pa.table(
                {
                    "input_ids": joined,
                    "lengths": [lengths[block].tolist() for block in blocks],
                    "context": [0] * len(blocks),
                    "row": range(len(blocks)),
                    "items": [int((lengths[block] - 1).sum()) for block in blocks],
                    "cost": sizes,
                    "truncated": [False] * len(blocks),
                }
            )
        )

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        def collate(examples: list[dict[str, Any]]) -> Batch:
            """Padded on the right; what pads is a piece of its own, which nothing sees."""
            shape = len(examples), max(len(example["input_ids"]) for example in examples)
            ids, positions = torch.full(shape, processor.pad_token_id or 0), torch.arange(shape[1]).repeat(shape[0], 1)
            predicts = torch.zeros(shape, dtype=torch.bool)
            for i, example in enumerate(examples):
                start = 0
                for length in (*example["lengths"], shape[1] - len(example["input_ids"])):
                    positions[i, start : start + length] = torch.arange(length)
                    predicts[i, start : start + length - 1] = True
                    start += length
                size = len(example["input_ids"])
                ids[i, :size] = torch.tensor(example["input_ids"])
                predicts[i, max(0, size - 1) :] = False
                predicts[i, : max(0, example["context"] - 1)] = False
            batch = {"input_ids": ids, "predicts": predicts}
            return {**batch, "position_ids": positions} if any(len(each["lengths"]) > 1 for each in examples) else batch

        return collate

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """Every token but the first of its document: only where one is predicted are there logits."""
        return Items(self._logits(model, batch), _targets(batch))

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
        # A mask, or a cache, would make transformers forget where packed documents begin.
        return model(**inputs, use_cache=False, logits_to_keep=batch["predicts"]).logits.float()

    def keep(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """Of each window the nats of its tokens together, and how many they are, float32, shape (2,)."""
        losses = functional.cross_entropy(self._logits(model, batch), _targets(batch), reduction="none")
        counts = batch["predicts"].sum(1)
        sums = torch.stack([part.sum() for part in losses.double().split(counts.tolist())])
        return list(torch.stack([sums.float(), counts.float()], dim=1).cpu().numpy())

    def answer_kind(self) -> AnswerKind:
        return TextAnswers

    def answer(self, kept: list[list[np.ndarray]], rows: Dataset, labels: Labels | None) -> Answers:
        sums = np.array([np.sum(windows, axis=0, dtype=np.float64) for windows in kept])
        return TextAnswers(sums[:, 0], sums[:, 1], _bytes(rows[self.text][:]))

    def baselines(self, train: Dataset, labels: Labels | None, processor: Any = None) -> dict[str, Fit]:
        def fit(weight: float | None) -> Answerer:
            model = Grams(list(_tokens(train[self.text][:], processor)), len(processor), weight)

            def answer(rows: Dataset) -> Answers:
                documents = list(_tokens(rows[self.text][:], processor))
                nats = np.array([model.nats(document) for document in documents])
                return TextAnswers(nats, np.array([len(each) - 1.0 for each in documents]), _bytes(rows[self.text][:]))

            return answer

        return {"unigram": partial(fit, None), "bigram": partial(fit, BIGRAM)}

    def complete(self, model: Any, rows: Dataset, processor: Any, how: Writing) -> Iterator[dict[str, Any]]:
        """How each text goes on, until the document ends; of a prompt that leaves no room the end is read."""
        room = processor.model_max_length - how.max_new_tokens
        if room < 1:
            raise RecipeError(
                f"{how.max_new_tokens} new tokens leave no room for a prompt: the model takes {processor.model_max_length}."
            )
        drawn = {"do_sample": True, "temperature": how.temperature} if how.temperature > 0 else {"do_sample": False}
        for text in rows[self.text][:]:
            ids = processor(text, return_tensors="pt")["input_ids"][:, -room:].to(model.device)
            shown = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            ends = {"max_new_tokens": how.max_new_tokens, "pad_token_id": processor.pad_token_id}
            with torch.no_grad():
                written = model.generate(**shown, **ends, **drawn)[0, ids.shape[1] :]
            yield {"text": processor.decode(written, skip_special_tokens=True), "tokens": len(written)}

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


def _bytes(texts: Sequence[str]) -> np.ndarray:
    return np.array([float(len(text.encode())) for text in texts])


def _targets(batch: Batch) -> Tensor:
    return batch["input_ids"].roll(-1, dims=1)[batch["predicts"]]


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
