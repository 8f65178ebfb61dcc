"""The `data` block: where rows come from, and how files become rows."""

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, LargeList, List, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

from hf_sft.data.conll_files import read_conll
from hf_sft.data.csv_files import CsvFormat, find_delimiter, open_text, read_csv, read_header
from hf_sft.data.data_files import files_in, kind_of, list_files, locate_files, suffix_of
from hf_sft.data.data_source import FILES, FOLDERS, DataSource
from hf_sft.data.folders import list_pictures, load_textfolder
from hf_sft.data.replaced import count_replaced
from hf_sft.data.squad_files import read_squad
from hf_sft.errors import DataError, first_line
from hf_sft.storage.cache import require_writable
from hf_sft.storage.package_paths import locate, path_of
from hf_sft.storage.revisions import find_commit

INTEGER, NUMBER = r"-?(0|[1-9]\d{0,17})", r"-?(0|[1-9]\d{0,14})(\.\d+)?([eE][-+]?\d+)?"
"""Cells that are numbers and nothing else: `01` is written otherwise than 1, and a number holds no more digits than these."""


def load_source(
    source: DataSource, texts: Iterable[str], read: Iterable[str] | None = None
) -> tuple[dict[str, Dataset], DataSource, list[str]]:
    """All splits that a source brings, by name; the source with what was found out about it; and notes.

    The columns `texts` of a csv stay text whatever they hold; of the others those that are `read` (all by default) become
    numbers where they hold such. Raises `DataError`.
    """
    source = _name_kind(source)
    try:
        folder = path_of(locate(source.data_dir)) if source.data_dir else None
    except LookupError as error:
        raise DataError(error.args[0]) from None
    if folder is not None and not folder.is_dir() and (source.dataset in FILES or source.dataset in FOLDERS):
        raise DataError(f"`data.data_dir`: there is no folder `{source.data_dir}`.")
    try:
        if source.dataset == "textfolder":
            brought, notes = load_textfolder(source, folder)
            return brought, source, notes
        if source.dataset not in FILES and (path := path_of(source.dataset)).is_dir():
            if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
                saved = load_from_disk(str(path))
                saved = saved if isinstance(saved, DatasetDict) else {"train": saved}
                return {str(name): _without_views(rows) for name, rows in saved.items()}, source, []
            if not _has_configs(path):
                kind = suffix_of(list_files(path))
                if kind is None:
                    raise DataError(
                        f"`data.dataset`: folder `{source.dataset}` holds no data set: no {', '.join(FILES)} file."
                    )
                source = source.model_copy(update={"dataset": kind, "data_dir": source.dataset})
                folder = path
        if source.dataset in FILES and not (source.data_files or folder):
            raise DataError(f"`data.dataset: {source.dataset}` needs `data.data_files`: a file, or files by split.")
        if source.sample_by is not None and source.dataset != "text":
            raise DataError(f"`data.sample_by` goes with files of text; `{source.dataset}` has rows of its own.")
        files, notes = _list_files(source, folder)
        if source.dataset == "csv":
            source, found = _find_delimiter(source, files, [*texts])
            notes += found
            written = CsvFormat(source.delimiter or ",", source.quoting, source.encoding)
            read_files = {name: read_csv(paths, written, source.drop_invalid) for name, paths in files.items()}
            notes += [note for _, odd in read_files.values() for note in odd]
            brought = {name: rows for name, (rows, _) in read_files.items()}
            brought = _find_numbers(brought, set(texts), None if read is None else set(read))
        elif source.dataset == "conll":
            brought = {name: read_conll(paths, source.encoding) for name, paths in files.items()}
        elif source.dataset == "json" and (squad := _read_squad(source, files)):
            brought = squad
        else:
            source, brought = _load(source, files, folder)
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise DataError(_explain_missing(source, error)) from error
    except (DatasetsError, ValueError, RuntimeError, OSError, pa.ArrowInvalid) as error:
        require_writable(error)
        raise DataError(_explain_unreadable(source, error)) from error
    for name, rows in brought.items():
        if source.dataset in ("csv", "json", "text", "conll"):
            notes += count_replaced(rows, name, source)
    return brought, source, notes


