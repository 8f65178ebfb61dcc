"""What checkpoints cost: seconds and bytes of each, and their share of the run, for full and LoRA on MiniLM.

    python -m tests.benchmarks.save_cost banking77/train.csv [--label category] [--rows 2000] [--epochs 3]

One after each epoch, each synced to the disk.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.full_speed import CHECKPOINT


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("data")
    asked.add_argument("--label", default="category")
    asked.add_argument("--rows", type=int, default=2000)
    asked.add_argument("--epochs", type=int, default=3)
    given = asked.parse_args()
    for method in ("full", "lora"):
        with tempfile.TemporaryDirectory() as folder:
            report(method, given, folder)


def report(method: str, given: Any, folder: str) -> None:
    import hf_sft
    from hf_sft.storage import checkpoint_files as checkpoints
    from hf_sft.trainer.resumable_trainer import ResumableTrainer

    seconds: list[float] = []
    sizes: list[int] = []
    save, write = ResumableTrainer._save_checkpoint, checkpoints.write

    def timed(self: Any, model: Any, trial: Any) -> None:
        began = time.monotonic()
        save(self, model, trial)
        seconds.append(time.monotonic() - began)

    def measured(path: Path, *parts: Any) -> None:
        write(path, *parts)
        sizes.append(sum(file.stat().st_size for file in path.iterdir()))

    ResumableTrainer._save_checkpoint, checkpoints.write = timed, measured  # pyright: ignore
    try:
        made = hf_sft.train(
            {
                "model": {"checkpoint": CHECKPOINT},
                "data": {"dataset": "csv", "data_files": given.data, "rows": given.rows},
                "task": {"type": "sequence_classification", "label": given.label},
                "method": {"type": method},
                "training": {"num_train_epochs": given.epochs, "eval_strategy": "epoch", "disable_tqdm": True},
                "output": {"folder": f"{folder}/run"},
            }
        )
    finally:
        ResumableTrainer._save_checkpoint, checkpoints.write = save, write
    run = made.facts["training"]["seconds"]
    print(
        f"{method}: {len(seconds)} checkpoints of {statistics.median(sizes[: len(seconds)]) / 2**20:.0f} MiB, "
        f"{statistics.median(seconds):.2f} s each, {sum(seconds) / run:.1%} of {run:.0f} s of training"
    )


if __name__ == "__main__":
    main()
