"""How a model writes: many prompts at a time, and each text as if it were the only one.

Prompts (sources, where an encoder reads them) are sorted by length and cut once, whatever the number of processes, which take
the parts in turn: so sums are the same however many there are, and so are texts. A token that is drawn is the likeliest one
after Gumbel noise is added, which draws exactly by the probabilities, from a stream that belongs to the seed and the prompt's
number.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

AT_ONCE = 256
"""Prompts that are sorted and shared out together; the first texts come when they are done."""
PLAIN: dict[str, Any] = {
    **dict.fromkeys(("length_penalty", "repetition_penalty", "encoder_repetition_penalty"), 1.0),
    **dict.fromkeys(("min_length", "no_repeat_ngram_size", "encoder_no_repeat_ngram_size"), 0),
    **dict.fromkeys(("do_sample", "early_stopping"), False),
    **dict.fromkeys(("forced_eos_token_id", "min_new_tokens", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens")),
    **dict.fromkeys(("exponential_decay_length_penalty", "sequence_bias")),
}
"""Arguments of `generate` that switch off the checkpoint's own generation settings."""
WRITES: dict[str, None] = {"text": None, "tokens": None, "stopped": None}
"""Keys of a generated answer; the values stand for a row without text."""


@dataclass(frozen=True)
class GenerationOptions:
    """How a model writes."""

    max_new_tokens: int | None = None
    """After which number of tokens it stops, at the latest; the task's own number when not given."""
    temperature: float = 0.0
    """0 takes the most likely token each time; above, tokens are drawn, the more freely the higher it is."""
    seed: int = 0
    """What is drawn by."""
    num_beams: int = 1
    """Texts that are weighed against each other while one is written, where no token is drawn."""

    def at_most(self, tokens: int) -> "GenerationOptions":
        """With the number of tokens filled in."""
        return replace(self, max_new_tokens=self.max_new_tokens or tokens)


@dataclass(frozen=True)
class Text:
    """What was written behind a prompt."""

    tokens: tuple[int, ...]
    """Without the one that ended it."""
    stopped: bool
    """Whether it ended by itself."""


class _Drawing(LogitsProcessor):
    """Gumbel noise for each prompt from a stream of its own, so that the most likely token is a drawn one."""

    def __init__(self, how: GenerationOptions, numbers: Sequence[int]):
        self.temperature = how.temperature
        self.streams = [np.random.Generator(np.random.Philox(key=(how.seed, number))) for number in numbers]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        noise = np.stack([stream.gumbel(size=scores.shape[-1]) for stream in self.streams])
        return scores.float() / self.temperature + torch.as_tensor(noise, dtype=torch.float32, device=scores.device)


def write_texts(
    model: Any, prompts: Sequence[Sequence[int]], how: GenerationOptions, ends: Sequence[int], pad: int, budget: int
) -> Iterator[Text]:
    """What the model writes behind each prompt, in order, on every process; `how` says how many tokens at most.

    A text ends before one of the tokens `ends`. Prompts that are run together, with all that is written, have `budget` tokens
    at most: padded on the left, or on the right where an encoder reads them.
    """
    state = PartialState()
    for first in range(0, len(prompts), AT_ONCE):
        block = range(first, min(first + AT_ONCE, len(prompts)))
        parts = _cut(
            [(how.num_beams * (len(prompts[number]) + (how.max_new_tokens or 0)), number) for number in block], budget
        )
        written: list[tuple[int, Text]] = []
        for part in parts[state.process_index :: state.num_processes]:
            written += zip(part, _write(model, part, prompts, how, ends, pad), strict=True)
        by_number = dict(gather_object(written))
        yield from (by_number[number] for number in block)


def _cut(sized: list[tuple[int, int]], budget: int) -> list[list[int]]:
    """Numbers of prompts in parts, the longest first; a part's prompts times its longest one are within the budget."""
    parts: list[list[int]] = []
    longest = 0
    for size, number in sorted(sized, key=lambda each: (-each[0], each[1])):
        if not parts or (len(parts[-1]) + 1) * longest > budget:
            parts.append([])
            longest = size
        parts[-1].append(number)
    return parts


def _write(
    model: Any, part: list[int], prompts: Sequence[Sequence[int]], how: GenerationOptions, ends: Sequence[int], pad: int
) -> Iterator[Text]:
    width, encodes = max(len(prompts[number]) for number in part), model.config.is_encoder_decoder
    ids, shown = torch.full((len(part), width), pad), torch.zeros(len(part), width, dtype=torch.long)
    for i, number in enumerate(part):
        length = len(prompts[number])
        place = slice(length) if encodes else slice(width - length, None)
        ids[i, place], shown[i, place] = torch.tensor(prompts[number]), 1
    drawing = [_Drawing(how, part)] if how.temperature > 0 else []
    with torch.no_grad():
        out = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=shown.to(model.device),
            **PLAIN,
            max_new_tokens=how.max_new_tokens,
            num_beams=how.num_beams,
            logits_processor=LogitsProcessorList(drawing),
            pad_token_id=pad,
            eos_token_id=list(ends) or None,
        )
    for tokens in out[:, 1 if encodes else width :].tolist():  # a decoder begins with a token of its own
        end = next((place for place, token in enumerate(tokens) if token in ends), None)
        yield Text(tuple(tokens[:end]), end is not None)


def read_texts(texts: Iterable[Text], processor: Any) -> Iterator[dict[str, Any]]:
    """For each text its words, its number of tokens, and whether it ended by itself."""
    for text in texts:
        words = processor.decode(text.tokens, skip_special_tokens=True)
        yield {"text": words, "tokens": len(text.tokens), "stopped": text.stopped}
