"""The figures of a real run's report.json, computed again from its data, its predictions and its files, by others' means."""

import io
import json
import re
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file
from sklearn import metrics as sk
from transformers import AutoTokenizer

import hf_sft
from hf_sft.reports.report import read_report
from tests import tiny

SINGLE = "single_label_classification"
MOST = 8
"""Tokens that the model is shown."""


@pytest.fixture(scope="module", params=["full", "last_layers"])
def run(request, checkpoints, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    files = tiny.write_rows(folder / "data", SINGLE, train=40)
    test = Path(files["test"])
    shared = Path(files["train"]).read_text().splitlines()[:3]
    test.write_text("\n".join([*shared, *test.read_text().splitlines()]) + "\n")
    training = {"eval_strategy": "steps", "eval_steps": 2, "max_steps": 7, "learning_rate": 0.3, "optim": "adamw_torch"}
    task = {"type": "sequence_classification", "max_length": MOST}
    recipe = tiny.recipe(checkpoints["bert"], files, folder / "run", request.param, training=training, task=task)
    recipe["method"] |= {"layers": 1} if request.param == "last_layers" else {}
    hf_sft.train(recipe)
    return folder / "run"


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def facts_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "report.json").read_text())


def test_scores_classes_and_confusions_are_those_of_the_predictions(run):
    facts = facts_of(run)
    for split, count in (("validation", 9), ("test", 14)):
        said = lines(run / "predictions" / f"{split}.jsonl")
        truth = [row["label"] for row in lines(run.parent / "data" / f"{split}.jsonl")]
        labels = [row["label"] for row in said]
        assert len(said) == count and [row["reference"] for row in said] == truth
        assert all(row["label"] == max(row["scores"], key=row["scores"].get) for row in said)
        assert all(sum(row["scores"].values()) == pytest.approx(1, abs=1e-5) for row in said)
        scores = {name: score["value"] for name, score in facts["metrics"][split].items()}
        wanted = {
            "accuracy": sk.accuracy_score(truth, labels),
            "f1_macro": sk.f1_score(truth, labels, average="macro", zero_division=0),
        }
        assert scores == pytest.approx(wanted)
        assert all(score["low"] <= score["value"] <= score["high"] for score in facts["metrics"][split].values())
        names = facts["data"]["labels"]
        rates = np.array(sk.precision_recall_fscore_support(truth, labels, labels=names, zero_division=0)).T
        table = [[row["precision"], row["recall"], row["f1"], row["rows"]] for row in facts["per_class"][split]]
        assert [row["label"] for row in facts["per_class"][split]] == names
        np.testing.assert_allclose(table, rates)
        matrix = sk.confusion_matrix(truth, labels, labels=names)
        wrong = {
            (a, b): int(matrix[i, j]) for i, a in enumerate(names) for j, b in enumerate(names) if i != j and matrix[i, j]
        }
        found = {(row["reference"], row["prediction"]): row["rows"] for row in facts["confusions"][split]}
        assert found == wrong and list(found.values()) == sorted(found.values(), reverse=True)


def test_baselines_gaps_and_unseen_rows_are_those_of_the_data(run):
    facts, data = facts_of(run), run.parent / "data"
    train, test = lines(data / "train.jsonl"), lines(data / "test.jsonl")
    labels = [row["label"] for row in train]
    most = max(sorted({*labels}), key=labels.count)
    right = [row["label"] == most for row in test]
    assert facts["baselines"]["majority"]["test"]["accuracy"]["value"] == pytest.approx(np.mean(right))
    for name, scores in facts["baselines"].items():
        for metric, score in scores["test"].items():
            gap = facts["gaps"][name]["test"][metric]
            assert gap["value"] == pytest.approx(facts["metrics"]["test"][metric]["value"] - score["value"])
    known = {row["text"] for row in train}
    unseen = [place for place, row in enumerate(test) if row["text"] not in known]
    said = lines(run / "predictions" / "test.jsonl")
    assert len(unseen) == 11
    accuracy = np.mean([said[place]["label"] == test[place]["label"] for place in unseen])
    assert facts["unseen"]["test"]["accuracy"]["value"] == pytest.approx(accuracy) and "validation" not in facts["unseen"]
    resampled = np.load(run / "resamples.npz")
    for metric, score in facts["metrics"]["test"].items():
        ends = np.nanpercentile(resampled[f"test/model/{metric}"], [2.5, 97.5])
        assert (score["low"], score["high"]) == pytest.approx(tuple(ends), abs=1e-6)


