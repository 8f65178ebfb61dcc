"""What a run did and what it got: report.json for programs, and a table for the person waiting. Pages are beside it."""

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text
from transformers.pipelines import SUPPORTED_TASKS

from hf_sft.config.machine import Machine
from hf_sft.data.examples import Examples
from hf_sft.data.splits import Splits
from hf_sft.evaluation.evaluate import Evaluation
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loaded_model import LoadedModel
from hf_sft.models.loading import GENERATION
from hf_sft.redaction import for_pages, for_terminal, in_all
from hf_sft.reports.html import best_of, say_certificate, say_rival, say_score, write_pages
from hf_sft.storage.run_folder import RECIPE, RunFiles, read_facts, write_facts
from hf_sft.storage.strict_json import finite
from hf_sft.trainer.history import TrainingCurve

PACKAGES = ("hf_sft", "torch", "transformers", "datasets", "evaluate", "accelerate", "peft", "tokenizers", "numpy")


@dataclass(frozen=True)
class Report:
    """A finished run: its folder, and the facts of its report.json."""

    folder: Path
    facts: dict[str, Any]
    unpublished: str | None = None
    """Why it is not on the Hub, where it should be, and how to publish it later."""

    @property
    def metrics(self) -> dict[str, dict[str, dict[str, float]]]:
        """`{split: {metric: {value, low, high}}}`."""
        return self.facts["metrics"]

    def show(self, console: Console) -> None:
        """The end-of-run table: scores with intervals beside the baselines, cost, and where it all is."""
        console.print(Group(*self._tables()))

    def _tables(self) -> list[Any]:
        facts = in_all(self.facts, for_terminal)
        name = facts["checkpoint"]["name"]
        moving = facts["parameters"]["trainable"] / facts["parameters"]["total"]
        rows = ", ".join(f"{count:,} {split}" for split, count in facts["data"]["rows"].items())
        weights = f"{moving:.1%} of {facts['parameters']['total']:,} weights moved"
        cost = f"{facts['training']['seconds']:.0f} s of training, {weights}"
        notes = [Text(f"· {note}", style="dim") for note in facts["data"]["warnings"]]
        return [
            Text(f"\n{facts['method']} on {name}: {rows}; {cost}", style="bold"),
            score_table(facts["metrics"], facts["baselines"], facts["unseen"]),
            Text(say_certificate(facts["certificate"])),
            *([Text(rival)] if (rival := say_rival(facts, best_of(facts))) else []),
            *notes,
            Text(for_terminal(f"Everything is in {self.folder}/")),
        ]


def score_table(metrics: dict[str, Any], baselines: dict[str, Any], unseen: dict[str, Any]) -> Table:
    """One row per answerer and split, one column per metric, each value with its 95% interval."""
    table = Table(caption="value (95% interval)", caption_justify="left")
    names = list(next(iter(metrics.values())))
    for heading in ("", "split", *names):
        text = heading in ("", "split")
        table.add_column(Text(heading), justify="left" if text else "right", no_wrap=text, overflow="fold")
    for split, scores in metrics.items():
        table.add_row("this model", split, *(say_score(scores[name]) for name in names), style="bold")
    for split, scores in unseen.items():
        table.add_row("rows not trained on", split, *(say_score(scores[name]) for name in names))
    for baseline, splits in baselines.items():
        for split, scores in splits.items():
            table.add_row(f"baseline {baseline}", split, *(say_score(scores[name]) for name in names))
    return table


