"""Folders inside installed packages, found without importing the package: importing would run its code."""

import importlib.util
import os
from pathlib import Path, PurePosixPath

NOWHERE = Path(os.devnull, "no such path")


def locate(name: str) -> str:
    """The folder behind `package:NAME/PATH`; any other name as it stands. Raises `LookupError` with the reason."""
    if not name.startswith("package:"):
        return name
    package, _, inside = name.removeprefix("package:").partition("/")
    module, path = package.replace("-", "_"), PurePosixPath(inside)
    if not module.isidentifier() or path.is_absolute() or ".." in path.parts:
        raise LookupError(f"`{name}` is not of the form package:NAME/PATH, with a path that stays inside the package.")
    try:
        spec = importlib.util.find_spec(module)
    except ValueError:  # `__main__` is a module without a place
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise LookupError(f"`{name}`: no package `{package}` is installed.\n  Install it: pip install {package}")
    folder = Path(spec.submodule_search_locations[0]) / path
    if not folder.exists():
        raise LookupError(f"`{name}`: the package is installed, but has no `{inside}`.")
    return str(folder)


def path_of(written: str | Path) -> Path:
    """The path that a user has written; `~` is the home folder.

    What can be no path (too long, with a zero byte, in the home of nobody) leads nowhere.
    """
    try:
        path = Path(written).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError):
        return NOWHERE
    return path


def absolute(path: str) -> str:
    """A path, found from wherever one stands."""
    return str(path_of(path).absolute())
