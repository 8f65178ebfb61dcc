"""A training that goes wrong says so; what is kept is the best; orders and dropout are drawn as they should be; memory is not
spent on what nobody needs."""

import ctypes
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from accelerate import PartialState
from datasets import Dataset
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer

import hf_sft
from hf_sft.config.machine import resolve_machine
from hf_sft.config.process import CACHES
from hf_sft.config.training import Training
from hf_sft.data.examples import Examples, StepSampler
from hf_sft.trainer.arguments import training_arguments
from hf_sft.trainer.speedups.cpu_dropout import drop
from tests import processes, stopping, tiny

SINGLE = "single_label_classification"


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_loss_that_is_not_finite_ends_the_run_with_the_step_and_leaves_nothing(checkpoints, tmp_path, monkeypatch):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    monkeypatch.setattr("hf_sft.hub.publish.publish", lambda *_, **__: pytest.fail("published"))
    monkeypatch.setattr("hf_sft.hub.publish.check_rights", lambda name: name)
    wild = {"learning_rate": 1e30, "max_grad_norm": 0, "max_steps": 9}
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", training=wild)
    recipe["output"]["hub"] = "me/mine"
    with pytest.raises(
        hf_sft.RecipeError, match=r"the loss of step \d is (nan|inf): the training has diverged(.|\n)*learning_rate"
    ):
        hf_sft.train(recipe)
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("hf_sft.trainer.fit.explain_divergence", lambda found, *_: found)
    from hf_sft.trainer.step_trainer import StepTrainer

    def ruin(self, *_) -> None:
        next(self.model.parameters()).data.fill_(float("nan"))

    monkeypatch.setattr(StepTrainer, "train", ruin)
    with pytest.raises(hf_sft.RecipeError, match="weights after the last step are not finite"):
        hf_sft.train(recipe)


def test_the_best_weights_are_the_ones_that_are_saved(checkpoints, tmp_path):
    """At such a rate validation goes up and down: the best evaluation is not the last."""
    files = tiny.write_rows(tmp_path / "data", SINGLE, train=40)
    wild = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 17, "learning_rate": 1e-2, "optim": "adamw_torch"}
    report = hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", training=wild))
    curve = report.facts["training"]["curves"][0]
    scores = [evaluation["accuracy"] for evaluation in curve["evaluations"]]
    assert max(scores) > scores[-1], "pick another rate: this one ends at its best"
    assert report.metrics["validation"]["accuracy"]["value"] == pytest.approx(max(scores))
    assert curve["best_step"] == scores.index(max(scores)) + 1
    again = hf_sft.evaluate(tmp_path / "run", "validation")
    assert again.scores["accuracy"].value == pytest.approx(max(scores))


CHOOSES = [(SINGLE, "accuracy"), (SINGLE, "f1_macro"), ("regression", "pearson"), ("regression", "mse"), ("regression", "mae")]
CHOOSES += [("texts", "loss"), ("texts", "perplexity"), ("texts", "bits_per_byte"), ("masked", "accuracy")]


@pytest.mark.parametrize(("problem", "metric"), CHOOSES)
def test_the_step_that_is_kept_is_the_best_by_the_metric_that_chooses(problem, metric, checkpoints, tmp_path):
    """Also where less is better; and the weights that are saved are that step's."""
    files = tiny.write_rows(tmp_path / "data", problem, train=40)
    family, rate = "gpt2" if problem == "texts" else "bert", 0.3 if problem == SINGLE else 0.03
    wild = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 9, "learning_rate": rate, "optim": "adamw_torch"}
    asked = {"task": tiny.task_of(problem), "training": wild, "evaluation": {"best": metric}}
    report = hf_sft.train(tiny.recipe(checkpoints[family], files, tmp_path / "run", **asked))
    (curve,) = report.facts["training"]["curves"]
    values = [evaluation[metric] for evaluation in curve["evaluations"]]
    less = metric in ("mse", "mae", "loss", "perplexity", "bits_per_byte")
    best = min(values) if less else max(values)
    assert values[-1] != best, "pick another rate: this one ends at its best"
    assert curve["best_step"] == values.index(best) + 1
    assert report.metrics["validation"][metric]["value"] == pytest.approx(best, rel=1e-5)


