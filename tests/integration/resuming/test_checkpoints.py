"""Checkpoints: damaged ones are passed over, they hold no code, and states come back as they were."""

import json
import os
import re
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from hf_sft.storage import checkpoint_files as kept
from hf_sft.storage.atomic_folder import is_intact
from hf_sft.trainer.signals import Interrupted
from tests import stopping
from tests.integration.resuming.resuming_cases import stop_full


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(how, recipes, unstopped, tmp_path, stop_in_step, capsys):
    stop_full(recipes, tmp_path / "run", stop_in_step)
    phase = tmp_path / "run" / "checkpoints" / "0"
    assert [path.name for path in kept.list_steps(phase)] == ["checkpoint-5", "checkpoint-10", "checkpoint-12"]
    files = sorted(path.name for path in (phase / "checkpoint-12").iterdir())
    assert files == ["model.safetensors", "state.json", "state.safetensors", "sums.json"]
    for number, name in enumerate(files):
        shutil.copytree(tmp_path / "run", tmp_path / f"run{number}")
        stopping.damage(tmp_path / f"run{number}" / "checkpoints" / "0" / "checkpoint-12" / name, how)
        stopping.train(recipes["full"], tmp_path / f"run{number}", resume=True)
        said = capsys.readouterr().err
        assert "checkpoint-12` is damaged: going back behind it." in said and "goes on after step 10." in said
        assert stopping.fingerprint(tmp_path / f"run{number}") == unstopped("full")
    for path in kept.list_steps(phase):
        stopping.damage(path / "model.safetensors", how)
    stop_in_step(7)
    with pytest.raises(Interrupted):
        stopping.train(recipes["full"], tmp_path / "run", resume=True)
    assert [(path.name, is_intact(path)) for path in kept.list_steps(phase)] == [
        ("checkpoint-5", True),
        ("checkpoint-7", True),
    ]
    stopping.train(recipes["full"], tmp_path / "run", resume=True)
    assert stopping.fingerprint(tmp_path / "run") == unstopped("full")


def test_where_the_best_is_damaged_it_goes_back_behind_it(recipes, unstopped, tmp_path, stop_in_step, capsys):
    stop_full(recipes, tmp_path / "run", stop_in_step)
    phase = tmp_path / "run" / "checkpoints" / "0"
    best = kept.read_state(phase / "checkpoint-12")["best_step"]
    stopping.damage(phase / f"checkpoint-{best}" / "model.safetensors", "flipped")
    stopping.train(recipes["full"], tmp_path / "run", resume=True)
    assert f"checkpoint-{best}` is damaged" in (said := capsys.readouterr().err)
    assert re.search(r"goes on after step (\d+)", said) is None or int(re.findall(r"after step (\d+)", said)[0]) < best
    assert stopping.fingerprint(tmp_path / "run") == unstopped("full")


def test_checkpoints_hold_no_code_and_can_be_read_by_others(recipes, tmp_path, stop_in_step, monkeypatch):
    stop_full(recipes, tmp_path / "run", stop_in_step)
    files = [path for path in (tmp_path / "run" / "checkpoints" / "0").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    os.umask(mask := os.umask(0))
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~mask}
    assert {stat.S_IMODE(path.parent.stat().st_mode) for path in files} == {0o777 & ~mask}
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("unpickled"))
    stopping.train(recipes["full"], tmp_path / "run", resume=True)


def test_a_checkpoint_is_written_when_some_minutes_have_passed_and_changes_nothing(recipes, unstopped, tmp_path, monkeypatch):
    written, write = [], kept.write

    def note(path: Path, *parts: Any) -> None:
        written.append(path.name)
        write(path, *parts)

    monkeypatch.setattr(kept, "write", note)
    recipe = recipes["full"]
    stopping.train({**recipe, "training": recipe["training"] | {"save_minutes": 1e-9}}, tmp_path / "run")
    assert written[:11] == [f"checkpoint-{step}" for step in range(1, 12)]
    weights, _ = stopping.fingerprint(tmp_path / "run")
    assert weights == unstopped("full")[0]


STATES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | some.text(),
    lambda inner: some.lists(inner) | some.tuples(inner, inner) | some.dictionaries(some.text() | some.integers(), inner),
    max_leaves=20,
)


@given(STATES)
@settings(max_examples=50, deadline=None)
def test_a_state_comes_back_as_it_was(state):
    tensors: dict[str, torch.Tensor] = {}
    assert kept.unpack(json.loads(json.dumps(kept.pack(state, tensors))), tensors) == state


def test_tensors_and_arrays_come_back_and_what_would_need_code_is_refused():
    state = {"a": [torch.arange(3), (np.arange(4, dtype=np.uint32), np.float64(0.1))], 3: torch.zeros(())}
    tensors: dict[str, torch.Tensor] = {}
    found = kept.unpack(json.loads(json.dumps(kept.pack(state, tensors))), tensors)
    assert torch.equal(found["a"][0], state["a"][0]) and found[3].shape == ()
    assert found["a"][1][0].dtype == np.uint32 and found["a"][1][1] == 0.1
    with pytest.raises(TypeError, match="can't be kept in a checkpoint"):
        kept.pack({"f": len}, {})
