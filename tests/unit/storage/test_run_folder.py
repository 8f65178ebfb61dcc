"""A run folder: nothing that a run did not make is removed, what it wrote is whole, and one run has it at a time."""

import errno
import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback
from transformers.integrations import integration_utils

import hf_sft
from hf_sft.data.data_source import DataSource
from hf_sft.errors import RecipeError
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.storage import atomic_folder as whole
from hf_sft.storage import checkpoint_files as kept
from hf_sft.storage import run_folder
from hf_sft.trainer.signals import Interrupted
from hf_sft.trainer.step_trainer import StepTrainer
from tests import stopping, tiny

SINGLE = "single_label_classification"
FOREIGN = {"notes.txt": "mine", "checkpoints/my_model.bin": "weights", "checkpoints/0/mine.txt": "mine too"}


@pytest.fixture(scope="module")
def recipe(checkpoints, tmp_path_factory) -> dict[str, Any]:
    """One epoch of a head, without output."""
    files = tiny.write_rows(tmp_path_factory.mktemp("data"), SINGLE)
    return tiny.recipe(checkpoints["bert"], files, Path("unused"), "head_only", training={"max_steps": 4})


@pytest.fixture
def finished(recipe, tmp_path) -> Path:
    stopping.train(recipe, tmp_path / "run")
    return tmp_path / "run"


def plant(folder: Path, files: dict[str, str] = FOREIGN) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)


def contents(folder: Path) -> dict[str, str]:
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "files",
    [FOREIGN, {"checkpoints/my_model.bin": "weights"}, {"checkpoints": "a file"}, {"checkpoints/run.json": "not json"}],
)
def test_a_folder_that_no_run_made_is_left_as_it_is_with_resume_too(files, recipe, tmp_path):
    plant(tmp_path / "run", files)
    with pytest.raises(RecipeError, match=r"is not empty|can't be gone on with: its checkpoints/run\.json is damaged"):
        stopping.train(recipe, tmp_path / "run", resume=True)
    assert contents(tmp_path / "run") == files


@pytest.mark.parametrize("end", ["finished", "interrupted", "failed"])
def test_what_others_put_below_checkpoints_stays_whatever_becomes_of_the_run(end, recipe, tmp_path, monkeypatch):
    step = StepTrainer.training_step

    def training_step(self: StepTrainer, *given: Any) -> Any:
        plant(tmp_path / "run")
        if end == "interrupted":
            raise KeyboardInterrupt
        if end == "failed":
            raise OSError(errno.ENOSPC, "No space left on device")
        return step(self, *given)

    monkeypatch.setattr(StepTrainer, "training_step", training_step)
    if end == "finished":
        stopping.train(recipe, tmp_path / "run")
    else:
        with pytest.raises((KeyboardInterrupt, hf_sft.HfSftError)):
            stopping.train(recipe, tmp_path / "run")
    left = contents_of(tmp_path / "run", FOREIGN)
    assert left == FOREIGN
    record = [] if end == "finished" else ["run.json"]
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["0", "my_model.bin", *record]
    assert [path.name for path in (tmp_path / "run" / "checkpoints" / "0").iterdir()] == ["mine.txt"]
    if end != "finished":
        monkeypatch.setattr(StepTrainer, "training_step", step)
        stopping.train(recipe, tmp_path / "run", resume=True)
        assert run_folder.is_finished(tmp_path / "run") and contents_of(tmp_path / "run", FOREIGN) == FOREIGN


def contents_of(folder: Path, names: Any) -> dict[str, str]:
    return {name: (folder / name).read_text() for name in names}


@pytest.mark.parametrize("damage", ["", "{", "{}", "[1]", "null"])
def test_a_run_whose_report_was_not_written_whole_is_gone_on_with(damage, recipe, finished, tmp_path, monkeypatch):
    wanted, written = stopping.fingerprint(finished), run_folder.write_facts

    def cut_short(folder: Path, facts: dict[str, Any]) -> None:
        written(folder, facts)
        (folder / "report.json").write_text(damage)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hf_sft.reports.report.write_facts", cut_short)
        stopping.train(recipe, tmp_path / "other")
    assert run_folder.newest_checkpoint(tmp_path / "other") is not None
    with pytest.raises(RecipeError, match="holds no finished run"):
        hf_sft.evaluate(tmp_path / "other")
    stopping.train(recipe, tmp_path / "other", resume=True)
    assert stopping.fingerprint(tmp_path / "other") == wanted
    assert not (tmp_path / "other" / "checkpoints").exists()


