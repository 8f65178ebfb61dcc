"""Things that can be made again, kept below Hugging Face's own cache under a digest of what they were made from."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash
from accelerate import PartialState
from huggingface_hub import constants

LIMIT = 20 * 2**30
"""Bytes that all of this may take; HF_SFT_CACHE_BYTES sets another limit."""
SUMS = "sums.json"
"""In each thing's folder: what it was when it was written."""


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
    with contextlib.suppress(OSError, ValueError):
        if json.loads((path / SUMS).read_text(encoding="utf-8")) == _sums(path):
            return True
    print(f"`{path}` in the cache is damaged: it is made again.", file=sys.stderr)
    shutil.rmtree(path, ignore_errors=True)
    return False


def _sums(folder: Path) -> dict[str, str]:
    """Of each file a hash; a quick one, since disks and copies err, and don't lie."""
    sums = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS):
        with file.open("rb") as read:
            sums[file.relative_to(folder).as_posix()] = hashlib.file_digest(read, xxhash.xxh3_128).hexdigest()
    return sums


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A folder beside `path` that takes its place when it is whole. Others that were not used for long make room for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield aside
        (aside / SUMS).write_text(json.dumps(_sums(aside)), encoding="utf-8")
        if not path.exists():
            aside.rename(path)
            make_room(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


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
