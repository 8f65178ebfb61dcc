"""What a recipe says arrives where others read it: every field at once, looked up again on their side."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from peft import LoraConfig
from transformers import EarlyStoppingCallback

import hf_sft
from hf_sft.block import list_kinds, load_kind
from hf_sft.config.machine import Machine
from hf_sft.config.training import Training
from hf_sft.methods import Method
from hf_sft.methods.full import Full
from hf_sft.tasks.sequence_classification import SequenceClassification
from hf_sft.trainer.arguments import training_arguments
from tests import tiny

MACHINE = Machine("cpu", 1, "fp32", 512)
OTHER: dict[str, Any] = {
    "num_train_epochs": 7.5,
    "max_steps": 123,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "cosine",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "warmup_steps": 17,
    "optim": "sgd",
    "optim_args": "momentum=0.8",
    "weight_decay": 0.3,
    "adam_beta1": 0.7,
    "adam_beta2": 0.8,
    "adam_epsilon": 1e-5,
    "max_grad_norm": 0.2,
    "eval_strategy": "steps",
    "eval_steps": 12.0,
    "save_total_limit": 5,
    "logging_steps": 3.0,
    "run_name": "mine",
    "tf32": False,
    "activation_checkpointing": True,
    "torch_compile": True,
    "full_determinism": True,
    "dataloader_num_workers": 3,
    "ddp_find_unused_parameters": True,
    "ddp_timeout": 77,
}
"""Values that are nobody's defaults."""
FOLLOWS = {
    "eval_strategy": {"save_strategy", "eval_steps"},
    "eval_steps": {"save_steps"},
    "activation_checkpointing": {"gradient_checkpointing"},
    "torch_compile": {"torch_compile_backend"},
}
"""What else is theirs by it."""
OURS = {
    *("batch_size", "micro_batch_tokens", "save_minutes", "max_skipped_steps", "bf16", "fp16"),
    *("report_to", "disable_tqdm", "dataloader_pin_memory"),
}
"""Not theirs, or not by the same word: tested below, or where they are used."""


def arguments(machine: Machine = MACHINE, best: Any = ("accuracy", True), **fields: Any) -> dict[str, Any]:
    made = training_arguments(Training.model_validate(fields), machine, Path("out"), 5, best)
    return {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}


def differing(one: dict[str, Any], other: dict[str, Any]) -> set[str]:
    return {name for name in one if repr(one[name]) != repr(other[name])}


def test_each_field_of_training_is_looked_up_below():
    assert {*OTHER} | OURS == {*Training.model_fields} and not {*OTHER} & OURS


@pytest.mark.parametrize("field", OTHER)
def test_a_field_of_training_is_transformers_own_and_changes_no_other(field):
    plain, made = arguments(), arguments(**{field: OTHER[field]})
    assert getattr(made[field], "value", made[field]) == OTHER[field] != getattr(plain[field], "value", plain[field])
    assert differing(plain, made) == {field} | FOLLOWS.get(field, set())


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, {"per_device_train_batch_size": 32, "seed": 5, "output_dir": "out", "metric_for_best_model": "accuracy"}),
        ({"batch_size": 9}, {"per_device_train_batch_size": 9}),
        ({"best": ("mse", False)}, {"metric_for_best_model": "mse", "greater_is_better": False}),
        ({"best": ("r2", True)}, {"metric_for_best_model": "r2", "greater_is_better": True, "load_best_model_at_end": True}),
        ({"eval_strategy": "no"}, {"load_best_model_at_end": False, "metric_for_best_model": None, "save_strategy": "no"}),
        ({"best": None}, {"load_best_model_at_end": False, "greater_is_better": None, "eval_strategy": "no"}),
        ({"machine": Machine("cpu", 1, "bf16", 512)}, {"bf16": True, "fp16": False, "use_cpu": True}),
        ({"machine": Machine("cpu", 1, "fp16", 512)}, {"bf16": False, "fp16": True}),
        ({"machine": MACHINE}, {"bf16": False, "fp16": False, "disable_tqdm": False}),
        ({"machine": Machine("cpu", 1, "fp32", 512, quiet=True)}, {"disable_tqdm": True}),
        ({"machine": Machine("cpu", 1, "fp32", 512, quiet=True), "disable_tqdm": False}, {"disable_tqdm": False}),
        ({"disable_tqdm": True}, {"disable_tqdm": True}),
        ({"report_to": "none"}, {"report_to": []}),
        ({"dataloader_pin_memory": True}, {"dataloader_pin_memory": False, "remove_unused_columns": False}),
        ({"eval_strategy": "epoch"}, {"save_strategy": "epoch", "eval_strategy": "epoch"}),
    ],
    ids=str,
)
def test_what_we_decide_for_transformers_is_decided_so(changed, expected):
    made = arguments(**changed)
    assert {name: getattr(made[name], "value", made[name]) for name in expected} == expected


