"""If the body is frozen, run it once over the data, and train the head on its stored outputs.

Gradients of the logits show which position of the body's output the head reads. The body is then replaced by a stub that
returns the stored vectors, and put back afterwards.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

from hf_sft.config.machine import Machine
from hf_sft.data.encoding import hash_code
from hf_sft.data.examples import Examples, cut_step, to_device
from hf_sft.data.row_hash import hash_rows
from hf_sft.losses import Items
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.storage.cache import atomic_folder, cache_folder, is_intact, touch
from hf_sft.tasks import Batch

ItemsOf = Callable[[nn.Module, Batch], Items]
"""The task's `items`: a forward pass of the model."""
TOLERANCE = 1e-4
"""The largest difference between the model's logits and the head's on stored vectors that still is rounding (float32)."""

ON_A_STUB = (AttributeError, IndexError, TypeError, RuntimeError, ValueError)
"""How a model fails on a stub that gives less than what it stands for: each in its own way."""


class StoredBody(nn.Module):
    """Stands in for the body: its last hidden state is what comes in as `inputs_embeds`, or, for pictures, as `pixel_values`;
    the pooler is the body's own."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.pooler = getattr(body, "pooler", None)

    def forward(
        self, first: Any = None, inputs_embeds: Tensor | None = None, pixel_values: Tensor | None = None, **_: Any
    ) -> BaseModelOutputWithPoolingAndCrossAttentions:
        hidden = next((each for each in (inputs_embeds, pixel_values, first) if each is not None), None)
        if hidden is None:
            raise TypeError("the task does not hand stored vectors on to the body")
        pooled = None if self.pooler is None else self.pooler(hidden)
        return BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)


class FeatureExamples(Examples):
    """Examples whose batches hold one stored vector per row, and one token for what the head asks of the ids.

    Features have the shape of the body's last hidden state, of one position.
    """

    def __init__(self, examples: Examples, features: np.ndarray):
        super().__init__(examples.rows, examples.encoded, examples.collate_examples)
        self.features = features
        self.costs = np.ones(len(features), dtype=np.int64)
        inputs = {"input_ids", "token_type_ids"} & set(examples.encoded.column_names)
        without_inputs = self._columns.remove_columns([n for n in self._columns.column_names if n in inputs - {"input_ids"}])
        self._rows = [_with_one_token(row, inputs) for row in without_inputs.to_list()]

    def take(self, places: tuple[int, ...]) -> list[dict[str, Any]]:
        return [self._rows[place] for place in places]

    def collate(self, places: tuple[int, ...], draw: tuple[int, ...] = ()) -> Batch:
        batch = super().collate(places, draw)
        return {**batch, _input_of(batch): torch.from_numpy(self.features[list(places)])}


def _input_of(batch: Batch) -> str:
    """Under which name the model passes the stored vectors on to its body."""
    return "inputs_embeds" if "input_ids" in batch else "pixel_values"


def _with_one_token(row: dict[str, Any], inputs: set[str]) -> dict[str, Any]:
    return {name: value[-1:] if name in inputs else value for name, value in row.items()}


def body_is_frozen(loaded: LoadedModel) -> bool:
    """True if only parameters of the head are trainable."""
    return all(name in loaded.head for name, p in loaded.model.named_parameters() if p.requires_grad)


@contextlib.contextmanager
def stored_body(loaded: LoadedModel) -> Iterator[None]:
    """The model with the stub in the body's place; the body is put back at the end."""
    name, body = loaded.model.base_model_prefix, loaded.body
    setattr(loaded.model, name, StoredBody(body))
    try:
        yield
    finally:
        setattr(loaded.model, name, body)


def store_features(loaded: LoadedModel, examples: Examples, items: ItemsOf, machine: Machine) -> FeatureExamples | None:
    """What the body gives the head for every row, float32: from the cache, or by one pass.

    Shape (rows, 1, width) where the body gives a sequence, (rows, width, 1, 1) where it gives a map, whose mean is stored.

    None when the head reads several positions of a row, other than as their mean, or when the stub's answers are not the
    model's.
    """
    if not _stub_is_exact(loaded, examples, items):
        return None
    folder = cache_folder("features") / _key(loaded, examples, machine)
    state = PartialState()
    # Asked of all, so that every process takes the same branch: what follows needs them all.
    if not all(gather_object([is_intact(folder)])):
        stored = _run_body(loaded, examples, items, machine)
        if state.is_local_main_process:
            with atomic_folder(folder) as aside:
                np.save(aside / "rows.npy", stored)
        state.wait_for_everyone()
    return FeatureExamples(examples, np.load(touch(folder) / "rows.npy", mmap_mode="r", allow_pickle=False))


