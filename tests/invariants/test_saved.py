"""What was saved answers like what was trained, in a new process, by plain transformers or PEFT."""

import json
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np

import hf_sft
from tests import tiny

LOAD = """
import json, sys, numpy as np, torch
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline
found, texts = {}, json.loads(sys.argv[2])
for run in json.loads(sys.argv[1]):
    kept, tokenizer = run.endswith("kept"), AutoTokenizer.from_pretrained(run)
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
    found[run] = {"logits": logits, "answers": answers, "dtype": str(next(model.parameters()).dtype)}
print(json.dumps(found))
"""
CELLS = [*product(tiny.FAMILIES, ("full", "head_only", "lora:merged", "lora:kept"))]


def test_saved_runs_give_the_logits_they_had_when_loaded_in_a_new_process(checkpoints, tmp_path, monkeypatch):
    """One process for all of them."""
    import hf_sft.runs.train

    measured: dict[str, list[np.ndarray]] = {}
    evaluate = hf_sft.runs.train.evaluate_blocks

    def watch(split, ran, *rest):
        ran = list(ran)
        measured[split] = [kept[0] for _, block in ran for kept in block]
        return evaluate(split, ran, *rest)

    monkeypatch.setattr("hf_sft.runs.train.evaluate_blocks", watch)
    files, logits = tiny.write_rows(tmp_path / "data", "single_label_classification"), {}
    for family, method in CELLS:
        run = tmp_path / f"{family}-{method.replace(':', '-')}"
        hf_sft.train(tiny.recipe(checkpoints[family], files, run, method))
        logits[str(run)] = measured["test"]
    texts = [row["text"] for row in tiny.rows("single_label_classification", 11, 200)]
    command = [sys.executable, "-c", LOAD, json.dumps([*logits]), json.dumps(texts)]
    loaded = subprocess.run(command, capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr[-3000:]
    found = json.loads(loaded.stdout.splitlines()[-1])
    assert len(found) == len(CELLS)
    for run, said in found.items():
        np.testing.assert_allclose(said["logits"], logits[run], atol=1e-5, rtol=1e-5, err_msg=run)
        assert said["dtype"] == "torch.float32"
        _is_whole(Path(run), files, said["answers"])


def _is_whole(run: Path, files: dict[str, str], labels: list[str] | None) -> None:
    report = json.loads((run / "report.json").read_text())
    certificate = report["certificate"]
    assert certificate["within"] and certificate["rows"] == 11 and certificate["largest_difference"] < 1e-5
    written = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert labels is None or labels == [row["label"] for row in written]
    assert sorted(path.name for path in run.iterdir() if path.suffix in (".bin", ".pt", ".pkl")) == []
    answers = hf_sft.predict(run, files["test"])
    assert [(a["row"], a["label"], a["reference"]) for a in answers] == [
        (w["row"], w["label"], w["reference"]) for w in written
    ]
    np.testing.assert_allclose([a["score"] for a in answers], [w["score"] for w in written], atol=1e-5)
    again = hf_sft.evaluate(run)
    assert {n: s.value for n, s in again.scores.items()} == {n: s["value"] for n, s in report["metrics"]["test"].items()}


def test_a_run_is_where_the_next_recipe_begins(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    hf_sft.train(hf_sft.Recipe.model_validate(tiny.recipe(checkpoints["bert"], files, tmp_path / "first")))
    recipe = tiny.recipe(tmp_path / "first", files, tmp_path / "second", "head_only")
    assert hf_sft.train(hf_sft.Recipe.model_validate(recipe)).facts["parameters"]["new"] == []
