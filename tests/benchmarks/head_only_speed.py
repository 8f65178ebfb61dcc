"""Seconds from a recipe to a trained head, ten epochs, against the plain Trainer on a body that rests (`requires_grad=False`).

    python -m tests.benchmarks.head_only_speed recipes/bbc_minilm_head_only.yaml [key=value …] [--epochs 10] [--rounds 3]

Everything is counted but imports: reading, encoding, loading, training. Ours with empty caches and with warm ones; beside it
one pass of the model over the rows of train, sorted by length, in eval mode, encoding included. All in one precision, none
scores. The plain Trainer trains so many steps of the first epoch, and the rest is reckoned from them.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_sft.config.process import use_memory_well
from tests.benchmarks.turns import Watch, medians, take_turns

SIDES = ("hf_sft", "one_pass", "plain")


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("recipe")
    asked.add_argument("overrides", nargs="*")
    asked.add_argument("--epochs", type=int, default=10)
    asked.add_argument("--steps", type=int, default=45, help="of the plain Trainer")
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--side", choices=SIDES)
    given = asked.parse_intermixed_args()
    if given.side:
        use_memory_well()  # as the command does, for all sides
        run = {"hf_sft": train_ours, "one_pass": pass_once, "plain": train_plain}[given.side]
        print(json.dumps(run(given)))
        return
    words = [given.recipe, *given.overrides, f"--epochs={given.epochs}", f"--steps={given.steps}"]
    found = take_turns(__spec__.name, SIDES, given.rounds, words)
    seconds = {**medians(found, "seconds"), **{"warm": medians({"hf_sft": found["hf_sft"]}, "warm_seconds")["hf_sft"]}}
    print(f"{given.recipe}, {given.epochs} epochs: plain {seconds['plain']:.1f} s")
    print(f"hf_sft {seconds['hf_sft']:.1f} s: {seconds['plain'] / seconds['hf_sft']:.1f} times the plain Trainer")
    print(f"  {seconds['hf_sft'] / seconds['one_pass']:.2f} times the seconds of one pass ({seconds['one_pass']:.1f} s)")
    print(f"caches warm {seconds['warm']:.1f} s: {seconds['plain'] / seconds['warm']:.0f} times the plain Trainer")


def get_ready(given: Any) -> Any:
    from hf_sft.runs.prepare import as_recipe, prepare

    asked = [f"training.num_train_epochs={given.epochs}", "training.eval_strategy=no", "training.disable_tqdm=true"]
    return prepare(as_recipe(given.recipe, [*given.overrides, *asked]))


def train_ours(given: Any) -> dict[str, float]:
    from hf_sft.trainer.fit import fit_phases

    def seconds() -> float:
        start = time.perf_counter()
        prepared = get_ready(given)
        with tempfile.TemporaryDirectory() as folder:
            _, (curve,) = fit_phases(prepared.phases, prepared.loaded, [prepared.fit_config(Path(folder))])
        assert curve.stored_features
        return time.perf_counter() - start

    return {"seconds": seconds(), "warm_seconds": seconds()}


def pass_once(given: Any) -> dict[str, float]:
    import torch

    from hf_sft.data.examples import cut_step, to_device

    start = time.perf_counter()
    prepared = get_ready(given)
    train, machine = prepared.examples["train"], prepared.machine
    (cut,) = cut_step(torch.arange(len(train)).numpy(), train.costs, machine.micro_batch_tokens)
    with torch.no_grad(), machine.autocast():
        for micro_batch in cut:
            prepared.loaded.model(**to_device(train.collate(micro_batch.places), machine.device))
    return {"seconds": time.perf_counter() - start}


def train_plain(given: Any) -> dict[str, float]:
    from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

    from hf_sft.trainer.arguments import training_arguments

    start = time.perf_counter()
    prepared = get_ready(given)
    body, training = prepared.loaded.body, prepared.phases[0].training
    for name, parameter in prepared.loaded.model.named_parameters():
        parameter.requires_grad = name in prepared.loaded.head
    rows = prepared.examples["train"].encoded.select_columns(["input_ids", "token_type_ids", "labels"])
    with tempfile.TemporaryDirectory() as folder:
        arguments = replace(
            training_arguments(training, prepared.machine, Path(folder), 0, None),
            num_train_epochs=1,
            max_steps=given.steps,
            train_sampling_strategy="random",
        )
        assert isinstance(arguments, TrainingArguments)
        trainer = Trainer(
            model=prepared.loaded.model,
            args=arguments,
            train_dataset=rows,
            data_collator=DataCollatorWithPadding(prepared.processor),
        )
        watch = Watch(training.batch_size)
        trainer.add_callback(watch)
        ready = time.perf_counter() - start
        trainer.train()
    assert not any(parameter.requires_grad for name, parameter in body.named_parameters() if "pooler" not in name)
    return {"seconds": ready + given.epochs * len(rows) / watch.rate(), "rows_per_second": watch.rate()}


if __name__ == "__main__":
    main()
