"""What was saved answers like what was trained, in a new process, by plain transformers or PEFT."""

import json
import subprocess
import sys

import numpy as np
import pytest

import hf_sft
from tests import tiny

LOAD = """
import json, sys, numpy as np, torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline
run, texts, kept = sys.argv[1], json.loads(sys.argv[2]), sys.argv[3] == "kept"
tokenizer = AutoTokenizer.from_pretrained(run)
if kept:
    from peft import PeftConfig, PeftModel
    base = PeftConfig.from_pretrained(run).base_model_name_or_path
    model = AutoModelForSequenceClassification.from_pretrained(base, config=AutoConfig.from_pretrained(run))
    model = PeftModel.from_pretrained(model, run)
else:
    model = AutoModelForSequenceClassification.from_pretrained(run)
model.eval()
with torch.no_grad():
    logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.tolist()
answers = None if kept else [a["label"] for a in pipeline("text-classification", model=run)(texts)]
print(json.dumps({"logits": logits, "answers": answers, "dtype": str(next(model.parameters()).dtype)}))
"""


@pytest.mark.parametrize("method", ["full", "head_only", "lora:merged", "lora:kept"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_saved_run_gives_the_logits_it_had_when_loaded_in_a_new_process(family, method, checkpoints, tmp_path, monkeypatch):
    import hf_sft.workflow

    measured = {}
    evaluate = hf_sft.workflow.evaluate_blocks

    def watch(split, ran, *rest):
        ran = list(ran)
        measured[split] = [kept[0] for _, block in ran for kept in block]
        return evaluate(split, ran, *rest)

    monkeypatch.setattr("hf_sft.workflow.evaluate_blocks", watch)
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    hf_sft.train(hf_sft.Recipe.model_validate(tiny.recipe(checkpoints[family], files, tmp_path / "run", method)))
    texts = [row["text"] for row in tiny.rows("single_label_classification", 11, 200)]
    certificate = json.loads((tmp_path / "run" / "report.json").read_text())["certificate"]
    assert certificate["within"] and certificate["rows"] == len(texts) and certificate["largest_difference"] < 1e-5
    kept = "kept" if method.endswith("kept") else "merged"
    loaded = subprocess.run(
        [sys.executable, "-c", LOAD, str(tmp_path / "run"), json.dumps(texts), kept],
        capture_output=True,
        text=True,
        check=False,
    )
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    found = json.loads(loaded.stdout.splitlines()[-1])
    np.testing.assert_allclose(found["logits"], measured["test"], atol=1e-5, rtol=1e-5)
    written = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    if found["answers"]:
        assert found["answers"] == [row["label"] for row in written]
    assert found["dtype"] == "torch.float32"
    assert sorted(path.name for path in (tmp_path / "run").iterdir() if path.suffix in (".bin", ".pt", ".pkl")) == []

    answers = hf_sft.predict(tmp_path / "run", files["test"])
    assert [(a["row"], a["label"], a["reference"]) for a in answers] == [
        (w["row"], w["label"], w["reference"]) for w in written
    ]
    np.testing.assert_allclose([a["score"] for a in answers], [w["score"] for w in written], atol=1e-5)
    again = hf_sft.evaluate(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert {n: s.value for n, s in again.scores.items()} == {n: s["value"] for n, s in report["metrics"]["test"].items()}


def test_a_run_is_where_the_next_recipe_begins(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    hf_sft.train(hf_sft.Recipe.model_validate(tiny.recipe(checkpoints["bert"], files, tmp_path / "first")))
    recipe = tiny.recipe(tmp_path / "first", files, tmp_path / "second", "head_only")
    assert hf_sft.train(hf_sft.Recipe.model_validate(recipe)).facts["parameters"]["new"] == []
