"""Splits that are made from train."""

import re
from collections import Counter
from typing import Any

import numpy as np
from datasets import Dataset

from hf_sft.data.data_files import SPLITS
from hf_sft.data.sampling import assign, strata_of, units_of
from hf_sft.data.sources import DataSource
from hf_sft.errors import DataError, list_few
from hf_sft.tasks import Task

HELD_OUT = 0.1


def share_of(share: Any) -> float | None:
    """A fraction of train, written as 0.1 or as 10%; None for names and slices."""
    if isinstance(share, str):
        percent = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*%\s*", share)
        return float(percent[1]) / 100 if percent else None
    return float(share)


def make_splits(
    rows: dict[str, Dataset], source: DataSource, task: Task, is_unlabelled: bool
) -> tuple[dict[str, Dataset], list[str]]:
    """Hold out what no split of the data set brings, a test split too if the data's `is_unlabelled`. Equal texts, and rows of
    one group, stay together. And notes on how the splits were made. Raises `DataError`."""
    fractions: dict[str, float] = {}
    notes = []
    strata = strata_of(rows["train"], source, task)
    held_out = f"{'stratified, ' if any(strata) else ''}equal inputs on one side"
    for name in SPLITS[1:]:
        if name in rows:
            continue
        lacks = is_unlabelled and name == "test"
        share = HELD_OUT if lacks else share_of(source.splits.get(name, HELD_OUT))
        if share is None or not 0 < share < 1:
            raise DataError(f"`data.splits.{name}` must be a split's name or a fraction between 0 and 1; got {share!r}.")
        fractions[name] = share
        absent = "since the data set's has no labels" if lacks else "since the data set has no such split"
        how = "as the recipe says" if name in source.splits and not lacks else absent
        notes.append(f"split `{name}` is {share:g} of train, {how}: {held_out}.")
    train_share = share_of(source.splits.get("train", "train"))
    if train_share is not None and not 0 < train_share <= 1:
        raise DataError(f"`data.splits.train` must be a split's name or a fraction between 0 and 1; got {train_share!r}.")
    held = sum(fractions.values())
    if held + (train_share or 0) > 1 + 1e-9 or held > 1 - 1e-9:
        raise DataError(
            f"the fractions of `data.splits` add up to {held + (train_share or 0):g}; expected at most 1, with rows left to "
            "train on."
        )
    unused = 0.0 if train_share is None else max(0.0, round(1 - train_share - held, 9))
    if unused:
        fractions["unused"] = unused
        notes.append(f"the fractions of `data.splits` add up to {1 - unused:g}: {unused:g} of train is not used.")
    if not fractions:
        return {name: rows[name] for name in SPLITS}, notes
    train = rows["train"]
    units = units_of(train, source, task)
    sides = assign(units, strata, fractions, source.seed)
    if not source.stratify:  # the only row of a class is there to be learned from
        alone = {each for each, count in Counter(strata).items() if count == 1}
        if alone:
            sides[np.isin(units, units[[each in alone for each in strata]])] = "train"
    places = {name: np.flatnonzero(sides == name) for name in ("train", *fractions) if name != "unused"}
    made = {name: train.select(places[name]) for name in places}
    for name, split in made.items():
        if not len(split):
            parts = len(np.unique(units))
            raise DataError(
                f"split `{name}` has no rows left: train brings {len(train)} rows, in {parts} parts that must not be torn\n"
                "  (equal inputs, one group), which are too few for the fractions of `data.splits`."
            )
        absent = sorted({*strata} - {*map(strata.__getitem__, places[name]), ""})
        if absent:
            shown = list_few([f"`{each}`" for each in absent])
            what = f"values of column `{source.stratify}`" if source.stratify else "classes"
            notes.append(f"{len(absent)} of {len(set(strata))} {what} have no row in split `{name}`: {shown}.")
    return {**{name: rows[name] for name in SPLITS if name in rows}, **made}, notes
