"""What comes from the Hub: checkpoints, data sets, and what was published."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

import hf_sft
from hf_sft.tasks import GenerationOptions
from tests import tiny
from tests.altered import change_one_weight
from tests.integration.hub.hub_cases import command, to_hub
from tests.local_hub import TOKENS

SINGLE = "single_label_classification"

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
        here[f"me/{name}"] = hf_sft.predict(folder, inputs, writing=GenerationOptions(5) if problem == "texts" else None)
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
