"""The mistakes a user can mend, one class per owner: what was written, what the data holds, what the checkpoint is.

Each message answers three questions in the user's words: what happened and where, what was expected, what to do.
The command line prints it without a traceback and exits with 2.
"""

import contextlib
from collections.abc import Iterator


class HfSftError(Exception):
    """Something that the user can mend."""


class RecipeError(HfSftError):
    """What was written: the recipe, an override, the command line, the output folder."""


class DataError(HfSftError):
    """What the data holds."""


class CheckpointError(HfSftError):
    """What the checkpoint is, or that it cannot be had."""


@contextlib.contextmanager
def built_by(field: str, name: str, arguments: str) -> Iterator[None]:
    """What can't be built by a name of the recipe is the recipe's mistake."""
    try:
        yield
    except (ValueError, TypeError, KeyError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(f"{field} `{name}` can't be built: {reason}\n  Choose another, or see {arguments}.") from error
