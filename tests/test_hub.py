"""Publishing, against a Hub on loopback: what goes there, what comes back, and every trouble on the way."""

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, constants
from huggingface_hub.utils import tqdm as hub_tqdm
from tqdm.auto import tqdm

import hf_sft
from hf_sft.cli import main
from hf_sft.hub.upload_checkpoints import CheckpointSender
from hf_sft.tasks import Writing
from hf_sft.trainer.step_trainer import StepTrainer
from tests import tiny
from tests.local_hub import READ, STRANGER, TOKENS, WRITE, Fault, LocalHub
from tests.test_certificate import change_one_weight

SINGLE = "single_label_classification"
COMMIT, STORE = "/commit/main", "/store/"
PULL = """
import json, sys
from transformers import pipeline
answers = {}
for name, tag, texts in json.loads(sys.argv[1]):
    if tag == "adapter":
        from peft import PeftConfig, PeftModel
        from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
        base, config = PeftConfig.from_pretrained(name).base_model_name_or_path, AutoConfig.from_pretrained(name)
        model = PeftModel.from_pretrained(AutoModelForSequenceClassification.from_pretrained(base, config=config), name)
        ask = pipeline("text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(name))
    else:
        ask = pipeline(tag, model=name)
    asked = {"max_new_tokens": 5, "do_sample": False} if tag == "text-generation" else {}
    answers[name] = [ask(text, **asked) for text in texts]
print(json.dumps(answers, default=float))
"""


def named(value: Any) -> str:
    return f"{value.method}{value.path}{value.status}" if isinstance(value, Fault) else ""


@pytest.fixture
def run(finished_run: Callable[[], Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished_run(), tmp_path / "run"))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A Hub that this process talks to, with a token that may write as `me`."""
    with LocalHub() as made:
        monkeypatch.setattr(constants, "ENDPOINT", made.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        template = made.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", WRITE)
        yield made


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that were waited, without waiting."""
    waited: list[float] = []
    now = time.monotonic
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setattr("time.monotonic", lambda: now() + sum(waited))
    return waited


def contents(folder: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.rglob("*")) if path.is_file()}


