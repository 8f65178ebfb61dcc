"""Whether the rows of a checkpoint's head are for these classes: by name, never by position or by count."""

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from hf_sft.errors import list_few
from hf_sft.tasks import Labels


def fit_head(
    model: PreTrainedModel,
    theirs: PretrainedConfig,
    labels: Labels,
    new: set[str],
    missing: set[str],
    load_theirs: Callable[[], PreTrainedModel],
) -> tuple[set[str], list[str]]:
    """Give each class the row that the checkpoint's head has for the class of that name; new ones for the others.

    `theirs` is the checkpoint's config, `new` the parameters that were drawn, `missing` those that the checkpoint holds in no
    shape; `load_theirs` gives the model with its own classes. Changes `model` in place; gives the
    parameters that are new in the end, and a note on what was done.
    """
    names, prefix = class_names(theirs), f"{model.base_model_prefix}."
    outside = {name for name, _ in model.named_parameters() if not name.startswith(prefix)}
    if names == list(labels.names) or outside <= missing:
        return new, []
    rows = follow_labels(model)
    if rows <= missing:
        return new, []
    matched = match_rows(names, labels)
    known = sum(row is not None for row in matched)
    if not known:
        few = list_few([f"`{name}`" for name in names])
        draw_again(model, outside)
        return new | outside, [f"the checkpoint's head is for other classes ({few}): it is drawn anew."]
    source = model if len(names) == len(labels) else load_theirs()
    brought = {name: p.detach().clone() for name, p in source.named_parameters() if name in rows}
    draw_again(model, rows)
    copy_rows(model, brought, matched)
    unknown = [f"`{name}`" for name, row in zip(labels.names, matched, strict=True) if row is None]
    rest = f"; new for {list_few(unknown)}" if unknown else ""
    note = f"of the checkpoint's head the rows of {known} class(es) are taken, by name{rest}."
    return new | rows if unknown else new - rows, [note]


def follow_labels(model: PreTrainedModel) -> set[str]:
    """Names of the parameters that have a row for each label: their shape follows the number of labels."""
    shapes = []
    for count in (2, 3):
        config = type(model.config).from_dict(model.config.to_dict())
        config.num_labels = count
        with torch.device("meta"):
            built = type(model)(config)
        shapes.append({name: parameter.shape for name, parameter in built.named_parameters()})
    return {name for name, shape in shapes[0].items() if shape != shapes[1].get(name)}


def class_names(config: PretrainedConfig) -> list[str]:
    """The classes of a checkpoint's head, in its order."""
    names = {int(i): str(name) for i, name in (config.id2label or {}).items()}
    return [names[i] for i in sorted(names)]


def match_rows(theirs: list[str], ours: Labels) -> list[int | None]:
    """For each of our classes the row of the checkpoint's head that is for it; None where there is none.

    `LABEL_0` is a place and no name, so a head of such has no row for anybody, but for data that calls its classes so.
    """
    if theirs == list(ours.names):
        return list(range(len(theirs)))
    if all(re.fullmatch(r"LABEL_\d+", name) for name in theirs):
        return [None] * len(ours)
    places = {name.casefold(): i for i, name in enumerate(theirs)}
    if len(places) < len(theirs):
        places = {name: i for i, name in enumerate(theirs)}
        return [places.get(name) for name in ours.names]
    return [places.get(name.casefold()) for name in ours.names]


def copy_rows(model: PreTrainedModel, brought: dict[str, torch.Tensor], rows: list[int | None]) -> None:
    """Our classes' rows of the parameters `brought`, from those of the checkpoint; the others as they are."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, values in brought.items():
            for ours, theirs in enumerate(rows):
                if theirs is not None:
                    parameters[name][ours] = values[theirs]


def draw_again(model: PreTrainedModel, parameters: set[str]) -> None:
    """Draw the modules that own these parameters as the model's family draws new ones."""
    for owner in sorted({parameter.rpartition(".")[0] for parameter in parameters}):
        module: nn.Module = model.get_submodule(owner)
        drawn: Any = module.parameters(recurse=False)
        for parameter in drawn:
            parameter._is_hf_initialized = False  # else it is skipped (transformers 5, `PreTrainedModel._initialize_weights`)
        model._init_weights(module)