def _stub_is_exact(loaded: LoadedModel, examples: Examples, items: ItemsOf) -> bool:
    """Tried on three rows of different lengths, in float32."""
    rows = three_lengths(examples)
    batch = to_device(examples.collate(rows), PartialState().device)
    loaded.model.eval()
    try:
        vectors = _read_vectors(loaded, batch, items)
        if vectors is None:
            return False
        few = Examples(
            examples.rows, examples.encoded.select(rows), examples.collate_examples
        )  # without what is only the body's
        stored = FeatureExamples(few, vectors.cpu().numpy()).collate(tuple(range(len(rows))))
        with torch.no_grad():
            wanted = items(loaded.model, batch).logits
            with stored_body(loaded):
                found = items(loaded.model, to_device(stored, PartialState().device)).logits
    except ON_A_STUB:  # a head that asks its body for more than a last hidden state: no features then
        return False
    return logits_close(wanted, found)


def three_lengths(examples: Examples) -> tuple[int, ...]:
    """The places of the shortest example, of one between, and of the longest."""
    by_length = np.argsort(examples.costs, kind="stable")
    return tuple(sorted({int(by_length[0]), int(by_length[len(by_length) // 2]), int(by_length[-1])}))


def logits_close(wanted: Tensor, found: Tensor) -> bool:
    """Whether what sets logits apart is rounding."""
    return bool(torch.allclose(wanted, found, atol=TOLERANCE, rtol=TOLERANCE))


def _read_vectors(loaded: LoadedModel, batch: Batch, items: ItemsOf, machine: Machine | None = None) -> Tensor | None:
    """Of each example the vector that the head reads, as a last hidden state of one position; None when it reads several,
    other than as their mean."""
    states: list[Tensor] = []
    watching = loaded.body.register_forward_hook(lambda *call: states.append(call[-1].last_hidden_state))
    try:
        with torch.no_grad(), machine.autocast() if machine else contextlib.nullcontext():
            items(loaded.model, batch)
    finally:
        watching.remove()
    hidden = states[0].float()
    if hidden.ndim == 4:
        return hidden.mean((2, 3), keepdim=True)
    read = pooling_weights(loaded, batch, items, hidden)
    return None if read is None else (hidden * read.unsqueeze(-1)).sum(1, keepdim=True)


def pooling_weights(loaded: LoadedModel, batch: Batch, items: ItemsOf, hidden: Tensor) -> Tensor | None:
    """What the head reads of the body's last hidden state: the weight of each position in a mean, shape (examples, positions).

    None when it reads something else.

    Logits are weighed at random, so that their gradients do not cancel.
    """
    with torch.enable_grad(), stored_body(loaded):
        hidden = hidden.detach().requires_grad_(True)
        logits = items(loaded.model, {**batch, _input_of(batch): hidden}).logits
        drawn = torch.randn(logits.shape, generator=torch.Generator().manual_seed(0)).to(logits)
        (gradient,) = torch.autograd.grad((logits * drawn).sum(), hidden)
    read = gradient.abs().sum(-1, keepdim=True) > 0
    count = read.sum(1, keepdim=True)
    if not count.all():
        return None
    even = gradient.sum(1, keepdim=True) / count * read
    if not torch.allclose(gradient, even, rtol=TOLERANCE, atol=TOLERANCE * float(gradient.abs().max())):
        return None
    return (read / count).squeeze(-1)


def _run_body(loaded: LoadedModel, examples: Examples, items: ItemsOf, machine: Machine) -> np.ndarray:
    state = PartialState()
    shares = cut_step(np.arange(len(examples)), examples.costs, machine.micro_batch_tokens, state.num_processes)
    # The largest first: what follows finds room in the memory that they leave. In many sizes, that memory is torn to pieces.
    mine = sorted(shares[state.process_index], key=lambda each: -len(each.places) * examples.costs[list(each.places)].max())
    stored: np.ndarray | None = None
    for micro_batch in tqdm(mine, desc="the body, once", disable=machine.quiet, leave=False):
        vectors = _read_vectors(loaded, to_device(examples.collate(micro_batch.places), state.device), items, machine)
        assert vectors is not None, "the head reads several positions of some rows, and one of those was read"
        if stored is None:
            stored = np.zeros((len(examples), *vectors.shape[1:]), dtype=np.float32)
        if micro_batch.counts:
            stored[list(micro_batch.places)] = vectors.cpu().numpy()
    assert stored is not None, "no examples"
    if state.num_processes > 1:
        places = [place for each in mine if each.counts for place in each.places]
        for theirs, rows in gather_object([(places, stored[places])]):
            stored[theirs] = rows
    return stored


def _key(loaded: LoadedModel, examples: Examples, machine: Machine) -> str:
    return hash_frozen(loaded, examples, machine, [n for n, _ in loaded.model.named_parameters() if n not in loaded.head])


def hash_frozen(loaded: LoadedModel, examples: Examples, machine: Machine, names: Iterable[str]) -> str:
    """Equal for equal examples and equal parameters of these names, in a body of equal code and in one precision."""
    shown = hash_rows(examples.encoded), examples.raw and hash_rows(examples.raw)
    digest = hashlib.sha256(f"{shown} {machine.precision} {hash_code(type(loaded.body))}".encode())
    parameters = dict(loaded.model.named_parameters())
    for name in names:
        digest.update(name.encode())
        digest.update(parameters[name].detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:32]
