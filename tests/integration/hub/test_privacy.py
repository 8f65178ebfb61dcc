"""Nothing leaves that should not: secrets, edited files, texts, repositories that are to be private."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

import hf_sft
from tests import tiny
from tests.integration.hub.hub_cases import command, to_hub
from tests.local_hub import WRITE

SINGLE = "single_label_classification"


def test_texts_of_the_data_go_there_only_when_asked_for(hub, run):
    hf_sft.publish(run, "me/out")
    hf_sft.publish(run, "me/all", report=True)
    without, whole = hub.files("me/out"), hub.files("me/all")
    assert set(whole) - set(without) == {"report.html", "predictions/test.jsonl", "predictions/validation.jsonl"}
    texts = [row["text"] for row in tiny.rows(SINGLE, 11, 200) if len(row["text"].split()) > 3]
    assert not [text for text in texts if any(text.encode() in content for content in without.values())]
    assert any(texts[0].encode() in content for content in whole.values())


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
