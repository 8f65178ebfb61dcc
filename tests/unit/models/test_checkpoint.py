"""What a checkpoint brings is what it says: classes by name, bodies whole, positions counted, code only when asked for."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    LlamaConfig,
    MPNetConfig,
    RobertaConfig,
    T5Config,
    XLNetConfig,
)

import hf_sft
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.label_head import match_rows
from hf_sft.models.loading import count_positions, load_model, load_processor
from hf_sft.tasks import Labels
from hf_sft.tasks.sequence_classification import SequenceClassification
from tests import processes, tiny
from tests.altered import with_code

STILL = {"max_steps": 1, "learning_rate": 1e-12}
SINGLE = "single_label_classification"
TASK = SequenceClassification(type="sequence_classification", problem_type=SINGLE)


def classifier(folder: Path, source: Path, names: tuple[str, ...]) -> Path:
    """A checkpoint with a head whose row for a class is the class's number plus one, everywhere."""
    named = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    model = AutoModelForSequenceClassification.from_pretrained(source, **named)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(("classifier.", "score.")):
                for row in range(len(names)):
                    parameter[row] = row + 1
    model.save_pretrained(folder)
    for file in source.glob("*token*"):
        shutil.copy(file, folder)
    return folder


def loaded(folder: Path, names: tuple[str, ...]):
    checkpoint = Checkpoint(checkpoint=str(folder))
    return load_model(checkpoint, TASK, Labels(names), load_processor(checkpoint))


def head(model) -> torch.Tensor:
    return next(p for name, p in model.named_parameters() if name in ("classifier.weight", "score.weight"))[:, 0].detach()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_rows_of_a_head_follow_the_names_of_the_classes(family, checkpoints, tmp_path):
    folder = classifier(tmp_path / "c", checkpoints[family], ("law", "sport", "business"))
    same = loaded(folder, ("law", "sport", "business"))
    assert head(same.model).tolist() == [1, 2, 3] and same.new == () and same.notes == ()
    turned = loaded(folder, ("business", "law", "Sport"))
    assert head(turned.model).tolist() == [3, 1, 2] and turned.new == ()
    assert "the rows of 3 class(es) are taken, by name" in turned.notes[0]
    fewer = loaded(folder, ("sport", "law"))
    assert head(fewer.model).tolist() == [2, 1] and fewer.new == ()
    some = loaded(folder, ("sport", "weather", "law", "arts"))
    rows = head(some.model).tolist()
    assert (rows[0], rows[2]) == (2, 1) and abs(rows[1]) < 0.5 and abs(rows[3]) < 0.5 and some.new
    assert "rows of 2 class(es) are taken, by name; new for `weather`, `arts`" in some.notes[0]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize(("theirs", "ours"), [(("a", "b"), ("c", "d")), (("LABEL_0", "LABEL_1"), ("no", "yes"))])
def test_a_head_for_other_classes_is_drawn_anew_aloud(family, theirs, ours, checkpoints, tmp_path):
    found = loaded(classifier(tmp_path / "c", checkpoints[family], theirs), ours)
    assert head(found.model).abs().max() < 0.5 and found.new
    assert "is for other classes" in found.notes[0] and "drawn anew" in found.notes[0]


def test_classes_are_matched_by_name_but_not_by_place():
    assert match_rows(["LABEL_0", "LABEL_1"], Labels(("LABEL_0", "LABEL_1"))) == [0, 1]
    assert match_rows(["LABEL_0", "LABEL_1"], Labels(("LABEL_1", "LABEL_0"))) == [None, None]
    assert match_rows(["A", "a"], Labels(("a", "b"))) == [1, None]


