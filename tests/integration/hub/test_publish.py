"""What is published of a run, where it goes, and who may do it."""

import re
import sys

import pytest
from huggingface_hub import constants

import hf_sft
from hf_sft.cli import main
from tests.altered import change_one_weight
from tests.integration.hub.hub_cases import command, contents, to_hub
from tests.local_hub import READ, STRANGER, WRITE


def test_a_run_is_published_in_one_commit_and_pulled_back(hub, run, monkeypatch, capsys):
    status, said = command(monkeypatch, capsys, "publish", run, "me/out")
    sha = hub.repos["models", "me/out"].refs["main"]
    assert status == 0
    told = f"published: {hub.url}/me/out/commit/{sha}; pulled back, it answers 11 rows of test as it did here"
    assert said.splitlines()[0] == told
    assert hub.titles("me/out") == ["hf_sft run run"]
    files = hub.files("me/out")
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "recipe.yaml", "report.json"} <= set(files)
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert any(method == "GET" and path.startswith(f"/me/out/resolve/{sha}/") for method, path, _ in hub.log)
    assert command(monkeypatch, capsys, "publish", run, "me/out")[0] == 0
    assert hub.titles("me/out") == ["hf_sft run run"]  # unchanged: no second commit


def test_a_dry_run_lists_and_sends_nothing(hub, run, monkeypatch, capsys):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["hf-sft", "publish", str(run), "me/out", "--dry-run"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code and hub.log == []
    listed = dict(reversed(line.split(maxsplit=1)) for line in capsys.readouterr().out.splitlines())
    sizes = {name: int(size.replace(",", "")) for name, size in listed.items()}
    assert sizes["model.safetensors"] == (run / "model.safetensors").stat().st_size
    assert sizes.pop("in all") == sum(sizes.values()) and not [name for name in sizes if "predictions" in name]


def test_a_branch_a_pull_request_and_a_private_repository(hub, run):
    first = hf_sft.publish(run, "me/out", private=True, revision="try")
    repo = hub.repos["models", "me/out"]
    assert repo.private and repo.refs["try"] == first.commit and hub.files("me/out") == {}
    asked = hf_sft.publish(run, "me/out", pull_request=True)
    assert asked.address == f"{hub.url}/me/out/discussions/1" and repo.refs["refs/pr/1"] == asked.commit
    assert hub.files("me/out") == {} and "model.safetensors" in hub.files("me/out", "refs/pr/1")
    hub.put("me/open", {})
    with pytest.raises(hf_sft.HubError, match="`me/open` is public, and you asked for a private one"):
        hf_sft.publish(run, "me/open", private=True)


def test_a_name_without_an_owner_is_ones_own(hub, run):
    assert hf_sft.publish(run, "out").address.startswith(f"{hub.url}/me/out/commit/")


def test_weights_of_an_earlier_run_are_not_left_beside(hub, run):
    hub.put(
        "me/out", {"adapter_config.json": b"{}", "adapter_model.safetensors": b"x", "mine.txt": b"kept", "README.md": b"old"}
    )
    hf_sft.publish(run, "me/out")
    assert {"mine.txt", "model.safetensors"} <= set(hub.files("me/out"))
    assert not [name for name in hub.files("me/out") if name.startswith("adapter")]


@pytest.mark.parametrize(
    ("token", "name", "message"),
    [
        (None, "me/out", "there is no token to write to `me/out` with"),
        ("hf_nobodyKnowsThisOne12345", "me/out", "says 401 .*it does not know this token"),
        (READ, "me/out", "your token may only read, and `me/out` is to be written"),
        (STRANGER, "me/there", "says 403 .*this token may not write to `me/there`"),
        (STRANGER, "me/out", r"you may not make `me/out`: `me` is neither you nor an organisation of yours \(stranger\)"),
        (WRITE, "me/a b", "`me/a b` is no name of a repository"),
    ],
)
def test_who_may_not_publish_learns_it_before_training(
    token, name, message, hub, run, checkpoints, tmp_path, monkeypatch, capsys
):
    hub.put("me/there", {})
    monkeypatch.setenv("HF_TOKEN", token or "")
    before = contents(run)
    status, said = command(monkeypatch, capsys, "publish", run, name)
    assert status == 2 and re.search(message, said) and contents(run) == before
    assert "The run is whole in" in said and f"hf-sft publish {run}" in said
    asked = to_hub(checkpoints["bert"], tmp_path, name)
    for verb in (hf_sft.train, hf_sft.check):
        with pytest.raises(hf_sft.HubError, match=message):
            verb(asked)
    assert not (tmp_path / "new").exists()


def test_a_model_that_has_changed_is_not_published(hub, run):
    change_one_weight(run)
    with pytest.raises(hf_sft.CheckpointError, match="does not answer as the model did that was trained"):
        hf_sft.publish(run, "me/out")
    assert hub.log == []


def test_publishing_works_with_xet_switched_on(hub, run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr("tests.local_hub.LARGE", re.compile("none is large"))
    hf_sft.publish(run, "me/out")
    assert hub.titles("me/out") == ["hf_sft run run"] and "model.safetensors" in hub.files("me/out")
