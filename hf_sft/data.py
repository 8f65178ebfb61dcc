"""The `data` block: load, split, subsample, and encode once."""

import contextlib
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import numpy as np
from accelerate import PartialState
from datasets import ClassLabel, Dataset, DatasetDict, Features, LargeList, List, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from pydantic import Field
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from hf_sft.block import Block
from hf_sft.errors import DataError
from hf_sft.packages import locate
from hf_sft.tasks import Labels, Task

FILES = ("csv", "json", "parquet", "arrow", "text")
SPLITS = ("train", "validation", "test")
HELD_OUT = 0.1


class DataSource(Block):
    """Where the rows come from, and which of them are for training, for choosing, and for the score."""

    dataset: str
    """A Hub id; csv, json, parquet, arrow or text with `data_files`; textfolder with `data_dir`; a save_to_disk folder."""
    config: str | None = None
    """The configuration of a Hub data set, like mrpc of nyu-mll/glue."""
    revision: str | None = None
    """Branch, tag or commit of a Hub data set."""
    data_files: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = None
    """Files, or files by split; package:NAME/PATH finds them in an installed package."""
    data_dir: str | None = None
    """A folder; for textfolder one with a sub-folder per label; package:NAME/PATH too."""
    encoding: str | None = None
    """Of text files; utf-8 when not given. What can't be read is replaced by U+FFFD and counted."""
    splits: dict[Literal["train", "validation", "test"], str | float] = Field(default_factory=dict)
    """By split: a name, a `datasets` slice like train[:80%], or a fraction of train. Without an entry: the split of that
    name, or 0.1 of train."""
    group: str | None = None
    """A column whose equal values never stand on two sides of a made split."""
    keep: str | None = None
    """A boolean column; rows where it is false are left out."""
    drop_invalid: bool = False
    """Leave out rows that can't be learned from, counted in the report, instead of refusing them."""
    rows: int | None = Field(default=None, ge=1)
    """Train on this many rows; a smaller number draws a subset of a larger one's rows."""
    rows_per_label: int | None = Field(default=None, ge=1)
    """Train on this many rows of each class; nested like `rows`."""
    seed: int = Field(default=0, ge=0)
    """Draws made splits and subsets; apart from the recipe's `seed`, so that runs by other seeds share their test rows."""


@dataclass(frozen=True)
class Splits:
    """Rows by split, with the task as the data resolved it, its classes, and what is to be said aloud."""

    rows: dict[str, Dataset]
    source: DataSource
    """With the splits as they were found or made, and the commit of a Hub data set."""
    task: Task
    labels: Labels | None
    notes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        """Equal for equal rows of equal splits."""
        return _hash(*(f"{name}:{hash_rows(rows)}" for name, rows in self.rows.items()))


def load_splits(source: DataSource, task: Task) -> Splits:
    """Load, check and split the rows; classes become their names. Raises `DataError`, every problem of a kind at once."""
    notes: list[str] = []
    brought = _load(source, notes)
    loaded = _name_splits(source, brought)
    for name, rows in loaded.items():
        _require_columns(rows, name, task, source)
    if source.keep:
        loaded = {name: rows.filter(lambda row: bool(row[source.keep])) for name, rows in loaded.items()}
    resolved = task.resolve(loaded["train"])
    labels = resolved.labels(loaded["train"])
    rows = {name: _name_classes(rows, resolved) for name, rows in loaded.items()}
    rows = _without_invalid(rows, resolved, labels, source.drop_invalid, notes)
    rows = _make_splits(rows, source, resolved, notes)
    rows["train"] = _subsample(rows["train"], source, resolved, labels)
    for name, split in rows.items():
        if not len(split):
            raise DataError(f"split `{name}` has no rows left.  Check `data.splits`, `data.keep` and `data.drop_invalid`.")
    splits = {name: source.splits.get(name, name if name in loaded else HELD_OUT) for name in SPLITS}
    found = source.model_copy(update={"splits": splits, "revision": _commit(brought) or source.revision})
    return Splits(rows, found, resolved, labels, tuple(notes))


def load_rows(source: DataSource, task: Task, labels: Labels | None) -> Dataset:
    """All rows of one split of other data, for a task whose classes are known: `test`, or the only split there is."""
    brought = _load(source, notes := [])
    name = "test" if "test" in brought else str(next(iter(brought)))
    _require_columns(brought[name], name, task, source)
    rows = _name_classes(brought[name], task)
    return _without_invalid({name: rows}, task, labels, source.drop_invalid, notes)[name]


