"""Our loop against a bare PyTorch loop on the same micro-batches, and what of a training is outside its steps.

    python -m tests.benchmarks.loop_speed banking77/train.csv [--label category] [--batch-size 32] [--steps 105] [--rounds 3]

The bare loop is what one would write: autocast, cross-entropy over the step's rows, clipping, the fused AdamW, a linear
schedule; once with PyTorch's dropout and once with ours.
"""

import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from hf_sft.config.process import use_memory_well
from tests.benchmarks.full_speed import LEARNING_RATE, recipe_of
from tests.benchmarks.turns import SKIPPED, Watch, ask, medians, take_turns

SIDES = ("hf_sft", "bare", "bare_with_our_dropout")


def main() -> None:
    given, words = ask(SIDES, steps=105)
    if given.side:
        use_memory_well()  # as the command does, for all sides
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps((run_ours if given.side == "hf_sft" else run_bare)(given, folder)))
        return
    found = take_turns(__spec__.name, SIDES, given.rounds, words)
    steps = medians(found, "milliseconds")
    for side in SIDES[1:]:
        print(f"a step of ours takes {steps['hf_sft'] / steps[side]:.3f} times that of {side} ({steps[side]:.1f} ms)")
    print(f"outside the steps: {medians({'hf_sft': found['hf_sft']}, 'outside')['hf_sft']:.1%} of a training")


def run_ours(given: Any, folder: str) -> dict[str, float]:
    from transformers import TrainerCallback

    from hf_sft.runs.prepare import as_recipe, prepare
    from hf_sft.trainer.fit import fit

    inside: list[float] = []

    class Inside(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            inside.append(-time.perf_counter())

        def on_step_end(self, *_: Any, **__: Any) -> None:
            inside[-1] += time.perf_counter()

    prepared, watch = prepare(as_recipe(recipe_of(given, folder))), Watch(given.batch_size)
    (phase,) = prepared.phases
    watched = replace(phase, callbacks=(*phase.callbacks, lambda: watch, Inside))
    _, curve = fit(watched, prepared.loaded, prepared.fit_config(Path(folder, "run")))
    return {"milliseconds": 1000 * given.batch_size / watch.rate(), "outside": 1 - sum(inside) / curve.seconds}


def run_bare(given: Any, folder: str) -> dict[str, float]:
    import contextlib

    import torch
    from torch.nn import functional

    from hf_sft.data.examples import StepSampler
    from hf_sft.runs.prepare import as_recipe, prepare
    from hf_sft.trainer.speedups.cpu_dropout import CpuDropout

    prepared = prepare(as_recipe(recipe_of(given, folder)))
    model, machine, train = prepared.loaded.model, prepared.machine, prepared.examples["train"]
    model.set_attn_implementation("eager")
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, given.steps)
    sampler, ends = StepSampler(train, given.batch_size, machine.micro_batch_tokens, 0, 0, 1), []
    dropout = CpuDropout() if given.side == "bare_with_our_dropout" else contextlib.nullcontext()
    with dropout:
        for step in sampler:
            for micro_batch in step:
                batch = train.collate(micro_batch.places)
                labels = batch.pop("labels")
                with machine.autocast():
                    loss = functional.cross_entropy(model(**batch).logits.float(), labels, reduction="sum")
                (loss / micro_batch.step_items).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            ends.append(time.perf_counter())
            if len(ends) == given.steps:
                break
    counted = ends[SKIPPED - 1 :]
    return {"milliseconds": 1000 * (counted[-1] - counted[0]) / (len(counted) - 1)}


if __name__ == "__main__":
    main()
