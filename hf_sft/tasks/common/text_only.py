"""Rows that are texts and nothing else: what language models have in common."""

from typing import Any

from datasets import Dataset

from hf_sft.block import Block
from hf_sft.tasks.common.labels import Labels


class Unlabelled(Block):
    """The part of a task that is about its texts, where there are no labels."""

    text: str = "text"
    """The column of the texts."""

    def columns(self) -> dict[str, tuple[str, ...]]:
        return {"text": (self.text,)}

    def input_columns(self) -> tuple[str, ...]:
        return (self.text,)

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        problems: dict[str, list[int]] = {}
        for row, text in enumerate(rows[self.text][:]):
            if not isinstance(text, str) or not text.strip():
                what = "is empty" if isinstance(text, str) else f"holds {type(text).__name__}, not text,"
                problems.setdefault(f"column `{self.text}` {what}", []).append(row)
        return problems

    def config_fields(self, labels: Labels | None) -> dict[str, Any]:
        return {}

    def targets(self, rows: dict[str, list], labels: Labels | None) -> list[float]:
        return [0.0] * len(rows[self.text])

    def references(self, rows: Dataset) -> list[None]:
        return [None] * len(rows)

    def texts(self, rows: Dataset) -> list[str]:
        return rows[self.text][:]
