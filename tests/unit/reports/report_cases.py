"""Finished runs as the reports get them."""

import io
import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
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
from hf_sft.reports.report import Report, gather_facts, write_report
from hf_sft.storage.run_folder import RunFiles
from hf_sft.tasks import Labels
from hf_sft.tasks.sequence_classification import SequenceClassification
from hf_sft.trainer.history import TrainingCurve

HOSTILE = (
    '<script>alert("1")</script>',
    "---\nlicense: stolen\n---",
    "</td></svg><img src=https://evil.example/x onerror=alert(2)>",
    "$x^{ | `code` ``` **bold** [link](https://evil.example) {{ 7 * 7 }}",
)

PLAIN = ("business", "entertainment", "politics", "sports", "tech")


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


def card_of(report: Report) -> Any:
    return ModelCard((report.folder / "README.md").read_text(encoding="utf-8"))


def _odd_method() -> dict[str, Any]:
    return {"type": "lora", "target_modules": list(HOSTILE)}


def shown_on_console(report: Report, width: int = 160) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    report.show(console)
    return console.file.getvalue()  # pyright: ignore[reportAttributeAccessIssue]
