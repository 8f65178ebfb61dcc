"""What is taken out of texts before others read them: secrets, the home folder, and characters that act instead of showing."""

import os
import re
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

HIDDEN = "***"
TOKEN = re.compile(r"hf_[A-Za-z0-9]{8,}")
URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>`|\\]+")
USER = re.compile(r"(://)[^/?#@]*(?:@[^/?#@]*)*@")
PAIR = re.compile(r"([?&#;])([^=&#;]+)=([^&#;]*)")
SECRET_PAIR = re.compile(r"token|sig|secret|passw|pwd|auth|key|credential|session|jwt|code", re.IGNORECASE)
RANDOM = re.compile(r"(?=.*\d)(?=.*[A-Za-z])[\w%+/.~-]{20,}")
SECRET_VARIABLE = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|PAT|KEY|APIKEY|CREDENTIALS?)(_|$)", re.IGNORECASE)
"""Names of environment variables whose values are secrets, where they are no paths and have eight characters or more."""
CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\ud800-\udfff\u202a-\u202e\u2066-\u2069\ufeff]|\r(?!\n)"
)
"""Control characters but tabs and line ends, those that turn the direction of text, and halves of characters."""


def hide_secrets(text: str) -> str:
    """The text without Hub tokens, users and passwords in URLs, URL parameters that look like keys, and secrets of the
    environment."""
    for secret in _secrets(tuple(os.environ.items())):
        text = text.replace(secret, HIDDEN)
    return URL.sub(lambda found: _hide_in_url(found[0]), TOKEN.sub(HIDDEN, text))


@lru_cache(maxsize=1)
def _secrets(environment: tuple[tuple[str, str], ...]) -> list[str]:
    """The Hub token and what the environment holds, longest first."""
    from huggingface_hub import get_token  # half a second, which `--help` would wait for

    named = [value for name, value in environment if SECRET_VARIABLE.search(name)]
    named = [value for value in named if len(value) >= 8 and not value.startswith(("/", "~"))]
    return sorted({*named, *filter(None, [get_token()])}, key=len, reverse=True)


def _hide_in_url(url: str) -> str:
    def hide(pair: re.Match[str]) -> str:
        hidden = SECRET_PAIR.search(pair[2]) or RANDOM.fullmatch(pair[3])
        return f"{pair[1]}{pair[2]}={HIDDEN if hidden else pair[3]}"

    return PAIR.sub(hide, USER.sub(rf"\1{HIDDEN}@", url))


def hide_home(text: str) -> str:
    """The text with `~` for the home folder."""
    home = str(Path.home())
    return text if len(home) < 2 else re.sub(rf"(?<![\w.~-]){re.escape(home)}(?![\w.-])", "~", text)


def show_controls(text: str) -> str:
    r"""The text with escapes, like \x1b, for characters that act on a terminal or a page instead of showing there."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def for_terminal(text: str) -> str:
    """A text as a terminal or a log may have it."""
    return show_controls(hide_secrets(text))


def for_pages(text: str) -> str:
    """A text as a page may show it that others read too."""
    return hide_home(for_terminal(text))


def in_all(value: Any, change: Callable[[str], str]) -> Any:
    """A value of dicts, lists and tuples with all its texts changed, keys included."""
    once = cache(change)

    def inside(value: Any) -> Any:
        if isinstance(value, str):
            return once(value)
        if isinstance(value, dict):
            return {inside(key): inside(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(inside(each) for each in value)
        return value

    return inside(value)
