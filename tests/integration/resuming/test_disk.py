"""A disk that is full or read-only costs no training; two runs never share a folder."""

import errno
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import hf_sft
from hf_sft.errors import SaveError
from hf_sft.storage import checkpoint_files as kept
from tests import processes, stopping
from tests.processes import LONG


def test_two_runs_in_one_folder_are_kept_apart_by_a_lock_that_the_dead_do_not_hold(recipes, tmp_path):
    first = stopping.start(recipes["full"], tmp_path / "run", slowly=0.2)
    stopping.wait_until_begun(tmp_path / "run", first.is_alive)
    with pytest.raises(hf_sft.RecipeError, match=f"another run is at work in `.*`: process {first.pid} on "):
        stopping.train(recipes["full"], tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "checkpoints" / "run.json").exists()
    first.kill()
    first.join()
    stopping.train(recipes["full"], tmp_path / "run", resume=True)


FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_or_one_that_may_only_be_read_costs_no_training(number, recipes, unstopped, tmp_path, monkeypatch, capsys):
    """Of all checkpoints only the first finds room: the best is kept in memory, and what is saved at the end is the same."""
    write = kept.write

    def full(path: Path, *parts: Any) -> None:
        if path.name != "checkpoint-5":
            raise OSError(number, os.strerror(number))
        write(path, *parts)

    monkeypatch.setattr(kept, "write", full)
    stopping.train(recipes["full"], tmp_path / "run")
    said = capsys.readouterr().err
    assert said.count(f"checkpoint-10` can't be written: {os.strerror(number)}.  `") == 1 == said.count("can't be written")
    assert "checkpoint-5` is kept; the training goes on." in said
    assert stopping.fingerprint(tmp_path / "run") == unstopped("full")


def test_a_disk_that_is_full_at_the_end_leaves_what_can_be_gone_on_with_elsewhere(
    recipes, unstopped, tmp_path, monkeypatch, capsys
):
    write = kept.write

    def full(path: Path, *parts: Any) -> None:
        if path.name == kept.FINISHED:
            raise FULL
        write(path, *parts)

    def save(*_: Any) -> None:
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr(kept, "write", full)
        patch.setattr("hf_sft.runs.train.save_model", save)
        with pytest.raises(SaveError) as error:
            stopping.train(recipes["full"], tmp_path / "run")
    assert re.search(r"can't be written: No space left on device\.  `.*/checkpoint-\d+` is kept", str(error.value))
    told = rf"The checkpoint `{tmp_path}/run/checkpoints/0/{kept.FINISHED}` can't be written: No space left on device\."
    assert re.search(told, capsys.readouterr().err)
    assert f"cp -r {tmp_path / 'run'} OTHER, and the same command with --resume output.folder=OTHER" in str(error.value)
    shutil.copytree(tmp_path / "run", tmp_path / "other")
    stopping.train(recipes["full"], tmp_path / "other", resume=True)
    assert stopping.fingerprint(tmp_path / "other") == unstopped("full")


def test_what_safetensors_says_of_a_full_disk_is_understood(recipes, tmp_path):
    """A limit on the size of files, which is a real error of the disk: no checkpoint fits, and no model."""
    process = processes.SERVER.Process(target=_limited, args=(recipes["full"], tmp_path / "run"))
    process.start()
    process.join(LONG)
    said = stopping.said(tmp_path / "run")
    assert process.exitcode == 2 and "SaveError" in said and "can't be written: File too large" in said, said
    assert "there is none yet; the training goes on." in said and "Traceback" not in said


def _limited(recipe: dict[str, Any], output: Path) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
    stopping._child(recipe, output, 0.0, None, {}, f"{output}.said")
