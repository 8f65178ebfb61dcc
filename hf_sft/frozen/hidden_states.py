"""If the lower layers are frozen, run them once over the data, and train the layers above on their stored outputs.

The last frozen layer is replaced by a stub that returns the stored hidden states of a batch, those below it by stubs that do
nothing; all are put back afterwards. Embeddings still run, which costs next to nothing.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor, nn
from tqdm.auto import tqdm

from hf_sft.config.machine import Machine
from hf_sft.data.examples import Examples, cut_step, to_device
from hf_sft.frozen.features import ON_A_STUB, ItemsOf, hash_frozen, logits_close, three_lengths
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.storage.cache import cache_folder, digest, made_once
from hf_sft.tasks import Batch

LIMIT = 4 * 2**30
"""Maximum size of stored states in bytes; above it the layers run in each epoch."""
KEY = "stored_states"
"""Key of the hidden states in a batch; the model's forward never gets it."""


class LayerStub(nn.Module):
    """Takes the place of a frozen layer: returns the batch's states if it `gives`; else its input, changed if `odd`."""

    def __init__(self, layer: nn.Module, tail: tuple[None, ...] | None, gives: bool, odd: bool):
        super().__init__()
        self._layer, self.tail, self.gives, self.odd, self.states = [layer], tail, gives, odd, None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:  # a body may ask its layers what kind they are
            return getattr(self.__dict__["_layer"][0], name)

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Any:
        if self.gives:
            if self.states is None:
                raise TypeError("the task does not hand stored states on")
            hidden_states = self.states.to(hidden_states.dtype)
        elif self.odd:
            hidden_states = hidden_states.flip(-1) + 1
        return hidden_states if self.tail is None else (hidden_states, *self.tail)


class StatesExamples(Examples):
    """Examples whose batches hold, beside what the model is shown, the states that the lower layers have for it."""

    def __init__(self, examples: Examples, states: np.ndarray, ends: np.ndarray):
        """`states` has shape (positions of all examples, width); those of example i are ends[i] to ends[i + 1]."""
        raw = () if examples.raw is None else tuple(examples.raw.column_names)
        super().__init__(examples.rows, examples.encoded, examples.collate_examples, raw)
        self.states, self.ends = states, ends

    def collate(self, places: tuple[int, ...], draw: tuple[int, ...] = ()) -> Batch:
        pieces = [torch.tensor(self.states[self.ends[place] : self.ends[place + 1]]) for place in places]
        return {**super().collate(places, draw), KEY: nn.utils.rnn.pad_sequence(pieces, batch_first=True)}


def count_frozen_layers(loaded: LoadedModel) -> int:
    """Number of the body's lowest layers that are frozen, with everything below them."""
    moving = [name for name, p in loaded.model.named_parameters() if p.requires_grad]
    if any(loaded.depth(name) > len(loaded.layers) for name in moving):
        return 0
    still = [not any(name.startswith(f"{layer}.") for name in moving) for layer in loaded.layers]
    return still.index(False) if False in still else len(still)


