"""A recipe by several seeds, as a row of recipes/README.md. Finished runs are not run again.

    python -m tests.benchmarks.scores recipes/bbc_minilm_full.yaml --seeds 3 [key=value …]

Seed k draws the new weights, the order of rows and dropout; with --splits it draws the made splits too.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("recipe", type=Path)
    asked.add_argument("overrides", nargs="*")
    asked.add_argument("--seeds", type=int, default=3)
    asked.add_argument("--splits", action="store_true", help="draw the made splits by the seed too")
    asked.add_argument("--name", help="of the runs, when overrides make them another thing")
    given = asked.parse_intermixed_args()
    reports = []
    for seed in range(given.seeds):
        folder = Path("runs") / f"{given.name or given.recipe.stem}_seed{seed}"
        seeds = [f"seed={seed}", *([f"data.seed={seed}"] if given.splits else [])]
        if not (folder / "report.json").is_file():
            train = [sys.executable, "-m", "hf_sft", "train", str(given.recipe), *given.overrides, *seeds]
            subprocess.run([*train, f"output.folder={folder}", "training.disable_tqdm=true"], check=True)
        reports.append(json.loads((folder / "report.json").read_text()))
    print(row(given.name or given.recipe.stem, reports))


def row(name: str, reports: list[dict]) -> str:
    """Mean over seeds, the seeds' own values, the best baseline's mean, weights moved, seconds, peak memory."""
    metric = next(iter(reports[0]["metrics"]["test"]))

    def scores(of) -> list[float]:
        return [of(report)["test"][metric]["value"] for report in reports]

    ours = scores(lambda report: report["metrics"])
    baselines = {b: statistics.mean(scores(lambda r, b=b: r["baselines"][b])) for b in reports[0]["baselines"]}
    best = max(baselines, key=lambda baseline: baselines[baseline])
    moved = reports[0]["parameters"]["trainable"]
    seconds = statistics.median(report["training"]["seconds"] for report in reports)
    memory = max(phase["peak_memory_bytes"] for report in reports for phase in report["training"]["phases"]) / 2**30
    seeds = ", ".join(f"{value:.3f}" for value in ours)
    mean = f"{statistics.mean(ours):.3f} ({seeds})"
    return f"| {name} | {metric} | {mean} | {best} {baselines[best]:.3f} | {moved:,} | {seconds:.0f} s | {memory:.1f} GiB |"


if __name__ == "__main__":
    main()