@pytest.mark.parametrize("problem", [*tiny.PROBLEMS, "pictures", "texts", "masked", "talks", "pairs"])
def test_what_is_scored_while_training_is_what_is_scored_in_the_end_also_with_dropout(problem, checkpoints, tmp_path):
    """Nothing is dropped when rows are scored, or texts are generated."""
    family = {"pictures": "vit", "texts": "gpt2", "talks": "gpt2", "pairs": "t5"}.get(problem, "bert")
    checkpoint = stopping.dropping(checkpoints[family], tmp_path / "dropping", 0.5)
    files = tiny.write_rows(tmp_path / "data", problem, train=24)
    training = {"eval_strategy": "steps", "eval_steps": 3, "max_steps": 6, "optim": "adamw_torch", "learning_rate": 3e-3}
    asked = {"task": tiny.task_of(problem), "training": training, "evaluation": {}}
    if problem == "questions":
        asked["task"]["null_threshold"] = 0.0  # else it is chosen when the training is over
    if problem == "pairs":
        asked["evaluation"]["best"] = "chrf"
    report = hf_sft.train(tiny.recipe(checkpoint, files, tmp_path / "run", **asked))
    (curve,) = report.facts["training"]["curves"]
    kept = next(each for each in curve["evaluations"] if each["step"] == curve["best_step"])
    final = {name: score["value"] for name, score in report.metrics["validation"].items()}
    assert {name: kept[name] for name in final} == pytest.approx(final, rel=1e-5)
    again = hf_sft.evaluate(tmp_path / "run", "validation").scores
    assert {name: score.value for name, score in again.items()} == pytest.approx(final, rel=1e-5)


