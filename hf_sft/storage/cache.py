"""A cache below Hugging Face's own: each entry can be made again, and its name is a digest of its inputs."""

import contextlib
import errno
import hashlib
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import config
from huggingface_hub import constants

from hf_sft.errors import RecipeError
from hf_sft.storage import atomic_folder as whole

LIMIT, LIMIT_NAME = 20 * 2**30, "HF_SFT_CACHE_BYTES"
"""Bytes that all of this may take; the environment variable sets another limit."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
NO_PLACE = (*whole.UNWRITABLE, errno.ENOTDIR, errno.ENOENT)
UNITS = {unit: 1000**i for i, unit in enumerate(("b", "kb", "mb", "gb", "tb"))}
UNITS |= {unit: 1024**i for i, unit in enumerate(("", "kib", "mib", "gib", "tib"))}
IN_USE, LEFT_OVER = 60, 24 * 3600
"""Seconds: what was used so recently is not removed; what was begun so long ago and is not whole a dead process has left."""
GONE = ".removed-"
"""How the name of a folder begins that is being removed."""


def cache_folder(kind: str) -> Path:
    """The folder for things of one kind. Raises `RecipeError` if the environment sets a limit that is not a size."""
    find_limit()
    return Path(constants.HF_HOME) / "hf_sft" / kind


def find_limit() -> int:
    """The limit in bytes. Raises `RecipeError`."""
    given = os.environ.get(LIMIT_NAME, str(LIMIT))
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", given.lower())
    if found is None or found[2] not in UNITS:
        raise RecipeError(f"{LIMIT_NAME} is `{given}`.  Expected a number of bytes, such as 20000000000, 20GB or 20GiB.")
    return int(float(found[1]) * UNITS[found[2]])


def made_once(path: Path, make: Callable[[Path], Any]) -> Path:
    """A thing of the cache, made by one process of each machine where it is not there: `make` writes it into a folder."""
    with PartialState().local_main_process_first():
        if not is_intact(path):
            with atomic_folder(path) as aside:
                make(aside)
    return touch(path)


def is_intact(path: Path) -> bool:
    """Whether a thing is there, as it was written. What is damaged is removed, with a line that says so."""
    touch(path)  # first: then nobody removes it
    if whole.is_intact(path):
        return True
    if path.is_dir():
        print(f"`{path}` in the cache is damaged: it is made again.", file=sys.stderr)
        _remove(path)
    return False


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder that takes the place of `path` when it is whole. Others that were not used for long make room for it.

    Raises `RecipeError` where the cache can't be written.
    """
    try:
        with whole.disk_errors(), whole.atomic_folder(path) as aside:
            yield aside
        make_room(path)
    except OSError as error:
        require_writable(error)
        raise


def require_writable(error: BaseException | None) -> None:
    """Raises `RecipeError` where an error came from a cache, ours or that of `datasets`, that can't be written."""
    folders = [Path(constants.HF_HOME), Path(config.HF_DATASETS_CACHE)]
    while error is not None:
        if isinstance(error, OSError):
            named = Path(str(error.filename)) if error.filename else None
            found = next((folder for folder in folders if named and named.is_relative_to(folder)), None)
            if error.errno in FULL or (found and error.errno in NO_PLACE):
                raise RecipeError(
                    f"the cache `{found or folders[0]}` can't be written: {error.strerror}.\n"
                    "  Make room there, or set HF_HOME to another folder."
                ) from error
        error = error.__cause__ or error.__context__


def touch(path: Path) -> Path:
    """Say that a thing was used just now."""
    with contextlib.suppress(OSError):  # a cache that may only be read is still a cache
        os.utime(path)
    return path


def make_room(newest: Path) -> None:
    """Remove what was not used for longest until all is below the limit; what came last stays in any case.

    Other processes may do the same at the same time: what has vanished takes no room.
    """
    limit, now = find_limit(), time.time()
    things = [thing for kind in _folders(newest.parent.parent) for thing in _folders(kind) if thing != newest]
    for thing in things:
        if thing.name.startswith(".") and now - max(map(_changed, (thing, *_files(thing)))) > LEFT_OVER:
            shutil.rmtree(thing, ignore_errors=True)
    things = [thing for thing in things if not thing.name.startswith(".")]
    total = _size(newest) + sum(sizes := [_size(thing) for thing in things])
    for thing, size in sorted(zip(things, sizes, strict=True), key=lambda pair: _changed(pair[0])):
        if total <= limit or now - _changed(thing) < IN_USE:
            return
        _remove(thing)
        total -= size


def _folders(folder: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return [path for path in folder.iterdir() if path.is_dir()]
    return []


def _remove(thing: Path) -> None:
    """By its name first, so that nobody meets half of it."""
    aside = thing.with_name(f"{GONE}{thing.name}-{os.getpid()}")
    with contextlib.suppress(OSError):  # another process was faster
        thing.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def _size(folder: Path) -> int:
    """In bytes; of files that vanish meanwhile none."""
    total = 0
    for file in _files(folder):
        with contextlib.suppress(OSError):
            total += file.stat().st_size
    return total


def _files(folder: Path) -> Iterator[Path]:
    """Unlike `rglob` this passes over folders that vanish meanwhile."""
    return (Path(parent, name) for parent, _, names in os.walk(folder) for name in names)


def _changed(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def digest(*parts: str | bytes) -> str:
    """32 hexadecimal digits, equal for equal parts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update((part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part) + b"\0")
    return sha.hexdigest()[:32]
