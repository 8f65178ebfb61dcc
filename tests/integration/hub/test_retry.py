"""Trouble on the way to the Hub: what passes is waited for, what stays ends with what to do."""

import re
import time
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

import hf_sft
from tests.integration.hub.hub_cases import command, contents, to_hub
from tests.local_hub import Fault

COMMIT, STORE = "/commit/main", "/store/"


def named(value: Any) -> str:
    return f"{value.method}{value.path}{value.status}" if isinstance(value, Fault) else ""


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, without waiting."""
    waited: list[float] = []
    now = time.monotonic
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr("time.monotonic", lambda: now() + sum(waited))
    return waited


@pytest.mark.parametrize(
    ("fault", "waited"),
    [
        (Fault("POST", COMMIT, 429, {"Retry-After": "7"}), (7,)),
        (Fault("POST", COMMIT, 500, times=2), (1, 2)),
        (Fault("POST", COMMIT, done_first=True), (1,)),
        (Fault("POST", "/repos/create", done_first=True), (1,)),
        (Fault("GET", "/whoami", 503, times=4), (1, 2, 4, 8)),
        (Fault("PUT", STORE, after=500), (1,)),
        (Fault("PUT", STORE, 503, times=2), (1,)),
        (Fault("GET", "/resolve/.*safetensors", after=500), (1,)),
        (Fault("GET", "/resolve/.*/config.json", after=20), (1,)),
        (Fault("HEAD", "/resolve/.*safetensors", 503), ()),
    ],
    ids=named,
)
def test_trouble_that_passes_is_waited_for(fault, waited, hub, run, waits, monkeypatch, capsys):
    hub.faults.append(fault)
    status, said = command(monkeypatch, capsys, "publish", run, "me/out")
    assert status == 0, said
    assert hub.titles("me/out") == ["hf_sft run run"] and not fault.times
    assert sum(waits) >= sum(waited) and len(waits) >= len(waited)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Fault("POST", COMMIT, 401), "says 401 .*it does not know this token"),
        (Fault("POST", COMMIT, 403), "says 403 .*this token may not write to `me/out`"),
        (Fault("POST", COMMIT, 404), "says 404 .*there is no `me/out`"),
        (Fault("POST", COMMIT, 409), "says 409 .*somebody is writing to it at the same time"),
        (Fault("POST", COMMIT, 412), "says 412 .*`me/out` has changed meanwhile"),
        (Fault("POST", COMMIT, 429, {"Retry-After": "600"}), "says 429 .*too many requests"),
        (Fault("POST", COMMIT, 500, times=99), "says 500 .*it is in trouble"),
        (Fault("POST", COMMIT, times=99), "can't be reached, or stopped answering"),
        (Fault("PUT", STORE, after=500, times=99), "can't be reached, or stopped answering"),
    ],
    ids=named,
)
def test_trouble_that_stays_ends_with_what_to_do_and_the_run_whole(fault, message, hub, run, waits, monkeypatch, capsys):
    hub.faults.append(fault)
    before = contents(run)
    status, said = command(monkeypatch, capsys, "publish", run, "me/out", "--report")
    assert status == 2 and re.search(message, said), said
    assert contents(run) == before and hub.titles("me/out") == [] and sum(waits) <= 120
    *_, last = said.strip().splitlines()
    assert last == f"The run is whole in {run}/.  To publish it later:  hf-sft publish {run} me/out --report"
    hub.faults.clear()
    assert command(monkeypatch, capsys, *last.partition("hf-sft ")[2].split())[0] == 0
    assert "report.html" in hub.files("me/out")


def test_a_hub_that_is_gone_for_good(hub, run, waits, monkeypatch, capsys):
    hub.stop()
    status, said = command(monkeypatch, capsys, "publish", run, "me/out")
    assert status == 2 and f"{hub.url} can't be reached" in said and waits == [1, 2, 4, 8]


def test_a_hub_that_is_switched_off_is_not_waited_for(hub, run, waits, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    status, said = command(monkeypatch, capsys, "publish", run, "me/out")
    assert status == 2 and "the Hub is switched off (HF_HUB_OFFLINE).  Unset it to publish." in said and waits == []


def test_a_run_whose_publishing_fails_is_whole_and_says_so(hub, checkpoints, waits, tmp_path, monkeypatch, capsys):
    hub.faults.append(Fault("POST", COMMIT, 403))
    asked = to_hub(checkpoints["bert"], tmp_path, "me/out")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(asked))
    status, said = command(monkeypatch, capsys, "train", tmp_path / "recipe.yaml")
    assert status == 2 and "NOT published" in said and "says 403" in said
    assert said.strip().endswith(f"To publish it later:  hf-sft publish {tmp_path / 'new'} me/out")
    assert len(hf_sft.predict(tmp_path / "new", ["the coach was good"])) == 1
    assert command(monkeypatch, capsys, "publish", tmp_path / "new", "me/out")[0] == 0
