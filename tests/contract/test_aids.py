"""Once for each file in hf_sft/aids: apply gives a new phase and leaves the old one alone; training still runs. And what each
aid claims, exactly."""

import dataclasses
import itertools
import json
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn import functional

import hf_sft
from hf_sft.aids.layerwise_lr import LayerwiseLr
from hf_sft.aids.r_drop import agree, distance
from hf_sft.block import list_kinds, load_kind
from hf_sft.config.training import Training
from hf_sft.losses import Items, item_loss
from hf_sft.methods.full import Full
from hf_sft.tasks.sequence_classification import SequenceClassification
from tests import tiny
from tests.gradients import alike_however_cut, steps_of
from tests.grids import cover

SINGLE = "single_label_classification"
TASK = SequenceClassification(type="sequence_classification")
ROWS = Dataset.from_list(tiny.rows(SINGLE, 12))


def phase(**training: Any):
    (made,) = Full(type="full").phases(TASK, Training(**training), 9999)
    return made


@pytest.mark.parametrize("name", list_kinds("aids"))
def test_an_aid_gives_a_new_phase_and_leaves_the_old_one_alone(name):
    plain = phase()
    before = dataclasses.asdict(dataclasses.replace(plain, training=None))
    applied = load_kind("aids", name)(type=name).apply(plain, TASK, ROWS)
    assert applied is not plain and applied != plain
    assert dataclasses.asdict(dataclasses.replace(plain, training=None)) == before


