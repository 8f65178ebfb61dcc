"""The main job on a real checkpoint and real text, by the commands that people type."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import ROOT

RECIPE = str(ROOT / "recipes" / "bbc_minilm_head_only.yaml")
SMALL = ["data.splits={validation: 0.04, test: 0.06}", "data.rows=160", "task.max_length=48", "training.num_train_epochs=5"]


def run(*command: str) -> subprocess.CompletedProcess:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Callable[[int], Path]:
    """A folder with a run in it that so many processes trained, with what it said on standard error in `said`."""
    made: dict[int, Path] = {}

    def train(processes: int) -> Path:
        if processes not in made:
            folder = made[processes] = tmp_path_factory.mktemp(f"by_{processes}")
            config = ROOT / "accelerate_configs" / ("cpu.yaml" if processes == 1 else "cpu_multi.yaml")
            launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
            done = run(*launch, "-m", "hf_sft", "train", RECIPE, *SMALL, f"output.folder={folder / 'run'}")
            (folder / "said").write_text(done.stderr)
        return made[processes]

    return train


@pytest.mark.parametrize("processes", [1, 2])
def test_bbc_with_minilm_is_learned_by_one_process_and_by_two(processes, trained):
    folder = trained(processes)
    assert "baseline tfidf_logreg" in (folder / "said").read_text()
    report = json.loads((folder / "run" / "report.json").read_text())
    assert report["environment"]["processes"] == processes
    accuracy = report["metrics"]["test"]["accuracy"]
    assert accuracy["value"] > 0.75 and accuracy["low"] < accuracy["value"] < accuracy["high"]
    assert accuracy["low"] > report["baselines"]["majority"]["test"]["accuracy"]["high"]
    assert report["training"]["phases"][0]["stored_features"] and report["data"]["truncated_share"] > 0.9


def test_a_run_answers_from_the_command_line(trained):
    finished = trained(1) / "run"
    text = "The striker scored twice and the coach praised his team after the match."
    answer = json.loads(run(sys.executable, "-m", "hf_sft", "predict", str(finished), text).stdout)
    assert answer["row"] == 0 and answer["label"] == "sports" and sum(answer["scores"].values()) == pytest.approx(1, abs=1e-4)
    Path("more.csv").write_text(f"text,label\n{text},sports\nThe bank raised its rates and shares fell.,business\n")
    other = ["--data", "dataset=csv", "--data", "data_files=more.csv"]
    scored = json.loads(run(sys.executable, "-m", "hf_sft", "evaluate", str(finished), *other).stdout)
    assert set(scored["data"]) == {"accuracy", "f1_macro"} and not (finished / "checkpoints").exists()