def test_a_damaged_report_without_checkpoints_is_named_and_nothing_is_removed(recipe, finished):
    (finished / "report.json").write_text("")
    before = sorted(finished.rglob("*"))
    for resume in (False, True):
        with pytest.raises(RecipeError, match=r"holds a run that can't be gone on with: its report\.json is damaged"):
            stopping.train(recipe, finished, resume=resume)
    assert sorted(finished.rglob("*")) == before


def test_every_file_takes_its_place_by_one_rename_after_the_disk_has_it(recipe, tmp_path, monkeypatch):
    """Whoever looks at any moment sees a file whole or not at all: no name in the folder is ever opened for writing."""
    synced, renamed = set(), []
    sync, replace = whole._sync, Path.replace

    def seen_sync(path: Path) -> None:
        if path.is_file():
            synced.add((path.stat().st_ino, path.stat().st_size))
        sync(path)

    def seen_replace(self: Path, target: Any) -> Any:
        renamed.append((Path(target), (self.stat().st_ino, self.stat().st_size)))
        return replace(self, target)

    monkeypatch.setattr(whole, "_sync", seen_sync)
    monkeypatch.setattr(Path, "replace", seen_replace)
    stopping.train(recipe, tmp_path / "run")
    files = {path for path in (tmp_path / "run").rglob("*") if path.is_file()}
    assert files <= {place for place, _ in renamed}
    for place, identity in renamed:
        assert identity in synced, place
        if place in files:
            assert (place.stat().st_ino, place.stat().st_size) == identity, f"{place} was changed after it was in its place"
    assert renamed[-1][0] == tmp_path / "run" / "report.json"


def test_the_report_lists_every_file_of_the_run_with_its_hash(finished):
    facts = json.loads((finished / "report.json").read_text())
    assert facts["files"] == {name: each for name, each in whole.hash_files(finished).items() if name != "report.json"}
    assert {"model.safetensors", "config.json", "README.md", "recipe.yaml", "predictions/test.jsonl"} < {*facts["files"]}


