"""Spans of answers in the windows of a context."""

import numpy as np


def find_tokens(places: list[tuple[int, int]], span: tuple[int, int] | None) -> list[int]:
    """The first and the last token of a span of characters; 0 and 0 where the window does not hold it whole."""
    inside = [i for i, (start, end) in enumerate(places) if span and start >= 0 and start < span[1] and end > span[0]]
    whole = bool(inside) and span is not None and places[inside[0]][0] <= span[0] and places[inside[-1]][1] >= span[1]
    return [inside[0], inside[-1]] if whole else [0, 0]


def join_windows(windows: list[np.ndarray]) -> tuple[float, np.ndarray]:
    """How much a row says that it has no answer, and its spans, best first.

    It has none when all its windows say so: the one that says it least decides.
    """
    found = np.concatenate([window[1:] for window in windows])
    return min(float(window[0, 2]) for window in windows), found[np.argsort(-found[:, 2], kind="stable")]
