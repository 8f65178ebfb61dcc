"""Pictures as rows hold them: the bytes of a file, or the path of one."""

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from datasets.utils.file_utils import xopen
from PIL import Image, ImageOps

from hf_sft.storage.package_paths import path_of

Cell: TypeAlias = dict[str, Any]
"""As `datasets` stores an image: `bytes` and `path`, one of them not None."""
SUFFIXES = frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in Image.OPEN)
"""What the names of pictures end in."""
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow and files raise."""
AT_ONCE = 100
"""Pictures that are in memory at a time when all are looked at."""
SMALL, SHOWN = 16, 128
"""Sides, in pixels, of the pictures that baselines are given, and of those that a report shows."""


def open_image(cell: Cell) -> Image.Image:
    """The picture, upright and as RGB: grey becomes three equal channels, what is transparent is dropped, 16 bits become 8.

    As a transformers pipeline opens it, but for 16 bits of grey, which that cuts off at 255. Raises one of `UNREADABLE`.
    """
    image: Image.Image = ImageOps.exif_transpose(Image.open(io.BytesIO(_read(cell))))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its pixels are of mode {image.mode}, whose brightest is not known; expected 8 or 16 bits")
    return image.convert("RGB")


def find_flaws(cells: Iterable[Cell | None]) -> Iterator[tuple[str, str | None]]:
    """Of each picture its name, and why it can't be read; None where it can."""
    waiting = iter(cells)
    with ThreadPoolExecutor() as threads:
        while some := list(islice(waiting, AT_ONCE)):
            yield from zip(map(name_of, some), threads.map(_find_flaw, some), strict=True)


def _find_flaw(cell: Cell | None) -> str | None:
    if cell is None:
        return "there is none"
    try:
        image = Image.open(io.BytesIO(_read(cell)))
        image.draft("RGB", (SHOWN, SHOWN))  # of a JPEG all is read, and little is computed
        image.load()
        if image.mode in ("I", "F"):
            open_image(cell)
    except UNREADABLE as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return reason.partition("<_io")[0].strip() or type(error).__name__
    return None


def name_of(cell: Cell | None) -> str:
    """The file's name, if there is one."""
    path = cell and cell["path"]
    return str(path).rsplit("/", 1)[-1] if path else "a picture without a name"


def hash_image(cell: Cell | None) -> str:
    """Equal for files of equal content; of one that can't be read, of what the cell says."""
    if cell is None or cell["bytes"] is not None or not cell["path"]:
        return hashlib.sha256(cell["bytes"] if cell and cell["bytes"] is not None else b"").hexdigest()
    try:
        state = Path(cell["path"]).stat()
    except OSError:
        return hashlib.sha256(str(cell["path"]).encode()).hexdigest()
    return _hash_file(cell["path"], state.st_mtime_ns, state.st_size)


@cache
def _hash_file(path: str, changed: int, size: int) -> str:
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def shrink(cell: Cell) -> np.ndarray:
    """The picture's pixels at 16×16, from 0 to 1, float32, shape (768,)."""
    small = open_image(cell).resize((SMALL, SMALL), Image.Resampling.BILINEAR)
    return np.asarray(small, dtype=np.float32).ravel() / 255


def inline(cell: Cell) -> str:
    """The picture, small, as a `data:` address."""
    image = open_image(cell)
    image.thumbnail((SHOWN, SHOWN))
    kind, written = "PNG" if max(image.size) <= SHOWN // 2 else "JPEG", io.BytesIO()
    image.save(written, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(written.getvalue()).decode()}"


def find_files(words: Iterable[str]) -> list[Path]:
    """Files as they are named, and all pictures below folders, sorted. Raises `LookupError` for what is neither."""
    files: list[Path] = []
    for word in words:
        path = path_of(word)
        below = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES) if path.is_dir() else [path]
        if not path.exists() or not below:
            raise LookupError(
                f"`{word}`: {'there are no pictures in this folder' if path.is_dir() else 'there is no such file'}."
            )
        files += below
    return files


def _read(cell: Cell) -> bytes:
    if cell["bytes"] is not None:
        return cell["bytes"]
    if not cell["path"]:
        raise ValueError("there is none")
    with xopen(cell["path"], "rb") as file:
        return file.read()