VARIANTS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "lora_plus": {},
    "pissa": {"init_lora_weights": "pissa"},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_field_of_lora_is_peft_s_own_by_the_name_that_peft_has_for_it(variant, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "lora")
    recipe["method"] |= {"variant": variant, "r": 3, "alpha": 7.0, "dropout": 0.25, "target_modules": ["query"]}
    trainer = hf_sft.build_trainer(recipe)
    config = trainer.model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (3, 7.0, 0.25, "none")
    layers = [f"bert.encoder.layer.{i}.attention.self.query" for i in (0, 1)]
    assert {*config.target_modules} == {*layers} and config.task_type == "SEQ_CLS"
    plain = LoraConfig()
    flags = ("use_rslora", "use_dora", "init_lora_weights", "fan_in_fan_out", "layers_to_transform", "rank_pattern")
    assert {name: getattr(config, name) for name in flags if getattr(config, name) != getattr(plain, name)} == VARIANTS[
        variant
    ]
    adapted = [module for module in trainer.model.modules() if hasattr(module, "lora_dropout") and module.lora_dropout]
    assert len(adapted) == 2 and {module.lora_dropout["default"].p for module in adapted} == {0.25}


def test_the_rate_of_a_parameter_is_multiplied_by_what_the_phase_says_of_it():
    (phase,) = load_kind("methods", "lora")(type="lora", variant="lora_plus").phases(TASK, Training(), 99)
    assert [phase.rate(None, name) for name in ("x.lora_A.default.weight", "x.lora_B.default.weight", "head")] == [
        1.0,
        16.0,
        1.0,
    ]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rates_of_an_aid_and_of_a_method_are_multiplied_in_each_group(family, checkpoints, tmp_path):
    """LoRA+ and the layers' rates, both looked up in the optimizer: a head of 1, layers below it of 1/2 and 1/4."""
    files = tiny.write_rows(tmp_path / "data", tiny.PROBLEMS[0])
    recipe = tiny.recipe(checkpoints[family], files, tmp_path / "run", "lora", aids=[{"type": "layerwise_lr", "decay": 0.5}])
    recipe["method"] |= {"variant": "lora_plus"}
    recipe["training"] |= {"learning_rate": 0.25}
    trainer = hf_sft.build_trainer(recipe)
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in trainer.create_optimizer().param_groups for p in group["params"]}
    for name, rate in rates.items():
        layer = re.search(r"\.(?:layer|h)\.(\d)\.", name)
        depth = 0 if layer is None else 2 - int(layer[1])
        assert rate == pytest.approx(0.25 * 0.5**depth * (16 if "lora_B" in name else 1)), name
    assert len({*rates.values()}) >= 5


TASK = SequenceClassification.sample()[0].model_copy(update={"problem_type": "single_label_classification"})
FIELDS_OF_AIDS = {
    "early_stopping": {"patience": 7, "threshold": 0.25},
    "label_smoothing": {"epsilon": 0.3},
    "layerwise_lr": {"decay": 0.5},
    "r_drop": {"alpha": 3.0},
}


@pytest.mark.parametrize("name", list_kinds("aids"))
def test_a_field_of_an_aid_is_what_the_phase_is_given(name):
    kind = load_kind("aids", name)
    assert {*kind.model_fields} - {"type"} == {*FIELDS_OF_AIDS[name]}
    (plain,) = Full(type="full").phases(TASK, Training(), 99)
    phase = kind(type=name, **FIELDS_OF_AIDS[name]).apply(plain, TASK, SequenceClassification.sample()[1])
    if name == "early_stopping":
        stops = phase.callbacks[0]()
        assert isinstance(stops, EarlyStoppingCallback)
        found = {"patience": stops.early_stopping_patience, "threshold": stops.early_stopping_threshold}
    else:
        made: Any = {"label_smoothing": phase.item_loss, "layerwise_lr": phase.rate, "r_drop": phase.loss}[name]
        found = dict(zip(FIELDS_OF_AIDS[name], [each for each in made.args if isinstance(each, float)], strict=True))
    assert found == FIELDS_OF_AIDS[name]


@pytest.mark.parametrize("name", list_kinds("methods"))
def test_what_the_recipe_says_of_training_wins_over_a_method_s_defaults(name):
    method: Method = load_kind("methods", name).model_validate({"type": name})
    told = {field: value for field, value in OTHER.items() if field not in ("torch_compile", "max_steps")}
    for phase in method.phases(TASK, Training.model_validate(told), 99):
        own = {"num_train_epochs", "learning_rate", "warmup_steps", "eval_steps", "eval_strategy"}
        of_the_phase = own if phase.name == "head" else set()
        kept = {field: getattr(phase.training, field) for field in told if field not in of_the_phase}
        assert kept == {field: value for field, value in told.items() if field not in of_the_phase}
