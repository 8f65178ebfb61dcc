"""What pydantic found wrong with a recipe, in the user's words: where, what was expected, what to do."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import isfinite
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core.core_schema import ErrorType
from transformers import TrainingArguments

from hf_sft.aids import Aid
from hf_sft.block import Block, list_kinds, load_kind
from hf_sft.config.training import OWNED, Training
from hf_sft.errors import nearest, suggest
from hf_sft.methods import Method
from hf_sft.recipe.yaml_reader import Place
from hf_sft.tasks import Task

FOLDERS: dict[type, str] = {Task: "tasks", Method: "methods", Aid: "aids"}
"""The blocks whose `type` names a file, and the folder it is in."""
OTHER_NAMES = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "scheduler": "lr_scheduler_type",
    "optimizer": "optim",
    "rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "max_seq_length": "max_length",
}
"""What others call a field, and what it is called here."""
PEFT_NAMES = {
    "use_dora": "write `variant: dora`",
    "use_rslora": "write `variant: rslora`",
    "init_lora_weights": "write `variant: pissa`, or nothing",
    "bias": "biases of the body are frozen under LoRA; `method: full` trains them",
    "modules_to_save": "the head is always trained and saved",
    "task_type": "the task says it",
    "layers_to_transform": "name layers in `target_modules`",
}
"""Fields of PEFT's LoraConfig, and what to do here."""
OWN_WORDS = ("value_error", "assertion_error")
SHAPES = {*get_args(ErrorType)} - {"missing", "extra_forbidden", *OWN_WORDS}
"""pydantic's errors about a value's type or size; those of our validators bring their own words."""


@dataclass(frozen=True)
class Flaw:
    """One error of pydantic's, its place freed of the names of union members."""

    place: Place
    kind: str
    message: str
    of_key: bool = False


def explain(error: ValidationError, top: type[Block], written: dict[str, Any]) -> dict[Place, str]:
    """One message per place of a recipe `written` as plain values."""
    flaws = list(_flatten(error, written))
    places = {flaw.place for flaw in flaws}
    messages: dict[Place, str] = {}
    suggested: set[Place] = set()
    for flaw in flaws:
        if flaw.kind in SHAPES and any(_is_inside(place, flaw.place) for place in places):
            continue  # a union's other member fits better: the flaws inside it say what is wrong
        if flaw.kind == "extra_forbidden":
            message, near = _explain_unknown(flaw.place, top, written)
            suggested |= {(*flaw.place[:-1], near)} if near else set()
        else:
            message = _explain_flaw(flaw, top, written)
        messages.setdefault(flaw.place, message)
    missing = {flaw.place for flaw in flaws if flaw.kind == "missing"}
    return {place: message for place, message in messages.items() if place not in missing & suggested}


def show_place(place: Place) -> str:
    """`("aids", 0, "patience")` as aids[0].patience."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place).removeprefix(".")


def show_value(value: Any) -> str:
    """A value as YAML would have it, but for the quotes around all text; shortened."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:59]}…"


def refuse_owned(name: str) -> str:
    """A message for a field of `TrainingArguments` that another part of the recipe decides, or that is not supported."""
    where = OWNED[name]
    nothing = where.startswith("nothing: ")
    return f"has no place in a recipe: {where.removeprefix('nothing: ')}." if nothing else f"belongs to {where}."


def _flatten(error: ValidationError, written: Any, above: tuple = ()) -> Iterator[Flaw]:
    for flaw in error.errors(include_url=False):
        inner = flaw.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):  # raised inside a BeforeValidator: the block that `type` names
            yield from _flatten(inner, written, (*above, *flaw["loc"]))
            continue
        kind, location = flaw["type"], (*above, *flaw["loc"])
        place, value = _follow(location, written, kind == "missing")
        message = str(inner) if inner and kind in OWN_WORDS else flaw["msg"]
        if kind == "value_error" and flaw["loc"] and isinstance(value, dict) and "type" in value:
            place = (*place, "type")  # raised by `choose`
        elif kind not in SHAPES and isinstance(value, dict) and kind in value:
            place = (*place, kind)  # a block's own error may name its field by its type
        yield Flaw(place, kind, message, location[-1:] == ("[key]",))


def _follow(location: tuple, written: Any, missing: bool) -> tuple[Place, Any]:
    """The place in what was written, and what is there; pydantic also names the members of unions on its way."""
    place, value = (), written
    for i, part in enumerate(location):
        if (isinstance(value, dict) and part in value) or (isinstance(value, list) and part in range(len(value))):
            place, value = (*place, part), value[part]
        elif missing and i == len(location) - 1:
            place, value = (*place, part), None
    return place, value


def _is_inside(place: Place, outer: Place) -> bool:
    return len(place) > len(outer) and place[: len(outer)] == outer


def _explain_flaw(flaw: Flaw, top: type[Block], written: Any) -> str:
    annotation, value = _look_up(flaw.place, top, written)
    if flaw.kind == "missing":
        block = _block(*_look_up(flaw.place[:-1], top, written))
        return f"is required: {' '.join((block.model_fields[flaw.place[-1]].description or '').split())}"
    if flaw.kind not in SHAPES:
        return flaw.message if flaw.message.endswith((".", "?")) else f"{flaw.message}."
    if flaw.of_key:
        declared = _options(_look_up(flaw.place[:-1], top, written)[0])
        names = get_args(next(get_args(option)[0] for option in declared if get_origin(option) is dict))
        return f"must be one of {', '.join(names)}.{suggest(nearest(str(flaw.place[-1]), names))}"
    expected = _describe(annotation, value)
    hint = " Put it in quotes." if expected == "text" and isinstance(value, bool | int | float) else ""
    if flaw.place in (("data",), ("data", "dataset")) and isinstance(value, list):
        hint = " Several files of one kind: `data.data_files: [ONE, OTHER]`. Several data sets can't be mixed in a recipe."
    return f"must be {expected}; got {show_value(value)}.{hint}"


