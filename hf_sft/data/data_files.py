"""Which files a data set is made of, and which split each of them belongs to.

A file belongs to a split if that is its whole name (`test.csv`, `test-00000-of-00002.parquet`) or that of its folder; part of
a name (`train_strikes.csv`) says nothing.
"""

import glob
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_sft.errors import DataError, list_few, nearest, suggest
from hf_sft.storage.package_paths import locate, path_of

SPLITS = ("train", "validation", "test")
ALIASES = ("dev", "valid", "val", "eval")
"""What others call the validation split."""
KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".txt": "text"}
KINDS |= {".parquet": "parquet", ".arrow": "arrow", **dict.fromkeys((".conll", ".conllu", ".iob", ".bio"), "conll")}
"""What a file holds, by the end of its name."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst")
"""Ends of names behind those: `rows.csv.gz`."""
SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")
"""What the name of a part of a split ends in."""


def kind_of(path: str | Path) -> str | None:
    """What a file holds, by its name; None if that does not tell."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return KINDS.get(suffixes[-1]) if suffixes else None


def exists(path: str) -> bool:
    """Whether there is such a file or folder, or one that fits the pattern."""
    return path_of(path).exists() or bool(glob.has_magic(path) and glob.glob(str(path_of(path)), recursive=True))


def locate_files(files: Any) -> dict[str, list[str]]:
    """The paths of `data.data_files` by split, patterns resolved; a name or a list is train's. Raises `DataError`."""
    by_split = files if isinstance(files, dict) else {"train": files}
    return {split: [path for name in _as_tuple(each) for path in _locate(name)] for split, each in by_split.items()}


def _as_tuple(files: Any) -> tuple[str, ...]:
    return (files,) if isinstance(files, str) else tuple(files)


def _locate(name: str) -> list[str]:
    try:
        located = locate(name)
    except LookupError as error:
        raise DataError(error.args[0]) from None
    if "://" in located:
        return [located]
    path = path_of(located)
    if path.is_dir():
        raise DataError(
            f"`data.data_files`: `{name}` is a folder.  It holds: {_list_folder(path)}.\n"
            f"  Name its files, or a pattern like {name.rstrip('/')}/*.csv; folders go into `data.data_dir`."
        )
    if path.exists():
        return [str(path)]
    if found := sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []:
        return [each for each in found if Path(each).is_file()]
    what = "no file fits the pattern" if glob.has_magic(located) else "there is no file"
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    near = nearest(path.name, [each.name for each in folder.iterdir()])
    hint = suggest(near) or f" `{folder.name}` holds: {_list_folder(folder)}."
    raise DataError(
        f"`data.data_files`: {what} `{name}`. {hint}\n  Paths are read from the folder you are in, then from the recipe's."
    )


def _list_folder(folder: Path) -> str:
    names = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def list_files(folder: Path) -> list[Path]:
    """The files below a folder, in order, without hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__")) for part in path.relative_to(folder).parts)
    )


def files_in(folder: Path, kind: str) -> tuple[dict[str, list[str]], str]:
    """The files of a kind below a folder by split, and a note on what they are and which are left out. Raises `DataError`."""
    files = [path for path in list_files(folder) if kind_of(path) == kind]
    if not files:
        raise DataError(f"`data.data_dir`: there is no {kind} file below `{folder}`.  It holds: {_list_folder(folder)}.")
    by_split: dict[str, list[str]] = {}
    unnamed = []
    for path in files:
        split = _split_of(path.relative_to(folder))
        by_split.setdefault(split, []).append(str(path)) if split else unnamed.append(str(path))
    left_out = unnamed if "train" in by_split else []
    if not left_out and unnamed:
        by_split["train"] = unnamed
    inside = {split: [str(Path(path).relative_to(folder)) for path in paths] for split, paths in by_split.items()}
    held = "; ".join(f"{split} has {len(names)} ({list_few(names)})" for split, names in inside.items())
    note = f"`{folder}` holds {len(files)} {kind} file(s): {held}."
    if left_out:
        names = [str(Path(path).relative_to(folder)) for path in left_out]
        note += f"  {len(names)} left out, whose names are no split's: {list_few(names)}."
    return by_split, f"{note}  Other files, or other splits: `data.data_files`."


def _split_of(path: Path) -> str | None:
    """The split that a path inside a folder names."""
    names = [SHARD.sub("", path.name.split(".")[0]), *(part for part in reversed(path.parts[:-1]))]
    return next((name.lower() for name in names if name.lower() in (*SPLITS, *ALIASES)), None)


def label_folders(top: Path) -> dict[str, Path]:
    """A folder with a folder for each class, or with such a folder for each split: the folders of classes by split.

    A folder is a split if its name is a split's and it holds folders (or a file metadata.csv, .jsonl or .parquet).
    """
    below = [each for each in sorted(top.iterdir()) if is_label(each)]
    named = {each.name: each for each in below if each.name in (*SPLITS, *ALIASES)}
    holders = {
        name: each
        for name, each in named.items()
        if any(is_label(inner) or inner.name.startswith("metadata.") for inner in each.iterdir())
    }
    return holders or {"train": top}


def is_label(folder: Path) -> bool:
    """Whether a folder may be a class."""
    return folder.is_dir() and not folder.name.startswith((".", "__"))


def suffix_of(paths: Iterable[Path]) -> str | None:
    """The kind that most of some files have."""
    kinds = [kind for path in paths if (kind := kind_of(path))]
    return max(dict.fromkeys(kinds), key=kinds.count) if kinds else None
