"""Train only the embeddings of tokens that some row has: all others have no gradient, and only their decay to suffer.

Of the tokens of a checkpoint a task uses a part: banking77 2,400 of BERT's 30,522. The rest would still be written to in each
step (gradient, Adam's two moments, decay), which takes as long as everything else in Adam does. They are left out, and decayed
once, at the end, by the product of all steps.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback

from hf_sft.config.training import Training
from hf_sft.data.examples import Examples
from hf_sft.methods import Phase
from hf_sft.models.loaded_model import LoadedModel

DECAYS_APART = ("adamw_torch", "adamw_torch_fused")
"""Optimizers that decay a weight without gradient by 1 - rate * decay, and do nothing else with it."""


class EmbeddingInUse(nn.Embedding):
    """The rows of an embedding table for some of its tokens."""

    log_decay: Tensor

    def __init__(self, table: nn.Embedding, tokens: np.ndarray):
        """`tokens` are sorted, shape (tokens in use,)."""
        weight = table.weight.detach()
        place = np.full(len(weight), -1)  # what is looked up there is refused
        place[tokens] = np.arange(len(tokens))
        padding = None if table.padding_idx is None else int(place[table.padding_idx])
        rows = weight[torch.as_tensor(tokens, device=weight.device)]
        super().__init__(len(tokens), table.embedding_dim, padding, _weight=rows)
        self._place = torch.as_tensor(place)
        self.register_buffer("log_decay", torch.zeros((), device=weight.device))  # a checkpoint holds it

    def forward(self, input: Tensor) -> Tensor:
        if self._place.device != input.device:
            self._place = self._place.to(input.device)
        return super().forward(self._place[input])

    def give_back(self, table: nn.Embedding, tokens: np.ndarray) -> None:
        """Write what was learned into the whole table, which comes to where this one is."""
        weight = table.to(self.weight.device).weight
        with torch.no_grad():
            weight.mul_(math.exp(float(self.log_decay)))
            weight[torch.as_tensor(tokens, device=weight.device)] = self.weight


class _Decay(TrainerCallback):
    def __init__(self, embedding: EmbeddingInUse):
        self.embedding = embedding

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if getattr(optimizer, "step_was_skipped", False):
            return
        for group in optimizer.param_groups:
            if any(parameter is self.embedding.weight for parameter in group["params"]):
                self.embedding.log_decay += math.log1p(-group["lr"] * group["weight_decay"])


def find_table(loaded: LoadedModel, training: Training) -> str | None:
    """The module's name, where leaving out some of its rows changes nothing for the others: it moves, nothing else reads it,
    and the optimizer does not look beyond a weight."""
    try:
        table = loaded.model.get_input_embeddings()
    except NotImplementedError:  # pictures
        return None
    if type(table) is not nn.Embedding or table.max_norm is not None or table.scale_grad_by_freq or table.sparse:
        return None
    if not table.weight.requires_grad or training.optim not in DECAYS_APART or training.optim_args:
        return None
    readers = [name for name, p in loaded.model.named_parameters(remove_duplicate=False) if p is table.weight]
    if len(readers) != 1 or loaded.model.get_output_embeddings() is not None:  # what writes may need any token
        return None
    return readers[0].removesuffix(".weight")


def tokens_in_use(examples: Iterable[Examples], processor: Any) -> np.ndarray:
    """Every token of the examples, and the special ones, which batches may add; sorted."""
    found = {*processor.all_special_ids}
    for each in examples:
        column = each.encoded.with_format("arrow")["input_ids"]
        for chunk in getattr(column, "chunks", [column]):
            found.update(np.unique(_flat(chunk)).tolist())
    return np.array(sorted(found), dtype=np.int64)


def _flat(array: Any) -> np.ndarray:
    while hasattr(array, "flatten") and hasattr(array.type, "value_type"):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False)


@contextlib.contextmanager
def only_tokens_in_use(loaded: LoadedModel, phase: Phase, examples: dict[str, Examples], processor: Any) -> Iterator[Phase]:
    """The model with the embeddings of the examples' tokens alone; at the end it has all of them again.

    Gives the phase that keeps account of the others' decay.
    """
    name = find_table(loaded, phase.training)
    if name is None or any("input_ids" not in each.encoded.column_names for each in examples.values()):
        yield phase
        return
    table: Any = loaded.model.get_submodule(name)
    tokens = tokens_in_use(examples.values(), processor)
    narrow = EmbeddingInUse(table, tokens)
    loaded.model.set_submodule(name, narrow)
    try:
        yield replace(phase, callbacks=(*phase.callbacks, partial(_Decay, narrow)))
    finally:
        narrow.give_back(table, tokens)
        loaded.model.set_submodule(name, table)
