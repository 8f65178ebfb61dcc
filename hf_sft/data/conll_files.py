"""Files with a word and its tags on each line, as the shared tasks of CoNLL have them; an empty line ends a sentence."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset

from hf_sft.data.csv_files import open_text
from hf_sft.errors import DataError

UNIVERSAL = ("id", "words", "lemma", "tags", "xpos", "feats", "head", "deprel", "deps", "misc")
"""The ten columns of CoNLL-U; `tags` are its universal parts of speech."""
DOCUMENT = "-DOCSTART-"
"""Stands where a document begins, in place of a word."""


def read_conll(paths: Sequence[str], encoding: str | None) -> Dataset:
    """A row for each sentence: lists by column, `words` from the first and `tags` from the last, others `column_2`, ….

    Ten columns are CoNLL-U's. Cells stand between tabs, or between spaces where a line has no tab. Raises `DataError`.
    """
    rows: list[dict[str, list[str]]] = []
    width, where = 0, ""
    for path in paths:
        words: list[list[str]] = []
        with open_text(path, encoding) as lines:
            for number, line in enumerate([*lines, ""], start=1):
                cells = [cell.strip() for cell in line.split("\t")] if "\t" in line.strip() else line.split()
                if not line.strip():
                    if words:
                        rows.append(_to_row(words))
                    words = []
                    continue
                if cells[0] == DOCUMENT or (line.startswith("#") and len(cells) != width and not words):
                    continue
                width, where = width or len(cells), where or f"`{path}`, line {number}"
                if len(cells) != width or width < 2:
                    raise DataError(
                        f"`{path}`, line {number}: {len(cells)} columns ({line.strip()[:60]!r}).\n"
                        f"  Expected a word and its tags, as many columns as in {where}: {max(2, width)}."
                    )
                words.append(cells)
    if not rows:
        raise DataError(f"`{paths[0]}` holds no rows.")
    return Dataset.from_list(rows)


def _to_row(words: list[list[str]]) -> dict[str, Any]:
    width = len(words[0])
    names = UNIVERSAL if width == len(UNIVERSAL) else ("words", *(f"column_{i}" for i in range(2, width)), "tags")
    if names is UNIVERSAL:  # ranges and empty nodes are no words
        words = [cells for cells in words if cells[0].isdigit()]
    return {name: [cells[place] for cells in words] for place, name in enumerate(names)}