def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: Any) -> tuple[int, str]:
    """The exit status of `hf-sft`, and all that it said; which never is a token."""
    monkeypatch.setattr(sys, "argv", ["hf-sft", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert not [token for token in TOKENS if token in said.out + said.err]
    return int(ended.value.code or 0), said.out + said.err


def to_hub(checkpoint: Path, folder: Path, name: str) -> dict[str, Any]:
    """A recipe whose run, `new`, is to be published."""
    made = tiny.recipe(checkpoint, tiny.write_rows(folder / "data", SINGLE), folder / "new")
    return {**made, "output": {**made["output"], "hub": name}}


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


def test_texts_of_the_data_go_there_only_when_asked_for(hub, run):
    hf_sft.publish(run, "me/out")
    hf_sft.publish(run, "me/all", report=True)
    without, whole = hub.files("me/out"), hub.files("me/all")
    assert set(whole) - set(without) == {"report.html", "predictions/test.jsonl", "predictions/validation.jsonl"}
    texts = [row["text"] for row in tiny.rows(SINGLE, 11, 200) if len(row["text"].split()) > 3]
    assert not [text for text in texts if any(text.encode() in content for content in without.values())]
    assert any(texts[0].encode() in content for content in whole.values())


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


def test_a_model_that_has_changed_is_not_published(hub, run):
    change_one_weight(run)
    with pytest.raises(hf_sft.CheckpointError, match="does not answer as the model did that was trained"):
        hf_sft.publish(run, "me/out")
    assert hub.log == []


def test_what_is_pulled_in_a_new_process_answers_alike(hub, checkpoints, tmp_path):
    runs = [
        ("adapter", SINGLE, "bert", "lora:kept", "adapter"),
        ("full", SINGLE, "bert", "full", "text-classification"),
        ("merged", SINGLE, "bert", "lora:merged", "text-classification"),
        ("tags", "entities", "bert", "full", "token-classification"),
        ("texts", "texts", "gpt2", "full", "text-generation"),
    ]
    asked, here = [], {}
    for name, problem, family, method, tag in runs:
        files = tiny.write_rows(tmp_path / f"data_{name}", problem)
        task, training = tiny.task_of(problem), {"learning_rate": 0.5, "max_steps": 20}
        folder = tmp_path / name
        hf_sft.train(tiny.recipe(checkpoints[family], files, folder, method, task=task, training=training))
        if name == "adapter":
            with pytest.raises(
                hf_sft.RecipeError, match=r"a folder of this machine: nobody else could load it(.|\n)*--with-base"
            ):
                hf_sft.publish(folder, f"me/{name}")
            assert not hub.repos
        hf_sft.publish(folder, f"me/{name}", with_base=name == "adapter")
        # Six words are one window for tags too: a pipeline knows of no more.
        words = [row.get("text") or " ".join(row["words"][:6]) for row in tiny.rows(problem, 5, 200)]
        asked.append([f"me/{name}", tag, words])
        inputs: list[Any] = [{"words": each.split()} for each in words] if problem == "entities" else words
        here[f"me/{name}"] = hf_sft.predict(folder, inputs, writing=Writing(5) if problem == "texts" else None)
    pulled = subprocess.run(
        [sys.executable, "-c", PULL, json.dumps(asked)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **hub.environment(tmp_path / "empty")},
    )
    assert pulled.returncode == 0, pulled.stderr[-3000:]
    there = json.loads(pulled.stdout.splitlines()[-1])
    for name in ("me/full", "me/adapter", "me/merged"):
        assert [[each[0]["label"]] for each in there[name]] == [[answer["label"]] for answer in here[name]]
        scores = [each[0]["score"] for each in there[name]]
        assert scores == pytest.approx([answer["score"] for answer in here[name]], abs=1e-5)
    for found, answer in zip(there["me/tags"], here["me/tags"], strict=True):
        assert [each["entity"] for each in found] == [tag for tag in answer["tags"] if tag != "O"]
    for prompt, found, answer in zip(asked[-1][2], there["me/texts"], here["me/texts"], strict=True):
        assert found[0]["generated_text"].removeprefix(prompt).split() == answer["text"].split()


def test_the_card_is_what_the_hub_takes_and_its_snippet_runs(hub, run, tmp_path):
    hf_sft.publish(run, "me/out")
    text = hub.files("me/out")["README.md"].decode()
    card = ModelCard(text)
    card.validate()
    (result,) = [each for each in card.data.eval_results or () if each.metric_type == "accuracy"]
    assert result.metric_value == round(
        json.loads((run / "report.json").read_text())["metrics"]["test"]["accuracy"]["value"], 4
    )
    snippet = re.search(r"```python\n(.*?)```", text, re.S)
    assert snippet and 'run = "me/out"' in snippet[1]
    lines = snippet[1].strip().splitlines()
    code = "\n".join([*lines[:-1], f"print('label:', {lines[-1]}[0]['label'])"])
    environment = {**os.environ, **hub.environment(tmp_path / "empty")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.partition("label: ")[2].strip() == hf_sft.predict(run, ["A text."])[0]["label"]


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


def test_the_card_inherits_licence_and_language_and_names_its_base(hub, checkpoints, tmp_path, monkeypatch):
    card = b"---\nlicense: apache-2.0\nlanguage:\n- en\n---\n# Tiny"
    sha = hub.put("me/tiny", {**{p.name: p.read_bytes() for p in checkpoints["bert"].iterdir()}, "README.md": card})
    for name, relation in (("full", "finetune"), ("lora:kept", "adapter")):
        asked = to_hub(checkpoints["bert"], tmp_path / name, "me/out")
        asked["model"] = {"checkpoint": "me/tiny"}
        asked["method"] = tiny.recipe(checkpoints["bert"], {}, tmp_path, name)["method"]
        report = hf_sft.train(asked)
        assert report.unpublished is None, report.unpublished
        data = ModelCard(hub.files("me/out")["README.md"].decode()).data.to_dict()
        assert (data["license"], data["language"]) == ("apache-2.0", ["en"])
        assert (data["base_model"], data["base_model_relation"]) == ("me/tiny", relation)
        assert report.facts["checkpoint"]["revision"] == sha


def test_a_recipe_of_hub_ids_runs_from_an_empty_cache_and_again_without_the_hub(hub, checkpoints, tmp_path):
    def put(seed: int) -> tuple[str, str]:
        files = {
            name: Path(path).read_bytes() for name, path in tiny.write_rows(tmp_path / "rows", SINGLE, train=17 + seed).items()
        }
        rows = hub.put("me/rows", {f"{name}.jsonl": content for name, content in files.items()}, kind="datasets")
        tiny.build("bert", folder := tmp_path / f"tiny{seed}")
        if seed:
            change_one_weight(folder)
        return hub.put("me/tiny", folder), rows

    def train(recipe: Path, *words: str, **environment: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, "-m", "hf_sft", "train", str(recipe), *words],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **hub.environment(tmp_path / "home"), **environment},
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert not [token for token in TOKENS if token in done.stdout + done.stderr]
        return json.loads((tmp_path / words[0].removeprefix("output.folder=") / "report.json").read_text())

    checkpoint, rows = put(0)
    asked = tiny.recipe(checkpoints["bert"], {}, tmp_path / "new")
    asked |= {"model": {"checkpoint": "me/tiny"}, "data": {"dataset": "me/rows"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(asked))
    first = train(tmp_path / "recipe.yaml", "output.folder=first")
    resolved = yaml.safe_load((tmp_path / "first" / "recipe.yaml").read_text())
    assert resolved["model"]["revision"] == first["checkpoint"]["revision"] == checkpoint
    assert resolved["data"]["revision"] == rows
    assert first["certificate"]["within"]

    assert put(1) != (checkpoint, rows)  # main moves on
    again = train(tmp_path / "first" / "recipe.yaml", "output.folder=again")
    hub.stop()
    offline = train(tmp_path / "first" / "recipe.yaml", "output.folder=offline", HF_HUB_OFFLINE="1")
    for other in (again, offline):
        assert other["metrics"] == first["metrics"] and other["data"]["fingerprint"] == first["data"]["fingerprint"]
        assert other["checkpoint"] == first["checkpoint"]


def test_a_revision_that_is_not_there_is_told(hub, checkpoints, tmp_path):
    hub.put("me/tiny", checkpoints["bert"])
    rows = {f"{n}.jsonl": Path(p).read_bytes() for n, p in tiny.write_rows(tmp_path / "rows", SINGLE).items()}
    hub.put("me/rows", rows, kind="datasets")
    asked = tiny.recipe(checkpoints["bert"], tiny.write_rows(tmp_path / "here", SINGLE), tmp_path / "run")
    asked["model"] = {"checkpoint": "me/tiny", "revision": "nowhere"}
    with pytest.raises(hf_sft.CheckpointError, match="`me/tiny` at revision `nowhere` can't be had"):
        hf_sft.train(asked)
    asked |= {"model": {"checkpoint": "me/tiny"}, "data": {"dataset": "me/rows", "revision": "nowhere"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(asked))
    done = subprocess.run(
        [sys.executable, "-m", "hf_sft", "train", str(tmp_path / "recipe.yaml")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **hub.environment(tmp_path / "home")},
    )
    assert done.returncode == 2 and "`me/rows` at revision `nowhere` can't be had" in done.stderr, done.stderr
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_of_the_hub_says_what_its_head_is_to_read(hub, checkpoints, tmp_path):
    pooling = {"1_Pooling/config.json": b'{"pooling_mode_mean_tokens": true}'}
    hub.put("me/tiny", {**{p.name: p.read_bytes() for p in checkpoints["bert"].iterdir()}, **pooling})
    files = tiny.write_rows(tmp_path / "rows", SINGLE)
    asked = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "head_only", model={"checkpoint": "me/tiny"})
    assert len(hf_sft.build_trainer(asked).loaded.layers) == 3


def test_publishing_works_with_xet_switched_on(hub, run, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    monkeypatch.setattr("tests.local_hub.LARGE", re.compile("none is large"))
    hf_sft.publish(run, "me/out")
    assert hub.titles("me/out") == ["hf_sft run run"] and "model.safetensors" in hub.files("me/out")


def test_an_adapter_goes_with_its_base_and_its_card_loads_both(hub, checkpoints, tmp_path, monkeypatch, capsys):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "lora:kept")
    with pytest.raises(hf_sft.RecipeError, match=r"`output\.hub`: an adapter on `.*`, a folder of this machine"):
        hf_sft.train({**recipe, "output": {"folder": str(tmp_path / "run"), "hub": "me/out"}})
    hf_sft.train(recipe)
    assert command(monkeypatch, capsys, "publish", tmp_path / "run", "me/out", "--with-base")[0] == 0
    base, files = hub.files("me/out-base"), hub.files("me/out")
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(base)
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/out-base"
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.base_model_relation) == ("me/out-base", "adapter")
    snippet = re.search(r"```python\n(.*?)```", card.text, re.S)
    assert snippet
    lines = snippet[1].strip().splitlines()
    code = "\n".join([*lines[:-1], f"print('label:', {lines[-1]}[0]['label'])"])
    environment = {**os.environ, **hub.environment(tmp_path / "empty")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.partition("label: ")[2].strip() == hf_sft.predict(tmp_path / "run", ["A text."])[0]["label"]


def test_only_what_the_run_wrote_is_sent_and_the_rest_is_named(hub, run, tmp_path, monkeypatch, capsys):
    (tmp_path / "secret").write_text("a private key")
    for name in ("rows.csv", "nohup.out", "id_rsa", "more.safetensors", "predictions/notes.txt", "logs/0/events"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("mine")
    (run / "link.json").symlink_to(tmp_path / "secret")
    status, said = command(monkeypatch, capsys, "publish", run, "me/out", "--report")
    assert status == 0
    left_out = {line.rpartition(": ")[2] for line in said.splitlines() if line.startswith("left out, since the run did not")}
    assert left_out == {
        "rows.csv",
        "nohup.out",
        "id_rsa",
        "more.safetensors",
        "predictions/notes.txt",
        "logs/0/events",
        "link.json",
    }
    facts = json.loads((run / "report.json").read_text())
    sent = hub.files("me/out")
    assert set(sent) <= {*facts["files"], "report.json", ".gitattributes"}
    assert not [name for name in sent if b"a private key" in sent[name] or sent[name] == b"mine"]


OF_A_RUN = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
OF_A_RUN |= {"README.md", "recipe.yaml", "report.json", "resamples.npz"}
WITH_TEXTS = {"report.html", "predictions/test.jsonl", "predictions/validation.jsonl"}


def test_these_files_of_a_run_are_published_and_no_other(hub, run):
    """Not which rows it was trained on, nor the probes: a new file of a run is thought about before it goes out."""
    hf_sft.publish(run, "me/out")
    hf_sft.publish(run, "me/all", report=True)
    assert {*hub.files("me/out")} == OF_A_RUN and {*hub.files("me/all")} == OF_A_RUN | WITH_TEXTS
    there = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert "trained_on.npy" in there and there > OF_A_RUN | WITH_TEXTS


@pytest.mark.parametrize("private", [False, True])
@pytest.mark.parametrize("meanwhile", [False, True])
def test_a_repository_is_made_as_private_as_the_recipe_says_also_while_it_trains(
    private, meanwhile, hub, checkpoints, tmp_path, monkeypatch
):
    made: list[tuple[str, bool]] = []

    class Watched(dict):
        def __setitem__(self, key: tuple[str, str], repo: Any) -> None:
            made.append((key[1], repo.private))
            super().__setitem__(key, repo)

    hub.repos = Watched(hub.repos)
    asked = to_hub(checkpoints["bert"], tmp_path, "me/out")
    asked["output"] |= {"private": private, "hub_checkpoints": meanwhile}
    asked["training"] |= {"eval_strategy": "steps", "eval_steps": 2}
    assert hf_sft.train(asked).unpublished is None
    assert made == [("me/out", private)] and bool(hub.titles("me/out", "checkpoints")) is meanwhile


@pytest.mark.parametrize("name", ["config.json", "recipe.yaml", "README.md"])
@pytest.mark.parametrize("how", ["edited", "linked"])
def test_a_file_that_is_not_as_the_run_wrote_it_is_not_sent_but_for_a_card_that_was_edited(how, name, hub, run, tmp_path):
    text = (run / name).read_text() + "\n"
    (run / name).unlink()
    (tmp_path / "other").write_text(text)
    if how == "linked":
        (run / name).symlink_to(tmp_path / "other")
    else:
        (run / name).write_text(text)
    if (how, name) == ("edited", "README.md"):
        hf_sft.publish(run, "me/out")
        assert hub.files("me/out")["README.md"].endswith(b"\n\n")
        return
    with pytest.raises(hf_sft.RecipeError, match=rf"{name}` is not what the run wrote: it has changed since"):
        hf_sft.publish(run, "me/out")
    assert not hub.repos


SECRETS = {
    "user": "bobTheUser1",
    "password": "pa55w0rdOfBob",
    "token": "tok3nOfTheUrl",
    "sig": "s1gnature-of-the-url",
    "long": "AKIA0123456789abcdefghijkl",
    "hub": "hf_tokenInARecipe0123456789",
    "file": "hf_tokenInAFileName0123456",
    "variable": "theSecretOfAnotherService",
}


def test_no_secret_leaves_whatever_the_recipe_the_environment_and_the_files_hold(
    hub, checkpoints, tmp_path, monkeypatch, capsys
):
    """Runs that read their rows from an address with secrets in it, from a home folder with secrets in names: no byte of what
    is sent, written into the run folder's own files, or said, holds one."""
    home = tmp_path / "home" / "bob"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("SERVICE_API_KEY", SECRETS["variable"])
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)
    shutil.copytree(checkpoints["bert"], home / "base")
    (home / SECRETS["file"]).mkdir()
    tiny.write_rows(home / SECRETS["file"], SINGLE)
    served = hub.serve(
        {f"/{name}.jsonl": (home / SECRETS["file"] / f"{name}.jsonl").read_bytes() for name in ("train", "test")}
    )
    user, query = (
        f"{SECRETS['user']}:{SECRETS['password']}",
        f"token={SECRETS['token']}&sig={SECRETS['sig']}&v={SECRETS['long']}&n=1",
    )
    address = served.replace("://", f"://{user}@")
    here = f"{home}/{SECRETS['file']}/validation.jsonl"
    data_files = {"train": f"{address}/train.jsonl?{query}", "test": f"{address}/test.jsonl?{query}", "validation": here}
    sent: dict[str, bytes] = {}
    for method in ("full", "lora:kept"):
        name = method[:4]
        made = tiny.recipe(home / "base", {}, home / "runs" / name, method, training={"run_name": f"try {SECRETS['hub']}"})
        made["data"] = {"dataset": "json", "data_files": data_files}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(made))
        status, said = command(monkeypatch, capsys, "train", path)
        assert status == 0, said
        written = "".join(
            (home / "runs" / name / each).read_text() for each in ("recipe.yaml", "report.json", "README.md", "report.html")
        )
        more = "".join((home / "runs" / name / each).read_text() for each in ("README.md", "report.html"))
        assert str(home) not in more
        status, told = command(monkeypatch, capsys, "publish", home / "runs" / name, f"me/{name}", "--report", "--with-base")
        assert status == 0, told
        for secret in SECRETS.values():
            assert secret not in written + said + told, secret
        sent |= {f"{repo}/{each}": content for repo in (f"me/{name}",) for each, content in hub.files(repo).items()}
        with pytest.raises(
            hf_sft.RecipeError, match=r"the address of this run's data held a secret(.|\n)*--data data_files"
        ) as error:
            hf_sft.evaluate(home / "runs" / name)
        assert not [secret for secret in SECRETS.values() if secret in str(error.value)]
        with pytest.raises(hf_sft.HfSftError) as error:
            hf_sft.train(
                {
                    **made,
                    "data": {"dataset": "json", "data_files": f"{address}/nowhere.jsonl?{query}"},
                    "output": {"folder": str(tmp_path / "x")},
                }
            )
        assert not [secret for secret in SECRETS.values() if secret in str(error.value)]
    assert len(sent) > 20
    for name, content in sent.items():
        for secret in (*SECRETS.values(), str(home), WRITE):
            assert secret.encode() not in content, (name, secret)


CONTROLS = ["\x1b[31mred", "bell\x07", "right\u202eto left", "iso\u2066late", "back\x08space", "next\x85line"]


@pytest.mark.parametrize("private", [False, True])
def test_a_base_is_published_as_private_as_its_adapter(private, hub, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", "lora:kept"))
    hf_sft.publish(tmp_path / "run", "me/out", private=private, with_base=True)
    assert {name: repo.private for (_, name), repo in hub.repos.items()} == {"me/out": private, "me/out-base": private}


def test_control_characters_of_label_names_are_shown_as_escapes(hub, checkpoints, tmp_path, monkeypatch, capsys):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    for path in files.values():
        rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
        names = dict.fromkeys(row["label"] for row in rows)
        shown = {name: CONTROLS[i] if i < len(CONTROLS) else name for i, name in enumerate(sorted(names))}
        Path(path).write_text("".join(json.dumps({**row, "label": shown[row["label"]]}) + "\n" for row in rows))
    made = tiny.recipe(checkpoints["bert"], files, tmp_path / "run")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(made))
    said = "".join(command(monkeypatch, capsys, verb, tmp_path / "recipe.yaml")[1] for verb in ("check", "train"))
    pages = "".join((tmp_path / "run" / name).read_text() for name in ("README.md", "report.html"))
    acting = set("".join(CONTROLS)) - {each for each in "".join(CONTROLS) if each.isprintable()}
    assert r"\x1b[31mred" in pages and r"right\u202eto left" in pages
    for text in (pages, said):
        assert not acting & set(text)
    assert "\x1b[31mred" in json.loads((tmp_path / "run" / "report.json").read_text())["data"]["labels"]
