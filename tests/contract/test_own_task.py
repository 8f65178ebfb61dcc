"""A task of somebody's own, written from the contract's docstrings alone, trains by its dotted name."""

import json
import shutil
from pathlib import Path

import pytest

import hf_sft
from hf_sft.data.encoding import hash_sources
from tests import tiny

TASK = '''
"""Which desk does a headline belong to?"""

from typing import ClassVar

import numpy as np
from transformers import AutoModelForSequenceClassification

from hf_sft.answers.contract import ClassAnswers
from hf_sft.losses import Items
from hf_sft.tasks import Labels, Task


class Desk(Task):
    """One desk for each headline."""

    auto_model: ClassVar = AutoModelForSequenceClassification
    pipeline_tag: ClassVar = "text-classification"
    peft_type: ClassVar = "SEQ_CLS"
    default_metrics: ClassVar = ("accuracy",)

    def columns(self):
        return {"headline": ("text",), "desk": ("label",)}

    def input_columns(self):
        return ("text",)

    def resolve(self, splits):
        return self, Labels(tuple(sorted({*splits["train"]["label"]}))), []

    def targets(self, rows, labels):
        return [labels.ids[name] for name in rows["label"]]

    def references(self, rows):
        return rows["label"][:]

    def encode(self, rows, processor, labels):
        examples = dict(processor(rows["text"], truncation=True))
        return {**examples, "labels": self.targets(rows, labels)} if "label" in rows else examples

    def items(self, model, batch):
        return Items(model(**{name: each for name, each in batch.items() if name != "labels"}).logits.float(), batch["labels"])

    def inference_step(self, model, batch):
        logits = model(**{name: each for name, each in batch.items() if name != "labels"}).logits
        return [*logits.float().softmax(-1).cpu().numpy()]

    def answer_kind(self):
        return ClassAnswers

    def answer(self, kept, rows, labels):
        return ClassAnswers(np.stack([parts[0] for parts in kept]).astype(float), labels.names)
'''


@pytest.fixture
def run(checkpoints, tmp_path, monkeypatch) -> hf_sft.Report:
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "desk.py").write_text(TASK)
    monkeypatch.syspath_prepend(tmp_path)
    files = tiny.write_rows(tmp_path / "data", tiny.PROBLEMS[0], train=20)
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task={"type": "my_lab.desk"})
    return hf_sft.train(recipe, trust_remote_code=True)


def test_a_task_of_forty_lines_trains_answers_and_is_scored_again(run, checkpoints, tmp_path):
    """Its scores are those of the task that the package has for such rows."""
    files = {split: str(tmp_path / "data" / f"{split}.jsonl") for split in ("train", "validation", "test")}
    ours = hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "ours"))
    assert run.metrics["test"]["accuracy"] == ours.metrics["test"]["accuracy"]
    again = hf_sft.evaluate(run.folder, trust_remote_code=True)
    assert again.scores["accuracy"].value == run.metrics["test"]["accuracy"]["value"]
    (answer,) = hf_sft.predict(run.folder, ["goal"], trust_remote_code=True)
    (known,) = hf_sft.predict(tmp_path / "ours", ["goal"])
    assert answer["label"] == known["label"] and answer["scores"] == pytest.approx(known["scores"], abs=1e-6)
    report = json.loads((run.folder / "report.json").read_text())
    assert report["task"] == "my_lab.desk" and (run.folder / "README.md").is_file() and (run.folder / "report.html").is_file()


def test_every_edited_module_of_the_package_is_another_key_of_encodings():
    package = Path(hf_sft.__file__).parent
    copy = shutil.copytree(package, Path("hf_sft"))
    whole, found = hash_sources(package), {}
    assert hash_sources(copy) == whole
    for name in ("tasks/common/packing.py", "answers/spans.py", "block.py"):
        path, source = copy / name, (copy / name).read_bytes()
        path.write_bytes(source + b"# edited\n")
        found[name] = hash_sources(copy)
        path.write_bytes(source)
    assert len({whole, *found.values()}) == 4 and hash_sources(copy) == whole