def gather_facts(
    recipe: dict[str, Any],
    loaded: LoadedModel,
    splits: Splits,
    examples: dict[str, Examples],
    curves: list[TrainingCurve],
    evaluations: list[Evaluation],
    machine: Machine,
    certificate: dict[str, Any],
) -> dict[str, Any]:
    """The content of report.json: each step says its own."""
    task, quantised = splits.task, getattr(loaded.model.config, "quantization_config", None)
    truncated, lost = ({name: each.count_rows(what) for name, each in examples.items()} for what in ("truncated", "lost"))
    kind, total = task.answer_kind(), sum(len(rows) for rows in splits.rows.values())
    name = Checkpoint.model_validate(recipe["model"]).name
    remarks = [remark for name, each in examples.items() for remark in each.remarks(f"rows of split `{name}`")]
    warnings = [*splits.notes, *loaded.notes, *remarks, *(n for e in evaluations for n in e.notes)]
    measured: dict[str, Any] = {name: {} for name in ("metrics", "unseen", "baselines", "gaps", "per_class", "confusions")}
    for evaluation in evaluations:
        _merge(measured, evaluation.facts())
    return {
        "task": recipe["task"]["type"],
        "pipeline_tag": task.pipeline_tag,
        "auto_model": task.auto_model.__name__,
        "auto_processor": task.auto_processor.__name__,
        "has_pipeline": task.pipeline_tag in SUPPORTED_TASKS,
        "answers": {
            "called": kind.called,
            "counted": kind.count_unit,
            "example_call": task.example_call(),
            "reads_files": task.reads_files,
        },
        "method": recipe["method"]["type"],
        "checkpoint": {
            "name": name,
            "revision": recipe["model"].get("revision"),
            "card": dict(loaded.card),
            **({"quantised": quantised.to_diff_dict()} if quantised else {}),
        },
        **measured,
        "parameters": {
            "total": curves[-1].parameters,
            "trainable": max(curve.trainable for curve in curves),
            "new": list(loaded.new),
        },
        "training": {
            "phases": [curve.facts() for curve in curves],
            "seconds": sum(curve.seconds for curve in curves),
            "curves": [asdict(curve) for curve in curves],
        },
        "data": {
            **splits.facts(),
            "truncated_share": sum(truncated.values()) / total,
            "truncated": truncated,
            "lost": lost,
            "warnings": warnings,
        },
        "certificate": certificate,
        "environment": {
            "packages": package_versions(),
            "python": platform.python_version(),
            **machine.facts(),
            "threads": torch.get_num_threads(),
        },
        "recipe": recipe,
    }


def _merge(facts: dict[str, Any], more: dict[str, Any]) -> None:
    """Put the facts of a split beside those of others, however deep they lie."""
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(facts.get(name), dict):
            _merge(facts[name], value)
        else:
            facts[name] = value


def _gather_resamples(evaluations: list[Evaluation]) -> dict[str, np.ndarray]:
    """The values of all resamples, by split, answerer and metric: two runs on the same rows have them in common."""
    answerers = [(e.split, name, scores) for e in evaluations for name, scores in (("model", e.scores), *e.baselines.items())]
    return {
        f"{split}/{name}/{metric}": score.resampled.astype(np.float32)
        for split, name, scores in answerers
        for metric, score in scores.items()
    }


def package_versions() -> dict[str, str | None]:
    """Of the libraries that a result depends on; None where one is not installed."""
    return {name: _version(name) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write_report(
    files: RunFiles,
    recipe_text: str,
    shown_text: str,
    facts: dict[str, Any],
    evaluations: list[Evaluation],
    samples: Sequence[tuple[str, str, str]] = (),
) -> Report:
    """Writes recipe.yaml, resamples.npz, README.md, report.html and, last, report.json, which lists all files.

    The model and the predictions are in the folder already. `recipe_text` is written; `shown_text`, which names things as the
    recipe has them, is what the pages show. `samples` are prompts, with what the model wrote before and after
    training.
    """
    folder = files.folder
    measured, facts = facts, {**finite(facts), "saved": "adapter" if (folder / "adapter_config.json").is_file() else "model"}
    facts["generates"] = (folder / GENERATION).is_file()
    mistakes = next(evaluation.mistakes for evaluation in evaluations if evaluation.split == "test")
    with files.placed() as aside:
        (aside / RECIPE).write_text(recipe_text, encoding="utf-8")
        np.savez_compressed(aside / "resamples.npz", allow_pickle=False, **_gather_resamples(evaluations))
        shown, public = for_pages(shown_text), in_all(facts, for_pages)
        write_pages(aside, folder, shown, public, measured, in_all(mistakes, for_pages), in_all(samples, for_pages))
    facts["files"] = files.hashes()
    write_facts(folder, facts)
    return Report(folder, facts)


def read_report(folder: Path) -> Report:
    """Of a finished run."""
    facts = read_facts(folder)
    assert facts is not None
    return Report(folder, facts)
