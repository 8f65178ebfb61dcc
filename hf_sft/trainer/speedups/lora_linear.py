"""PEFT's adapted layers as one operation each, while they train.

PEFT writes `y = x Wᵀ + (x Aᵀ) Bᵀ · scaling` as a dozen operations: x goes to float32 and back to the precision of matrix
products, for query, key and value each on its own, and every copy is stored for the backward pass; W, which is frozen, is cast
in each forward pass. Here x is cast and stored once for all layers that read it, and W is cast once for the training. The
objective is the same: in float32 the gradients are PEFT's but for rounding.
"""

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from hf_sft.config.machine import Machine
from hf_sft.trainer.fit_config import FitConfig, FitState


class LowRank(torch.autograd.Function):
    """`x Wᵀ + bias + scaling · (x Aᵀ) Bᵀ`, with gradients for x, A and B; W and the bias rest.

    `x` has shape (…, in), and `cast` is the same in the precision of `weight`, (out, in); A has shape (r, in), B (out, r).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cast: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scaling: float):
        ctx.scaling, ctx.of_x, ctx.of_factors = scaling, x.dtype, a.dtype
        a, b, flat = a.to(cast.dtype), b.to(cast.dtype), cast.reshape(-1, cast.shape[-1])
        down = flat @ a.T
        y = functional.linear(flat, weight, bias).addmm_(down, b.T, alpha=scaling)
        ctx.save_for_backward(flat, weight, a, b, down)
        return y.view(*x.shape[:-1], y.shape[-1])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor):
        flat, weight, a, b, down = ctx.saved_tensors
        of_y = gradients[0].reshape(-1, gradients[0].shape[-1])
        of_down = (of_y @ b).mul_(ctx.scaling)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_y @ weight).addmm_(of_down, a).view(*gradients[0].shape[:-1], flat.shape[-1]).to(ctx.of_x)
        of_a, of_b = of_down.T @ flat, (of_y.T @ down).mul_(ctx.scaling)
        return of_x, None, None, None, of_a.to(ctx.of_factors), of_b.to(ctx.of_factors), None


class _Casts:
    """The last input that was cast, for the next layer that reads it too."""

    def __init__(self) -> None:
        self._of: tuple[Tensor, int, Tensor] | None = None

    def __call__(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        # `_version` counts changes in place (torch.Tensor, as autograd itself checks).
        if self._of is None or self._of[0] is not x or self._of[1] != x._version or self._of[2].dtype != dtype:
            self._of = (x, x._version, x.detach().to(dtype))
        return self._of[2]


@contextlib.contextmanager
def lora_linear(state: FitState, config: FitConfig) -> Iterator[FitState]:
    """On a CPU, and without torch.compile, which fuses by itself."""
    applies = config.machine.device == "cpu" and not state.phase.training.torch_compile
    with as_one_operation(state.model, config.machine) if applies else contextlib.nullcontext():
        yield state


@contextlib.contextmanager
def as_one_operation(model: nn.Module, machine: Machine) -> Iterator[None]:
    """The model with its adapted layers each as one operation; at the end they are PEFT's own again.

    Layers of another kind (quantised, with dropout before the update, DoRA) stay as they are.
    """
    layers = [module for module in model.modules() if type(module) is Linear and _is_plain(module)]
    casts = _Casts()
    for layer in layers:
        layer.forward = partial(_forward, layer, casts, machine.device, *_held(layer, machine))
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_plain(layer: Linear) -> bool:
    (adapter,) = layer.active_adapters
    rests = not any(parameter.requires_grad for parameter in layer.base_layer.parameters())
    drops = not isinstance(layer.lora_dropout[adapter], nn.Identity)
    return type(layer.base_layer) in (nn.Linear, Conv1D) and rests and not (layer.lora_variant or layer.merged or drops)


def _held(layer: Linear, machine: Machine) -> tuple[Tensor, Tensor | None]:
    """The base's weight, (out, in), and bias, in the precision that matrix products run in."""
    base: Any = layer.base_layer
    weight, bias = base.weight.detach(), base.bias
    weight = weight.T if isinstance(base, Conv1D) else weight
    with machine.autocast():
        dtype = torch.get_autocast_dtype(machine.device) if torch.is_autocast_enabled(machine.device) else weight.dtype
    return weight.to(dtype), None if bias is None else bias.detach().to(dtype)


def _forward(layer: Linear, casts: _Casts, device: str, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    writes = not torch.is_autocast_enabled(device) and weight.dtype != x.dtype  # in float32, as `predict` does
    if writes or layer.disable_adapters:
        return Linear.forward(layer, x)
    (adapter,) = layer.active_adapters
    a, b = layer.lora_A[adapter].weight, layer.lora_B[adapter].weight
    return LowRank.apply(x, casts(x, weight.dtype), weight, bias, a, b, layer.scaling[adapter])
