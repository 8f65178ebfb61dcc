"""Models that predict the next token: which tokens carry loss, and blocks of several texts that don't see each other."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from hf_sft.answers.contract import Answers
from hf_sft.block import Block
from hf_sft.errors import CheckpointError, RecipeError
from hf_sft.losses import Batch, Items, sum_nats
from hf_sft.tasks.common.baselines import Answerer, Fit
from hf_sft.tasks.common.generation import WRITES, GenerationOptions, read_texts, write_texts
from hf_sft.tasks.common.packing import Grams, pack

Carried: TypeAlias = tuple[list[int], list[int]]
"""Tokens, and 1 for those that carry loss; the first token's entry is ignored."""
BIGRAM = 5.0
"""How many occurrences of a unigram model's word a bigram baseline's counts are mixed with."""
TOLERANCE = 1e-4
"""The largest difference of logits that still is rounding, in float32."""


class NextToken(Block):
    """The part of a task that is about predicting tokens.

    Its examples have `input_ids` and `lengths`, those of the pieces that stand in them; where not every token but the first
    of a piece carries loss, `loss_mask`, 1 for those that do; and where the first tokens only give context, `context`: how
    many.
    """

    auto_model: ClassVar[Any] = AutoModelForCausalLM
    pipeline_tag: ClassVar[str] = "text-generation"
    peft_type: ClassVar[str | None] = "CAUSAL_LM"

    writes: ClassVar[dict[str, None]] = WRITES

    packing: bool

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

    def joins(self) -> bool:
        """Training examples are of several rows where they are packed."""
        return self.packing

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
                if "loss_mask" in example:
                    predicts[i, : size - 1] &= torch.tensor(example["loss_mask"][1:], dtype=torch.bool)
                predicts[i, : max(0, example.get("context", 0) - 1)] = False
            batch = {"input_ids": ids, "predicts": predicts}
            return {**batch, "position_ids": positions} if any(len(each["lengths"]) > 1 for each in examples) else batch

        return collate

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """Every token that carries loss: only where one is predicted are there logits."""
        return Items(self._logits(model, batch), _targets(batch))

    def _logits(self, model: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "position_ids") if name in batch}
        # A mask, or a cache, would make transformers forget where packed documents begin.
        return model(**inputs, use_cache=False, logits_to_keep=batch["predicts"]).logits.float()

    def inference_step(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """Of each example the nats of its tokens together, and how many they are, float32, shape (2,)."""
        return sum_nats(self.items(model, batch), batch["predicts"].sum(1))

    def _write(
        self,
        model: Any,
        prompts: Callable[[int], list[list[int]]],
        processor: Any,
        how: GenerationOptions,
        ends: set[int | None],
        budget: int,
    ) -> Iterator[dict[str, Any]]:
        """What the model writes behind prompts, which are given for so many tokens as they may have; until one of `ends`."""
        room = processor.model_max_length - (how.max_new_tokens or 0)
        if room < 1:
            raise RecipeError(
                f"{how.max_new_tokens} new tokens leave no room for a prompt: the model takes {processor.model_max_length}."
            )
        known = sorted(each for each in ends if each is not None)
        yield from read_texts(write_texts(model, prompts(room), how, known, processor.pad_token_id or 0, budget), processor)


def gram_baselines(
    read: Callable[[Dataset], list[Carried]],
    answers: Callable[[np.ndarray, np.ndarray, Dataset], Answers],
    train: Dataset,
    vocabulary: int,
) -> dict[str, Fit]:
    """A unigram and a bigram model of the tokens that `read` gives of rows; `answers` makes of each row's nats and of how many
    tokens carry loss, both of shape (rows,), what the task answers with."""

    def fit(weight: float | None) -> Answerer:
        model = Grams([ids for ids, _ in read(train)], vocabulary, weight)

        def answer(rows: Dataset) -> Answers:
            examples = read(rows)
            nats = np.array([model.nats(ids, mask) for ids, mask in examples])
            return answers(nats, np.array([float(sum(mask[1:])) for _, mask in examples]), rows)

        return answer

    return {"unigram": partial(fit, None), "bigram": partial(fit, BIGRAM)}


def join_pieces(columns: dict[str, np.ndarray], starts: np.ndarray, stops: np.ndarray, room: int) -> Dataset:
    """Blocks of pieces, which lie in the columns from `starts` to `stops`: `input_ids`, and `loss_mask` where not all carry
    loss. What a block's pieces have together is `room` at most."""
    lengths = stops - starts
    carries = columns.get("loss_mask", np.ones(len(columns["input_ids"]), dtype=np.int8)).astype(np.int64)
    carries[starts] = 0  # nothing predicts the first token of a piece
    so_far = np.concatenate([[0], np.cumsum(carries)])
    items = so_far[stops] - so_far[starts]
    blocks = pack(lengths, room)
    spans = np.stack([starts, stops], axis=1).tolist()
    places = np.concatenate([np.arange(*spans[piece]) for block in blocks for piece in block])
    sizes = np.array([lengths[block].sum() for block in blocks])
    offsets = pa.array(np.concatenate([[0], np.cumsum(sizes)]), pa.int32())
    examples_of_pieces: dict[str, Any] = {
        **{name: pa.ListArray.from_arrays(offsets, column[places]) for name, column in columns.items()},
        "lengths": [lengths[block].tolist() for block in blocks],
        "row": range(len(blocks)),
        "items": [int(items[block].sum()) for block in blocks],
        "cost": sizes,
        "truncated": [False] * len(blocks),
    }
    return Dataset(pa.table(examples_of_pieces))


def flat(column: Any) -> tuple[np.ndarray, np.ndarray]:
    """A column of lists as one array, and where each list ends in it, with a 0 before."""
    whole = column.combine_chunks()
    return whole.values.to_numpy(), whole.offsets.to_numpy()


def _targets(batch: Batch) -> Tensor:
    return batch["input_ids"].roll(-1, dims=1)[batch["predicts"]]
