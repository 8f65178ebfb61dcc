"""What a head reads of a sequence: the position that it is made for, or the mean over all positions.

Where the config has a word for it (`classifier_pooling`), that is set. Elsewhere one layer more takes the mean: it is of the
architecture's own kind, its attention looks at all positions alike and hands them on as they are, and its rest does nothing.
So what is saved is an ordinary checkpoint, a layer deeper, which plain transformers loads and runs.
"""

import copy
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from accelerate import PartialState
from torch import Tensor, nn

from hf_sft.data.examples import Examples, to_device
from hf_sft.errors import RecipeError
from hf_sft.frozen.features import ItemsOf, pooling_weights, three_lengths
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.tasks import Batch

LOUD = 100.0
"""How much louder than the position's own vector the mean is in their sum, which the layer normalises. Little enough for
float16."""
Sizes: TypeAlias = Sequence[int | None]
"""How many of an example's positions are no padding; None for all."""
ALIKE = 0.99
"""The cosine between what the head reads and the mean, at least: the position's own vector is still heard."""


def read_mean(loaded: LoadedModel, examples: Examples, items: ItemsOf) -> LoadedModel:
    """The model whose head reads the mean over all positions that are no padding.

    Raises `RecipeError` where the checkpoint's architecture can't hold that.
    """
    name = type(loaded.model).__name__
    if hasattr(loaded.model.config, "classifier_pooling"):
        loaded.model.config.classifier_pooling = "mean"
        return replace(loaded, notes=(*loaded.notes, f"{name} reads the mean over all positions (classifier_pooling)."))
    places = three_lengths(examples)
    batch = to_device(examples.collate(places), PartialState().device)
    deeper = _deepen(loaded)
    tokens = examples.costs[list(places)].tolist() if "input_ids" in batch else [None] * len(places)
    if deeper is None or not _take_mean(deeper, batch, items, tokens):
        raise RecipeError(
            f"`method.pool: mean`: {name} can't hold a head that reads the mean over all positions: its own reads other\n"
            "  positions, and no further layer of its kind gives it their mean.  Leave `pool` out: then it reads its own."
        )
    layer = f"layer {len(deeper.layers)}, which is new and rests"
    return replace(deeper, notes=(*deeper.notes, f"the head reads the mean over all positions: {layer}, takes it."))


def _deepen(loaded: LoadedModel) -> LoadedModel | None:
    """The model with a layer more above those that it has; None where its config does not give it exactly that."""
    config = copy.deepcopy(loaded.model.config)
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int):
        return None
    config.num_hidden_layers = count + 1
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == count:  # such as layer_types
            setattr(config, name, [*value, value[-1]])
    build: Any = type(loaded.model)
    model = build(config).eval()
    missing = model.load_state_dict(loaded.model.state_dict(), strict=False).missing_keys
    deeper = replace(loaded, model=model)
    exact = missing and deeper.layers[:-1] == loaded.layers and all(n.startswith(f"{deeper.layers[-1]}.") for n in missing)
    return deeper if exact else None


def _take_mean(loaded: LoadedModel, batch: Batch, items: ItemsOf, sizes: Sizes) -> bool:
    """Make the last layer take the mean, trying each pair of its square matrices as value and output; False when none does."""
    layer, width = loaded.model.get_submodule(loaded.layers[-1]), loaded.model.config.hidden_size
    square = [m for m in layer.modules() if isinstance(m, nn.Linear) and m.in_features == m.out_features == width]
    for value, output in itertools.combinations(square, 2):
        _silence(layer)
        nn.init.eye_(value.weight)
        nn.init.eye_(output.weight).data.mul_(LOUD)
        if _gives_mean(loaded, layer, batch, items, sizes):
            return True
    return False


def _silence(layer: nn.Module) -> None:
    """Linear layers give nothing, and norms only normalise."""
    for module in layer.modules():
        for name, parameter in module.named_parameters(recurse=False):
            nn.init.constant_(parameter, 0.0 if isinstance(module, nn.Linear) or name == "bias" else 1.0)


def _gives_mean(loaded: LoadedModel, layer: nn.Module, batch: Batch, items: ItemsOf, sizes: Sizes) -> bool:
    """Whether the head reads one position of each example, and there the mean of what comes into the layer.

    The mean of what is normalised first is one too.
    """
    seen: list[Tensor] = []
    hooks = [
        layer.register_forward_hook(lambda _, args, output: seen.append(args[0])),
        loaded.body.register_forward_hook(lambda _, args, output: seen.append(output.last_hidden_state)),
    ]
    try:
        with torch.no_grad():
            items(loaded.model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    given, shown = seen
    read = pooling_weights(loaded, batch, items, shown)
    if read is None or len(given) != len(sizes) or not (read.max(1).values == 1).all():
        return False
    found = (shown * read.unsqueeze(-1)).sum(1)
    first = nn.functional.layer_norm(given, given.shape[-1:])
    wanted = [torch.stack([row[:size].mean(0) for row, size in zip(of, sizes, strict=True)]) for of in (given, first)]
    cosines = [nn.functional.cosine_similarity(_centred(each), _centred(found), dim=-1).min() for each in wanted]
    return float(max(cosines)) > ALIKE


def _centred(vectors: Tensor) -> Tensor:
    return vectors - vectors.mean(-1, keepdim=True)
