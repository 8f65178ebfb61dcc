"""Train only the embeddings of tokens that some row has: all others have no gradient, and only their decay to suffer.

Of the tokens of a checkpoint a task uses a part: banking77 2,400 of BERT's 30,522. The rest would still be written to in each
step (gradient, Adam's two moments, decay), which takes as long as everything else in Adam does. They are left out, and decayed
once, at the end, by the product of all steps.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from hf_sft.config.training import Training
from hf_sft.data.examples import Examples
from hf_sft.frozen.features import body_rests
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.trainer.fit_config import FitConfig, FitState

DECAYS_APART = ("adamw_torch", "adamw_torch_fused")
"""Optimizers that decay a weight without gradient by 1 - rate * decay, and do nothing else with it."""


class Decay(TrainerCallback, ExportableState):
    """The decay of the rows that are left out: the logarithm of all steps' product, now and at each evaluation."""

    def __init__(self, table: nn.Embedding, tokens: np.ndarray):
        self.embedding = EmbeddingInUse(table, tokens, self)
        self.log_decay = 0.0
        self.at_step: dict[int, float] = {}

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as transformers' callbacks give it."""
        return {"args": {}, "attributes": {"log_decay": self.log_decay, "at_step": self.at_step}}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        if getattr(optimizer, "step_was_skipped", False):
            return
        for group in optimizer.param_groups:
            if any(parameter is self.embedding.weight for parameter in group["params"]):
                self.log_decay += math.log1p(-group["lr"] * group["weight_decay"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.at_step[state.global_step] = self.log_decay

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.load_best_model_at_end and state.best_global_step is not None:
            self.log_decay = self.at_step[state.best_global_step]


class EmbeddingInUse(nn.Embedding):
    """The rows of an embedding table for some of its tokens; in a `state_dict` it has all rows, as the table would."""

    def __init__(self, table: nn.Embedding, tokens: np.ndarray, decay: Decay):
        """`tokens` are sorted, shape (tokens in use,)."""
        weight = table.weight.detach()
        place = np.full(len(weight), -1)  # what is looked up there is refused
        place[tokens] = np.arange(len(tokens))
        padding = None if table.padding_idx is None else int(place[table.padding_idx])
        super().__init__(
            len(tokens), table.embedding_dim, padding, _weight=weight[torch.as_tensor(tokens, device=weight.device)]
        )
        self._place, self._tokens, self._decay = torch.as_tensor(place), torch.as_tensor(tokens), decay
        self._table = (table,)  # in a tuple, or it would be a part of this module
        self.register_state_dict_post_hook(_give_all)
        self.register_load_state_dict_pre_hook(_take_some)

    def forward(self, input: Tensor) -> Tensor:
        if self._place.device != input.device:
            self._place = self._place.to(input.device)
        return super().forward(self._place[input])

    def all_rows(self) -> Tensor:
        """The table as it would be with all rows trained, shape (tokens, width): those left out have only decayed."""
        weight = self._table[0].weight.detach().to(self.weight.device) * math.exp(self._decay.log_decay)
        weight[self._tokens.to(weight.device)] = self.weight.detach()
        return weight

    def give_back(self) -> None:
        """Write all rows into the table, which comes to where this one is."""
        (table,) = self._table
        rows = self.all_rows()
        with torch.no_grad():
            table.to(self.weight.device).weight.copy_(rows)


def _give_all(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    state_dict[f"{prefix}weight"] = module.all_rows()


def _take_some(module: Any, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    if (rows := state_dict.get(f"{prefix}weight")) is not None:
        state_dict[f"{prefix}weight"] = rows[module._tokens.to(rows.device)]


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
def used_embeddings(state: FitState, config: FitConfig) -> Iterator[FitState]:
    """The model with the embeddings of the examples' tokens alone; at the end it has all of them again."""
    loaded, examples = state.loaded, config.examples
    name = None if state.model is not loaded.model or body_rests(loaded) else find_table(loaded, state.phase.training)
    if name is None or any("input_ids" not in each.encoded.column_names for each in examples.values()):
        yield state
        return
    table: Any = loaded.model.get_submodule(name)
    decay = Decay(table, tokens_in_use(examples.values(), config.processor))
    loaded.model.set_submodule(name, decay.embedding)
    try:
        yield replace(state, phase=replace(state.phase, callbacks=(*state.phase.callbacks, lambda: decay)))
    finally:
        decay.embedding.give_back()
        loaded.model.set_submodule(name, table)
