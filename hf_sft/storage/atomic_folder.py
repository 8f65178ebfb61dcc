"""Atomic writes of files and folders: write beside, sync, rename. Checksums find damage."""

import contextlib
import errno
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
"""The file of checksums in each folder."""
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EFBIG)
"""Error numbers of a disk that is full, broken or read-only."""
ASIDE = ".hf_sft-"
"""Prefix of temporary folders."""


def is_intact(path: Path) -> bool:
    """True if a folder exists and its checksums match."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads((path / SUMS).read_text(encoding="utf-8")) == hash_files(path)
    return False


@contextlib.contextmanager
def atomic_folder(path: Path, synced: bool = False) -> Iterator[Path]:
    """A folder beside `path` that takes its place when it is whole, if none is there; with `synced`, when the disk has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield aside
        (aside / SUMS).write_text(json.dumps(hash_files(aside)), encoding="utf-8")
        for folder in (aside, *(each for each in aside.rglob("*") if each.is_dir())):
            folder.chmod(0o777 & ~_mask())
            open_to_readers(folder)
        if synced:
            for each in (*aside.rglob("*"), aside):
                _sync(each)
        try:
            aside.rename(path)
        except OSError:
            if not path.is_dir():  # else another process was faster
                raise
        if synced:
            _sync(path.parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextlib.contextmanager
def placed(folder: Path) -> Iterator[Path]:
    """A folder inside `folder`, which is made if need be: its files are moved to their places there when the disk has all of
    them. After an error none is."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=ASIDE, dir=folder))
    try:
        yield aside
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        for each in files:
            each.chmod(0o666 & ~_mask())
            _sync(each)
        places = [folder / each.relative_to(aside) for each in files]
        for each, place in zip(files, places, strict=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            each.replace(place)
        for parent in {place.parent for place in places}:
            _sync(parent)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_file(path: Path, text: str) -> None:
    """A text file that is there whole, or as it was before."""
    with placed(path.parent) as aside:
        (aside / path.name).write_text(text, encoding="utf-8")


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


def hash_files(folder: Path) -> dict[str, str]:
    """A hash of each file of a folder but its own sums; a quick one, since disks and copies err, and don't lie."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS)
    return {file.relative_to(folder).as_posix(): hash_file(file) for file in files}


def hash_file(file: Path) -> str:
    with file.open("rb") as read:
        return hashlib.file_digest(read, xxhash.xxh3_128).hexdigest()


def _sync(path: Path) -> None:
    """Wait until the disk has a file, or a folder's names."""
    if os.name == "nt":  # which lets nobody open a folder, and syncs only what is open for writing
        return
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
