"""Things that can be made again, kept below Hugging Face's own cache under a digest of what they were made from."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants

LIMIT = 20 * 2**30
"""Bytes that all of this may take; HF_SFT_CACHE_BYTES sets another limit."""


def cache_folder(kind: str) -> Path:
    """Where things of one kind are kept."""
    return Path(constants.HF_HOME) / "hf_sft" / kind


@contextlib.contextmanager
def written_aside(path: Path) -> Iterator[Path]:
    """A folder beside `path` that takes its place when it is whole. Others that were not used for long make room for it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield aside
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
