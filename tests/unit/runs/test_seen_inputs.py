"""A chain of runs: what an earlier one was trained on is no test for a later one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hf_sft
from hf_sft.data.data_source import DataSource
from hf_sft.data.splits import load_splits
from hf_sft.tasks.masked_lm import MaskedLm
from hf_sft.tasks.sequence_classification import SequenceClassification
from tests import tiny

WORDS = tiny.WORDS
STORIES = [
    {
        "text": " ".join(WORDS[(i * k + k) % len(WORDS)] for k in range(1, 6)) + f" {i}",
        "label": "abc"[i % 7 % 3],
        "desk": i % 4,
    }
    for i in range(60)
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trained(
    folder: Path, checkpoint: Path, rows: dict[str, list[dict[str, Any]]], task: str, **changes: Any
) -> dict[str, Any]:
    """The report.json of a short run."""
    files = {name: write(folder.parent / f"{folder.name}_{name}.jsonl", each) for name, each in rows.items()}
    made = tiny.recipe(checkpoint, files, folder, task={"type": task}, training={"max_steps": 1}, **changes)
    return hf_sft.train(made).facts


def told(facts: dict[str, Any]) -> list[str]:
    return [note for note in facts["data"]["warnings"] if "was trained on" in note]


@pytest.mark.parametrize("seed", [0, 1])
def test_a_task_without_labels_makes_the_splits_of_one_with_labels(seed, tmp_path):
    source = DataSource(dataset=write(tmp_path / "stories.jsonl", STORIES), splits={"test": 0.2}, seed=seed)
    classes = load_splits(source, SequenceClassification(type="sequence_classification")).rows
    texts = load_splits(source.model_copy(update={"stratify": "label"}), MaskedLm(type="masked_lm"))
    assert {name: rows["text"][:] for name, rows in texts.rows.items()} == {n: rows["text"][:] for n, rows in classes.items()}
    assert any("split `test` is 0.2 of train, as the recipe says: stratified" in note for note in texts.notes)
    plain = load_splits(source, MaskedLm(type="masked_lm")).rows
    assert plain["test"]["text"][:] != classes["test"]["text"][:]


def test_another_column_than_the_label_is_shared_evenly(tmp_path):
    source = DataSource(dataset=write(tmp_path / "a.jsonl", STORIES), splits={"validation": 0.2, "test": 0.2}, stratify="desk")
    rows = load_splits(source, SequenceClassification(type="sequence_classification")).rows
    assert {name: np.bincount(each["desk"]).tolist() for name, each in rows.items()} == {
        "train": [9] * 4,
        "validation": [3] * 4,
        "test": [3] * 4,
    }


def test_rows_that_an_earlier_run_was_trained_on_are_told_and_scored_apart(checkpoints, tmp_path):
    first = {"train": STORIES[:20], "validation": STORIES[20:25], "test": STORIES[25:30]}
    read = trained(tmp_path / "read", checkpoints["bert"], first, "masked_lm")
    assert told(read) == []

    second = {"train": STORIES[30:40], "validation": STORIES[40:46], "test": STORIES[16:30]}
    asked = trained(tmp_path / "asked", tmp_path / "read", second, "sequence_classification")
    assert told(asked) == [
        f"4 of 14 rows of split `test` have an input that `{tmp_path / 'read'}` was trained on: "
        "the score on the other rows is given beside."
    ]
    assert set(asked["unseen"]) == {"test"}
    lines = (tmp_path / "asked" / "predictions" / "test.jsonl").read_text().splitlines()
    right = [(answer := json.loads(line))["label"] == answer["reference"] for line in lines]
    assert asked["unseen"]["test"]["accuracy"]["value"] == pytest.approx(np.mean(right[4:]))

    third = {"train": STORIES[50:], "validation": STORIES[46:50], "test": [*STORIES[:3], *STORIES[30:32], *STORIES[40:46]]}
    again = trained(tmp_path / "again", tmp_path / "asked", third, "sequence_classification")
    assert told(again)[0].startswith("5 of 11 rows of split `test`")

    anew = {"model": {"from_config": str(tmp_path / "read"), "checkpoint": None}}
    assert told(trained(tmp_path / "anew", tmp_path / "read", third, "sequence_classification", **anew)) == []
