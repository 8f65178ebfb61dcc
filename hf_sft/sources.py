"""The `data` block: where rows come from, and how files become rows."""

import glob
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import pandas
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from pydantic import Field

from hf_sft.block import Block
from hf_sft.checkpoint import find_commit
from hf_sft.errors import DataError, nearest, suggest
from hf_sft.packages import locate

FILES = ("csv", "json", "parquet", "arrow", "text")
KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "json", ".txt": "text"}
KINDS |= {".parquet": "parquet", ".arrow": "arrow"}
"""What a file holds, by the end of its name."""
SPLITS = ("train", "validation", "test")

INTEGER, NUMBER = r"-?(0|[1-9]\d{0,17})", r"-?(0|[1-9]\d{0,14})(\.\d+)?([eE][-+]?\d+)?"
"""Cells that are numbers and nothing else: `01` is written otherwise than 1, and a number holds no more digits than these."""


class DataSource(Block):
    """Where the rows come from, and which of them are for training, for choosing, and for the score."""

    dataset: str
    """A Hub id; a file; csv, json, parquet, arrow or text with `data_files`; textfolder or imagefolder with `data_dir`; a
    save_to_disk folder."""
    config: str | None = None
    """The configuration of a Hub data set, like mrpc of nyu-mll/glue."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    data_files: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = None
    """Files, or files by split; package:NAME/PATH finds them in an installed package."""
    data_dir: str | None = None
    """A folder; for textfolder and imagefolder one with a sub-folder per label; package:NAME/PATH too."""
    encoding: str | None = None
    """Of text files; utf-8 when not given. What can't be read is replaced by U+FFFD and counted."""
    sample_by: Literal["line", "paragraph", "document"] | None = None
    """Of files of text: what a row is; a line when not given."""
    delimiter: str | None = None
    """Between the cells of a csv; a tab for .tsv, else a comma, or what splits a header that would be one column."""
    splits: dict[Literal["train", "validation", "test"], str | float] = Field(default_factory=dict)
    """By split: a name, a `datasets` slice like train[:80%], or a fraction of train (0.1 or 10%). Without an entry: the
    split of that name, or 0.1 of train."""
    group: str | None = None
    """A column whose equal values never stand on two sides of a made split."""
    stratify: str | None = None
    """A column whose values made splits share evenly; the label, where a row has one class, when not given. A recipe without
    labels makes the same splits by it as one that has them."""
    keep: str | None = None
    """A column of booleans, or of 0 and 1; rows where it is false are left out."""
    drop_invalid: bool = False
    """Leave out rows that can't be learned from, counted in the report, instead of refusing them."""
    rows: int | None = Field(default=None, ge=1)
    """Train on this many rows; a smaller number draws a subset of a larger one's rows."""
    rows_per_label: int | None = Field(default=None, ge=1)
    """Train on this many rows of each class; nested like `rows`."""
    seed: int = Field(default=0, ge=0)
    """Draws made splits and subsets; apart from the recipe's `seed`, so that runs by other seeds share their test rows."""

    def seen_from(self, folder: Path) -> "DataSource":
        """Paths that lead nowhere from where one stands, but somewhere from a recipe's folder, as seen from there."""

        def seen(path: Any) -> Any:
            if isinstance(path, dict):
                return {name: seen(each) for name, each in path.items()}
            if isinstance(path, tuple):
                return tuple(seen(each) for each in path)
            if not isinstance(path, str) or ":" in path or Path(path).is_absolute() or path.startswith("~") or _exists(path):
                return path
            return str(folder / path) if _exists(str(folder / path)) else path

        where = {name: seen(getattr(self, name)) for name in ("data_files", "data_dir")}
        if self.dataset not in FILES:
            where["dataset"] = seen(self.dataset)
        return self.model_copy(update=where)


def load_source(source: DataSource, texts: Iterable[str], notes: list[str]) -> tuple[dict[str, Dataset], DataSource]:
    """All splits that a source brings, by name; and the source with what was found out about it.

    The columns `texts` of a csv stay text whatever they hold. Raises `DataError`.
    """
    source = _name_kind(source)
    try:
        folder, files = locate(source.data_dir) if source.data_dir else None, _locate_files(source.data_files)
    except LookupError as error:
        raise DataError(error.args[0]) from None
    folder = str(Path(folder).expanduser()) if folder else None
    try:
        if source.dataset == "textfolder":
            return _load_textfolder(source, folder, notes), source
        if source.dataset not in FILES and Path(source.dataset).expanduser().is_dir():
            saved = load_from_disk(str(Path(source.dataset).expanduser()))
            saved = saved if isinstance(saved, DatasetDict) else {"train": saved}
            return {str(name): rows for name, rows in saved.items()}, source
        if source.dataset in FILES and not (files or folder):
            raise DataError(f"`data.dataset: {source.dataset}` needs `data.data_files`: a file, or files by split.")
        options: dict[str, Any] = {"encoding": source.encoding} if source.encoding else {}
        if source.dataset in ("csv", "json", "text") and source.encoding:
            options["encoding_errors"] = "replace"
        if source.sample_by is not None:
            if source.dataset != "text":
                raise DataError(f"`data.sample_by` goes with files of text; `{source.dataset}` has rows of its own.")
            options["sample_by"] = source.sample_by
        if source.dataset == "csv":
            source = _find_delimiter(source, files, folder, notes)
            options |= _read_as_written(source, _first_file(files, folder))
        source = _pin(source)
        loaded: Any = load_dataset(
            source.dataset, source.config, data_files=files, data_dir=folder, revision=source.revision, **options
        )
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise DataError(_explain_missing(source, error)) from error
    except (DatasetsError, ValueError, RuntimeError, OSError, pa.ArrowInvalid) as error:
        raise DataError(_explain_unreadable(source, error)) from error
    brought = {str(name): rows for name, rows in loaded.items()}
    if source.dataset == "csv":
        brought = _find_numbers(brought, set(texts))
    return brought, source