def _commit(brought: DatasetDict) -> str | None:
    """The commit that the files of a Hub data set came from, as their addresses tell."""
    for rows in brought.values():
        for address in rows.info.download_checksums or {}:
            if address.startswith("hf://datasets/") and "@" in address:
                return address.partition("@")[2].partition("/")[0]
    return None


def _load(source: DataSource, notes: list[str]) -> DatasetDict:
    try:
        folder, files = locate(source.data_dir) if source.data_dir else None, _locate_files(source.data_files)
    except LookupError as error:
        raise DataError(error.args[0]) from None
    try:
        if source.dataset == "textfolder":
            return _load_textfolder(source, folder, notes)
        if source.dataset not in FILES and Path(source.dataset).is_dir():
            saved = load_from_disk(source.dataset)
            return saved if isinstance(saved, DatasetDict) else DatasetDict({"train": saved})
        if source.dataset in FILES and not (source.data_files or source.data_dir):
            raise DataError(f"`data.dataset: {source.dataset}` needs `data.data_files`: a file, or files by split.")
        options: dict[str, Any] = {"encoding": source.encoding} if source.encoding else {}
        if source.dataset in ("csv", "json", "text") and source.encoding:
            options["encoding_errors"] = "replace"
        return load_dataset(
            source.dataset,
            source.config,
            data_files=files,
            data_dir=folder,
            revision=source.revision,
            **options,
        )  # pyright: ignore[reportReturnType]
    except (DatasetNotFoundError, FileNotFoundError, ConnectionError, OfflineModeIsEnabled, HfHubHTTPError) as error:
        raise DataError(_explain_missing(source, error)) from error
    except (DatasetsError, ValueError, RuntimeError, OSError) as error:
        raise DataError(_explain_unreadable(source, error)) from error


def _locate_files(files: Any) -> Any:
    if isinstance(files, dict):
        return {name: _locate_files(each) for name, each in files.items()}
    if isinstance(files, tuple):
        return [_locate_files(each) for each in files]
    if files is None:
        return None
    found = locate(files)
    if "://" not in found and not any(mark in found for mark in "*?[") and not Path(found).exists():
        raise LookupError(f"`data.data_files`: there is no file `{files}`.  Paths are read from the folder you are in.")
    return found


