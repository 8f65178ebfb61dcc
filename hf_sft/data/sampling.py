"""Which rows are held out of train, and which are drawn from it: whole units, fair shares, right totals."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy
from datasets import Dataset

from hf_sft.data.data_source import DataSource
from hf_sft.errors import DataError
from hf_sft.tasks import Labels, Task


def units_of(rows: Dataset, source: DataSource, task: Task) -> np.ndarray:
    """For each row the number of its unit: rows linked by equal content or equal group share one; no group is no link."""
    contents = _number(task.identities(rows))
    if not source.group:
        return contents
    groups = _number([(i, None) if value in (None, "") else value for i, value in enumerate(rows[source.group][:])])
    count = len(rows)
    ends = np.concatenate([contents + count, groups + 2 * count])
    graph = scipy.sparse.coo_array((np.ones(2 * count), (np.tile(np.arange(count), 2), ends)), shape=(3 * count, 3 * count))
    return scipy.sparse.csgraph.connected_components(graph, directed=False)[1][:count]


def _number(values: Sequence[Any]) -> np.ndarray:
    """Equal values, equal numbers."""
    seen: dict[Any, int] = {}
    return np.fromiter((seen.setdefault(value, len(seen)) for value in values), np.int64, len(values))


def strata_of(rows: Dataset, source: DataSource, task: Task) -> list[str]:
    """The values of the column that is named; else single labels; where labels are lists or numbers there is one stratum."""
    if source.stratify:
        return ["" if value is None else str(value) for value in rows[source.stratify][:]]
    return labels_of(rows, task)


def labels_of(rows: Dataset, task: Task) -> list[str]:
    """The class of each row; all empty where rows have not one class."""
    return task.references(rows) if task.answer_kind().stratified else [""] * len(rows)


def assign(units: np.ndarray, strata: list[str], fractions: dict[str, float], seed: int) -> np.ndarray:
    """The side of each row: whole units, stratum by stratum, to the nearest of each side's share of its rows.

    Where rounding in many small strata adds up, units move where it was largest, until the totals are right to a row.
    """
    _, first, numbered, sizes = np.unique(units, return_index=True, return_inverse=True, return_counts=True)
    by_stratum: dict[str, list[int]] = {}
    for unit, row in enumerate(first):
        by_stratum.setdefault(strata[row], []).append(unit)
    names = sorted(by_stratum)
    random = np.random.default_rng(seed)
    side_of = np.full(len(first), "train", dtype=object)
    stratum_of = np.empty(len(first), dtype=int)
    shares = {"train": 1 - sum(fractions.values()), **fractions}
    surplus = {side: np.empty(len(names)) for side in shares}
    for stratum, name in enumerate(names):
        order = random.permutation(by_stratum[name])
        before = np.concatenate([[0], np.cumsum(sizes[order])])
        total, place = before[-1], 0
        stratum_of[order] = stratum
        for side, fraction in fractions.items():
            # From here on, as long as the middle of the next unit is within the share.
            beyond = (before[place:-1] + before[place + 1 :]) / 2 - before[place] > fraction * total
            end = place + int(beyond.argmax()) if beyond.any() else len(order)
            side_of[order[place:end]] = side
            surplus[side][stratum] = before[end] - before[place] - fraction * total
            place = end
        surplus["train"][stratum] = total - before[place] - shares["train"] * total
    for side in fractions:
        _settle(side, side_of, stratum_of, sizes, surplus, random)
    return side_of[numbered]


def _settle(
    side: str,
    side_of: np.ndarray,
    stratum_of: np.ndarray,
    sizes: np.ndarray,
    surplus: dict[str, np.ndarray],
    random: np.random.Generator,
) -> None:
    """Move units between a side and train, each time where rounding went furthest wrong, until the side's total is right."""
    lot = random.permutation(len(surplus[side]))
    while abs(excess := surplus[side].sum()) >= 1:
        giver, taker = (side, "train") if excess > 0 else ("train", side)
        units = np.flatnonzero((side_of == giver) & (sizes < 2 * abs(excess)))
        if not len(units):
            return
        wrong = (surplus[giver] - surplus[taker])[stratum_of[units]]
        unit = units[np.lexsort((lot[stratum_of[units]], -wrong))[0]]
        side_of[unit] = taker
        surplus[giver][stratum_of[unit]] -= sizes[unit]
        surplus[taker][stratum_of[unit]] += sizes[unit]


def subsample(train: Dataset, source: DataSource, task: Task, labels: Labels | None) -> tuple[Dataset, list[str]]:
    """The rows of train that `rows` and `rows_per_label` leave, and a note on classes that have fewer. Raises `DataError`."""
    if source.rows is None and source.rows_per_label is None:
        return train, []
    notes = []
    order = np.random.default_rng(source.seed).permutation(len(train))
    if source.rows_per_label is not None:
        strata = labels_of(train, task)
        if labels is None or not strata[0]:
            raise DataError("`data.rows_per_label` needs one class per row.  Use `data.rows`.")
        seen: Counter[str] = Counter()
        chosen = []
        for row in order:
            seen[strata[row]] += 1
            if seen[strata[row]] <= source.rows_per_label:
                chosen.append(row)
        few = [f"{count} of `{name}`" for name, count in sorted(seen.items()) if count < source.rows_per_label]
        if few:
            notes.append(f"`data.rows_per_label` is {source.rows_per_label}; train has fewer: {', '.join(few)}.")
        order = np.array(chosen)
    if source.rows is not None and source.rows > len(order):
        raise DataError(f"`data.rows` is {source.rows}, but train has {len(order)} rows.")
    return train.select(order[: source.rows]), notes
