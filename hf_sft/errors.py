"""The mistakes a user can mend, one class per owner: what was written, what the data holds, what the checkpoint is, what the
Hub says.

Each message answers three questions in the user's words: what happened and where, what was expected, what to do.
The command line prints it without a traceback and exits with 2.
"""

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import Any

from hf_sft.redaction import for_terminal


class HfSftError(Exception):
    """Something that the user can mend. Its message holds no secrets, and no characters that act on a terminal."""

    def __init__(self, message: str):
        super().__init__(for_terminal(message))


class RecipeError(HfSftError):
    """What was written: the recipe, an override, the command line, the output folder."""


class Diverged(RecipeError):
    """The loss or a gradient is not finite; the run's checkpoints stay."""


class SaveError(HfSftError):
    """The run's files can't be written; its checkpoints stay."""


class DataError(HfSftError):
    """What the data holds."""


class CheckpointError(HfSftError):
    """What the checkpoint is, or that it cannot be had."""


class HubError(HfSftError):
    """What the Hub says, or that it can't be reached."""


def nearest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """The name that was probably meant, if one is near; case and hyphens are no difference."""
    plain = {_plain(each): each for each in names}
    return next((plain[near] for near in get_close_matches(_plain(name), plain, n=1, cutoff=cutoff)), None)


def _plain(name: str) -> str:
    return name.lower().replace("-", "_")


def list_few(things: Sequence[Any], most: int = 5) -> str:
    """Of rows, or of what else there may be many, those that a message has room for."""
    return ", ".join(map(str, things[:most])) + (", …" if len(things) > most else "")


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def suggest(name: str | None) -> str:
    """What to say of the name that was probably meant: a sentence after a space, or nothing."""
    return f" Did you mean `{name}`?" if name else ""


@contextlib.contextmanager
def built_by(field: str, name: str, arguments: str) -> Iterator[None]:
    """What can't be built by a name of the recipe is the recipe's mistake."""
    try:
        yield
    except (ValueError, TypeError, KeyError, ImportError) as error:
        raise RecipeError(
            f"{field} `{name}` can't be built: {first_line(error)}\n  Choose another, or see {arguments}."
        ) from error