@pytest.mark.parametrize("name", list_kinds("aids"))
def test_training_runs_with_the_aid(name, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    training = {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 3}
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", training=training, aids=[{"type": name}])
    assert hf_sft.train(recipe).facts["training"]["phases"][0]["steps"] > 0


def test_early_stopping_stops_and_keeps_the_best(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    training = {"eval_strategy": "epoch", "max_steps": -1, "num_train_epochs": 20, "learning_rate": 1e-9}
    aids = [{"type": "early_stopping", "patience": 2}]
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", training=training, aids=aids)
    phase = hf_sft.train(recipe).facts["training"]["phases"][0]
    assert phase["steps"] == 3 * 3, "one evaluation sets the best, two do not improve on it"
    assert phase["best_step"] == 3


@pytest.mark.parametrize(("metric", "rate"), [("mse", 0.01), ("pearson", 0.003)])
def test_what_counts_as_an_improvement_is_what_the_recipe_says(metric, rate, checkpoints, tmp_path):
    """Each evaluation is a little better than the one before: by less than the threshold, that is none."""
    files = tiny.write_rows(tmp_path / "data", "regression", train=40)
    training = {"eval_strategy": "steps", "eval_steps": 1, "max_steps": 6, "learning_rate": rate, "optim": "sgd"}

    def train(threshold: float) -> tuple[int, list[float]]:
        aids = [{"type": "early_stopping", "patience": 2, "threshold": threshold}]
        asked = {"training": training, "aids": aids, "evaluation": {"metrics": [metric], "best": metric}}
        recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", **asked)
        facts = hf_sft.train({**recipe, "output": {"folder": str(tmp_path / str(threshold))}}).facts["training"]
        return facts["phases"][0]["steps"], [each[metric] for each in facts["curves"][0]["evaluations"]]

    steps, values = train(0.0)
    gains = [abs(one - two) for one, two in itertools.pairwise(values)]
    better = [b < a if metric == "mse" else b > a for a, b in itertools.pairwise(values)]
    assert steps == 6 and all(better), "pick another rate: with this one it does not improve each time"
    assert train(min(gains) / 2)[0] == 6
    assert train(3 * max(gains))[0] == 3


def test_callbacks_are_made_anew_for_each_training():
    (make,) = load_kind("aids", "early_stopping")(type="early_stopping").apply(phase(), TASK, ROWS).callbacks
    assert make() is not make()


def random_items(kind: str, seed: int = 0) -> Items:
    torch.manual_seed(seed)
    if kind == "classes":
        return Items(torch.randn(7, 4), torch.arange(7) % 4)
    if kind == "sets":
        return Items(torch.randn(7, 4), (torch.arange(28).reshape(7, 4) % 3 == 0).float())
    return Items(torch.randn(7, 1), torch.arange(7.0))


def test_losses_of_items_are_torch_s_own():
    classes, sets, numbers = (random_items(kind) for kind in ("classes", "sets", "numbers"))
    torch.testing.assert_close(item_loss(classes).mean(), functional.cross_entropy(classes.logits, classes.targets))
    torch.testing.assert_close(item_loss(sets).mean(), functional.binary_cross_entropy_with_logits(sets.logits, sets.targets))
    torch.testing.assert_close(item_loss(numbers).mean(), functional.mse_loss(numbers.logits[:, 0], numbers.targets))


@pytest.mark.parametrize("epsilon", [0.1, 0.5])
def test_label_smoothing_is_torch_s_own(epsilon):
    smooth = load_kind("aids", "label_smoothing")(type="label_smoothing", epsilon=epsilon).apply(phase(), TASK, ROWS).item_loss
    classes, sets = random_items("classes"), random_items("sets")
    wanted = functional.cross_entropy(classes.logits, classes.targets, label_smoothing=epsilon, reduction="none")
    torch.testing.assert_close(smooth(classes), wanted)
    softer = sets.targets * (1 - epsilon) + epsilon / 2
    wanted = functional.binary_cross_entropy_with_logits(sets.logits, softer, reduction="none").mean(-1)
    torch.testing.assert_close(smooth(sets), wanted)
    regression = TASK.model_copy(update={"problem_type": "regression"})
    with pytest.raises(hf_sft.RecipeError, match="needs classes"):
        load_kind("aids", "label_smoothing")(type="label_smoothing").apply(phase(), regression, ROWS)


def test_r_drop_is_the_mean_of_two_losses_and_their_distance():
    first, second = random_items("classes", 1), random_items("classes", 2)
    p, q = first.logits.softmax(-1), second.logits.softmax(-1)
    both = functional.kl_div(q.log(), p, reduction="none").sum(-1) + functional.kl_div(p.log(), q, reduction="none").sum(-1)
    torch.testing.assert_close(distance(first, second), both / 2)
    passes = iter((first, second))
    found = agree(2.0, item_loss, lambda batch: next(passes), {})
    torch.testing.assert_close(found, ((item_loss(first) + item_loss(second)) / 2 + both).sum())


def test_r_drop_for_sets_and_numbers():
    first, second = random_items("sets", 1), random_items("sets", 2)
    coins = [torch.distributions.Bernoulli(logits=items.logits) for items in (first, second)]
    both = sum(torch.distributions.kl_divergence(a, b) for a, b in (coins, coins[::-1]))
    torch.testing.assert_close(distance(first, second), both.mean(-1) / 2)
    first, second = random_items("numbers", 1), random_items("numbers", 2)
    torch.testing.assert_close(distance(first, second), (first.logits - second.logits).square()[:, 0])


@pytest.mark.parametrize(("family", "low", "top"), [("bert", "embeddings.", "layer.1."), ("gpt2", "wte.", "h.1.")])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_layerwise_rates_fall_from_the_head_to_the_embeddings(method, family, low, top, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    aids = [{"type": "layerwise_lr", "decay": 0.5}]
    training = {"optim": "adamw_torch", "learning_rate": 1.0}
    recipe = tiny.recipe(checkpoints[family], files, tmp_path / "run", method, training=training, aids=aids)
    trainer = hf_sft.build_trainer(recipe)
    optimizer = trainer.create_optimizer()
    rates = {p: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: rates[p] for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert len(by_name) == len(rates) and sum(len(group["params"]) for group in optimizer.param_groups) == len(rates)
    for name, rate in by_name.items():
        inside = name.removeprefix("base_model.model.")
        head = not inside.startswith(f"{trainer.loaded.prefix}") or ".pooler." in inside
        wanted = 1.0 if head else 0.5 if top in inside or "ln_f" in inside else 0.25 if "0." in inside else 0.125
        assert rate == wanted, name
    assert method == "lora" or any(low in name for name in by_name)


def test_a_decay_of_one_changes_nothing():
    flat, plain = LayerwiseLr(type="layerwise_lr", decay=1.0).apply(phase(), TASK, ROWS), phase()
    loaded: Any = SimpleNamespace(depth=lambda name: 7)
    assert flat.rate(loaded, "x") == plain.rate(loaded, "x") == 1.0


NAMES = [*list_kinds("aids"), "label_smoothing r_drop"]


@pytest.mark.parametrize(
    ("problem", "method", "names"), cover([*itertools.product((SINGLE, "entities"), list_kinds("methods"), NAMES)])
)
def test_a_step_with_aids_is_the_same_however_it_is_cut(problem, method, names, checkpoints, tmp_path):
    files, aids = tiny.write_rows(tmp_path / "data", problem, train=16), [{"type": name} for name in names.split()]
    asked = {"training": {"eval_strategy": "epoch"}, "task": tiny.task_of(problem), "aids": aids}
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", method, **asked)
    alike_however_cut(steps_of(recipe, (10_000, 24)), (5,))


def test_a_step_without_items_is_no_number_that_is_none(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE, train=16)
    trainer = hf_sft.build_trainer(tiny.recipe(checkpoints["bert"], files, tmp_path / "run"))
    inputs = next(iter(trainer.get_train_dataloader()))
    for place, (batch, micro_batch) in enumerate(inputs["micro_batches"]):
        inputs["micro_batches"][place] = (batch, dataclasses.replace(micro_batch, step_items=0))
    trainer.hooks = dataclasses.replace(
        trainer.hooks,
        items=lambda model, batch: Items(
            trainer.loaded.model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:0], batch["labels"][:0]
        ),
    )
    assert float(trainer.training_step(trainer.model, inputs)) == 0.0
    assert json.dumps(trainer.curve.losses, allow_nan=False) == "[]"
