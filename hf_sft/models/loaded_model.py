"""What a loaded model is made of: body and head, the body's layers, and what the checkpoint did not bring."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class LoadedModel:
    """A model with its task's head, in float32, and what the load report says of it."""

    model: PreTrainedModel
    new: tuple[str, ...]
    """Parameters that the checkpoint did not bring: freshly drawn."""
    revision: str | None
    """The commit on the Hub; None for folders."""
    notes: tuple[str, ...] = ()
    """What became of a head that the checkpoint brings."""
    card: Mapping[str, Any] = field(default_factory=dict)
    """Licence and language, as far as the checkpoint's own card says."""
    unused: frozenset[str] = frozenset()
    """Parameters of the body that the task does not use."""
    untrained_tokens: tuple[int, ...] = ()
    """Tokens that the task has the model write, and whose embedding was never trained."""

    @property
    def body(self) -> nn.Module:
        """The pretrained encoder or decoder below the head."""
        return self.model.base_model

    @property
    def prefix(self) -> str:
        """What the names of the body's modules begin with."""
        return prefix_of(self.model)

    @property
    def output_layer(self) -> nn.Module | None:
        """What scores tokens, where the model does."""
        return self.model.get_output_embeddings()

    @cached_property
    def head(self) -> frozenset[str]:
        """Names of the head's parameters: all outside the body, the body's pooler, and whatever is new."""
        outside = (
            name for name, _ in self.model.named_parameters() if not name.startswith(self.prefix) or name in self._output
        )
        pooler = (name for name, _ in self.model.named_parameters() if name.startswith(f"{self.prefix}pooler."))
        return frozenset((*outside, *pooler, *self.new))

    def depth(self, parameter: str) -> int:
        """How many layers a parameter is below the head: 0 of the head, 1 of the top layer, most of the embeddings.

        Layers are the members of the body's outermost module lists, in their order. The name may be PEFT's.
        """
        name = parameter.removeprefix("base_model.model.")
        if not name.startswith(self.prefix) or name in self.head or "modules_to_save" in name:
            return 0
        for place, layer in enumerate(self.layers):
            if name.startswith(f"{layer}."):
                return len(self.layers) - place
        return len(self.layers) + 1 if name in self._embeddings else 1

    @cached_property
    def layers(self) -> list[str]:
        """Names of the body's layers, lowest first."""

        def search(module: nn.Module, name: str) -> list[str]:
            if isinstance(module, nn.ModuleList):
                return [f"{name}{part}" for part, _ in module.named_children()]
            return [layer for part, child in module.named_children() for layer in search(child, f"{name}{part}.")]

        return search(self.body, self.prefix)

    @cached_property
    def _output(self) -> frozenset[str]:
        """Parameters of the layer that scores tokens, where the body's names have it among them."""
        if (layer := self.output_layer) is None:
            return frozenset()
        own = {id(p) for p in layer.parameters()} - {id(p) for p in self.model.get_input_embeddings().parameters()}
        return frozenset(name for name, p in self.model.named_parameters() if id(p) in own)

    @cached_property
    def _embeddings(self) -> frozenset[str]:
        """Parameters of the body that come before its layers, and tables wherever they stand."""
        names = [name for name, _ in self.model.named_parameters() if name.startswith(self.prefix)]
        first = next((i for i, name in enumerate(names) if name.startswith(tuple(f"{each}." for each in self.layers))), 0)
        tables = [f"{self.prefix}{name}.weight" for name, m in self.body.named_modules() if isinstance(m, nn.Embedding)]
        return frozenset((*names[:first], *tables))

    @cached_property
    def head_modules(self) -> list[str]:
        """The largest modules all of whose parameters are the head's."""

        def search(module: nn.Module, name: str) -> list[str]:
            names = [f"{name}.{part}" if name else part for part, _ in module.named_parameters()]
            if name and names and set(names) <= self.head:
                return [name]
            children = module.named_children()
            return [found for part, child in children for found in search(child, f"{name}.{part}" if name else part)]

        return search(self.model, "")


def prefix_of(model: PreTrainedModel) -> str:
    """What the names of the body's modules begin with; nothing where the body is the model itself, as T5's is."""
    return "" if model.base_model is model else f"{model.base_model_prefix}."
