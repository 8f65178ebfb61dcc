"""Errors that a user can correct, one class for each source: recipe, data, checkpoint, Hub.

Each message answers three questions in the user's words: what happened and where, what was expected, what to do.
The command line prints it without a traceback and exits with 2.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from hf_sft.redaction import for_terminal


class HfSftError(Exception):
    """An error that the user can correct. Its message holds no secrets, and no characters that act on a terminal."""

    def __init__(self, message: str):
        super().__init__(for_terminal(message))


class RecipeError(HfSftError):
    """An error in the recipe, an override, the command line or the output folder."""


class Diverged(RecipeError):
    """The loss or a gradient is not finite; the run's checkpoints stay."""


class SaveError(HfSftError):
    """The run's files can't be written; its checkpoints stay."""


class DataError(HfSftError):
    """An error in the data."""


class CheckpointError(HfSftError):
    """A checkpoint that does not fit, or can't be loaded."""


class HubError(HfSftError):
    """An error of the Hub, or a Hub that can't be reached."""


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The nearest known name, if one is near; case and hyphens are ignored."""
    plain = {_plain(each): each for each in names}
    return next((plain[near] for near in get_close_matches(_plain(name), plain, n=1, cutoff=cutoff)), None)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def list_few(things: Sequence[Any], most: int = 5) -> str:
    """The first few of a list, for a message, and how many more there are."""
    return ", ".join(map(str, things[:most])) + (", …" if len(things) > most else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class if the message is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def suggest(name: str | None) -> str:
    """A sentence that suggests a name, after a space; "" if there is none."""
    return f" Did you mean `{name}`?" if name else ""


@contextlib.contextmanager
def built_by(field: str, name: str, arguments: str) -> Iterator[None]:
    """Turn errors of building what the recipe names into `RecipeError`."""
    try:
        yield
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise RecipeError(
            f"{field} `{name}` can't be built: {first_line(error)}\n  Choose another, or see {arguments}."
        ) from error