def _explain_unknown(place: Place, top: type[Block], written: Any) -> tuple[str, str | None]:
    """A message for an unknown field of a block, with the nearest known name."""
    block = _block(*_look_up(place[:-1], top, written))
    value, name = _look_up(place[:-1], top, written)[1], str(place[-1])
    kind = value.get("type") if "type" in block.model_fields else None  # itself misspelt, perhaps
    called = kind or show_place(place[:-1]) or "a recipe"
    what = f"is not a field of {called}"
    if name in OWNED and name != "type":
        return f"{what}; it {refuse_owned(name)}", None
    if name in PEFT_NAMES and place[0] == "method":
        return f"{what}: {PEFT_NAMES[name]}.", None
    homes = _find_homes(name, place[:-1], top, written)
    if homes:
        return f"{what}; it belongs to {' or '.join(homes)}.", None
    near = other if (other := OTHER_NAMES.get(name)) in block.model_fields else nearest(name, block.model_fields)
    if block is Training and name not in OTHER_NAMES and name in {field.name for field in fields(TrainingArguments)}:
        close = suggest(nearest(name, block.model_fields, cutoff=0.65))
        return f"is a field of transformers.TrainingArguments that is not offered here.{close}", None
    few = f" It has: {', '.join(block.model_fields)}." if len(block.model_fields) <= 16 and not near else ""
    return f"{what}.{suggest(near)}{few}", near


def _find_homes(name: str, place: Place, top: type[Block], written: Any) -> list[str]:
    """The other blocks of this recipe that have a field of that name."""
    if name == "type":
        return []
    if name in top.model_fields:
        return ["the top of the recipe (mind the indentation)"]
    blocks = {part: _block(*_look_up((part,), top, written)) for part in top.model_fields if (part,) != place}
    return [f"`{part}`" for part, block in blocks.items() if block is not None and name in block.model_fields]


def _look_up(place: Place, top: type[Block], written: Any) -> tuple[Any, Any]:
    """What a place is declared to hold, and what it holds."""
    annotation, value = top, written
    for part in place:
        annotation = _declared(annotation, value, part)
        held: Any = dict(enumerate(value)) if isinstance(value, list) else value
        value = held.get(part) if isinstance(held, dict) else None
    return annotation, value


def _declared(annotation: Any, value: Any, part: str | int) -> Any:
    block = _block(annotation, value)
    if block is not None and part in block.model_fields:
        field = block.model_fields[str(part)]
        return Annotated[field.annotation, field]
    for option in _options(annotation):
        if get_origin(option) in (tuple, list) and isinstance(part, int):
            return get_args(option)[0]
        if get_origin(option) is dict and isinstance(part, str):
            return get_args(option)[1]
    return Any


def _options(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    inner = get_args(annotation)[:1] if origin is Annotated else get_args(annotation)
    if origin in (Annotated, Union, UnionType):
        for option in inner:
            yield from _options(option)
    else:
        yield annotation


def _block(annotation: Any, value: Any) -> Any:
    """The block that an annotation holds, by its `type` where there is a choice; None for plain values."""
    for option in _options(annotation):
        if option in FOLDERS and isinstance(value, dict) and isinstance(value.get("type"), str):
            try:
                return load_kind(FOLDERS[option], value["type"])
            except ValueError:
                return option
        if isinstance(option, type) and get_origin(option) is None and issubclass(option, Block):
            return option
    return None


def _describe(annotation: Any, value: Any, bounds: tuple = ()) -> str:
    """What a field takes, from its type and its bounds: "a whole number of at least 1"."""
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        marks = [mark for extra in inside[1:] for mark in (extra.metadata if isinstance(extra, FieldInfo) else [extra])]
        return _describe(inside[0], value, (*bounds, *marks))
    if origin in (Union, UnionType):
        options = [_describe(option, value, bounds) for option in inside if option is not type(None)]
        return " or ".join(dict.fromkeys(options))
    if origin is Literal:
        return f"one of {', '.join(str(choice) for choice in inside)}"
    if origin in (tuple, list):
        item = _describe(inside[0], None)
        return "a list of texts" if item == "text" else f"a list, each item {item}"
    if origin is dict:
        return f"a mapping of names to {_describe(inside[1], None)}"
    if annotation in FOLDERS:
        return f"a block with a `type`: one of {', '.join(list_kinds(FOLDERS[annotation]))}"
    if isinstance(annotation, type) and issubclass(annotation, Block):
        return f"a block of fields ({', '.join(list(annotation.model_fields)[:3])}, …)"
    finite = "finite " if isinstance(value, float) and not isfinite(value) else ""
    named = {bool: "true or false", int: "a whole number", float: f"a {finite}number", str: "text"}
    return f"{named.get(annotation, 'something else')}{_describe_bounds(bounds) if annotation in (int, float) else ''}"


def _describe_bounds(marks: tuple) -> str:
    words = {"ge": "of at least", "gt": "above", "le": "of at most", "lt": "below"}
    found = [(words[name], getattr(mark, name, None)) for mark in marks for name in words]
    bounds = [f"{word} {bound}" for word, bound in found if bound is not None]
    return f" {' and '.join(bounds)}" if bounds else ""