def test_rows_tokens_and_what_is_cut_are_those_of_the_data(run):
    facts, tokenizer = facts_of(run), AutoTokenizer.from_pretrained(run)
    lengths = {
        split: [
            len(ids) for ids in tokenizer([row["text"] for row in lines(run.parent / "data" / f"{split}.jsonl")])["input_ids"]
        ]
        for split in ("train", "validation", "test")
    }
    assert facts["data"]["rows"] == {split: len(each) for split, each in lengths.items()}
    cut = {split: sum(length > MOST for length in each) for split, each in lengths.items()}
    assert facts["data"]["truncated"] == cut and 0 < cut["train"] < 40
    assert facts["data"]["truncated_share"] == pytest.approx(sum(cut.values()) / 63)
    (curve,), (phase,) = facts["training"]["curves"], facts["training"]["phases"]
    shown = [min(length, MOST) for length in lengths["train"]]
    # Seven steps of eight rows: one epoch, and two steps of the next.
    order = [np.random.default_rng((0, epoch)).permutation(40) for epoch in (0, 1)]
    rows = [*order[0], *order[1][:16]]
    assert curve["examples"] == len(rows) == 56 and curve["tokens"] == sum(shown[row] for row in rows)
    assert phase["padding_share"] == pytest.approx(1 - curve["tokens"] / curve["padded_tokens"]) and phase["steps"] == 7
    assert curve["padded_tokens"] >= curve["tokens"] and phase["seconds"] == curve["seconds"] > 0
    assert phase["examples_per_second"] == pytest.approx(56 / phase["seconds"])
    assert phase["tokens_per_second"] == pytest.approx(curve["tokens"] / phase["seconds"])
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert most / 4 < curve["peak_memory_bytes"] <= most and curve["peak_memory_bytes"] % 1024 == 0


def test_the_table_in_the_end_has_the_scores_of_the_report(run):
    report = read_report(run)
    console = Console(file=io.StringIO(), width=200)
    report.show(console)
    shown = console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
    by_name = {
        "this model": report.facts["metrics"],
        "rows not trained on": report.facts["unseen"],
        **report.facts["baselines"],
    }
    for name, splits in by_name.items():
        for split, scores in splits.items():
            numbers = ".*".join(f"{scores[metric]['value']:.3f}" for metric in report.facts["metrics"]["test"])
            found = re.search(rf"{name}\W+{split}\W+{numbers}", shown)
            assert found or (split == "validation" and name not in ("this model", "rows not trained on")), (name, split)


def test_the_mistakes_on_the_page_are_those_of_test(run):
    page = (run / "report.html").read_text()
    said = lines(run / "predictions" / "test.jsonl")
    texts = [row["text"] for row in lines(run.parent / "data" / "test.jsonl")]
    wrong = sorted((row for row in said if row["label"] != row["reference"]), key=lambda row: -row["score"])[:10]
    shown = {text for text in texts if f">{text}<" in page}
    assert shown == {texts[row["row"]] for row in wrong} and shown


def test_parameters_and_steps_are_those_of_the_model(run, checkpoints):
    facts, weights = facts_of(run), load_file(run / "model.safetensors")
    before = load_file(checkpoints["bert"] / "model.safetensors")
    sizes = {name: tensor.numel() for name, tensor in weights.items()}
    assert facts["parameters"]["total"] == sum(sizes.values())
    assert {*facts["parameters"]["new"]} == {name for name in sizes if name.removeprefix("bert.") not in before}
    moving = sum(sizes.values())
    if facts["method"] == "last_layers":
        moving = sum(
            n for name, n in sizes.items() if name.startswith(("bert.encoder.layer.1.", "bert.pooler.", "classifier."))
        )
    assert facts["parameters"]["trainable"] == moving
    (curve,) = facts["training"]["curves"]
    assert [each["step"] for each in curve["evaluations"]] == [2, 4, 6, 7]
    best = max(curve["evaluations"], key=lambda each: each["accuracy"])
    assert curve["best_step"] == best["step"]
    assert facts["metrics"]["validation"]["accuracy"]["value"] == pytest.approx(best["accuracy"])
    assert len(curve["losses"]) == len(curve["learning_rates"]) == 7 and {*curve["learning_rates"]} == {0.3}
