"""Seconds from the command to the first optimizer step, on 100,000 short rows: with empty caches, and again with warm ones.

    python -m tests.benchmarks.start_speed banking77/train.csv [--label category] [--rows 100000] [--rounds 3]

The rows are those of the file, over and over, each with a number at its end. What is printed beside: importing what a training
needs, and encoding alone.
"""

import argparse
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.full_speed import CHECKPOINT, MAX_LENGTH

UNTIL_THE_FIRST_STEP = """
import sys, time
from hf_sft import cli
cli.process.set_up()
from hf_sft.runs import prepare
from hf_sft.trainer.step_trainer import StepTrainer
encode = prepare.encode_splits
def timed(*given):
    start = time.perf_counter()
    try:
        return encode(*given)
    finally:
        print("encoding", time.perf_counter() - start, flush=True)
def stop(*given):
    print("first step", time.time(), flush=True)
    sys.exit(0)
prepare.encode_splits = timed
StepTrainer.training_step = stop
cli.main()
"""
ONLY_IMPORTS = """
import time
from hf_sft.config import process
process.set_up()
import hf_sft.runs.train
process.ready()
print('first step', time.time())
"""


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("data", type=Path)
    asked.add_argument("--label", default="category")
    asked.add_argument("--rows", type=int, default=100_000)
    asked.add_argument("--rounds", type=int, default=3)
    given = asked.parse_args()
    found: dict[str, list[float]] = {"imports": [], "encoding": [], "first start": [], "second start": []}
    for _ in range(given.rounds):
        with tempfile.TemporaryDirectory() as folder:
            recipe = write_recipe(given, Path(folder))
            environment = {**os.environ, "HF_HOME": f"{folder}/home"}
            train = ["-c", UNTIL_THE_FIRST_STEP, "train", str(recipe)]
            seconds, said = measure([*train, f"output.folder={folder}/first"], environment)
            found["first start"].append(seconds)
            found["encoding"].append(float(said["encoding"]))
            found["second start"].append(measure([*train, f"output.folder={folder}/second"], environment)[0])
            found["imports"].append(measure(["-c", ONLY_IMPORTS], environment)[0])
        print({name: round(values[-1], 2) for name, values in found.items()}, flush=True)
    for name, values in found.items():
        print(f"{name}: {statistics.median(values):.1f} s")


def write_recipe(given: argparse.Namespace, folder: Path) -> Path:
    rows = list(csv.DictReader(given.data.open(encoding="utf-8")))
    with (folder / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for number in range(given.rows):
            row = rows[number % len(rows)]
            writer.writerow([f"{row['text']} {number}", row[given.label]])
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"model: {{checkpoint: '{CHECKPOINT}'}}\n"
        f"data: {{dataset: csv, data_files: {folder}/rows.csv}}\n"
        f"task: {{type: sequence_classification, label: label, max_length: {MAX_LENGTH}}}\n"
        "method: {type: full}\n"
    )
    return recipe


def measure(words: list[str], environment: dict[str, str]) -> tuple[float, dict[str, str]]:
    start = time.time()
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)
    said = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines() if line.startswith(("first step", "encoding")))
    if "first step" not in said:
        raise RuntimeError(done.stderr[-2000:])
    return float(said["first step"]) - start, said


if __name__ == "__main__":
    main()