def folder_of(source: DataSource) -> Path:
    """The folder in which the data lies, for paths that the rows hold; where one stands if it is not here."""
    source = _name_kind(source)
    named = source.data_dir or source.data_files or source.dataset
    while not isinstance(named, str):
        named = next(iter(named.values())) if isinstance(named, dict) else named[0]
    path = Path(locate(named)).expanduser()
    return path if path.is_dir() else path.parent


def _name_kind(source: DataSource) -> DataSource:
    """`dataset: file.csv` is a csv with that file."""
    suffix = Path(source.dataset).suffix.lower()
    if suffix not in KINDS or Path(source.dataset).is_dir() or source.data_files or source.data_dir:
        return source
    return source.model_copy(update={"dataset": KINDS[suffix], "data_files": source.dataset})


def _pin(source: DataSource) -> DataSource:
    """A Hub data set with the commit that its revision stands for now; as it was, where the Hub can't be asked."""
    if source.dataset in FILES or source.data_files or source.data_dir:
        return source
    return source.model_copy(update={"revision": find_commit(source.dataset, source.revision, "dataset")})


def _exists(path: str) -> bool:
    return Path(path).exists() or bool(glob.has_magic(path) and glob.glob(path, recursive=True))


def _locate_files(files: Any) -> Any:
    if isinstance(files, dict):
        return {name: _locate_files(each) for name, each in files.items()}
    if isinstance(files, tuple):
        return [_locate_files(each) for each in files]
    if files is None:
        return None
    located = locate(files)
    if "://" in located:
        return located
    path = Path(located).expanduser()
    if path.is_dir():
        raise LookupError(
            f"`data.data_files`: `{files}` is a folder.  It holds: {_list_folder(path)}.\n"
            f"  Name its files, or a pattern like {files.rstrip('/')}/*.csv; folders go into `data.data_dir`."
        )
    if not _exists(str(path)):
        what = "no file fits the pattern" if glob.has_magic(located) else "there is no file"
        folder = next(parent for parent in path.absolute().parents if parent.is_dir())
        near = nearest(path.name, [each.name for each in folder.iterdir()])
        hint = suggest(near) or f" `{folder.name}` holds: {_list_folder(folder)}."
        raise LookupError(
            f"`data.data_files`: {what} `{files}`. {hint}\n"
            "  Paths are read from the folder you are in, then from the recipe's."
        )
    return str(path)


def _list_folder(folder: Path) -> str:
    names = sorted(each.name for each in folder.iterdir() if not each.name.startswith("."))
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def _first_file(files: Any, folder: str | None) -> str:
    if files is None:
        paths = sorted(path for path in Path(str(folder)).rglob("*") if path.suffix in (".csv", ".tsv"))
        if not paths:
            raise DataError(f"`data.data_dir`: there is no csv below `{folder}`.")
        return str(paths[0])
    while not isinstance(files, str):
        files = next(iter(files.values())) if isinstance(files, dict) else files[0]
    return sorted(glob.glob(files, recursive=True))[0] if glob.has_magic(files) and "://" not in files else files


def _find_delimiter(source: DataSource, files: Any, folder: str | None, notes: list[str]) -> DataSource:
    first = _first_file(files, folder)
    if source.delimiter is not None:
        return source
    if Path(first).suffix.lower() == ".tsv":
        return source.model_copy(update={"delimiter": "\t"})
    if len(_header(source, first, ",")) > 1:
        return source
    for delimiter in (";", "\t", "|"):
        if len(header := _header(source, first, delimiter)) > 1:
            notes.append(f"the csv's cells stand between {delimiter!r}: its columns are {', '.join(header)}.")
            return source.model_copy(update={"delimiter": delimiter})
    return source


def _header(source: DataSource, file: str, delimiter: str) -> list[str]:
    read = pandas.read_csv(file, sep=delimiter, nrows=0, encoding=source.encoding or "utf-8", encoding_errors="replace")
    return [str(name) for name in read.columns]


