"""What a recipe means that leaves a number out, and which numbers it may say."""

import math
import sys
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import ValidationError

from hf_sft.block import list_kinds, load_kind
from hf_sft.config.training import Training
from hf_sft.data.data_source import DataSource

NUMBERS = """
training.batch_size 32 1,2,8
training.micro_batch_tokens None 1,2,8
training.num_train_epochs 3.0 1,2,8
training.max_steps -1 0,1,2,8
training.learning_rate 5e-05 1,2,8
training.warmup_steps 0.1 0,1,2,8
training.weight_decay 0.01 0,1,2,8
training.adam_beta1 0.9 0
training.adam_beta2 0.999 0
training.adam_epsilon 1e-08 1,2,8
training.max_grad_norm 1.0 0,1,2,8
training.eval_steps None 1,2,8
training.save_total_limit 2 1,2,8
training.save_minutes 15.0 1,2,8
training.max_skipped_steps 0 0,1,2,8
training.logging_steps 10.0 1,2,8
training.dataloader_num_workers 0 0,1,2,8
training.ddp_timeout 1800 1,2,8
data.rows None 1,2,8
data.rows_per_label None 1,2,8
data.seed 0 0,1,2,8
last_layers.layers 2 1,2,8
lora.r 8 1,2,8
lora.alpha 16.0 1,2,8
lora.dropout 0.0 0
causal_lm.max_length None 8
causal_lm.stride 128 0,1,2,8
chat.max_length None 8
masked_lm.max_length None 8
masked_lm.probability 0.15 -
multiple_choice.max_length None 8
question_answering.max_length 384 -
question_answering.stride 128 1,2,8
question_answering.max_answer_length 30 1,2,8
question_answering.null_threshold None -2,0,1,2,8
seq2seq.max_length None 8
seq2seq.max_target_length 128 2,8
seq2seq.num_beams 1 1,2,8
sequence_classification.max_length None 8
token_classification.max_length None 8
early_stopping.patience 3 1,2,8
early_stopping.threshold 0.0 0,1,2,8
label_smoothing.epsilon 0.1 -
layerwise_lr.decay 0.9 1
r_drop.alpha 1.0 1,2,8
"""
"""Each field that is a number, its default, and which of -2, 0, 1, 2 and 8 it takes: a recipe that says nothing trains as
those did whose scores were published."""
DEFAULTS = {
    "full": {"learning_rate": 5e-5, "num_train_epochs": 3, "warmup_steps": 0.1},
    "head_only": {"learning_rate": 1e-3, "num_train_epochs": 20, "warmup_steps": 0.0},
    "last_layers": {"learning_rate": 2e-4, "num_train_epochs": 3, "warmup_steps": 0.1},
    "lora": {"learning_rate": 5e-4, "num_train_epochs": 3, "warmup_steps": 0.1},
    "lp_ft": {"learning_rate": 5e-5, "num_train_epochs": 3, "warmup_steps": 0.1},
}


def numbers() -> Iterator[tuple[str, Any, dict[str, Any], str]]:
    """Block, its class, what it needs to be valid, and a field that takes a number."""
    blocks: dict[str, tuple[Any, dict[str, Any]]] = {"training": (Training, {}), "data": (DataSource, {"dataset": "json"})}
    for kind in ("methods", "tasks", "aids"):
        blocks |= {name: (load_kind(kind, name), {"type": name}) for name in list_kinds(kind)}
    for name, (block, needed) in blocks.items():
        for field, told in block.model_fields.items():
            if {int, float} & {told.annotation, *get_args(told.annotation)} and field != "splits":
                yield name, block, needed, field


def takes(block: Any, fields: dict[str, Any]) -> bool:
    try:
        block.model_validate(fields)
    except ValidationError:
        return False
    return True


def test_a_number_that_is_left_out_is_the_one_it_was_and_impossible_ones_are_refused():
    found = []
    for name, block, needed, field in numbers():
        taken = ",".join(str(value) for value in (-2, 0, 1, 2, 8) if takes(block, {**needed, field: value}))
        found.append(f"{name}.{field} {block.model_fields[field].default} {taken or '-'}")
        assert not any(takes(block, {**needed, field: odd}) for odd in (math.nan, math.inf, "many")), field
    assert "\n".join(found) == NUMBERS.strip()
    methods = {name: load_kind("methods", name) for name in list_kinds("methods")}
    assert {name: method.training_defaults for name, method in methods.items()} == DEFAULTS
    assert {method.steps for name, method in methods.items() if name != "head_only"} == {(500, sys.maxsize)}
    assert methods["head_only"].steps == (1000, 6000)