def test_a_finished_run_goes_on_right_when_the_classes_come_in_another_order(checkpoints, tmp_path):
    """Fine-tuned on, without a step: the answers must be the first run's, not those of classes in the same places."""
    files = tiny.write_rows(tmp_path / "data", SINGLE, train=40)
    training = {"optim": "adamw_torch", "learning_rate": 1e-2, "max_steps": 40}
    hf_sft.train(hf_sft.Recipe.model_validate(tiny.recipe(checkpoints["bert"], files, tmp_path / "one", training=training)))
    turned = {"a_law": "law", "b_business": "business", "c_sport": "sport"}
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    new = {old: name for name, old in turned.items()}
    config["id2label"] = {i: new[name] for i, name in config["id2label"].items()}
    config["label2id"] = {name: int(i) for i, name in config["id2label"].items()}
    (tmp_path / "one" / "config.json").write_text(json.dumps(config))
    for path in files.values():
        lines = [json.loads(line) for line in Path(path).read_text().splitlines()]
        Path(path).write_text("".join(json.dumps({**row, "label": new[row["label"]]}) + "\n" for row in lines))
    recipe = tiny.recipe(tmp_path / "one", files, tmp_path / "two", training={"max_steps": 1, "learning_rate": 1e-12})
    report = hf_sft.train(hf_sft.Recipe.model_validate(recipe))
    answers = [
        [json.loads(line)["label"] for line in (tmp_path / run / "predictions/test.jsonl").read_text().splitlines()]
        for run in ("one", "two")
    ]
    assert [new[label] for label in answers[0]] == answers[1] and len(set(answers[1])) > 1
    assert report.facts["data"]["labels"] == ["a_law", "b_business", "c_sport"]
    assert any("are taken, by name" in note for note in report.facts["data"]["warnings"])


def test_a_body_that_does_not_fit_is_an_error_and_not_new(checkpoints, tmp_path):
    other = Path(shutil.copytree(checkpoints["bert"], tmp_path / "other"))
    shutil.copy(checkpoints["gpt2"] / "model.safetensors", other)
    with pytest.raises(hf_sft.CheckpointError, match=r"does not fit BertForSequenceClassification: \d+ of the \d+ parameters"):
        loaded(other, ("a", "b"))
    narrow = Path(shutil.copytree(checkpoints["bert"], tmp_path / "narrow"))
    weights = load_file(narrow / "model.safetensors")
    name = next(name for name in weights if "word_embeddings" in name)
    save_file({**weights, name: weights[name][:, :16].contiguous()}, narrow / "model.safetensors", {"format": "pt"})
    with pytest.raises(hf_sft.CheckpointError, match=r"of shape \(64, 16\); expected shape \(64, 32\)"):
        loaded(narrow, ("a", "b"))


TINY = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (RobertaConfig(max_position_embeddings=130, pad_token_id=1, **TINY), 128),
        (MPNetConfig(max_position_embeddings=130, pad_token_id=1, **TINY), 128),
        (BertConfig(max_position_embeddings=128, **TINY), 128),
        (GPT2Config(n_positions=128, n_embd=32, n_head=2, n_layer=1), 128),
        (BartConfig(max_position_embeddings=128, d_model=16, encoder_layers=1, decoder_layers=1), 128),
        (DistilBertConfig(max_position_embeddings=128, dim=32, n_heads=2, n_layers=1), 128),
        (LlamaConfig(max_position_embeddings=128, num_key_value_heads=2, **TINY), 128),
        (XLNetConfig(d_model=32, n_head=2, n_layer=1), None),
        (T5Config(d_model=32, num_layers=1), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_positions_are_counted_from_the_table(config, positions):
    assert count_positions(config) == positions


def test_a_row_longer_than_the_positions_is_cut_and_counted(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    with Path(files["train"]).open("a") as file:
        file.write(json.dumps({"text": "goal " * 500, "label": "law"}) + "\n")
    report = hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run"))
    assert report.facts["data"]["truncated"]["train"] == 1


def test_a_default_length_is_no_longer_than_the_model(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "questions")
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task=tiny.task_of("questions"))
    assert hf_sft.train(recipe).facts["recipe"]["task"]["max_length"] == 64  # of 384
    hf_sft.check(tmp_path / "run" / "recipe.yaml", ["output.folder=again"])


def test_files_can_be_read_by_whoever_may_read_the_folder(checkpoints, tmp_path):
    before = os.umask(0o022)
    try:
        files = tiny.write_rows(tmp_path / "data", SINGLE)
        hf_sft.train(hf_sft.Recipe.model_validate(tiny.recipe(checkpoints["bert"], files, tmp_path / "run")))
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in (tmp_path / "run").rglob("*") if path.is_file()} == {"0o644"}


