"""Peak memory of one recipe by full, LoRA and head-only; and of an evaluation, by the number of rows.

    python -m tests.benchmarks.memory banking77/train.csv [--label category] [--size base] [--steps 20]

The peak is the largest resident size of the process, as it is, and without what the libraries take before a model is loaded.
A BERT of the size of bert-base-uncased, with random weights (its memory does not depend on them), or MiniLM.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hf_sft.config.process import use_memory_well
from tests.benchmarks.full_speed import CHECKPOINT, recipe_of
from tests.benchmarks.turns import take_turns

METHODS = ("full", "lora", "head_only", "head_only_again")
"""The last: where the cache has what the body gives the head, since it is trained for the second time."""
EVALUATIONS = {"evaluate": 8_000, "evaluate_more": 40_000}
"""Rows of each: by the first number every kind of batch was met."""


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("data")
    asked.add_argument("--label", default="category")
    asked.add_argument("--size", choices=["base", "minilm"], default="base")
    asked.add_argument("--batch-size", type=int, default=32)
    asked.add_argument("--steps", type=int, default=20)
    asked.add_argument("--side", choices=[*METHODS, *EVALUATIONS])
    given = asked.parse_args()
    if given.side:
        use_memory_well()  # as the command does, for all sides
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps((train if given.side in METHODS else evaluate)(given, folder)))
        return
    words = [given.data, f"--label={given.label}", f"--size={given.size}", f"--steps={given.steps}"]
    found = take_turns(__spec__.name, [*METHODS, *EVALUATIONS], 1, words)
    (full,) = found["full"]
    for method in METHODS[1:]:
        (theirs,) = found[method]
        shares = (theirs["peak"] / full["peak"], (theirs["peak"] - theirs["before"]) / (full["peak"] - full["before"]))
        print(f"{given.size}: {method} {shares[0]:.0%} of full, {shares[1]:.0%} without the libraries")
    (few,), (many,) = (found[side] for side in EVALUATIONS)
    more = (many["peak"] - few["peak"]) / 2**20
    print(f"MiniLM, evaluating {EVALUATIONS['evaluate_more']:,} rows instead of {EVALUATIONS['evaluate']:,}: {more:+.0f} MiB")


def resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def get_ready(given: Any, folder: str, method: str) -> Any:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertModel

    from hf_sft.models.checkpoint import Checkpoint, find_checkpoint
    from hf_sft.runs.prepare import as_recipe, prepare

    recipe = recipe_of(given, folder, method)
    if given.size == "base":
        base = Path(folder, "base")
        torch.manual_seed(0)
        BertModel(BertConfig()).save_pretrained(base)
        AutoTokenizer.from_pretrained(str(find_checkpoint(Checkpoint(checkpoint=CHECKPOINT)))).save_pretrained(base)
        recipe["model"] = {"checkpoint": str(base)}
    return prepare(as_recipe(recipe))


def train(given: Any, folder: str) -> dict[str, float]:
    import hf_sft.runs.train  # noqa: F401
    from hf_sft.trainer.fit import fit_phases

    before = resident()
    if given.side == "head_only_again":
        first = [sys.executable, "-m", __spec__.name, *sys.argv[1:], "--side", "head_only"]
        subprocess.run(first, capture_output=True, check=True)
    prepared = get_ready(given, folder, given.side.removesuffix("_again"))
    _, (curve,) = fit_phases(prepared.phases, prepared.loaded, [prepared.fit_config(Path(folder, "run"))])
    return {"before": before, "peak": curve.peak_memory_bytes}


def evaluate(given: Any, folder: str) -> dict[str, float]:
    from datasets import concatenate_datasets

    from hf_sft.data.encoding import encode_blocks
    from hf_sft.evaluation.evaluate import EvaluationAccumulator, evaluate_blocks
    from hf_sft.evaluation.inference import run_blocks
    from hf_sft.evaluation.plan import EvaluationPlan

    prepared = get_ready(argparse.Namespace(**{**vars(given), "size": "minilm"}), folder, "full")
    rows, task, labels = prepared.splits.rows["train"].select(range(8_000)), prepared.splits.task, prepared.splits.labels
    many = concatenate_datasets([rows] * (EVALUATIONS[given.side] // len(rows)))
    blocks = encode_blocks(many, task, labels, prepared.processor)
    ran = run_blocks(prepared.loaded.model, blocks, task.inference_step, prepared.machine)
    evaluate_blocks("test", ran, EvaluationAccumulator(task, labels, EvaluationPlan()), lambda row: None)
    return {"peak": resident()}


if __name__ == "__main__":
    main()