def test_a_run_that_finishes_while_another_gets_ready_is_not_overwritten(recipe, tmp_path, monkeypatch):
    import hf_sft.runs.train

    prepare = hf_sft.runs.train.prepare

    def slowly(*given: Any) -> Any:
        monkeypatch.setattr("hf_sft.runs.train.prepare", prepare)
        stopping.train(recipe, tmp_path / "run")
        return prepare(*given)

    monkeypatch.setattr("hf_sft.runs.train.prepare", slowly)
    with pytest.raises(RecipeError, match="already holds a finished run"):
        stopping.train({**recipe, "seed": 1}, tmp_path / "run")
    facts = json.loads((tmp_path / "run" / "report.json").read_text())
    assert facts["recipe"]["seed"] == 0
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_a_run_that_is_begun_while_another_gets_ready_is_not_mixed_with_it(recipe, tmp_path, monkeypatch):
    """The first is stopped with a checkpoint; the second, which found the folder empty, does not take its place."""
    import hf_sft.runs.train

    prepare, step = hf_sft.runs.train.prepare, StepTrainer.training_step

    def stop(self: StepTrainer, *given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *given)

    def slowly(*given: Any) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr("hf_sft.runs.train.prepare", prepare)
            patch.setattr(StepTrainer, "training_step", stop)
            with pytest.raises(Interrupted):
                stopping.train(recipe, tmp_path / "run")
        return prepare(*given)

    with monkeypatch.context() as patch:
        patch.setattr("hf_sft.runs.train.prepare", slowly)
        with pytest.raises(RecipeError, match="holds an unfinished run"):
            stopping.train({**recipe, "seed": 1}, tmp_path / "run")
    record = run_folder.read_record(tmp_path / "run")
    assert record is not None
    assert record["recipe"]["seed"] == 0
    assert run_folder.newest_checkpoint(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "0" / "checkpoint-1"


def test_a_lock_that_was_removed_as_it_was_taken_is_taken_again(tmp_path, monkeypatch):
    """Two that open the same file, which the first removes as it ends: the second must not hold what nobody else can see."""
    folder, hold = tmp_path / "run", run_folder._hold

    def removed_meanwhile(file: Any) -> Any:
        monkeypatch.setattr(run_folder, "_hold", hold)
        run_folder.remove_checkpoints(folder)
        return hold(file)

    monkeypatch.setattr(run_folder, "_hold", removed_meanwhile)
    with run_folder.lock_run_folder(folder, resume=False):
        assert (folder / "checkpoints" / "lock").read_text().startswith(f"process {os.getpid()}")
        with pytest.raises(RecipeError, match="another run is at work"), run_folder.lock_run_folder(folder, resume=False):
            pass
    assert not folder.exists()


def test_a_run_that_was_killed_as_it_began_leaves_a_folder_that_counts_as_empty(recipe, tmp_path):
    (tmp_path / "run" / "checkpoints" / ".hf_sft-x").mkdir(parents=True)
    (tmp_path / "run" / "checkpoints" / "lock").write_text("process 1 on nowhere")
    stopping.train(recipe, tmp_path / "run")
    assert run_folder.is_finished(tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_what_trackers_write_is_there_when_the_run_is_finished(recipe, tmp_path, monkeypatch):
    class Tracker(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            (Path(args.output_dir) / "events").mkdir(exist_ok=True)
            (Path(args.output_dir) / "events" / "log").write_text("a line")

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "tensorboard", Tracker)
    monkeypatch.setattr("hf_sft.config.training.get_available_reporting_integrations", lambda: ["tensorboard"])
    stopping.train({**recipe, "training": {**recipe["training"], "report_to": "tensorboard"}}, tmp_path / "run")
    assert (tmp_path / "run" / "logs" / "0" / "events" / "log").read_text() == "a line"
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert not any(name.startswith("logs") for name in json.loads((tmp_path / "run" / "report.json").read_text())["files"])


def test_folders_that_only_look_like_checkpoints_are_no_checkpoints(tmp_path):
    for name in ("checkpoint-best", "checkpoint-7", "checkpoint-", "checkpoint-10"):
        (tmp_path / name).mkdir()
    assert [path.name for path in kept.list_steps(tmp_path)] == ["checkpoint-7", "checkpoint-10"]
    kept.keep_only(tmp_path, 1, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-", "checkpoint-10", "checkpoint-best"]


@pytest.mark.parametrize("where", ["relative", "home"])
def test_a_run_means_the_same_wherever_one_stands(where, checkpoints, tmp_path, monkeypatch):
    """Another base and other data lie under the same relative names where it is used."""
    monkeypatch.setenv("HOME", str(tmp_path / "here"))
    prefix = "~/" if where == "home" else ""
    for place, family in (("here", 0.0), ("there", 1.0)):
        shutil.copytree(checkpoints["bert"], tmp_path / place / "base")
        weights = load_file(tmp_path / place / "base" / "model.safetensors")
        save_file({n: w + family * 0.1 for n, w in weights.items()}, tmp_path / place / "base" / "model.safetensors")
        rows = tiny.rows(SINGLE, 40)
        tiny_rows = [{**row, "label": "sport"} if family and i % 3 else row for i, row in enumerate(rows)]
        (tmp_path / place / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tiny_rows))
    made = tiny.recipe(Path(f"{prefix}base"), {}, Path("run"), "lora:kept", training={"max_steps": 3})
    made["data"] = {"dataset": "json", "data_files": f"{prefix}rows.jsonl"}
    made["model"]["checkpoint"] = f"{prefix}base"
    monkeypatch.chdir(tmp_path / "here")
    report = hf_sft.train(made)
    wanted = hf_sft.predict("run", ["goal match", "bank rates"])
    monkeypatch.chdir(tmp_path / "there")
    run = tmp_path / "here" / "run"
    assert hf_sft.predict(run, ["goal match", "bank rates"]) == wanted
    evaluation = hf_sft.evaluate(run)
    assert evaluation.scores["accuracy"].value == report.metrics["test"]["accuracy"]["value"]
    assert not any("the data has changed" in note for note in evaluation.notes)
    config = json.loads((run / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "here" / "base")
    shutil.copy(tmp_path / "there" / "base" / "model.safetensors", tmp_path / "here" / "base")
    for call in (lambda: hf_sft.predict(run, ["goal match"]), lambda: hf_sft.evaluate(run)):
        with pytest.raises(hf_sft.CheckpointError, match=rf"the weights of its base `{tmp_path}/here/base` are others now"):
            call()


def test_names_of_the_hub_and_of_packages_stay_as_they_are(tmp_path, monkeypatch):
    (tmp_path / "train.csv").write_text("text,label\n")
    (tmp_path / "nyu-mll").mkdir()
    for data in (
        {"dataset": "nyu-mll/glue", "data_files": "train.csv"},
        {"dataset": "csv", "data_files": "https://host/train.csv"},
        {"dataset": "csv", "data_files": {"train": "package:datasets/train.csv"}},
        {"dataset": "csv", "data_files": "nowhere.csv"},
    ):
        source = DataSource.model_validate(data)
        assert source.absolute() == source
    assert DataSource(dataset="csv", data_files="*.csv").absolute().data_files == str(tmp_path / "*.csv")
    assert DataSource(dataset="train.csv").absolute().dataset == str(tmp_path / "train.csv")
    assert Checkpoint(checkpoint="google-bert/bert-base-uncased").absolute().checkpoint == "google-bert/bert-base-uncased"
    assert Checkpoint(checkpoint="nyu-mll").absolute().checkpoint == str(tmp_path / "nyu-mll")