@pytest.mark.parametrize("method", ["full", "lora:kept"])
def test_foreign_code_runs_only_when_the_run_and_the_caller_both_say_so(method, checkpoints, tmp_path):
    base = Path(shutil.copytree(checkpoints["bert"], tmp_path / "base"))
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    hf_sft.train(hf_sft.Recipe.model_validate(tiny.recipe(base, files, tmp_path / "run", method)))
    wanted = hf_sft.predict(tmp_path / "run", ["goal match"])
    witness, run = tmp_path / "witness", tmp_path / "run"
    for folder in (base, run):
        with_code(folder, witness)
    for call in (lambda **k: hf_sft.predict(run, ["goal"], **k), lambda **k: hf_sft.evaluate(run, **k)):
        for asked in ({}, {"trust_remote_code": True}):
            with pytest.raises(hf_sft.CheckpointError, match="brings Python code of its own"):
                call(**asked)
    text = (run / "recipe.yaml").read_text()
    (run / "recipe.yaml").write_text(text.replace("trust_remote_code: false", "trust_remote_code: true"))
    for call in (lambda: hf_sft.predict(run, ["goal"]), lambda: hf_sft.evaluate(run)):
        with pytest.raises(hf_sft.RecipeError, match="--trust-remote-code"):
            call()
    assert not witness.exists()
    assert hf_sft.predict(run, ["goal match"], trust_remote_code=True)[0]["label"] == wanted[0]["label"]
    assert witness.exists()


def test_an_adapter_as_checkpoint_is_told_how_to_merge_and_the_line_works(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    hf_sft.train(hf_sft.Recipe.model_validate(tiny.recipe(checkpoints["bert"], files, tmp_path / "kept", "lora:kept")))
    again = hf_sft.Recipe.model_validate(tiny.recipe(tmp_path / "kept", files, tmp_path / "second"))
    with pytest.raises(hf_sft.CheckpointError, match="holds a PEFT adapter, not a whole model") as raised:
        hf_sft.train(again)
    line = next(line.strip() for line in str(raised.value).splitlines() if "python -c" in line)
    done = subprocess.run(line.replace("python", sys.executable, 1), shell=True, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    recipe = tiny.recipe(
        tmp_path / "kept_merged", files, tmp_path / "second", training={"max_steps": 1, "learning_rate": 1e-12}
    )
    hf_sft.train(hf_sft.Recipe.model_validate(recipe))
    scores = [
        [json.loads(row)["score"] for row in (tmp_path / run / "predictions/test.jsonl").read_text().splitlines()]
        for run in ("kept", "second")
    ]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4)


@pytest.mark.parametrize("method", ["full", "lora:kept"])
def test_the_snippet_of_the_card_runs_and_answers_like_the_run(method, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    hf_sft.train(hf_sft.Recipe.model_validate(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", method)))
    snippet = re.search(r"```python\n(.*?)```", (tmp_path / "run" / "README.md").read_text(), re.S)
    assert snippet
    lines = snippet[1].strip().splitlines()
    code = "\n".join([*lines[:-1], f"print('label:', {lines[-1]}[0]['label'])"])
    done = processes.code(code)
    assert done.returncode == 0, done.stderr[-2000:]
    said = done.stdout.partition("label: ")[2].strip()
    assert said == hf_sft.predict(tmp_path / "run", ["A text."])[0]["label"]
