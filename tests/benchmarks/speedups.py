"""What each speed-up gives by itself: all of them against all but one.

    python -m tests.benchmarks.speedups banking77/train.csv [SPEEDUP …] [--label category] [--batch-size 32] [--rounds 3]

MiniLM, by the method that the speed-up is for. The two sides take turns, each time in a process of its own with empty caches,
which has the command's memory. Storing counts as training: of those two the figure is of the whole training, of the others of
a step.
"""

import argparse
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.full_speed import recipe_of
from tests.benchmarks.turns import Watch, take_turns

METHODS = {
    "stored_features": {"type": "head_only"},
    "stored_states": {"type": "last_layers", "layers": 1},
    "lora_linear": {"type": "lora"},
    "cpu_dropout": {"type": "full"},
    "cpu_attention": {"type": "full"},
}
STEPS = {"stored_features": 1000, "stored_states": 1000}
"""Of ten thousand rows, three epochs; 45 of the others."""


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("data")
    asked.add_argument("speedups", nargs="*", metavar="SPEEDUP")
    asked.add_argument("--label", default="category")
    asked.add_argument("--batch-size", type=int, default=32)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--side", choices=("on", "off"))
    given = asked.parse_args()
    if given.side:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(measure(given, folder)))
        return
    for name in given.speedups or METHODS:
        words = [given.data, name, f"--label={given.label}", f"--batch-size={given.batch_size}"]
        found = take_turns(__spec__.name, ("on", "off"), given.rounds, words)
        on, off = ([each["seconds"] for each in found[side]] for side in ("on", "off"))
        without = [1 - mine / theirs for mine, theirs in zip(on, off, strict=True)]
        what = "of a training" if name in STEPS else "of a step"
        print(f"{name}, {METHODS[name]['type']}: {statistics.median(without):.1%} {what} less, {min(without):.1%} to ", end="")
        print(f"{max(without):.1%} ({statistics.median(on):.3f} s, and {statistics.median(off):.3f} s without)", flush=True)


def measure(given: Any, folder: str) -> dict[str, float]:
    from hf_sft.config import process
    from hf_sft.runs.prepare import as_recipe, prepare
    from hf_sft.trainer.fit import SPEEDUPS, fit

    process.use_memory_well()
    (name,) = given.speedups
    given.steps = STEPS.get(name, 45)
    recipe = {**recipe_of(given, folder), "method": METHODS[name]}
    prepared, watch = prepare(as_recipe(recipe)), Watch(given.batch_size)
    (phase,) = prepared.phases
    watched = replace(phase, callbacks=(*phase.callbacks, lambda: watch))
    chosen = [each for each in SPEEDUPS if given.side == "on" or each.__name__ != name]
    _, curve = fit(watched, prepared.loaded, prepared.fit_config(Path(folder, "run"), speedups=chosen))
    return {"seconds": curve.seconds if name in STEPS else given.batch_size / watch.rate(), "loss": curve.losses[-1]}


if __name__ == "__main__":
    main()
