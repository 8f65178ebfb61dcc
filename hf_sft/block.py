"""What a block of a recipe is, and how its `type` finds the file that does the work."""

import importlib
import importlib.util
import inspect
import pkgutil
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationInfo

from hf_sft.errors import nearest, suggest
from hf_sft.storage.foreign_code import import_allowed

TRUSTED = "trusted"
"""In the context of a validation: whether the caller trusts the code that a dotted `type` names."""


class Block(BaseModel):
    """One block of a recipe: frozen, and refusing fields that it does not know.

    A field's docstring is its manual: it feeds `hf-sft list`, the JSON Schema and the error messages.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


def join_lines(text: str | None) -> str:
    """A docstring with each paragraph on one line, for output that is wrapped again."""
    return "\n".join(" ".join(part.split()) for part in (text or "").split("\n\n"))


def list_kinds(folder: str) -> list[str]:
    """The names that `type` may take in a folder of this package: its files."""
    package = importlib.import_module(f"hf_sft.{folder}")
    return sorted(module.name for module in pkgutil.iter_modules(package.__path__) if not module.ispkg)


def load_kind(folder: str, name: str, trusted: bool = False) -> type[Block]:
    """The class behind `type: name`: in `hf_sft/<folder>/<name>.py`, or in the module of a dotted name.

    Raises `ValueError` (which pydantic collects) when there is no such file, when its code may not run, or when there is not
    exactly one class in it.
    """
    kinds = list_kinds(folder)
    if "." not in name and name not in kinds:
        others: dict[str, str] = {}
        for kind in kinds:
            others |= getattr(load_kind(folder, kind), "other_names", {})
        hint = f" That is {others[name]}." if name in others else suggest(nearest(name, kinds))
        raise ValueError(f"must be one of {', '.join(kinds)}, or a dotted module name; got '{name}'.{hint}")
    if not all(part.isidentifier() for part in name.split(".")):
        raise ValueError(f"must be one of {', '.join(kinds)}, or a dotted module name; got '{name}'.")
    try:
        module = import_allowed(name, trusted) if "." in name else importlib.import_module(f"hf_sft.{folder}.{name}")
    except (ImportError, SystemExit) as error:
        raise ValueError(f"names the module `{name}`, which can't be imported: {error}") from None
    contract = _contract(folder)
    found = [
        member
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, contract) and member.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ValueError(f"names the module `{name}`, which must define one {contract.__name__}; it has {len(found)}.")
    return found[0]


def choose(folder: str):
    """A validator that turns a mapping with a `type` into the block that the type names."""

    def build(value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, dict):
            return value
        if not isinstance(value.get("type"), str):
            raise ValueError(f"needs `type`: one of {', '.join(list_kinds(folder))}")
        trusted = bool((info.context or {}).get(TRUSTED))
        return load_kind(folder, value["type"], trusted).model_validate(value, context=info.context)

    return build


def _contract(folder: str) -> type[Block]:
    package = importlib.import_module(f"hf_sft.{folder}")
    return next(
        member
        for member in vars(package).values()
        if inspect.isclass(member) and issubclass(member, Block) and member.__module__ == package.__name__
    )
