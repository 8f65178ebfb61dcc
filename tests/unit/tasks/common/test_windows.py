"""Long texts in windows: all of a text is read, a row counts as one, and answers are averaged by length."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from scipy.special import expit, softmax
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import hf_sft
from hf_sft.losses import item_loss, sum_items
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loading import load_model, load_processor
from hf_sft.tasks.sequence_classification import SequenceClassification
from tests import tiny

SINGLE, MULTI, NUMBER = "single_label_classification", "multi_label_classification", "regression"


def task(**fields: Any) -> SequenceClassification:
    return SequenceClassification(type="sequence_classification", **{"long": "windows", "max_length": 8, **fields})


def long_rows(problem: str, count: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows of 2 to 36 words."""
    made = tiny.rows(problem, count, start)
    return [{**row, "text": " ".join([row["text"]] * (1 + i % 3))} for i, row in enumerate(made)]


def write_rows(folder: Path, problem: str, train: int = 24) -> dict[str, str]:
    files = tiny.write_rows(folder, problem)
    for split, count, start in (("train", train, 0), ("validation", 9, 100), ("test", 11, 200)):
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in long_rows(problem, count, start)))
    return files


@pytest.fixture(scope="module")
def processor(checkpoints):
    return load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))


def test_windows_hold_all_of_a_text_and_their_shares_add_up_to_one(processor):
    rows = long_rows(SINGLE, 9)
    asked, labels, _ = task().resolve({"train": Dataset.from_list(rows)})
    found = asked.encode(Dataset.from_list(rows)[:], processor, labels)
    shares = np.bincount(found["row"], weights=found["share"])
    np.testing.assert_allclose(shares, 1, atol=1e-6)
    assert np.bincount(found["row"], weights=found["items"]).tolist() == [1] * 9
    for row, each in enumerate(rows):
        words = each["text"].split()
        windows = [
            processor.decode(ids[1:-1]).split() for r, ids in zip(found["row"], found["input_ids"], strict=True) if r == row
        ]
        read = windows[0] + [word for window in windows[1:] for word in window[1:]]  # one word in six is shown again
        assert read == words and all(len(window) <= 6 for window in windows)


def test_of_a_pair_the_second_text_is_windowed_and_the_first_stands_in_each(processor):
    pair = task(text="one", text_pair="two", max_length=12, problem_type=SINGLE)
    words = (tiny.WORDS * 2)[:50]
    found = pair.encode({"one": ["goal " * 20, "law"], "two": [" ".join(words), "bank"]}, processor, None)
    parts = [processor.decode(ids).split("[SEP]") for ids in found["input_ids"]]
    assert found["row"] == [0] * (len(parts) - 1) + [1] and found["share"][-1] == 1
    assert all(part[0].split() == ["[CLS]", *["goal"] * 5] for part in parts[:-1])
    read = [word for part in parts[:-1] for word in part[1].split()]
    assert {*read} == {*words}


@pytest.mark.parametrize("problem", [SINGLE, MULTI, NUMBER])
def test_answers_are_the_windows_averages_by_length_of_plain_transformers(problem, checkpoints, tmp_path):
    files = write_rows(tmp_path / "data", problem)
    block = {"type": "sequence_classification", "long": "windows", "max_length": 8}
    report = hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task=block))
    lines = [json.loads(line) for line in (tmp_path / "run/predictions/test.jsonl").read_text().splitlines()]
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").eval()
    processor = AutoTokenizer.from_pretrained(tmp_path / "run")
    texts = [json.loads(line)["text"] for line in Path(files["test"]).read_text().splitlines()]
    for line, text in zip(lines, texts, strict=True):
        windows = processor([text], truncation=True, max_length=8, stride=1, return_overflowing_tokens=True)
        lengths = np.array([len(ids) - 2 for ids in windows["input_ids"]])
        with torch.no_grad():
            logits = np.stack([model(torch.tensor([ids])).logits[0].numpy() for ids in windows["input_ids"]])
        link = {SINGLE: lambda x: softmax(x, axis=-1), MULTI: expit, NUMBER: lambda x: x}[problem]
        wanted = (link(logits) * lengths[:, None]).sum(0) / lengths.sum()
        said = [line["value"]] if problem == NUMBER else list(line["scores"].values())
        np.testing.assert_allclose(said, wanted, atol=2e-5)
    assert report.facts["data"]["truncated_share"] == 0
    again = hf_sft.predict(tmp_path / "run", texts)
    plain = [{key: value for key, value in line.items() if key != "reference"} for line in lines]
    assert [each.keys() for each in again] == [each.keys() for each in plain]
    if problem == SINGLE:
        assert [each["label"] for each in again] == [each["label"] for each in plain]
        assert "`hf-sft predict` reads all of it" in (tmp_path / "run/README.md").read_text()


def gradients(checkpoints, rows: list[dict[str, Any]], parts: int = 1, **fields: Any) -> torch.Tensor:
    """The gradient of a step that is cut into so many micro-batches, of all parameters as one vector."""
    checkpoint = Checkpoint(checkpoint=str(checkpoints["bert"]))
    processor, data = load_processor(checkpoint), Dataset.from_list(rows)
    asked, labels, _ = task(**fields).resolve({"train": data})
    torch.manual_seed(0)
    model = load_model(checkpoint, asked, labels, processor).model.eval()
    columns = asked.encode(data[:], processor, labels)
    examples = [{name: column[i] for name, column in columns.items()} for i in range(len(columns["input_ids"]))]
    collate = asked.collator(processor)
    for part in range(parts):
        batch = collate(examples[part::parts])
        (sum_items(item_loss, lambda batch: asked.items(model, batch), batch) / len(rows)).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("parts", [2, 5])
def test_a_step_s_gradient_does_not_depend_on_how_its_windows_are_cut(parts, checkpoints):
    rows = long_rows(SINGLE, 6)
    whole, cut = gradients(checkpoints, rows), gradients(checkpoints, rows, parts)
    assert float((whole - cut).norm() / whole.norm()) < 1e-5


def test_texts_that_fit_give_the_gradient_of_cutting(checkpoints):
    rows = tiny.rows(SINGLE, 6)
    windows = gradients(checkpoints, rows, max_length=32)
    cut = gradients(checkpoints, rows, max_length=32, long="cut")
    assert float((windows - cut).norm() / cut.norm()) < 1e-6


@pytest.mark.parametrize("method", ["full", "head_only"])
def test_methods_with_and_without_stored_features_train_on_windows(method, checkpoints, tmp_path):
    files = write_rows(tmp_path / "data", SINGLE)
    block = {"type": "sequence_classification", "long": "windows", "max_length": 8}
    report = hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", method, task=block))
    again = hf_sft.evaluate(tmp_path / "run")
    assert again.scores["accuracy"].value == report.metrics["test"]["accuracy"]["value"]