@pytest.mark.parametrize("method", ["full", "lora", "head_only", "last_layers"])
def test_what_is_new_is_drawn_by_the_seed(method, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", method)
    models = [hf_sft.build_trainer({**recipe, "seed": seed}).model for seed in (0, 0, 1)]
    one, again, other = (
        {
            name: p
            for name, p in model.named_parameters()
            if ("classifier" in name and name.endswith("weight")) or "lora_A" in name
        }
        for model in models
    )
    assert one and all(torch.equal(one[name], again[name]) and not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_dropout_is_the_seed_s_and_another_in_each_step(family, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    checkpoint = stopping.dropping(checkpoints[family], tmp_path / "dropping", 0.5)

    def draws(seed: int) -> list[list[bool]]:
        """Of each step which of the first elements of the first dropout were dropped."""
        trainer = hf_sft.build_trainer(
            {**tiny.recipe(checkpoint, files, tmp_path / "run", training={"max_steps": 3}), "seed": seed}
        )
        seen: list[list[bool]] = []
        first = next(each for each in trainer.model.modules() if isinstance(each, torch.nn.Dropout))
        first.register_forward_hook(lambda *call: seen.append((call[-1].flatten()[:64] == 0).tolist()))
        trainer.train()
        return seen

    one, again, other = draws(0), draws(0), draws(1)
    assert one == again and len({*map(str, one)}) == len(one) >= 3
    assert one[0] != other[0] and 10 < sum(one[0]) < 54


def test_every_epoch_has_an_order_of_its_own_and_every_run_the_same_ones():
    rows = Dataset.from_dict({"row": range(40), "cost": [5] * 40, "items": [1] * 40})
    examples = Examples(rows, rows, lambda _: {})

    def order(seed: int, epoch: int) -> list[int]:
        sampler = StepSampler(examples, 8, 64, seed, 0, 1)
        sampler.set_epoch(epoch)
        return [row for step in sampler for micro_batch in step for row in micro_batch.places]

    assert order(0, 0) != order(0, 1) and order(0, 0) != order(1, 0)
    assert order(0, 1) == order(0, 1) and sorted(order(0, 1)) == list(range(40))


def test_the_trainer_shows_each_epoch_its_own_order(checkpoints, tmp_path, monkeypatch):
    from hf_sft.trainer.step_trainer import StepTrainer

    seen: list[list[int]] = []
    step = StepTrainer.training_step

    def watch(self, model, inputs, *rest):
        seen.append([row for _, micro_batch in inputs["micro_batches"] for row in micro_batch.places])
        return step(self, model, inputs, *rest)

    monkeypatch.setattr(StepTrainer, "training_step", watch)
    files = tiny.write_rows(tmp_path / "data", SINGLE, train=24)
    for run in ("one", "two"):
        training = {"max_steps": -1, "num_train_epochs": 2}
        hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / run, training=training))
    epochs = [[row for step in seen[start : start + 3] for row in step] for start in (0, 3, 6, 9)]
    assert epochs[0] != epochs[1] and epochs[:2] == epochs[2:]
    assert all(sorted(epoch) == list(range(24)) for epoch in epochs)


def note_draws(recipe: dict) -> None:
    from hf_sft.trainer.step_trainer import StepTrainer

    seen, step = [], StepTrainer.training_step

    def watch(self, *args):
        seen.append(torch.get_rng_state().sum().item())
        return step(self, *args)

    StepTrainer.training_step = watch
    hf_sft.train(recipe)
    Path(f"rank{PartialState().process_index}").write_text(json.dumps(seen))


def test_two_processes_draw_different_dropout(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    recipe = tiny.recipe(
        stopping.dropping(checkpoints["bert"], tmp_path / "c", 0.3), files, tmp_path / "run", training={"max_steps": 2}
    )
    processes.by_two(note_draws, recipe)
    first, second = (json.loads((tmp_path / f"rank{rank}").read_text()) for rank in (0, 1))
    assert len(first) == 2 and first[0] != second[0] and first[1] != second[1]


def test_check_rehearses_in_two_processes_too(checkpoints, tmp_path):
    """Both phases of lp_ft, with an evaluation and a checkpoint each, in one folder for both processes."""
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "lp_ft", training={"eval_strategy": "epoch"})
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    said = [done.stderr for done in processes.by_two(processes.command, ["check", "recipe.yaml"])]
    assert "2 process(es)" in said[0] and "2 process(es)" not in said[1] and not (tmp_path / "run").exists()


def test_torch_s_own_dropout_runs_where_ours_would_not_fit(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    checkpoint = stopping.dropping(checkpoints["bert"], tmp_path / "c", 0.3)
    for training, ran in (({}, "hf_sft"), ({"torch_compile": True}, "torch"), ({"activation_checkpointing": True}, "torch")):
        trainer = hf_sft.build_trainer(tiny.recipe(checkpoint, files, tmp_path / "built", training=training))
        assert trainer.curve.dropout == ran
        shutil.rmtree(tmp_path / "built")
    recipe = tiny.recipe(checkpoint, files, tmp_path / "run", training={"activation_checkpointing": True})
    assert hf_sft.train(recipe).facts["training"]["phases"][0]["dropout"] == "torch"


def test_dropout_of_everything_is_zero_and_has_a_gradient():
    x = torch.ones(5, 3, requires_grad=True)
    dropped = drop(x, p=1.0)
    dropped.sum().backward()
    assert dropped.abs().sum() == 0 and x.grad is not None and x.grad.abs().sum() == 0


def test_baselines_are_fitted_on_train_and_not_on_the_rows_they_are_scored_on(checkpoints, tmp_path):
    files = {}
    for split, labels in (("train", "aaaaaaaabbbb"), ("validation", "ab"), ("test", "abbbbbbbbb")):
        rows = [{"text": f"{split} {i}", "label": label} for i, label in enumerate(labels)]
        files[split] = str(tmp_path / f"{split}.jsonl")
        Path(files[split]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run"))
    assert report.facts["baselines"]["majority"]["test"]["accuracy"]["value"] == pytest.approx(0.1)


def test_a_baseline_that_fails_does_not_lose_the_run(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    rows = read(Path(files["train"]))
    Path(files["train"]).write_text("".join(json.dumps({**row, "text": "😀 🎉"}) + "\n" for row in rows))
    report = hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run"))
    assert set(report.facts["baselines"]) == {"majority"}
    assert any("tfidf_logreg could not be fitted: empty vocabulary" in note for note in report.facts["data"]["warnings"])


def test_the_model_is_on_disk_before_anything_else_can_fail(checkpoints, tmp_path, monkeypatch):
    files = tiny.write_rows(tmp_path / "data", SINGLE)

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("hf_sft.runs.train.evaluate_split", fail)
    with pytest.raises(ZeroDivisionError):
        hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run"))
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").config.num_labels == 3


def test_check_rehearses_with_the_trainer_that_train_would_use(checkpoints, tmp_path, monkeypatch):
    from hf_sft.trainer.step_trainer import StepTrainer

    steps = []
    step = StepTrainer.training_step
    monkeypatch.setattr(StepTrainer, "training_step", lambda self, *rest: steps.append(self) or step(self, *rest))
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    found = hf_sft.check(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", training={"eval_strategy": "epoch"}))
    assert len(steps) == 2 and steps[0] is steps[1] and steps[0].curve.evaluations and not (tmp_path / "run").exists()
    assert found.facts["full: loss of the first rows"] == f"{steps[0].curve.losses[0]:.4f}"


def test_build_trainer_predicts_and_saves_like_any_trainer(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    trainer = hf_sft.build_trainer(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", training={"max_steps": 3}))
    assert isinstance(trainer, Trainer)
    trainer.train()
    test = Dataset.from_list(read(Path(files["test"])))
    found = trainer.predict(test)
    assert (
        found.predictions.shape == (11, 3)
        and found.label_ids is not None
        and set(found.metrics) == {"test_accuracy", "test_f1_macro"}
    )
    assert trainer.predict(test.remove_columns("label")).label_ids is None
    assert trainer.predict(trainer.examples["validation"]).predictions.shape == (9, 3)
    trainer.save_model(str(tmp_path / "saved"))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    with torch.no_grad():
        logits = model(**tokenizer(test["text"][:], padding=True, return_tensors="pt")).logits
    np.testing.assert_allclose(logits, found.predictions, atol=1e-5)
    assert list(model.config.label2id) == ["business", "law", "sport"]


def test_only_the_process_that_should_writes_a_model(checkpoints, tmp_path, monkeypatch):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    trainer = hf_sft.build_trainer(tiny.recipe(checkpoints["bert"], files, tmp_path / "run"))
    monkeypatch.setattr(type(trainer.args), "should_save", property(lambda _: False))
    trainer.save_model(str(tmp_path / "c"))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP"])
def test_engines_that_the_step_does_not_serve_are_refused(engine, checkpoints, tmp_path, monkeypatch):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    monkeypatch.setenv(f"ACCELERATE_USE_{engine}", "true")
    with pytest.raises(hf_sft.RecipeError, match="which our training step does not serve yet"):
        hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run"))


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize("launched", [None, "no", "fp16", "bf16"])
@pytest.mark.parametrize(("bf16", "fp16"), [(b, f) for b in (None, False, True) for f in (None, False, True)])
def test_precision_is_the_recipe_s_then_accelerate_s_then_the_machine_s(bf16, fp16, launched, native, monkeypatch):
    monkeypatch.setattr("hf_sft.config.machine._has_native_bf16", lambda device: native)
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    if launched is not None:
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    training = Training(bf16=bf16, fp16=fp16)
    if bf16 and fp16:
        with pytest.raises(hf_sft.RecipeError, match="can't both be true"):
            resolve_machine(training)
        return
    if bf16 or fp16:
        wanted = "bf16" if bf16 else "fp16"
    elif bf16 is False:
        wanted = "fp32"
    elif launched == "bf16" or (launched == "fp16" and fp16 is None):
        wanted = launched
    else:
        wanted = "bf16" if native else "fp32"
    machine = resolve_machine(training)
    assert machine.precision == wanted
    arguments = training_arguments(training, machine, Path("x"), 0, None)
    assert (arguments.bf16, arguments.fp16) == (wanted == "bf16", wanted == "fp16")
    with machine.autocast():
        assert torch.is_autocast_enabled("cpu") is (wanted != "fp32")
        dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
        assert wanted == "fp32" or torch.get_autocast_dtype("cpu") is dtypes[wanted]


def test_a_step_has_a_row_for_every_process(monkeypatch):
    three = SimpleNamespace(num_processes=3, device="cpu", is_main_process=True)
    monkeypatch.setattr("hf_sft.config.machine.PartialState", lambda cpu: three)
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert resolve_machine(Training(batch_size=3)).processes == 3
    with pytest.raises(hf_sft.RecipeError, match=r"`training\.batch_size` is 2, but there are 3 processes(.|\n)*launch fewer"):
        resolve_machine(Training(batch_size=2))


def test_the_default_optimizer_is_the_fused_one(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", training={"learning_rate": 1e-3})
    del recipe["training"]["optim"]
    trainer = hf_sft.build_trainer(recipe)
    trainer.create_optimizer()
    assert type(trainer.optimizer) is torch.optim.AdamW and trainer.optimizer.defaults["fused"]
    weights = []
    for optim in ("adamw_torch", "adamw_torch_fused"):
        recipe["training"]["optim"] = optim
        hf_sft.train({**recipe, "output": {"folder": str(tmp_path / optim)}})
        weights.append(load_file(tmp_path / optim / "model.safetensors"))
    apart = sum(float((weights[0][name] - weights[1][name]).square().sum()) for name in weights[0])
    assert apart / sum(float(tensor.square().sum()) for tensor in weights[0].values()) < 1e-10


def test_interrupting_says_what_there_is_and_what_to_do(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    endless = {"max_steps": 1_000_000, "eval_strategy": "steps", "eval_steps": 5}
    (tmp_path / "r.yaml").write_text(
        yaml.safe_dump(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", training=endless))
    )
    command = [sys.executable, "-m", "hf_sft", "train", str(tmp_path / "r.yaml")]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ})
    while not list((tmp_path / "run").glob("checkpoints/*/checkpoint-*/model.safetensors")) and process.poll() is None:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=processes.LONG)[1]
    assert process.returncode == 130, said[-2000:]
    assert "Interrupted.  " in said and "the same command with --resume" in said and "Traceback" not in said


HELD = """
import ctypes, torch
from hf_sft.config.process import use_memory_well
fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
library = ctypes.CDLL(None)
library.mallinfo2.restype = type("Mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in fields]})
use_memory_well()
weight, before = torch.zeros(512, 512, dtype=torch.bfloat16), library.mallinfo2().uordblks
for rows in range(16, 416):
    torch.nn.functional.linear(torch.zeros(rows, 512, dtype=torch.bfloat16), weight)
print(library.mallinfo2().uordblks - before)
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library does not say what is in use")
def test_kernels_for_shapes_that_are_gone_are_not_kept():
    def held(**told: str) -> int:
        done = subprocess.run([sys.executable, "-c", HELD], env={**os.environ, **told}, capture_output=True, check=True)
        return int(done.stdout)

    if (all_of_them := held(**dict.fromkeys(CACHES, "1024"))) < 2**24:
        pytest.skip("this processor's kernels are small")
    assert held() < all_of_them / 3
