"""Fixtures of this folder."""

from pathlib import Path

import pytest


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a recipe into an empty folder and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write_recipe(text: str | bytes, name: str = "mrpc.yaml") -> str:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
        return name

    return write_recipe