def _list_files(source: DataSource, folder: Path | None) -> tuple[Any, list[str]]:
    """The files by split of a source that is made of files, None for others; and notes."""
    if source.data_files is not None:
        return locate_files(source.data_files), []
    if folder is not None and source.dataset in FILES:
        files, note = files_in(folder, source.dataset)
        return files, [note]
    if folder is not None and source.dataset == "imagefolder":
        return list_pictures(folder)
    return None, []


def _read_squad(source: DataSource, files: dict[str, list[str]]) -> dict[str, Dataset] | None:
    found = {name: read_squad(paths, source.encoding) for name, paths in files.items()}
    return {name: rows for name, rows in found.items() if rows is not None} if None not in found.values() else None


def _load(source: DataSource, files: Any, folder: Path | None) -> tuple[DataSource, dict[str, Dataset]]:
    """What `datasets` reads."""
    options: dict[str, Any] = {"encoding": source.encoding} if source.encoding else {}
    if source.dataset in ("json", "text") and source.encoding:
        options["encoding_errors"] = "replace"
    if source.dataset == "json" and (source.encoding or "utf-8").lower() == "utf-8":
        options["encoding"] = "utf8"  # by that name it is decoded, and what is no UTF-8 is found (datasets 5.2)
    if source.sample_by is not None:
        options["sample_by"] = source.sample_by
    source = _pin(source)
    below = None if files or folder is None else str(folder)
    loaded: Any = load_dataset(
        source.dataset, source.config, data_files=files, data_dir=below, revision=source.revision, **options
    )
    brought = {str(name): _without_views(rows) for name, rows in loaded.items()}
    if source.dataset == "json":
        brought = {name: _as_written(rows, files[name], source) for name, rows in brought.items()}
    return source, brought


def _without_views(rows: Dataset) -> Dataset:
    """The rows with Arrow's views of texts as texts, which `datasets` and pyarrow handle everywhere (datasets 5.2)."""
    features = {name: _without_view(feature) for name, feature in rows.features.items()}
    return rows if features == {**rows.features} else rows.cast(Features(features))


def _without_view(feature: Any) -> Any:
    if isinstance(feature, dict):
        return {name: _without_view(each) for name, each in feature.items()}
    if isinstance(feature, List | LargeList):
        inner = _without_view(feature.feature)
        return feature if inner == feature.feature else type(feature)(inner)
    if isinstance(feature, Value) and feature.dtype.endswith("_view"):
        return Value(feature.dtype.removesuffix("_view"))
    return feature


def _as_written(rows: Dataset, paths: list[str], source: DataSource) -> Dataset:
    """JSON knows no dates: texts that pyarrow took for dates or times are read again as what they are."""
    dated = [name for name, feature in rows.features.items() if _holds_dates(feature)]
    if not dated:
        return rows
    records: list[Any] = []
    for path in paths:
        with open_text(path, source.encoding) as file:
            content: str = file.read()
        first = content.lstrip()[:1]
        records += json.loads(content) if first == "[" else [json.loads(line) for line in content.split("\n") if line.strip()]
    beside = Dataset.from_dict({name: [record.get(name) for record in records] for name in dated})
    for name in dated:
        add: Any = Dataset.add_column  # a decorator hides what it takes
        rows = add(rows.remove_columns(name), name, beside[name][:], feature=beside.features[name])
    return rows


def _holds_dates(feature: Any) -> bool:
    if isinstance(feature, dict):
        return any(map(_holds_dates, feature.values()))
    if isinstance(feature, List | LargeList):
        return _holds_dates(feature.feature)
    return isinstance(feature, Value) and feature.dtype.startswith(("timestamp", "date", "time", "duration"))


def _has_configs(folder: Path) -> bool:
    """Whether a folder is a data set of the Hub whose card says which files it has."""
    card = folder / "README.md"
    return card.is_file() and bool(re.match(r"---\n(.*\n)*?configs:", card.read_text(encoding="utf-8", errors="replace")))


