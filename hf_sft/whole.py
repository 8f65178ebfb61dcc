"""Folders that are there whole or not at all: written aside, hashed, renamed; and known again when they are damaged."""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import xxhash
from safetensors import SafetensorError

SUMS = "sums.json"
"""In each folder: what it was when it was written."""


def is_whole(path: Path) -> bool:
    """Whether a folder is there, as it was written."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((path / SUMS).read_text(encoding="utf-8")) == _sums(path)
    return False


@contextlib.contextmanager
def written_aside(path: Path, synced: bool = False) -> Iterator[Path]:
    """A folder beside `path` that takes its place when it is whole, if none is there; with `synced`, when the disk has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield aside
        (aside / SUMS).write_text(json.dumps(_sums(aside)), encoding="utf-8")
        for folder in (aside, *(each for each in aside.rglob("*") if each.is_dir())):
            folder.chmod(0o777 & ~_mask())
            open_to_readers(folder)
        if synced:
            for each in (*aside.rglob("*"), aside):
                _sync(each)
        if not path.exists():
            aside.rename(path)
            if synced:
                _sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """safetensors' own error for a disk that is full, as the `OSError` that everybody else raises."""
    try:
        yield
    except SafetensorError as error:
        if (found := re.search(r"os error (\d+)", str(error))) is None:
            raise
        raise OSError(int(found[1]), os.strerror(int(found[1]))) from error


def open_to_readers(folder: Path) -> None:
    """safetensors makes files that only their owner can read: give them what the umask leaves."""
    for path in folder.iterdir():
        if path.is_file():
            path.chmod(0o666 & ~_mask())


def _mask() -> int:
    os.umask(mask := os.umask(0))
    return mask


def _sums(folder: Path) -> dict[str, str]:
    """Of each file a hash; a quick one, since disks and copies err, and don't lie."""
    sums = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS):
        with file.open("rb") as read:
            sums[file.relative_to(folder).as_posix()] = hashlib.file_digest(read, xxhash.xxh3_128).hexdigest()
    return sums


def _sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's names."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
