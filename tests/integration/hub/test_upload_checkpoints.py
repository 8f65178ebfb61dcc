"""Checkpoints are sent while a run trains, and never disturb it."""

import io
import threading

import pytest
from huggingface_hub.utils import tqdm as hub_tqdm
from tqdm.auto import tqdm

import hf_sft
from hf_sft.hub.upload_checkpoints import CheckpointSender
from hf_sft.trainer.step_trainer import StepTrainer
from tests.integration.hub.hub_cases import to_hub
from tests.local_hub import Fault


def test_checkpoints_are_sent_while_it_trains_and_nothing_waits_for_them(hub, checkpoints, tmp_path, monkeypatch):
    """The Hub answers the first commit after the last step: a training that waited for it would not get there."""
    trained, finished = threading.Event(), StepTrainer.save_finished
    slow = Fault("POST", "/commit/checkpoints", until=trained)
    hub.faults.append(slow)
    monkeypatch.setattr(StepTrainer, "save_finished", lambda self: (trained.set(), finished(self)))
    asked = to_hub(checkpoints["bert"], tmp_path, "me/out")
    asked["output"]["hub_checkpoints"] = True
    asked["training"] |= {"max_steps": 8, "eval_strategy": "steps", "eval_steps": 1}
    hf_sft.train(asked)
    titles = hub.titles("me/out", "checkpoints")
    assert slow.waited == [True]
    assert titles[0] == "step 8 of phase full" and 1 <= len(titles) < 8  # those that came while one was sent are left out
    sent = hub.files("me/out", "checkpoints")
    assert {"model.safetensors", "state.json"} <= set(sent) and not list(tmp_path.rglob(".to-the-hub-*"))
    assert hub.titles("me/out") == ["hf_sft run new"]


def test_each_checkpoint_is_sent_where_the_hub_is_quick_and_nothing_is_left_of_it(hub, tmp_path):
    sender = CheckpointSender("me/out", False)
    for title in ("one", "two", "three"):
        checkpoint = tmp_path / "checkpoints" / "0" / title
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text(title)
        sender.take(title, checkpoint)
        assert sender._sending is not None
        sender._sending.result(60)
        assert not list(tmp_path.rglob(".to-the-hub-*")) and (checkpoint / "state.json").exists()
    sender.finish()
    assert hub.titles("me/out", "checkpoints") == ["three", "two", "one"]
    assert hub.files("me/out", "checkpoints")["state.json"] == b"three"


def test_bars_of_an_upload_are_not_among_those_of_the_training():
    """Which tqdm looks through without a lock, whatever thread adds to them (tqdm #481)."""
    CheckpointSender("me/out", private=False)
    with hub_tqdm(total=1, file=io.StringIO(), disable=False) as theirs, tqdm(total=1, file=io.StringIO()) as ours:
        assert theirs in hub_tqdm._instances and ours in tqdm._instances
        assert theirs not in tqdm._instances and ours not in hub_tqdm._instances


def test_checkpoints_that_do_not_arrive_do_not_disturb_the_training(hub, checkpoints, tmp_path, capsys):
    hub.faults.append(Fault("POST", "/commit/checkpoints", 403, times=99))
    asked = to_hub(checkpoints["bert"], tmp_path, "me/out")
    asked["output"]["hub_checkpoints"] = True
    asked["training"] |= {"eval_strategy": "steps", "eval_steps": 2}
    assert hf_sft.train(asked).unpublished is None
    assert "checkpoints did not all reach `me/out`: " in (said := capsys.readouterr().err) and "says 403" in said
    with pytest.raises(hf_sft.RecipeError, match="`hub_checkpoints` needs `hub`"):
        hf_sft.check({**asked, "output": {"folder": "x", "hub_checkpoints": True}})
