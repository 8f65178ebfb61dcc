"""Folders and commands that the tests of the Hub share."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import pytest

from hf_sft.cli import main
from tests import tiny
from tests.local_hub import TOKENS

SINGLE = "single_label_classification"


def contents(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str]:
    """The exit status of `hf-sft`, and all that it said; which never is a token."""
    monkeypatch.setattr(sys, "argv", ["hf-sft", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert not [token for token in TOKENS if token in said.out + said.err]
    return int(ended.value.code or 0), said.out + said.err


def to_hub(checkpoint: Path, folder: Path, name: str) -> dict[str, Any]:
    """A recipe whose run, `new`, is to be published."""
    made = tiny.recipe(checkpoint, tiny.write_rows(folder / "data", SINGLE), folder / "new")
    return {**made, "output": {**made["output"], "hub": name}}
