"""Our head on stored features against scikit-learn's logistic regression on the same features: accuracy and seconds.

    python -m tests.benchmarks.head_scores recipes/banking77_minilm_head_only.yaml [key=value …]

Features are what the head reads: of train to learn from, of test to be scored on. Both start when they are there.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("recipe")
    asked.add_argument("overrides", nargs="*")
    given = asked.parse_intermixed_args()

    from hf_sft.frozen.features import store_features
    from hf_sft.runs.prepare import as_recipe, prepare
    from hf_sft.trainer.fit import fit_phases

    prepared = prepare(as_recipe(given.recipe, [*given.overrides, "training.disable_tqdm=true"]))
    stored: dict[str, Any] = {}
    for name in ("train", "validation", "test"):
        stored[name] = store_features(prepared.loaded, prepared.examples[name], prepared.splits.task.items, prepared.machine)
    labels = {name: np.array(each.encoded["labels"][:]) for name, each in prepared.examples.items()}

    start = time.perf_counter()
    model, _ = fit_phases(prepared.phases, prepared.loaded, [prepared.fit_config(Path("runs", "head_scores"))])
    seconds = time.perf_counter() - start
    print(f"our head: {accuracy(prepared, model, labels['test']):.4f}, {seconds:.1f} s")

    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    vectors = {name: each.features.reshape(len(each), -1) for name, each in stored.items()}
    for strength in (0.1, 1.0, 10.0):
        start = time.perf_counter()
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))
        probe.fit(vectors["train"], labels["train"])
        seconds = time.perf_counter() - start
        validation, test = (float(probe.score(vectors[name], labels[name])) for name in ("validation", "test"))
        print(f"logistic regression, C = {strength}: {test:.4f} (validation {validation:.4f}), {seconds:.1f} s")


def accuracy(prepared: Any, model: Any, labels: np.ndarray) -> float:
    from hf_sft.evaluation.inference import run_blocks

    ran = run_blocks(model, prepared.examples["test"].blocks(), prepared.splits.task.inference_step, prepared.machine)
    logits = np.concatenate([np.stack([row[0] for row in kept]) for _, kept in ran])
    return float((logits.reshape(len(labels), -1).argmax(1) == labels).mean())


if __name__ == "__main__":
    main()
