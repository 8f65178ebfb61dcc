"""What was saved is asked what the trained model was asked, and a difference is an error."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import hf_sft
from hf_sft import certificate
from tests import tiny

SINGLE = "single_label_classification"


def trained(checkpoint: Path, folder: Path, problem: str = SINGLE, method: str = "full") -> dict[str, Any]:
    """The certificate of a run."""
    files = tiny.write_rows(folder.parent / "data", problem)
    return hf_sft.train(tiny.recipe(checkpoint, files, folder, method, task=tiny.task_of(problem))).facts["certificate"]


def change_one_weight(folder: Path) -> None:
    (path,) = folder.glob("*model.safetensors")
    weights = load_file(path)
    name = next(name for name in weights if name.endswith(("value.weight", "lora_B.weight")))
    weights[name][0, 0] += 0.5
    save_file(weights, path, metadata={"format": "pt"})


def change_a_token(folder: Path) -> None:
    words = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = words["model"]["vocab"]
    first, second = tiny.WORDS[:2]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (folder / "tokenizer.json").write_text(json.dumps(words))


@pytest.mark.parametrize(("family", "problem"), tiny.CASES)
@pytest.mark.parametrize("method", ["full", "lora:kept"])
def test_every_kind_of_run_answers_its_probes_again(family, problem, method, checkpoints, tmp_path):
    found = trained(checkpoints[family], tmp_path / "run", problem, method)
    assert found["within"] and found["rows"] == 11 and found["largest_difference"] < 1e-5


@pytest.mark.parametrize("method", ["full", "lora:kept"])
def test_a_process_of_its_own_says_the_same(method, checkpoints, tmp_path):
    here = trained(checkpoints["bert"], tmp_path / "run", method=method)
    run = str(tmp_path / "run")
    assert fresh(run)() == {name: here[name] for name in ("rows", "largest_difference", "bound")}


@pytest.mark.parametrize("method", ["full", "lora:merged", "lora:kept"])
@pytest.mark.parametrize("change", [change_one_weight, change_a_token])
def test_what_has_changed_since_it_was_trained_is_refused(method, change, checkpoints, tmp_path):
    trained(checkpoints["bert"], tmp_path / "run", method=method)
    change(tmp_path / "run")
    found = certificate.begin(tmp_path / "run", tmp_path / "run", "cpu")()
    assert not found["within"] and found["largest_difference"] > found["bound"]
    with pytest.raises(hf_sft.CheckpointError, match="does not answer as the model did that was trained: on 11 rows of test"):
        certificate.require(found, tmp_path / "run")


def test_a_broken_merge_fails_the_run_and_is_not_published(checkpoints, tmp_path, monkeypatch):
    import hf_sft.workflow

    save: Callable[..., None] = hf_sft.workflow.save_model
    monkeypatch.setattr("hf_sft.workflow.save_model", lambda *given: (save(*given), change_one_weight(given[-1])))
    monkeypatch.setattr("hf_sft.hub.publish", lambda *_, **__: pytest.fail("it was published"))
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "lora:merged")
    with pytest.raises(hf_sft.CheckpointError, match="does not answer as the model did that was trained"):
        hf_sft.train(recipe)
    facts = json.loads((tmp_path / "run" / "report.json").read_text())
    assert not facts["certificate"]["within"]
    assert "NOT as the trained one did" in (tmp_path / "run" / "README.md").read_text()


def test_what_cannot_be_loaded_again_is_named(checkpoints, tmp_path):
    trained(checkpoints["bert"], tmp_path / "run")
    run = str(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    end = fresh(run)
    with pytest.raises(ValueError, match="no file named"):
        end()


def fresh(run: str) -> Callable[[], dict[str, Any]]:
    """A real process, which the suite spares otherwise."""
    from tests.conftest import FRESH_PROCESS

    return FRESH_PROCESS(lambda: None, run, run, "cpu")


def test_a_fresh_process_whose_parent_is_gone_says_nothing():
    done = subprocess.run(
        [sys.executable, "-c", certificate.FRESH, "a", "b", "cpu"], input="", capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "")