def _read_as_written(source: DataSource, file: str) -> dict[str, Any]:
    """Every cell is text, and only an empty one is missing: pandas would make 1 of `01`, and nothing of `NA` and `None`."""
    delimiter = source.delimiter or ","
    text = Features({name: Value("string") for name in _header(source, file, delimiter)})
    return {"features": text, "sep": delimiter, "keep_default_na": False, "na_values": [""]}


def _find_numbers(brought: dict[str, Dataset], texts: set[str]) -> dict[str, Dataset]:
    """Columns all of whose cells, in all splits, are numbers (or true and false) become such."""
    kinds: dict[str, str] = {}
    compute: Any = pc  # its functions are made when it is imported
    for column in [each for each in next(iter(brought.values())).column_names if each not in texts]:
        cells = [rows.data.table[column] for rows in brought.values() if column in rows.column_names]
        for kind, pattern in (("int64", INTEGER), ("float64", NUMBER), ("bool", "(?i:true|false)")):
            found = [compute.match_substring_regex(each, f"^({pattern})$") for each in cells]
            fits = [compute.all(each).as_py() is not False for each in found]
            if all(fits) and any(each.null_count < len(each) for each in cells):
                kinds[column] = kind
                break
    return {name: _cast(rows, kinds) for name, rows in brought.items()}


def _cast(rows: Dataset, kinds: dict[str, str]) -> Dataset:
    for column, kind in kinds.items():
        if column in rows.column_names:
            rows = rows.cast_column(column, Value(kind))
    return rows


def _explain_missing(source: DataSource, error: Exception) -> str:
    where = source.dataset if source.dataset not in FILES else f"{source.dataset} of {source.data_files or source.data_dir}"
    at = f" at revision `{source.revision}`" if source.revision else ""
    return (
        f"data set `{where}`{at} can't be had: {_first_line(error)}\n"
        "  Expected a Hub id (online, or in the cache), a file, one of csv, json, parquet, arrow, text with\n"
        "  `data.data_files`, textfolder or imagefolder with `data.data_dir`, or a folder written by save_to_disk."
    )


def _explain_unreadable(source: DataSource, error: Exception) -> str:
    if "BuilderConfig" in str(error) or "Config name is missing" in str(error):
        return f"data set `{source.dataset}`: {_first_line(error)}\n  Name one of its configurations in `data.config`."
    if "scripts are no longer supported" in str(error):
        return (
            f"data set `{source.dataset}` is a script, which `datasets` no longer runs.\n"
            "  Use a Parquet twin of it: most have one on the Hub, or under its revision `refs/convert/parquet`."
        )
    cause = error.__cause__ or error
    where = f"data set `{source.dataset}` (of {source.data_files})" if source.data_files else f"data set `{source.dataset}`"
    if "corresponds to no data" in str(cause):
        return f"{where} holds no rows."
    if mixed := re.search(r"Column\(/?([^)/]*)\) (?:was|changed) .*", str(cause)):
        return (
            f"{where}: column `{mixed[1]}` holds values of several types ({_first_line(cause)}).\n"
            "  Expected one: write all of them as text, or all as numbers, or all as lists."
        )
    return f"{where} can't be read: {_first_line(cause)}\n  Check the file's format and `data.encoding`."


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _load_textfolder(source: DataSource, folder: str | None, notes: list[str]) -> dict[str, Dataset]:
    """One file per row, in one folder per label; below folders named as splits, if there are any."""
    if not folder:
        raise DataError("`data.dataset: textfolder` needs `data.data_dir`: a folder with one sub-folder per label.")
    top = Path(folder)
    if not top.is_dir():
        raise DataError(f"`data.data_dir`: there is no folder `{source.data_dir}`.")
    parts = {name: top / name for name in SPLITS if (top / name).is_dir()} or {"train": top}
    names = sorted({folder.name for part in parts.values() for folder in part.iterdir() if _is_label(folder)})
    if not names:
        raise DataError(f"`{source.data_dir}` has no sub-folders.  Expected one per label, with a text file per row in it.")
    features = Features(text=Value("string"), label=ClassLabel(names=names), file=Value("string"))
    splits, replaced = {}, 0
    for split, part in parts.items():
        files = sorted(path for name in names if (part / name).is_dir() for path in (part / name).iterdir() if path.is_file())
        files = [path for path in files if not path.name.startswith((".", "__"))]
        texts = [path.read_text(encoding=source.encoding or "utf-8", errors="replace") for path in files]
        replaced += sum("\ufffd" in text for text in texts)
        columns = {"text": texts, "label": [path.parent.name for path in files]}
        columns["file"] = [path.relative_to(top).as_posix() for path in files]
        splits[split] = Dataset.from_dict(columns, features=features)
    if replaced:
        notes.append(f"{replaced} file(s) are not {source.encoding or 'utf-8'}: what can't be read was replaced by U+FFFD.")
    return splits


def _is_label(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith((".", "__"))
