"""What is frozen runs once over all rows, and each step reads what it gave."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from hf_sft.data.examples import Examples
from hf_sft.frozen.features import body_is_frozen, store_features, stored_body
from hf_sft.frozen.hidden_states import count_frozen_layers, store_states, stub_layers
from hf_sft.trainer.fit_config import FitConfig, FitState


@contextlib.contextmanager
def stored_features(state: FitState, config: FitConfig) -> Iterator[FitState]:
    """One vector per row in place of the body, where nothing below the head is trained and the head reads one vector."""
    loaded, stored = state.loaded, {}
    if body_is_frozen(loaded) and loaded.body is not loaded.model:
        nn.Module.to(loaded.model, config.machine.device)
        stored = {
            name: store_features(loaded, each, config.hooks.items, config.machine) for name, each in _seen(state).items()
        }
    found = {name: each for name, each in stored.items() if each is not None}
    if not found or len(found) < len(stored):
        yield state
        return
    state.curve.stored_features = True
    with stored_body(loaded):
        yield replace(state, examples={**state.examples, **found})


@contextlib.contextmanager
def stored_states(state: FitState, config: FitConfig) -> Iterator[FitState]:
    """Hidden states in place of the lowest layers, where those are frozen and no vector was stored in place of all."""
    loaded = state.loaded
    count = 0 if state.curve.stored_features or state.model is not loaded.model else count_frozen_layers(loaded)
    if count:
        nn.Module.to(loaded.model, config.machine.device)
    made = store_states(loaded, count, _seen(state), config.hooks.items, config.machine) if count else None
    if not made:
        yield state
        return
    state.curve.stored_layers = count
    with stub_layers(loaded, count, made[1]):
        yield replace(state, examples={**state.examples, **made[0]})


def _seen(state: FitState) -> dict[str, Examples]:
    """The examples that this training reads."""
    names = ("train",) if state.phase.training.eval_strategy == "no" else ("train", "validation")
    return {name: state.examples[name] for name in names}
