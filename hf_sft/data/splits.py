"""Rows to splits: named, sliced or made; checked; and cut down to a subset."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, LargeList, List, ReadInstruction, Value, concatenate_datasets

from hf_sft.data.data_files import ALIASES, SPLITS
from hf_sft.data.data_source import DataSource
from hf_sft.data.label_cells import UNLABELLED, read_labels
from hf_sft.data.made_splits import HELD_OUT, make_splits, share_of
from hf_sft.data.row_hash import hash_rows
from hf_sft.data.sampling import subsample
from hf_sft.data.sources import folder_of, load_source
from hf_sft.errors import DataError, list_few, nearest, suggest
from hf_sft.storage.cache import digest
from hf_sft.tasks import Labels, Task
from hf_sft.tasks.common.classification import Labelled


@dataclass(frozen=True)
class Splits:
    """Rows by split, the task with the fields that the data filled in, its classes, and notes for the user."""

    rows: dict[str, Dataset]
    source: DataSource
    """With the splits as they were found or made, and the commit of a Hub data set."""
    task: Task
    labels: Labels | None
    notes: tuple[str, ...]
    unlabelled: Dataset | None = None
    """The test split of the data, if it has no labels: it is predicted, and `test` is made from train."""
    seen: dict[str, np.ndarray] = field(default_factory=dict)
    """For validation and test the rows whose input was trained on: train has it too, or the checkpoint knows it."""

    @cached_property
    def fingerprints(self) -> dict[str, str]:
        """By split, equal for equal rows."""
        return {name: hash_rows(rows) for name, rows in self.rows.items()}

    def facts(self) -> dict[str, Any]:
        """What report.json says of the data."""
        return {
            "rows": {name: len(rows) for name, rows in self.rows.items()},
            "labels": list(self.labels.names) if self.labels else None,
            "fingerprint": digest(*(f"{name}:{rows}" for name, rows in self.fingerprints.items())),
            "fingerprints": self.fingerprints,
        }


def load_splits(source: DataSource, task: Task) -> Splits:
    """Load, check and split the rows; classes become their names. Raises `DataError`, every problem of a kind at once."""
    brought, source_as_read, notes = load_source(source, task.input_columns(), _columns_read(source, task))
    loaded, named, aliased = _name_splits(source, brought)
    notes += aliased
    lacking = _lacks_labels(loaded.get("test"), task)
    for name, rows in loaded.items():
        extra = ("keep", "group", "stratify") if name == "train" else ("keep",)
        _require_columns(rows, name, task, source, extra, unlabelled=lacking and name == "test")
    left, counted = _keep(loaded, source)
    left, changed = _read_labels(left, task, None, source)
    notes += [*counted, *changed]
    loaded = {name: task.divide(task.read(rows, folder_of(source))) for name, rows in left.items()}
    unlabelled = loaded.pop("test") if _lacks_labels(loaded.get("test"), task) else None
    if unlabelled is not None:
        beside = [column for column in task.optional_columns() if column in unlabelled.column_names]
        unlabelled = unlabelled.select_columns([*task.input_columns(), *beside])
        notes.append(
            f"split `test` has no labels: its {len(unlabelled)} rows are predicted (predictions/unlabelled.jsonl) and not "
            "scored.  To score another split: `data.splits.test=validation data.splits.validation=0.1`."
        )
    resolved, labels, remarks = task.resolve(loaded)
    notes += remarks
    rows = {name: _name_classes(rows, resolved, source.stratify) for name, rows in loaded.items()}
    rows, dropped = _without_invalid(rows, resolved, labels, source.drop_invalid)
    rows, made = make_splits(rows, source, resolved, unlabelled is not None)
    rows["train"], few = subsample(rows["train"], source, resolved, labels)
    found = {*loaded, *source.splits, *(("test",) if unlabelled is not None else ())}
    splits = {name: named[name] if name in found else HELD_OUT for name in SPLITS}
    source_as_read = source_as_read.model_copy(update={"splits": splits})
    seen, known = _find_seen(rows, [*loaded], resolved)
    notes += [*dropped, *made, *few, *known]
    return Splits(rows, source_as_read, resolved, labels, tuple(notes), unlabelled, seen)


def _columns_read(source: DataSource, task: Task) -> set[str]:
    """The columns that the task and the data block name."""
    named = (column for columns in task.columns().values() for column in columns)
    return {*named, *task.optional_columns(), *filter(None, (source.keep, source.group, source.stratify))}


def load_rows(source: DataSource, task: Task, labels: Labels | None, split: str | None) -> tuple[str, Dataset, list[str]]:
    """One split of other data, for a task whose classes are known: the one that is named, `test`, or the only one.

    The split's name, its rows, and notes. Raises `DataError`.
    """
    brought, _, notes = load_source(source, task.input_columns(), _columns_read(source, task))
    name = split or ("test" if "test" in brought else next(iter(brought)))
    if name not in brought or (split is None and name != "test" and len(brought) > 1):
        problem = f"has no split `{split}`" if split else "has several splits, none of them called `test`"
        raise DataError(f"data set `{source.dataset}` {problem}.\n  It has: {', '.join(brought)}.  Say which: --split NAME.")
    _require_columns(brought[name], name, task, source, ("keep",))
    left, counted = _keep({name: brought[name]}, source)
    left, changed = _read_labels(left, task, labels, source)
    rows = _name_classes(task.divide(task.read(left[name], folder_of(source))), task)
    valid, dropped = _without_invalid({name: rows}, task, labels, source.drop_invalid)
    return name, valid[name], [*notes, *counted, *changed, *dropped]


def _name_splits(source: DataSource, brought: dict[str, Dataset]) -> tuple[dict[str, Dataset], dict[str, Any], list[str]]:
    """The splits that the recipe names, and those that go by their own names; their names, and notes. Fractions come later."""
    notes = []
    wanted: dict[str, Any] = {name: source.splits.get(name, name) for name in SPLITS}
    alias = next((name for name in ALIASES if name in brought), None)
    if alias and "validation" not in brought and "validation" not in source.splits:
        wanted["validation"] = alias
        notes.append(f"split `{alias}` is taken for validation.  Another one: `data.splits.validation`.")
    wanted["train"] = "train" if share_of(wanted["train"]) is not None else wanted["train"]
    named = {}
    for name, expression in wanted.items():
        if share_of(expression) is not None:
            continue
        bases = [part.partition("[")[0].strip() for part in expression.split("+")]
        missing = [base for base in bases if base not in brought]
        if not missing:
            named[name] = _slice(brought, expression)
        elif name in source.splits or name == "train":
            hint = suggest(nearest(missing[0], brought))
            raise DataError(
                f"`data.splits.{name}`: data set `{source.dataset}` has no split `{missing[0]}`.\n"
                f"  It has: {', '.join(brought)}.{hint}"
            )
    return named, {**wanted, **source.splits}, notes


def _slice(brought: dict[str, Dataset], expression: str) -> Dataset:
    if expression in brought:
        return brought[expression]
    try:
        parts = ReadInstruction.from_spec(expression).to_absolute({name: len(rows) for name, rows in brought.items()})
        if any(part.from_ >= part.to for part in parts):
            raise ValueError
    except (ValueError, AssertionError):
        raise DataError(
            f"`{expression}` is not a slice, or one without rows.  Expected one like train[:80%] or train[100:200]."
        ) from None
    cut = [brought[part.splitname].select(range(part.from_, part.to)) for part in parts]
    return cut[0] if len(cut) == 1 else concatenate_datasets(cut)


def _read_labels(
    splits: dict[str, Dataset], task: Task, labels: Labels | None, source: DataSource
) -> tuple[dict[str, Dataset], list[str]]:
    if isinstance(task, Labelled):
        return read_labels(splits, task, source, labels)
    if source.label_delimiter is not None:
        raise DataError(f"`data.label_delimiter` goes with a label for each row, which `{task.type}` does not have.")
    return splits, []


def _lacks_labels(rows: Dataset | None, task: Task) -> bool:
    """Whether rows have the inputs of a task, and no answer: no such columns, or nothing but null and -1 in them."""
    columns = [column for named in task.columns().values() for column in named if column not in task.input_columns()]
    if rows is None or not columns or not {*task.input_columns()} <= {*rows.column_names}:
        return False
    there = [column for column in columns if column in rows.column_names]
    return all(cell in (None, "", UNLABELLED) for column in there for cell in rows[column][:])


def _require_columns(
    rows: Dataset, split: str, task: Task, source: DataSource, extra: tuple[str, ...], unlabelled: bool = False
) -> None:
    wanted = {} if unlabelled else task.columns()  # rows are unlabelled that have all inputs, and no answer
    named = [(f"task.{field}", column) for field, columns in wanted.items() for column in columns]
    named += [(f"data.{field}", column) for field in extra if (column := getattr(source, field))]
    problems = []
    for where, column in named:
        if column not in rows.column_names:
            hint = suggest(nearest(column, rows.column_names))
            problems.append(f"`{where}` names column `{column}`, which split `{split}` doesn't have.{hint}")
    if problems:
        tables = source.dataset == "text" and task.type == "token_classification"
        hint = (
            "  For files with a word and its tag on each line: `data.dataset=conll`, with `data.data_files`." if tables else ""
        )
        raise DataError("\n".join([*problems, f"  It has: {', '.join(rows.column_names)}.{hint}"]))


def _keep(splits: dict[str, Dataset], source: DataSource) -> tuple[dict[str, Dataset], list[str]]:
    """The rows of each split that `data.keep` leaves, and how many they are. Raises `DataError`."""
    if source.keep is None:
        return splits, []
    left, notes = {}, []
    for name, rows in splits.items():
        values = rows[source.keep][:]
        odd = {repr(value) for value in values if not (isinstance(value, bool | int) and value in (0, 1))}
        if odd:
            raise DataError(
                f"`data.keep` names column `{source.keep}`, which holds {', '.join(sorted(odd)[:5])} in split `{name}`.\n"
                "  Expected true and false, or 1 and 0, in every row."
            )
        left[name] = rows.select(np.flatnonzero(np.array(values, dtype=bool)))
        if not len(left[name]):
            raise DataError(
                f"split `{name}` has no rows left: `data.keep` (column `{source.keep}`) is false in all {len(rows)}."
            )
        notes.append(f"`data.keep` left {len(left[name])} of {len(rows)} rows of split `{name}`.")
    return left, notes


def _name_classes(rows: Dataset, task: Task, stratify: str | None = None) -> Dataset:
    """ClassLabel columns as names: ids mean nothing across files whose class lists are ordered otherwise."""
    named = {column for columns in task.columns().values() for column in columns} | {stratify}
    for column in (column for column in rows.column_names if column in named):
        feature = rows.features[column]
        inner = feature.feature if isinstance(feature, List | LargeList) else feature
        if isinstance(inner, ClassLabel):
            names = _namer(inner)
            values = [[names(v) for v in row] if isinstance(row, list) else names(row) for row in rows[column][:]]
            kind = Value("string") if inner is feature else List(Value("string"))
            add: Any = Dataset.add_column  # a decorator hides what it takes
            rows = add(rows.remove_columns(column), column, values, feature=kind)
    return rows


def _namer(feature: ClassLabel) -> Callable[[int | None], str | None]:
    return lambda value: None if value is None or value < 0 else str(feature.int2str(value))


def _find_seen(rows: dict[str, Dataset], brought: list[str], task: Task) -> tuple[dict[str, np.ndarray], list[str]]:
    """The rows of validation and test whose inputs train has too: a right answer there may be remembered, not learned.

    In splits that were made there are none: equal inputs stand on one side. With notes.
    """
    seen = {name: np.array([], dtype=np.int64) for name in SPLITS[1:]}
    if not (wanted := [name for name in seen if name in brought]):
        return seen, []
    notes = []
    labels_of: dict[str, set] = {}
    for each, reference in zip(task.identities(rows["train"]), task.references(rows["train"]), strict=True):
        labels_of.setdefault(each, set()).add(str(reference))
    for name in wanted:
        inputs, references = task.identities(rows[name]), task.references(rows[name])
        places = [i for i, each in enumerate(inputs) if each in labels_of]
        seen[name] = np.array(places, dtype=np.int64)
        if places:
            equal = sum(str(references[i]) in labels_of[inputs[i]] for i in places)
            same = "" if references[0] is None else f" ({equal} with the same label)"
            notes.append(
                f"{len(places)} of {len(inputs)} rows of split `{name}` have an input that train has too{same}: "
                "the score on the other rows is given beside."
            )
    return seen, notes


def _without_invalid(
    rows: dict[str, Dataset], task: Task, labels: Labels | None, drop: bool
) -> tuple[dict[str, Dataset], list[str]]:
    problems, valid, notes = [], {}, []
    for name, split in rows.items():
        invalid = task.invalid_rows(split, labels)
        listed = [f"{what} in {len(places)} row(s) of split `{name}`: {list_few(places)}" for what, places in invalid.items()]
        problems += listed
        bad = {place for places in invalid.values() for place in places}
        if bad and drop:
            if len(bad) == len(split):
                raise DataError("\n  ".join([f"split `{name}` has no rows left: none can be learned from.", *listed[:5]]))
            notes.append(f"{len(bad)} of {len(split)} rows of split `{name}` can't be learned from and were dropped.")
        valid[name] = split.select([i for i in range(len(split)) if i not in bad]) if bad else split
    if problems and not drop:
        shown = [*problems[:20], *([f"… and {len(problems) - 20} more"] if len(problems) > 20 else [])]
        shown[0] = shown[0][0].upper() + shown[0][1:]
        raise DataError("\n  ".join([*shown, "Mend the rows, or leave them out with `data.drop_invalid=true`."]))
    return valid, notes