def _explain_missing(source: DataSource, error: Exception) -> str:
    where = source.dataset if source.dataset not in FILES else f"{source.dataset} of {source.data_files}"
    return (
        f"data set `{where}` can't be had: {_first_line(error)}\n"
        "  Expected a Hub id (online, or in the cache), one of csv, json, parquet, arrow, text with `data.data_files`,\n"
        "  textfolder with `data.data_dir`, or a folder written by save_to_disk."
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
    return f"data set `{source.dataset}` can't be read: {_first_line(cause)}\n  Check the file's format and `data.encoding`."


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _load_textfolder(source: DataSource, folder: str | None, notes: list[str]) -> DatasetDict:
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
    return DatasetDict(splits)


def _is_label(folder: Path) -> bool:
    return folder.is_dir() and not folder.name.startswith((".", "__"))


def _name_splits(source: DataSource, loaded: DatasetDict) -> dict[str, Dataset]:
    """The splits that the recipe names, and those that go by their own names; fractions come later."""
    wanted, names = {name: source.splits.get(name, name) for name in SPLITS}, [str(name) for name in loaded]
    found = {}
    for name, expression in wanted.items():
        if isinstance(expression, float | int):
            continue
        base = expression.partition("[")[0]
        if base in loaded:
            found[name] = _slice(loaded[base], expression)
        elif name in source.splits or name == "train":
            near = get_close_matches(base, names, n=1)
            hint = f"  Did you mean `{near[0]}`?" if near else ""
            raise DataError(
                f"`data.splits.{name}`: data set `{source.dataset}` has no split `{base}`.\n"
                f"  It has: {', '.join(names)}.{hint}"
            )
    return found


def _slice(rows: Dataset, expression: str) -> Dataset:
    if "[" not in expression:
        return rows
    start, colon, end = expression.partition("[")[2].rstrip("]").partition(":")
    try:
        if not colon:
            raise ValueError
        places = [_place(start, len(rows), 0), _place(end, len(rows), len(rows))]
    except ValueError:
        raise DataError(f"`{expression}` is not a slice.  Expected one like train[:80%] or train[100:200].") from None
    return rows.select(range(*sorted(places)))


def _place(text: str, count: int, default: int) -> int:
    if not text:
        return default
    place = round(float(text[:-1]) / 100 * count) if text.endswith("%") else int(text)
    return min(count, max(0, place + count if place < 0 else place))


def _require_columns(rows: Dataset, split: str, task: Task, source: DataSource) -> None:
    named = [(field, column) for field, columns in task.columns().items() for column in columns]
    named += [(field, column) for field in ("group", "keep") if (column := getattr(source, field))]
    problems = []
    for field, column in named:
        if column not in rows.column_names:
            near = get_close_matches(column, rows.column_names, n=1)
            hint = f" Did you mean `{near[0]}`?" if near else ""
            where = f"data.{field}" if field in ("group", "keep") else f"task.{field}"
            problems.append(f"`{where}` names column `{column}`, which split `{split}` doesn't have.{hint}")
    if problems:
        raise DataError("\n".join([*problems, f"  It has: {', '.join(rows.column_names)}."]))


def _name_classes(rows: Dataset, task: Task) -> Dataset:
    """ClassLabel columns as names: ids mean nothing across files whose class lists are ordered otherwise."""
    for column in (column for columns in task.columns().values() for column in columns):
        feature = rows.features[column]
        inner = feature.feature if isinstance(feature, List | LargeList) else feature
        if isinstance(inner, ClassLabel):
            names = _namer(inner)
            values = [[names(v) for v in row] if isinstance(row, list) else names(row) for row in rows[column]]
            kind = Value("string") if inner is feature else List(Value("string"))
            rows = rows.remove_columns(column).add_column(column, values, feature=kind)  # pyright: ignore
    return rows


def _namer(feature: ClassLabel) -> Callable[[int | None], str | None]:
    return lambda value: None if value is None or value < 0 else str(feature.int2str(value))


def _without_invalid(
    rows: dict[str, Dataset], task: Task, labels: Labels | None, drop: bool, notes: list[str]
) -> dict[str, Dataset]:
    problems, kept = [], {}
    for name, split in rows.items():
        invalid = task.invalid_rows(split, labels)
        for problem, places in invalid.items():
            few = ", ".join(str(place) for place in places[:5]) + (", …" if len(places) > 5 else "")
            problems.append(f"{problem} in {len(places)} row(s) of split `{name}`: {few}")
        bad = {place for places in invalid.values() for place in places}
        if bad and drop:
            notes.append(f"{len(bad)} of {len(split)} rows of split `{name}` can't be learned from and were dropped.")
        kept[name] = split.select([i for i in range(len(split)) if i not in bad]) if bad else split
    if problems and not drop:
        shown = [*problems[:20], *([f"… and {len(problems) - 20} more"] if len(problems) > 20 else [])]
        shown[0] = shown[0][0].upper() + shown[0][1:]
        raise DataError("\n  ".join([*shown, "Mend the rows, or leave them out with `data.drop_invalid=true`."]))
    return kept


def _make_splits(rows: dict[str, Dataset], source: DataSource, task: Task, notes: list[str]) -> dict[str, Dataset]:
    """Hold out what no split of the data set brings. Equal texts, and rows of one group, stay together."""
    fractions: dict[str, float] = {}
    for name in SPLITS[1:]:
        if name in rows:
            continue
        share = source.splits.get(name, HELD_OUT)
        if isinstance(share, str) or not 0 < share < 1:
            raise DataError(f"`data.splits.{name}` must be a split's name or a fraction between 0 and 1; got {share!r}.")
        fractions[name] = float(share)
        how = "as the recipe says" if name in source.splits else "since the data set has no such split"
        notes.append(f"split `{name}` is {share:g} of train, {how}: stratified, equal texts on one side.")
    if not fractions:
        return {name: rows[name] for name in SPLITS}
    if sum(fractions.values()) >= 1:
        raise DataError(f"the fractions of `data.splits` add up to {sum(fractions.values()):g}; nothing is left to train on.")
    train = rows["train"]
    sides = _assign(_units(train, source, task), _strata(train, task), fractions, source.seed)
    made = {name: train.select(np.flatnonzero(sides == name)) for name in fractions}
    return {**rows, **made, "train": train.select(np.flatnonzero(sides == "train"))}


def _units(rows: Dataset, source: DataSource, task: Task) -> np.ndarray:
    """For each row the number of its unit: rows linked by equal text or equal group share one."""
    links = [task.texts(rows), *([list(rows[source.group])] if source.group else [])]
    numbers = [_number(link) for link in links]
    count = len(rows)
    ends = np.concatenate([number + count * (i + 1) for i, number in enumerate(numbers)])
    starts = np.tile(np.arange(count), len(numbers))
    size = count * (len(numbers) + 1)
    graph = coo_array((np.ones(len(starts)), (starts, ends)), shape=(size, size))
    return connected_components(graph, directed=False)[1][:count]


def _number(values: Sequence[Any]) -> np.ndarray:
    """Equal values, equal numbers."""
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(value, len(seen)) for value in values])


