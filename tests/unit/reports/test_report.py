"""report.json, and the table at the end of a run."""

import io
import math
import re

import numpy as np
import pytest
from rich.console import Console

from hf_sft.reports.html import say_rival
from hf_sft.reports.report import read_report
from tests.unit.reports.report_cases import finished_run, shown_on_console

SIZES = {"train": 320, "validation": 40, "test": 80}


def test_report_json_has_every_key_of_the_contract(tmp_path):
    facts = read_report(finished_run(tmp_path / "run").folder).facts
    assert facts["task"] == "sequence_classification" and facts["method"] == "head_only"
    assert facts["checkpoint"] == {"name": "google-bert/bert-base-uncased", "revision": "86b5e09", "card": {}}
    assert facts["metrics"]["test"]["accuracy"] == {"value": 0.8, "low": 0.7125, "high": 0.8875}
    assert set(facts["metrics"]) == {"validation", "test"}
    assert facts["baselines"]["majority"]["test"]["f1_macro"] == {"value": 0.2, "low": 0.1, "high": 0.3}
    new = ["classifier.weight", "classifier.bias"]
    assert facts["parameters"] == {"total": 22_713_216, "trainable": 149_765, "new": new}
    (phase,) = facts["training"]["phases"]
    assert {"name", "steps", "seconds", "examples_per_second", "tokens_per_second"} < set(phase)
    assert {"padding_share", "peak_memory_bytes"} < set(phase)
    assert phase["steps"] == 56 and facts["training"]["seconds"] == 12.5
    assert facts["data"]["rows"] == SIZES
    assert facts["data"]["truncated_share"] == 6 / 440 and facts["data"]["fingerprint"]
    assert any("are cut" in warning for warning in facts["data"]["warnings"])
    environment = facts["environment"]
    assert (environment["device"], environment["processes"], environment["precision"]) == ("cpu", 1, "fp32")
    assert environment["packages"]["torch"] and environment["packages"]["transformers"]
    assert facts["saved"] == "model" and facts["pipeline_tag"] == "text-classification"


def test_the_run_ends_with_scores_beside_the_baselines(tmp_path):
    shown = shown_on_console(finished_run(tmp_path / "run", notes=("[red]a note[/red]",)))
    assert re.search(r"this model +.? *test +.? *0\.800 \(0\.713–0\.887\)", shown)
    assert re.search(r"baseline tfidf_logreg +.? *test +.? *0\.200 \(0\.100–0\.300\)", shown)
    assert "[red]a note[/red]" in shown and "12 s of training" in shown and "0.7% of 22,713,216" in shown


def test_the_table_cuts_no_number_where_nobody_watches(monkeypatch):
    """Ten metrics are wider than any terminal; a log file has no edge."""
    from hf_sft.cli import _console
    from hf_sft.reports.report import score_table

    out = io.StringIO()
    names = [f"a_metric_of_a_long_name_{i}" for i in range(10)]
    score = {"value": 0.123, "low": 0.1, "high": 0.2}
    _console(out).print(score_table({"test": dict.fromkeys(names, score)}, {}, {}))
    assert out.getvalue().count("0.123 (0.100–0.200)") == 10 and "…" not in out.getvalue()
    narrow = io.StringIO()
    Console(file=narrow, width=60).print(score_table({"test": dict.fromkeys(names[:3], score)}, {}, {}))
    assert "…" not in narrow.getvalue() and narrow.getvalue().replace(" ", "").count("0.123") == 3


@pytest.mark.parametrize(
    ("gap", "problem_type", "told"),
    [
        ((0.1, 0.02, 0.2), "single_label_classification", "accuracy +0.100 (+0.020 to +0.200) against .*: better."),
        ((-0.1, -0.2, -0.02), "single_label_classification", "accuracy -0.100 (-0.200 to -0.020) against .*: worse."),
        ((0.01, -0.02, 0.04), "single_label_classification", "these rows can't tell the two apart."),
        (
            (math.nan, math.nan, math.nan),
            "single_label_classification",
            "accuracy +0.600 (+0.500 to +0.700) against .*majority",
        ),
    ],
)
def test_better_and_worse_are_said_only_where_the_rows_can_tell(gap, problem_type, told, tmp_path):
    report = finished_run(tmp_path / "run", problem_type=problem_type, gap=gap)
    pattern = re.escape(told).replace(r"\.\*", ".*")
    shown = " ".join(shown_on_console(report).split())
    assert re.search(pattern, shown)
    page = " ".join((report.folder / "report.html").read_text().replace("&#39;", "'").split())
    assert re.search(pattern, page) and ('class="below"' in page) == told.endswith("worse.")


@pytest.mark.parametrize(
    ("metric", "gaps", "rival", "verdict"),
    [
        ("accuracy", {"a": (0.1, 0.05, 0.2), "b": (0.2, 0.1, 0.3)}, "a", "better"),
        ("accuracy", {"a": (0.1, 0.05, 0.2), "b": (-0.2, -0.3, -0.1)}, "b", "worse"),
        ("mse", {"a": (-0.1, -0.2, -0.05), "b": (-0.2, -0.3, -0.1)}, "a", "better"),
        ("mse", {"a": (-0.1, -0.2, -0.05), "b": (0.2, 0.1, 0.3)}, "b", "worse"),
        ("perplexity", {"a": (4.0, 3.0, 5.0), "b": (-2.0, -3.0, -1.0)}, "a", "worse"),
        ("loss", {"a": (-0.4, -0.5, -0.3), "b": (-0.2, -0.3, -0.1)}, "b", "better"),
        ("mae", {"a": (-0.4, -0.5, 0.3), "b": (-0.9, -1.0, -0.8)}, "a", "these rows can't tell the two apart"),
        ("f1_macro", {"a": (0.4, -0.5, 0.6)}, "a", "these rows can't tell the two apart"),
    ],
)
def test_the_rival_is_the_best_baseline_and_less_is_better_where_it_is(metric, gaps, rival, verdict):
    scored = {name: {"test": {metric: dict(zip(("value", "low", "high"), gap, strict=True))}} for name, gap in gaps.items()}
    said = say_rival({"gaps": scored}, metric)
    assert said is not None and said.endswith(f"against the best baseline, {rival}: {verdict}.")
    value, low, high = gaps[rival]
    assert said.startswith(f"{metric} {value:+.3f} ({low:+.3f} to {high:+.3f})")


def test_the_values_of_all_resamples_are_kept(tmp_path):
    kept = np.load(finished_run(tmp_path / "run").folder / "resamples.npz")
    assert {"test/model/accuracy", "test/majority/f1_macro", "validation/model/accuracy"} <= set(kept)
