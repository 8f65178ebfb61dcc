"""Equal by construction, so equal in numbers."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import Dataset
from safetensors.torch import load_file
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

import hf_sft
from hf_sft.block import list_kinds
from hf_sft.trainer import fit
from hf_sft.trainer.fit_config import FitConfig, FitState
from hf_sft.trainer.speedups.stored import stored_states
from tests import processes, tiny
from tests.gradients import TOLERANCE, alike_however_cut, relative_difference, steps_of
from tests.grids import cover, one_each

PROBLEMS = tiny.PROBLEMS
METHODS = tuple(list_kinds("methods"))
WITH_AIDS = [*product((PROBLEMS[0],), METHODS, list_kinds("aids")), *product(("entities",), ("full",), list_kinds("aids"))]
"""Kinds of rows, methods and aids that are crossed."""
SETTINGS = [
    (aid, (PROBLEMS[0], "entities")[(place + turn) % 2])
    for turn in (0, 1)
    for place, aid in enumerate((None, *list_kinds("aids")))
]
"""Aids with kinds of rows: each aid with one of them first, and then with the other."""


@pytest.mark.parametrize(("case", "method"), cover([*product(tiny.CASES, METHODS)]), ids=str)
def test_a_step_is_the_same_however_it_is_cut(case, method, checkpoints, tmp_path):
    family, problem = case
    files = tiny.write_rows(tmp_path / "data", problem, train=16)
    recipe = tiny.recipe(checkpoints[family], files, tmp_path / "run", method, task=tiny.task_of(problem))
    alike_however_cut(steps_of(recipe, (10_000, 64, 24, 1)), (2, 5, 16))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_sixteen_equal_rows_give_one_gradient_as_1x16_2x8_and_4x4(family, method, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", PROBLEMS[0], train=16)
    lines = [json.loads(line) for line in Path(files["train"]).read_text().splitlines()]
    same_length = [{**row, "text": " ".join((row["text"].split() * 6)[:6])} for row in lines]
    Path(files["train"]).write_text("".join(json.dumps(row) + "\n" for row in same_length))
    recipe = tiny.recipe(checkpoints[family], files, tmp_path / "run", method)
    steps = steps_of(recipe, [rows * (8 if family == "bert" else 6) for rows in (16, 8, 4)])
    assert [cuts for *_, cuts in steps] == [1, 2, 4]
    alike_however_cut(steps, (2, 4))


@pytest.mark.xfail(strict=True, reason="transformers #47688: encoder heads ignore num_items_in_batch; ours don't need it")
def test_the_plain_trainer_has_the_same_loss_however_it_is_cut(checkpoints, tmp_path):
    torch.manual_seed(0)
    model = BertForSequenceClassification.from_pretrained(checkpoints["bert"], num_labels=3)
    examples = Dataset.from_list([{"input_ids": [2, 5 + i, 3], "labels": i % 3} for i in range(16)])
    losses = {}
    for rows in (16, 4):
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=16 // rows,
            max_steps=1,
            learning_rate=0.0,
            logging_steps=1,
            optim="sgd",
            use_cpu=True,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
        )
        trainer = Trainer(model=model, args=arguments, train_dataset=examples)
        trainer.train()
        losses[rows] = trainer.state.log_history[0]["loss"]
    assert losses[4] == pytest.approx(losses[16], rel=1e-3)


def test_two_processes_end_in_the_weights_of_one(checkpoints, tmp_path):
    """17 rows in steps of 8: the last step of an epoch is one row, and one process has none. The same two run all cases: each
    kind of rows, by a family and a method; the families have a test of their own."""
    cases = {}
    for problem, (family, method) in one_each(
        [(problem, (family, each)) for each in METHODS for family, problem in tiny.CASES]
    ):
        tied = problem == "pairs" or (problem in ("texts", "talks") and family == "gpt2")
        if tied and method in ("head_only", "lp_ft"):  # nothing is new
            method = "lora"
        if (name := f"{family}-{problem}-{method}") in cases:
            continue
        files = tiny.write_rows(tmp_path / problem, problem, train=17)
        folder = tmp_path / "one" / name
        recipe = tiny.recipe(checkpoints[family], files, folder, method, task=tiny.task_of(problem))
        hf_sft.train(hf_sft.Recipe.model_validate(recipe))
        cases[name] = {**recipe, "output": {"folder": str(tmp_path / "two" / name)}}
    scored = {"eval_strategy": "steps", "eval_steps": 2}
    for aid, (problem, method) in one_each([(aid, (problem, method)) for problem, method, aid in WITH_AIDS]):
        name, files = f"{problem}-{aid}-{method}", tiny.write_rows(tmp_path / problem, problem, train=17)
        asked = {"training": scored, "task": tiny.task_of(problem), "aids": [{"type": aid}]}
        recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "one" / name, method, **asked)
        hf_sft.train(recipe)
        cases[name] = {**recipe, "output": {"folder": str(tmp_path / "two" / name)}}
    for family in tiny.FAMILIES:
        name, files = f"{family}-adamw", tiny.write_rows(tmp_path / "adamw", PROBLEMS[0], train=17)
        asked = {"training": scored | {"optim": "adamw_torch", "learning_rate": 1e-3}}
        recipe = tiny.recipe(checkpoints[family], files, tmp_path / "one" / name, **asked)
        hf_sft.train(recipe)
        cases[name] = {**recipe, "output": {"folder": str(tmp_path / "two" / name)}}
    processes.by_two(processes.train_all, list(cases.values()))
    for name in cases:
        reports = [json.loads((tmp_path / side / name / "report.json").read_text()) for side in ("one", "two")]
        assert [report["environment"]["processes"] for report in reports] == [1, 2]
        phases = [report["training"]["phases"] for report in reports]
        assert [(p["steps"], p["best_step"]) for p in phases[0]] == [(p["steps"], p["best_step"]) for p in phases[1]]
        assert sum(phase["steps"] for phase in phases[0]) == 5 and ("-lora" not in name or len(phases[0]) == 1)
        one, two = (load_file(tmp_path / side / name / "model.safetensors") for side in ("one", "two"))
        assert relative_difference(two, one) < TOLERANCE, name
        for split in ("validation", "test"):
            answers = [(tmp_path / s / name / "predictions" / f"{split}.jsonl").read_text() for s in ("one", "two")]
            rows = [[json.loads(line) for line in answer.splitlines()] for answer in answers]
            assert [row["row"] for row in rows[0]] == [row["row"] for row in rows[1]] == list(range(len(rows[0])))
            assert [row.get("text") for row in rows[0]] == [row.get("text") for row in rows[1]]  # where it is written


@pytest.mark.parametrize(("method", "setting"), one_each([*product(METHODS, SETTINGS)]), ids=str)
def test_the_same_recipe_twice_gives_the_same_metrics(method, setting, checkpoints, tmp_path):
    aid, problem = setting
    files = tiny.write_rows(tmp_path / "data", problem)
    asked = {"training": {"eval_strategy": "epoch"}, "task": tiny.task_of(problem), "aids": [{"type": aid}] if aid else []}
    reports = [
        hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / name, method, **asked)) for name in ("first", "second")
    ]
    assert reports[0].metrics == reports[1].metrics
    curves = [[curve["losses"] for curve in report.facts["training"]["curves"]] for report in reports]
    assert curves[0] == curves[1]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_head_on_stored_features_learns_what_it_learns_on_the_body(family, checkpoints, tmp_path, monkeypatch):
    files = tiny.write_rows(tmp_path / "data", PROBLEMS[0])
    recipe = tiny.recipe(checkpoints[family], files, tmp_path / "stored", "head_only")
    stored = hf_sft.train(hf_sft.Recipe.model_validate(recipe))
    assert stored.facts["training"]["phases"][0]["stored_features"]
    monkeypatch.setattr(fit, "SPEEDUPS", fit.IN_STEPS)
    recipe["output"] = {"folder": str(tmp_path / "run_each_time")}
    each_time = hf_sft.train(hf_sft.Recipe.model_validate(recipe))
    assert not each_time.facts["training"]["phases"][0]["stored_features"]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("stored", "run_each_time")]
    assert relative_difference(*weights) < TOLERANCE


@pytest.mark.parametrize("method", ["last_layers", "head_only"])
@pytest.mark.parametrize(
    ("family", "problem"), [(f, p) for f, p in tiny.CASES if p in ("entities", "questions", PROBLEMS[0]) or f == "vit"]
)
def test_training_on_stored_states_is_training_on_the_layers(family, problem, method, checkpoints, tmp_path, monkeypatch):
    files = tiny.write_rows(tmp_path / "data", problem)
    monkeypatch.setattr(fit, "SPEEDUPS", (stored_states, *fit.IN_STEPS))
    weights = []
    for name, layers in (("stored", 1 + (method == "head_only")), ("run_each_time", 0)):
        recipe = tiny.recipe(checkpoints[family], files, tmp_path / name, method, task=tiny.task_of(problem))
        recipe["method"] |= {"layers": 1} if method == "last_layers" else {}
        recipe["training"] |= {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2}
        report = hf_sft.train(recipe)
        assert report.facts["training"]["phases"][0]["stored_layers"] == layers
        weights.append(load_file(tmp_path / name / "model.safetensors"))
        monkeypatch.setattr(fit, "SPEEDUPS", fit.IN_STEPS)
    assert relative_difference(*weights) < TOLERANCE


@pytest.mark.parametrize("method", ["last_layers", "head_only"])
def test_a_model_that_was_trained_on_what_was_stored_is_itself_again(method, checkpoints, tmp_path, monkeypatch):
    models = []

    @contextmanager
    def note_model(state: FitState, config: FitConfig) -> Iterator[FitState]:
        models.append(state.model)
        yield state

    files = tiny.write_rows(tmp_path / "data", PROBLEMS[0])
    with monkeypatch.context() as patch:
        patch.setattr(fit, "SPEEDUPS", (note_model, *fit.SPEEDUPS))
        recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", method)
        recipe["method"] |= {"layers": 1} if method == "last_layers" else {}
        (phase,) = hf_sft.train(recipe).facts["training"]["phases"]
    assert phase["stored_features"] or phase["stored_layers"] == 1
    plain = BertForSequenceClassification.from_pretrained(tmp_path / "run")
    assert [(name, type(each)) for name, each in models[0].named_modules()] == [
        (name, type(each)) for name, each in plain.named_modules()
    ]
    assert not any(each._forward_hooks or each._forward_pre_hooks for each in models[0].modules())


def test_states_that_do_not_fit_are_not_stored(checkpoints, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_sft.frozen.hidden_states.LIMIT", 1000)
    files = tiny.write_rows(tmp_path / "data", PROBLEMS[0])
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "last_layers")
    report = hf_sft.train({**recipe, "method": {"type": "last_layers", "layers": 1}})
    assert report.facts["training"]["phases"][0]["stored_layers"] == 0


def test_padding_on_the_left_or_the_right_gives_a_row_the_logits_it_has_alone(checkpoints, tmp_path):
    """The tiny GPT-2's tokenizer pads on the left, which shifts positions and moves the pooled token."""
    from hf_sft.models.checkpoint import Checkpoint
    from hf_sft.models.loading import load_model, load_processor
    from hf_sft.tasks.sequence_classification import SequenceClassification

    task = SequenceClassification(type="sequence_classification", problem_type="single_label_classification")
    labels = hf_sft.Labels(("a", "b", "c"))
    checkpoint = Checkpoint(checkpoint=str(checkpoints["gpt2"]))
    processor = load_processor(checkpoint)
    model = load_model(checkpoint, task, labels, processor).model
    texts = ["goal", "the match was lost in the last minute again"]
    encoded = task.encode({"text": texts}, processor, labels)
    rows = [{"input_ids": ids} for ids in encoded["input_ids"]]
    collate = task.collator(processor)
    with torch.no_grad():
        together = task.inference_step(model, collate(rows))
        alone = [task.inference_step(model, collate([row]))[0] for row in rows]
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=1e-5)
    assert model.config.pad_token_id == processor.pad_token_id is not None


def test_resolved_recipe_runs_again_to_the_same_metrics(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", PROBLEMS[0])
    first = hf_sft.train(hf_sft.Recipe.model_validate(tiny.recipe(checkpoints["bert"], files, tmp_path / "first")))
    again = hf_sft.train(tmp_path / "first" / "recipe.yaml", [f"output.folder={tmp_path / 'again'}"])
    assert again.metrics == first.metrics
    assert yaml.safe_load((tmp_path / "first" / "recipe.yaml").read_text())["task"]["problem_type"] == PROBLEMS[0]
