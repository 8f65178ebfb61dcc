"""Things that can be made again, kept below Hugging Face's own cache under a digest of what they were made from."""

import contextlib
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from huggingface_hub import constants

from hf_sft import whole

LIMIT = 20 * 2**30
"""Bytes that all of this may take; HF_SFT_CACHE_BYTES sets another limit."""


def cache_folder(kind: str) -> Path:
    """Where things of one kind are kept."""
    return Path(constants.HF_HOME) / "hf_sft" / kind


def made_once(path: Path, make: Callable[[Path], Any]) -> Path:
    """A thing of the cache, made by one process of each machine where it is not there: `make` writes it into a folder."""
    with PartialState().local_main_process_first():
        if not is_whole(path):
            with written_aside(path) as aside:
                make(aside)
    return touch(path)


def is_whole(path: Path) -> bool:
    """Whether a thing is there, as it was written. What is damaged is removed, aloud."""
    if not path.is_dir():
        return False
    if whole.is_whole(path):
        return True
    print(f"`{path}` in the cache is damaged: it is made again.", file=sys.stderr)
    shutil.rmtree(path, ignore_errors=True)
    return False


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A folder that takes the place of `path` when it is whole. Others that were not used for long make room for it."""
    with whole.written_aside(path) as aside:
        yield aside
    make_room(path)


def touch(path: Path) -> Path:
    """Say that a thing was used just now."""
    with contextlib.suppress(OSError):  # a cache that may only be read is still a cache
        os.utime(path)
    return path


def make_room(newest: Path) -> None:
    """Remove what was not used for longest until all is below the limit; what came last stays in any case."""
    limit = int(os.environ.get("HF_SFT_CACHE_BYTES", LIMIT))
    things = [thing for kind in newest.parent.parent.iterdir() if kind.is_dir() for thing in kind.iterdir()]
    things = [thing for thing in things if thing != newest and not thing.name.startswith(".")]
    total = _size(newest) + sum(sizes := [_size(thing) for thing in things])
    for thing, size in sorted(zip(things, sizes, strict=True), key=lambda pair: _used(pair[0])):
        if total <= limit:
            return
        shutil.rmtree(thing, ignore_errors=True)
        total -= size


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _used(folder: Path) -> float:
    with contextlib.suppress(OSError):
        return folder.stat().st_mtime
    return 0.0


def digest(*parts: str | bytes) -> str:
    """32 hexadecimal digits, equal for equal parts."""
    sha = hashlib.sha256()
    for part in parts:
        sha.update((part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part) + b"\0")
    return sha.hexdigest()[:32]
