"""`key=value` words over a recipe, one field at a time."""

import sys
from collections.abc import Sequence
from typing import Any

from hf_sft.recipe.problems import show_place, show_value
from hf_sft.recipe.yaml_reader import WORD, Document, NotYaml, Place, Problem, read_yaml

NOWHERE, OVERRIDE = 0, sys.maxsize
"""Stand for a line: a dict has none, and an override comes after the whole file."""
CLEARED: dict[Place, tuple[str, ...]] = {
    ("data", "dataset"): ("config", "revision", "data_files", "data_dir", "sample_by", "delimiter", "splits"),
    ("model", "checkpoint"): ("gguf_file", "revision", "from_config", "config", "tokenizer"),
    ("model", "from_config"): ("checkpoint", "gguf_file", "revision", "config", "tokenizer"),
}
"""What a file says of one data set or checkpoint, and of no other: gone when an override names another."""


def override(draft: Document, overrides: Sequence[str]) -> None:
    """Set each field; words that can't be read are refused in the draft."""
    values = [parsed for word in overrides if (parsed := _read_override(draft, word))]
    for place, value in values:
        _clear(draft, place, value)
    for place, value in values:
        _lay(draft, place, value)


def _read_override(draft: Document, word: str) -> tuple[Place, Any] | None:
    key, sign, text = word.partition("=")
    place = tuple(key.split("."))
    if not sign or not all(WORD.fullmatch(part) for part in place):
        message = "is not an override; expected `key=value`, such as training.learning_rate=3e-5."
        draft.refused.append(Problem(OVERRIDE, (word,), message))
        return None
    try:
        read = read_yaml(text)
    except NotYaml as error:
        draft.refused.append(Problem(OVERRIDE, place, f"can't be read as YAML: {error}. Put it in quotes if it is text."))
        return None
    draft.refused += [Problem(OVERRIDE, (*place, *problem.place), problem.message) for problem in read.refused]
    if isinstance(read.value, dict | list) and not text.lstrip().startswith(("{", "[")):
        message = f"must be one value, [a list] or {{a: mapping}}; got {text!r}. Put it in quotes if it is text."
        draft.refused.append(Problem(OVERRIDE, place, message))
        return None
    return place, read.value


def _clear(draft: Document, place: Place, value: Any) -> None:
    """Drop what the file says beside a field that an override changes, where it can't be meant any more."""
    block = draft.value.get(place[0])
    if not isinstance(block, dict):
        return
    stale = CLEARED.get(place, ())
    if place in (("task", "type"), ("method", "type")) and block.get("type") != value:
        stale = tuple(name for name in block if name != "type")
    for name in stale:
        block.pop(name, None)
        _forget(draft, (place[0], name))


def _lay(draft: Document, place: Place, value: Any) -> None:
    block = draft.value
    for depth, part in enumerate(place[:-1], start=1):
        if block.get(part) is None:
            block[part] = {}
            draft.lines.setdefault(place[:depth], OVERRIDE)
        block = block[part]
        if not isinstance(block, dict):
            message = f"can't be set: {show_place(place[:depth])} is not a block of fields, but {show_value(block)}."
            draft.refused.append(Problem(OVERRIDE, place, message))
            return
    _forget(draft, place)
    draft.lines[place] = OVERRIDE
    block[place[-1]] = value


def _forget(draft: Document, place: Place) -> None:
    for inside in [other for other in draft.lines if other[: len(place)] == place]:
        del draft.lines[inside]