@contextlib.contextmanager
def stub_layers(loaded: LoadedModel, count: int, tail: tuple[None, ...] | None, odd: bool = False) -> Iterator[None]:
    """The model with stubs in the place of its lowest layers, which are put back at the end."""
    names = loaded.layers[:count]
    layers = [loaded.model.get_submodule(name) for name in names]
    stubs = [LayerStub(layer, tail, place == count - 1, odd) for place, layer in enumerate(layers)]

    def take(model: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
        stubs[-1].states = kwargs.get(KEY)
        return args, {name: value for name, value in kwargs.items() if name != KEY}

    taking = loaded.model.register_forward_pre_hook(take, with_kwargs=True)
    for name, stub in zip(names, stubs, strict=True):
        loaded.model.set_submodule(name, stub)
    try:
        yield
    finally:
        taking.remove()
        for name, layer in zip(names, layers, strict=True):
            loaded.model.set_submodule(name, layer)


def store_states(
    loaded: LoadedModel, count: int, examples: dict[str, Examples], items: ItemsOf, machine: Machine
) -> tuple[dict[str, StatesExamples], tuple[None, ...] | None] | None:
    """What the lowest `count` layers give for every example, float32: from the cache, or by one pass.

    Beside it, what such a layer gives after its hidden states. None where they don't fit, or where the model on them does not
    answer as the model does.
    """
    loaded.model.eval()
    for each in examples.values():
        if not _stub_is_exact(loaded, count, each, items):
            return None
    first, *_ = examples.values()
    hidden, tail = _watch(loaded, count, first.collate((0,)), items)
    ends = {name: _ends(each, hidden.shape[1]) for name, each in examples.items()}
    width = hidden.shape[-1]
    if sum(int(each[-1]) for each in ends.values()) * width * 4 > LIMIT:
        return None
    lowest, stored = tuple(f"{layer}." for layer in loaded.layers[:count]), {}
    names = [name for name, _ in loaded.model.named_parameters()]
    below = [name for name in names if name.startswith(lowest) or loaded.depth(name) > len(loaded.layers)]
    for name, each in examples.items():
        folder = cache_folder("states") / digest(hash_frozen(loaded, each, machine, below), str(count))

        def make(aside: Path, each: Examples = each, ends: np.ndarray = ends[name]) -> None:
            written = np.lib.format.open_memmap(aside / "states.npy", "w+", np.float32, (int(ends[-1]), width))
            _run_layers(loaded, count, each, items, machine, written, ends)

        states = np.load(made_once(folder, make) / "states.npy", mmap_mode="r")
        stored[name] = StatesExamples(each, states, ends[name])
    return stored, tail


def _ends(examples: Examples, positions: int) -> np.ndarray:
    """Where the states of each example end: as many as it has tokens; of a picture as many as of any."""
    sizes = examples.costs if "input_ids" in examples.encoded.column_names else np.full(len(examples), positions)
    return np.concatenate([[0], np.cumsum(sizes)])


def _watch(loaded: LoadedModel, count: int, batch: Batch, items: ItemsOf) -> tuple[Tensor, tuple[None, ...] | None]:
    """One forward pass: what the last resting layer gave, shape (examples, positions, width), and what it gave after that."""
    outputs: list[Any] = []
    layer = loaded.model.get_submodule(loaded.layers[count - 1])
    watching = layer.register_forward_hook(lambda *call: outputs.append(call[-1]))
    try:
        with torch.no_grad():
            items(loaded.model, to_device(batch, PartialState().device))
    finally:
        watching.remove()
    output = outputs[-1]
    return (output, None) if isinstance(output, Tensor) else (output[0], tuple(output[1:]))


def _stub_is_exact(loaded: LoadedModel, count: int, examples: Examples, items: ItemsOf) -> bool:
    """Tried on three examples of different lengths, in float32: the logits are the model's, by the states and by nothing else
    from below, and what moves has a gradient where it has one in the model."""
    places = three_lengths(examples)
    batch = to_device(examples.collate(places), PartialState().device)
    try:
        hidden, tail = _watch(loaded, count, batch, items)
        if hidden.ndim != 3 or len(hidden) != len(places) or any(each is not None for each in tail or ()):
            return False
        ends = _ends(examples, hidden.shape[1])
        sizes = [int(ends[place + 1] - ends[place]) for place in places]
        pieces = [states[:size] for states, size in zip(hidden, sizes, strict=True)]
        states = nn.utils.rnn.pad_sequence(pieces, batch_first=True)
        wanted, moving = _ask(loaded, items, batch)
        with stub_layers(loaded, count, tail):
            found, still_moving = _ask(loaded, items, {**batch, KEY: states})
        with stub_layers(loaded, count, tail, odd=True):
            again, _ = _ask(loaded, items, {**batch, KEY: states})
    except ON_A_STUB:  # a body that asks more of its layers
        return False
    return logits_close(wanted, found) and torch.equal(found, again) and moving == still_moving


def _ask(loaded: LoadedModel, items: ItemsOf, batch: Batch) -> tuple[Tensor, list[bool]]:
    """The logits, and of each parameter that moves whether they have a gradient by it."""
    with torch.enable_grad():
        logits = items(loaded.model, batch).logits
        moving = [parameter for parameter in loaded.model.parameters() if parameter.requires_grad]
        gradients = torch.autograd.grad(logits.sum(), moving, allow_unused=True)
    return logits.detach(), [gradient is not None for gradient in gradients]


def _run_layers(
    loaded: LoadedModel, count: int, examples: Examples, items: ItemsOf, machine: Machine, stored: np.memmap, ends: np.ndarray
) -> None:
    (cut,) = cut_step(np.arange(len(examples)), examples.costs, machine.micro_batch_tokens)
    for micro_batch in tqdm(cut, desc="the lower layers, once", disable=machine.quiet, leave=False):
        with machine.autocast():
            hidden, _ = _watch(loaded, count, examples.collate(micro_batch.places), items)
        for place, states in zip(micro_batch.places, hidden.float().cpu().numpy(), strict=True):
            stored[ends[place] : ends[place + 1]] = states[: ends[place + 1] - ends[place]]
    stored.flush()
