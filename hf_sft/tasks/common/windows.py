"""The words of a row: where they stand in its text, and in overlapping windows of its tokens."""

from bisect import bisect_left, bisect_right
from math import inf
from typing import Any

import regex
from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

from hf_sft.errors import CheckpointError

WORD = regex.compile(r"[\w\p{M}\u200c\u200d]+|[^\w\s]")
"""How text is cut into words where the data does not do it: letters, their marks and digits together, other signs alone."""
OVERLAP = 0.25
"""The share of a window that the next one shows again."""
Sentence = tuple[str, list[tuple[int, int]]]
"""A row's text, and where its words begin and end."""


def cut(cell: Any) -> Sentence:
    """Words of a list stand between spaces; a text is cut into words."""
    if isinstance(cell, str):
        return cell, [match.span() for match in WORD.finditer(cell)]
    words, places, start = [str(word) for word in cell], [], 0
    for word in words:
        places.append((start, start + len(word)))
        start += len(word) + 1
    return " ".join(words), places


def flaw_of(cell: Any, is_text: bool) -> str | None:
    """What is wrong with a row's words or text."""
    if cell is None:
        return "is null"
    if is_text and not isinstance(cell, str):
        return f"holds {type(cell).__name__}, not text,"
    if isinstance(cell, list) and None in cell:
        return "holds a word that is null"
    return None if cut(cell)[1] else "is empty"


def cut_tokens(text: str, processor: Any) -> list[tuple[int, int]]:
    """The characters of a text's tokens, without spaces around them; tokens that share a character are one."""
    offsets = processor(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)["offset_mapping"]
    places: list[tuple[int, int]] = []
    for start, end in offsets:
        piece = text[start:end]
        start, end = start + len(piece) - len(piece.lstrip()), end - len(piece) + len(piece.rstrip())
        if start >= end:
            continue
        if places and start < places[-1][1]:
            start, end = places[-1][0], max(end, places[-1][1])
            places.pop()
        places.append((start, end))
    return places


def count_most(processor: Any, max_length: int | None) -> int:
    """Tokens that the model is shown at a time: as a recipe has it, within what the processor allows."""
    return min(max_length or processor.model_max_length, processor.model_max_length)


def shorten(text: str, processor: Any, most: int) -> str:
    """The beginning of a text, of so many tokens at most."""
    tokens = processor(text, return_offsets_mapping=True, add_special_tokens=False, verbose=False)["offset_mapping"]
    return text if len(tokens) <= most else text[: tokens[most - 1][1]]


def cut_windows(sentences: list[Sentence], processor: Any, max_length: int | None) -> dict[str, list]:
    """The processor's columns for each window, its `row`, and for the words that it answers for the `words`' places among its
    tokens and their `numbers` in the row."""
    if not getattr(processor, "is_fast", False):
        raise CheckpointError(
            "the checkpoint's tokenizer can't tell which characters a token stands for, and tags need that.\n"
            "  Expected one with a tokenizer.json (a fast one).  Use another checkpoint, or convert its tokenizer."
        )
    most = count_most(processor, max_length)
    limited = most < VERY_LARGE_INTEGER
    inner = most - processor.num_special_tokens_to_add()
    windows = processor(
        [text for text, _ in sentences],
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        **({"truncation": True, "max_length": most, "stride": int(OVERLAP * inner)} if limited else {}),
    )
    columns = dict(windows)
    columns["row"] = list(columns.pop("overflow_to_sample_mapping", range(len(sentences))))
    offsets = columns.pop("offset_mapping")
    columns["words"], columns["numbers"], lost = [], [], {}
    for row, (_, places) in enumerate(sentences):
        start, end = (bisect(columns["row"], row) for bisect in (bisect_left, bisect_right))
        shares = _share_words(offsets[start:end], places)
        columns["words"] += [[place for place, _ in share] for share in shares]
        columns["numbers"] += [[number for _, number in share] for share in shares]
        answered = [number for share in shares for _, number in share]
        assert answered == sorted(answered), "windows answer for words in their order"
        if missing := {*range(len(places))} - {*answered}:
            lost[row] = missing
    if not lost:
        return columns
    # Of words that leave no token, as zero-width signs, the unknown token tells that something stands there.
    sign = processor.unk_token or "?"
    mended = [_replace(*sentence, lost.get(row, set()), sign) for row, sentence in enumerate(sentences)]
    return cut_windows(mended, processor, max_length)


def _share_words(windows: list[list[tuple[int, int]]], places: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """For each window the words that it answers for: their first tokens' places in it, and their numbers.

    `windows` are the characters of each token. A word is answered in the window that shows most on both sides of its first
    token; the ends of the row are not the window's.
    """
    starts = [start for start, _ in places]
    shown: list[list[tuple[int, int, int]]] = []
    first: dict[int, int] = {}
    for tokens in windows:
        shown.append([])
        for place, (start, end) in enumerate(tokens):
            number = bisect_right(starts, end - 1) - 1
            if start < end and number >= 0 and end - 1 < places[number][1]:
                # Some tokenizers count the space before a word to its first token, and some only at a window's beginning.
                start = max(start, starts[number])
                shown[-1].append((place, number, start))
                first[number] = min(start, first.get(number, start))
    best: dict[int, tuple[float, int, int]] = {}
    for window, tokens in enumerate(shown):
        seen: set[int] = set()
        for place, number, start in tokens:
            if start != first[number] or number in seen:
                continue
            seen.add(number)
            before = place - tokens[0][0] if window else inf
            after = tokens[-1][0] - place if window < len(shown) - 1 else inf
            if number not in best or min(before, after) > best[number][0]:
                best[number] = (min(before, after), window, place)
    shares: list[list[tuple[int, int]]] = [[] for _ in windows]
    for number, (_, window, place) in sorted(best.items()):
        shares[window].append((place, number))
    return shares


def _replace(text: str, places: list[tuple[int, int]], lost: set[int], sign: str) -> Sentence:
    """The sentence with a sign in the place of some of its words."""
    parts, moved, end, length = [], [], 0, 0
    for number, (start, stop) in enumerate(places):
        word = sign if number in lost else text[start:stop]
        parts += [text[end:start], word]
        length += start - end
        moved.append((length, length + len(word)))
        length, end = length + len(word), stop
    return "".join([*parts, text[end:]]), moved