def folder_of(source: DataSource) -> Path:
    """The folder in which the data lies, for paths that the rows hold; where one stands if it is not here."""
    source = _name_kind(source)
    named = source.data_dir or source.data_files or source.dataset
    while not isinstance(named, str):
        named = next(iter(named.values())) if isinstance(named, dict) else named[0]
    path = path_of(locate(named))
    return path if path.is_dir() else path.parent


def _name_kind(source: DataSource) -> DataSource:
    """`dataset: file.csv` is a csv with that file."""
    kind = kind_of(source.dataset)
    if kind is None or Path(source.dataset).is_dir() or source.data_files or source.data_dir:
        return source
    return source.model_copy(update={"dataset": kind, "data_files": source.dataset})


def _pin(source: DataSource) -> DataSource:
    """A Hub data set, pinned to the commit of its revision; unchanged if the Hub is not reachable."""
    if source.dataset in FILES or source.data_files or source.data_dir:
        return source
    return source.model_copy(update={"revision": find_commit(source.dataset, source.revision, "dataset")})


def _find_delimiter(source: DataSource, files: dict[str, list[str]], wanted: list[str]) -> tuple[DataSource, list[str]]:
    first, notes = next(iter(files.values()))[0], []
    usual = source.delimiter or ("\t" if ".tsv" in Path(first).name.lower() else None)
    written = CsvFormat(source.delimiter or ",", source.quoting, source.encoding)
    delimiter = find_delimiter(first, written, wanted, usual)
    if delimiter != (usual or ","):
        header = read_header(first, replace(written, delimiter=delimiter))
        notes.append(f"the csv's cells stand between {delimiter!r}: its columns are {', '.join(header)}.")
    return source.model_copy(update={"delimiter": None if delimiter == "," else delimiter}), notes


def _find_numbers(brought: dict[str, Dataset], texts: set[str], read: set[str] | None) -> dict[str, Dataset]:
    """Columns all of whose cells, in all splits, are numbers (or true and false) become such."""
    kinds: dict[str, str] = {}
    compute: Any = pc  # its functions are made when it is imported
    columns = [
        each for each in next(iter(brought.values())).column_names if each not in texts and (read is None or each in read)
    ]
    for column in columns:
        cells = [rows.data.table[column] for rows in brought.values() if column in rows.column_names]
        for kind, pattern in (("int64", INTEGER), ("float64", NUMBER), ("bool", "(?i:true|false)")):
            found = [compute.match_substring_regex(each, f"^({pattern})$") for each in cells]
            fits = [compute.all(each).as_py() is not False for each in found]
            if all(fits) and any(each.null_count < len(each) for each in cells):
                kinds[column] = kind
                break
    return {name: _cast(rows, kinds) for name, rows in brought.items()}


def _cast(rows: Dataset, kinds: dict[str, str]) -> Dataset:
    found = {column: Value(kind) for column, kind in kinds.items() if column in rows.column_names}
    return rows.cast(Features({**rows.features, **found})) if found else rows


def _explain_missing(source: DataSource, error: Exception) -> str:
    where = source.dataset if source.dataset not in FILES else f"{source.dataset} of {source.data_files or source.data_dir}"
    at = f" at revision `{source.revision}`" if source.revision else ""
    return (
        f"data set `{where}`{at} can't be had: {first_line(error)}\n"
        "  Expected a Hub id (online, or in the cache), a file, one of csv, json, parquet, arrow, text,\n"
        "  conll with `data.data_files`, textfolder or imagefolder with `data.data_dir`, or a folder of such files."
    )


def _explain_unreadable(source: DataSource, error: Exception) -> str:
    if "BuilderConfig" in str(error) or "Config name is missing" in str(error):
        return f"data set `{source.dataset}`: {first_line(error)}\n  Name one of its configurations in `data.config`."
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
            f"{where}: column `{mixed[1]}` holds values of several types ({first_line(cause)}).\n"
            "  Expected one: write all of them as text, or all as numbers, or all as lists."
        )
    return f"{where} can't be read: {first_line(cause)}\n  Check the file's format and `data.encoding`."
