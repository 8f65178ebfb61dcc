"""What was saved is asked what the trained model was asked, and a difference is an error."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import hf_sft
from hf_sft.models import reload_check
from hf_sft.runs.certify import certify
from hf_sft.storage.atomic_folder import hash_files
from tests import tiny
from tests.altered import change_a_token, change_one_weight
from tests.grids import one_each

SINGLE = "single_label_classification"


def trained(checkpoint: Path, folder: Path, problem: str = SINGLE, method: str = "full") -> dict[str, Any]:
    """The certificate of a run."""
    files = tiny.write_rows(folder.parent / "data", problem)
    return hf_sft.train(tiny.recipe(checkpoint, files, folder, method, task=tiny.task_of(problem))).facts["certificate"]


@pytest.mark.parametrize(("case", "method"), one_each([*product(tiny.CASES, ("full", "lora:kept"))]), ids=str)
def test_every_kind_of_run_answers_its_probes_again(case, method, checkpoints, finished_run, tmp_path):
    family, problem = case
    if method == "full":
        found = json.loads((finished_run(problem, family) / "report.json").read_text())["certificate"]
    else:
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
    found = reload_check.start(tmp_path / "run", tmp_path / "run", "cpu")()
    assert not found["within"] and found["largest_difference"] > found["bound"]
    with pytest.raises(hf_sft.CheckpointError, match="does not answer as the model did that was trained: on 11 rows of test"):
        reload_check.require(found, tmp_path / "run")


def test_a_broken_merge_fails_the_run_and_is_not_published(checkpoints, tmp_path, monkeypatch):
    import hf_sft.runs.train

    save: Callable[..., None] = hf_sft.runs.train.save_model
    monkeypatch.setattr("hf_sft.runs.train.save_model", lambda *given: (save(*given), change_one_weight(given[-1])))
    monkeypatch.setattr("hf_sft.hub.publish.publish", lambda *_, **__: pytest.fail("it was published"))
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "lora:merged")
    with pytest.raises(hf_sft.CheckpointError, match="does not answer as the model did that was trained"):
        hf_sft.train(recipe)
    facts = json.loads((tmp_path / "run" / "report.json").read_text())
    assert not facts["certificate"]["within"]
    assert "Reload check: FAILED" in (tmp_path / "run" / "README.md").read_text()


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

    return FRESH_PROCESS(lambda: None, run, run, "cpu", False)


def test_a_fresh_process_whose_parent_is_gone_says_nothing():
    done = subprocess.run(
        [sys.executable, "-P", "-c", reload_check.FRESH, "[]", json.dumps(sys.path)],
        input="",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_a_fresh_process_has_the_priority_of_its_parent_and_one_thread_until_that_waits(checkpoints, tmp_path):
    trained(checkpoints["bert"], tmp_path / "run")
    patch = """
import hf_sft.models.reload_check as c, torch
def compare(*given, before_each):
    alone = torch.get_num_threads()
    while torch.get_num_threads() == alone:
        before_each()
    return [os.getpriority(os.PRIO_PROCESS, 0), alone, torch.get_num_threads()]
c.compare = compare
"""
    code = reload_check.FRESH.replace("\ncompare_on_request()", f"\nimport os{patch}c.compare_on_request()")
    begun = subprocess.Popen(
        [sys.executable, "-P", "-c", code, "[]", json.dumps(sys.path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    out, _ = begun.communicate("compare\n3\n", timeout=600)
    assert json.loads(out) == [os.getpriority(os.PRIO_PROCESS, 0), 1, 3]


@pytest.mark.parametrize("trouble", ["late", "killed"])
def test_a_run_whose_certificate_could_not_be_had_is_whole_and_certified_later(
    trouble, checkpoints, tmp_path, monkeypatch, capsys
):
    from tests.conftest import FRESH_PROCESS

    wait = "import time; time.sleep(60)" if trouble == "late" else "import os; os.kill(os.getpid(), 9)"
    with monkeypatch.context() as patch:
        patch.setattr(reload_check, "fresh_process", FRESH_PROCESS)
        patch.setattr(reload_check, "FRESH", wait)
        patch.setattr(reload_check, "SILENT", 0.1)
        patch.setattr(reload_check, "LIMIT", 0.2)
        trained(checkpoints["bert"], tmp_path / "run")
    reason = "that took more than 0.2 s" if trouble == "late" else "its process was killed by signal 9"
    said = capsys.readouterr().err
    assert f"Reload check: NOT DONE ({reason}).  To do it: `hf-sft certify RUN`." in said
    assert ("waiting for the saved model to be loaded again" in said) == (trouble == "late")
    pages = [tmp_path / "run" / name for name in ("README.md", "report.html")]
    assert all("Reload check: NOT DONE" in page.read_text() for page in pages)
    facts = json.loads((tmp_path / "run" / "report.json").read_text())["certificate"]
    assert facts == {"rows": 0, "largest_difference": None, "bound": None, "within": None, "not_done": reason}
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert hf_sft.predict(tmp_path / "run", ["goal"])[0]["label"]
    report = certify(tmp_path / "run")
    assert report.facts["certificate"]["within"]
    read = json.loads((tmp_path / "run" / "report.json").read_text())
    assert read["certificate"] == report.facts["certificate"]
    assert all("Reload check: PASSED" in page.read_text() and "FAILED" not in page.read_text() for page in pages)
    assert read["files"] == {name: each for name, each in hash_files(tmp_path / "run").items() if name != "report.json"}
    change_one_weight(tmp_path / "run")
    with pytest.raises(hf_sft.CheckpointError, match="does not answer as the model did that was trained"):
        certify(tmp_path / "run")


def test_a_process_that_waits_is_ended_when_the_run_is_interrupted(monkeypatch):
    from tests.conftest import FRESH_PROCESS

    monkeypatch.setattr(reload_check, "FRESH", "import time; time.sleep(60)")
    begun: list[Any] = []
    start = subprocess.Popen

    def noted(*given: Any, **named: Any) -> Any:
        begun.append(start(*given, **named))
        return begun[0]

    monkeypatch.setattr(subprocess, "Popen", noted)
    end = FRESH_PROCESS(lambda: None, "a", "b", "cpu", False)
    monkeypatch.setattr(begun[0], "communicate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        end()
    assert begun[0].wait(600) == -9


def test_a_process_of_its_own_starts_where_the_current_folder_is_gone(checkpoints, tmp_path, monkeypatch):
    trained(checkpoints["bert"], tmp_path / "run")
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "gone").rmdir()
    assert fresh(str(tmp_path / "run"))()["rows"] == 11
