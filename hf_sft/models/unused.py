"""Parts of a body that a task does not use are frozen, like the vision tower of a model that is trained on texts alone.

If they were trainable they would get no gradient, and training on several processes would end with an error.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from hf_sft.data.examples import Examples
from hf_sft.losses import Batch, Items, item_loss
from hf_sft.models.loaded_model import LoadedModel

TINY = 0.1
"""An embedding that is shorter than this share of the median one was never trained."""


def find_unused(
    loaded: LoadedModel, examples: Examples, items: Callable[[nn.Module, Batch], Items]
) -> tuple[frozenset[str], list[str]]:
    """The parameters of whole parts of the body that an example does not reach, and a note of them.

    A part is a direct child of the body. It is unused if none of its modules runs and none of its parameters gets a gradient.
    """
    model, ran, hooks = loaded.model, set(), list[RemovableHandle]()
    parts = {name: part for name, part in loaded.body.named_children() if any(True for _ in part.parameters())}
    batch, was_training = examples.collate((0,)), model.training
    model.eval()
    try:
        for module in loaded.body.modules():
            hooks.append(module.register_forward_pre_hook(lambda module, _: ran.add(module)))
        with torch.no_grad():
            items(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
    idle = {name: part for name, part in parts.items() if not any(module in ran for module in part.modules())}
    if not idle or len(idle) == len(parts):
        return frozenset(), []
    unused = {name: part for name, part in idle.items() if not _is_reached(model, part, batch, items)}
    owned = {id(parameter) for part in unused.values() for parameter in part.parameters()}
    shared = {id(parameter) for name, part in parts.items() if name not in unused for parameter in part.parameters()}
    names = frozenset(name for name, parameter in model.named_parameters() if id(parameter) in owned - shared)
    count = sum(parameter.numel() for name, parameter in model.named_parameters() if name in names)
    note = f"{', '.join(f'`{name}`' for name in unused)} ({count:,} weights) is not used by this task: it stays as it is."
    return names, [note] if names else []


def _is_reached(model: nn.Module, part: nn.Module, batch: Batch, items: Callable[[nn.Module, Batch], Items]) -> bool:
    """Whether a loss depends on a part's parameters though none of its modules runs."""
    parameters: list[Any] = [parameter for parameter in part.parameters() if parameter.is_floating_point()]
    before = [parameter.requires_grad for parameter in parameters]
    was_training = model.training
    model.eval()
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        loss = item_loss(items(model, batch)).sum()
        if not loss.requires_grad:
            return False
        return any(each is not None for each in torch.autograd.grad(loss, parameters, allow_unused=True))
    finally:
        model.train(was_training)
        for parameter, required in zip(parameters, before, strict=True):
            parameter.requires_grad_(required)


def find_untrained_tokens(loaded: LoadedModel, tokens: Iterable[int]) -> tuple[int, ...]:
    """Those of some tokens whose row among the output's weights was never trained: it is tiny, or equal to another token's.

    Unused rows of a vocabulary keep the values that they were given: all the same ones, or ones near zero.
    """
    layer: Any = loaded.output_layer
    if layer is None or not isinstance(getattr(layer, "weight", None), torch.Tensor):
        return ()
    rows = layer.weight.detach().float()
    norms = rows.norm(dim=1)
    usual = float(norms.median())
    return tuple(
        token
        for token in sorted({*tokens})
        if token < len(rows) and (norms[token] < TINY * usual or int((rows == rows[token]).all(1).sum()) > 1)
    )


def freeze_unused(model: nn.Module, unused: frozenset[str]) -> None:
    """Stop the training of parameters by their names, which may be PEFT's, and of updates beside them."""
    if not unused:
        return
    modules = {name.rpartition(".")[0] for name in unused}
    for name, parameter in model.named_parameters():
        plain = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
        owner = plain.partition(".lora_")[0] if ".lora_" in plain else plain.rpartition(".")[0]
        if plain in unused or owner in modules:
            parameter.requires_grad_(False)