def _strata(rows: Dataset, task: Task) -> list[str]:
    """Single labels stratify; where labels are lists or numbers there is one stratum."""
    references = task.references(rows)
    return references if references and isinstance(references[0], str) else [""] * len(rows)


def _assign(units: np.ndarray, strata: list[str], fractions: dict[str, float], seed: int) -> np.ndarray:
    """Whole units to sides, stratum by stratum, until each side has its share of the stratum's rows."""
    sides = np.full(len(units), "train", dtype=object)
    _, first, sizes = np.unique(units, return_index=True, return_counts=True)
    by_stratum: dict[str, list[int]] = {}
    for unit, row in enumerate(first):
        by_stratum.setdefault(strata[row], []).append(unit)
    numbered = np.unique(units, return_inverse=True)[1]
    side_of = np.full(len(first), "train", dtype=object)
    random = np.random.default_rng(seed)
    for stratum in sorted(by_stratum):
        order = random.permutation(by_stratum[stratum])
        total, place = sizes[order].sum(), 0
        for side, fraction in fractions.items():
            taken = 0
            while place < len(order) and taken + sizes[order[place]] / 2 <= fraction * total:
                side_of[order[place]] = side
                taken += sizes[order[place]]
                place += 1
    sides[:] = side_of[numbered]
    return sides


def _subsample(train: Dataset, source: DataSource, task: Task, labels: Labels | None) -> Dataset:
    if source.rows is None and source.rows_per_label is None:
        return train
    order = np.random.default_rng(source.seed).permutation(len(train))
    if source.rows_per_label is not None:
        strata = _strata(train, task)
        if labels is None or not strata[0]:
            raise DataError("`data.rows_per_label` needs one class per row.  Use `data.rows`.")
        seen: dict[str, int] = {}
        chosen = []
        for row in order:
            seen[strata[row]] = seen.get(strata[row], 0) + 1
            if seen[strata[row]] <= source.rows_per_label:
                chosen.append(row)
        order = np.array(chosen)
    if source.rows is not None and source.rows > len(order):
        raise DataError(f"`data.rows` is {source.rows}, but train has {len(order)} rows.")
    return train.select(order[: source.rows])


def encode_rows(rows: Dataset, task: Task, labels: Labels | None, processor: Any) -> Dataset:
    """Examples for the model: the task's columns, and `length` in tokens. Not cached."""

    def encode(batch: dict[str, list]) -> dict[str, list]:
        examples = task.encode(batch, processor, labels)
        examples["length"] = [len(ids) for ids in examples["input_ids"]] if "input_ids" in examples else [1] * len(rows)
        return examples

    needed = [column for columns in task.columns().values() for column in columns if column in rows.column_names]
    asked = rows.select_columns(needed)
    encoded = asked.map(encode, batched=True, remove_columns=needed, load_from_cache_file=False, keep_in_memory=True)
    if backend := getattr(processor, "backend_tokenizer", None):
        # A fast tokenizer remembers how it truncated, and would be hashed and saved with that.
        backend.no_truncation()
    return encoded


def encode_splits(splits: Splits, processor: Any) -> dict[str, Dataset]:
    """Each split's examples, encoded once by one process and memory-mapped from the cache by all, now and later."""
    state = PartialState()
    encoded = {}
    names = json.dumps(splits.labels.names if splits.labels else None)
    fields = _hash(_hash_processor(processor), splits.task.model_dump_json(), names)
    for name, rows in splits.rows.items():
        folder = cache_folder("encoded") / _hash(hash_rows(rows), fields)
        with state.local_main_process_first():
            if not (folder / "state.json").is_file():
                with written_aside(folder) as aside:
                    encode_rows(rows, splits.task, splits.labels, processor).save_to_disk(str(aside))
        encoded[name] = load_from_disk(str(folder))
    return encoded


@contextlib.contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place when it is whole."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        yield aside
        if not folder.exists():
            aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def cache_folder(kind: str) -> Path:
    """Where things that can be made again are kept: below Hugging Face's own cache."""
    return Path(constants.HF_HOME) / "hf_sft" / kind


def hash_rows(rows: Dataset) -> str:
    """Equal for equal columns with equal values, whatever file they came from."""
    return _hash(*(f"{name}:{json.dumps(rows[name][:], default=str)}" for name in sorted(rows.column_names)))


def _hash_processor(processor: Any) -> str:
    with tempfile.TemporaryDirectory() as folder:
        processor.save_pretrained(folder)
        files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
        return _hash(*(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files))


def _hash(*parts: str) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()[:32]
