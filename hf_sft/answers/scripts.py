"""Scripts that put no spaces between words: Chinese, Japanese, Thai and the like. There a character stands for a word."""

from collections.abc import Iterable

import regex

UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Bopomofo}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]\p{M}*")
LETTER = regex.compile(r"\p{L}")
SHARE = 0.05
"""The share of letters of such scripts from which on a text counts as written without spaces."""


def split_words(text: str) -> list[str]:
    """A text at its spaces, and around each character of a script without spaces."""
    return UNSPACED.sub(r" \g<0> ", text).split()


def is_unspaced(texts: Iterable[str]) -> bool:
    """Whether texts are written in scripts without spaces, to more than a few letters."""
    letters = unspaced = 0
    for text in texts:
        letters += len(LETTER.findall(text))
        unspaced += len(UNSPACED.findall(text))
    return unspaced > SHARE * letters
