"""Which modules rest while others train, and how attention runs meanwhile."""

import contextlib
from collections.abc import Iterator

from torch import nn

from hf_sft.config.machine import Machine
from hf_sft.frozen.features import body_rests
from hf_sft.models.loaded_model import LoadedModel

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


@contextlib.contextmanager
def attending(loaded: LoadedModel, implementation: str | None) -> Iterator[None]:
    """The model with another implementation of attention, if one is given; the former is put back."""
    before = loaded.model.config._attn_implementation  # `set_attn_implementation` is public, what is set is not
    if implementation is None or before is None or implementation == before:
        yield
        return
    loaded.model.set_attn_implementation(implementation)
    try:
        yield
    finally:
        loaded.model.set_attn_implementation(before)


def resting_modules(loaded: LoadedModel, model: nn.Module) -> list[nn.Module]:
    """The largest parts of the body in which nothing moves: their dropout is off, since there is nothing to regularise.

    And every batch norm: it keeps the checkpoint's statistics. Those of a micro-batch would depend on how the step is cut.
    """

    def search(module: nn.Module) -> list[nn.Module]:
        parameters = list(module.parameters())
        if parameters and not any(p.requires_grad for p in parameters):
            return [module]
        holds_layers = any(isinstance(part, nn.ModuleList) for part in module.modules())
        return [found for child in module.children() for found in search(child)] if holds_layers else []

    norms = [module for module in model.modules() if isinstance(module, NORMS)]
    return [*search(loaded.body), *norms]


def attention_for_training(loaded: LoadedModel, machine: Machine) -> str | None:
    """On a CPU, sdpa leaves its fast path when attention has dropout: eager takes 1.06 s where sdpa takes 1.65 s
    (MiniLM, 16 rows of 256 tokens, bfloat16). None leaves what the model came with."""
    if machine.device != "cpu" or body_rests(loaded):
        return None
    config = loaded.model.config.to_dict()
    drops = any(v for k, v in config.items() if "att" in k and ("drop" in k) and isinstance(v, float))
    return "eager" if drops else None
