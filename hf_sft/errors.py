"""The mistakes a user can mend, one class per owner: what was written, what the data holds, what the checkpoint is.

Each message answers three questions in the user's words: what happened and where, what was expected, what to do.
The command line prints it without a traceback and exits with 2.
"""


class HfSftError(Exception):
    """Something that the user can mend."""


class RecipeError(HfSftError):
    """What was written: the recipe, an override, the command line, the output folder."""


class DataError(HfSftError):
    """What the data holds."""


class CheckpointError(HfSftError):
    """What the checkpoint is, or that it cannot be had."""
