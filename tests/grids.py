"""Which cells of a grid the command runs: every pair of values is met in some cell. The whole grid is run by hand:

python -m tests.benchmarks.grids
"""

import os
from collections.abc import Sequence
from itertools import combinations
from typing import Any

WHOLE = "HF_SFT_WHOLE_GRIDS"


def cover(cells: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """As few of the cells as a greedy choice takes so that any two values that stand together in a cell do so in one of these.

    A part of a cell that is a tuple counts as its values: (("bert", "texts"), "full") has three. All of them, where the
    environment says so.
    """
    if WHOLE in os.environ:
        return [*cells]
    pairs_of = {cell: {*combinations(enumerate(_flat(cell)), 2)} for cell in cells}
    missing = set().union(*pairs_of.values())
    chosen = []
    while missing:
        best = max(cells, key=lambda cell: len(pairs_of[cell] & missing))
        missing -= pairs_of[best]
        chosen.append(best)
    return sorted(chosen, key=cells.index)


def one_each(cells: Sequence[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Each first value with one second, and the second ones in turn: for grids whose two sides hardly meet."""
    if WHOLE in os.environ:
        return [*cells]
    firsts: dict[Any, list[Any]] = {}
    for first, second in cells:
        firsts.setdefault(first, []).append(second)
    return [(first, seconds[place % len(seconds)]) for place, (first, seconds) in enumerate(firsts.items())]


def _flat(cell: tuple[Any, ...]) -> list[Any]:
    return [value for part in cell for value in (part if isinstance(part, tuple) else (part,))]
