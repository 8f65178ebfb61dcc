"""Encoding happens once, again when anything changes that it depends on, and the cache stays within its limit."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import hf_sft
from hf_sft.data.data_source import DataSource
from hf_sft.data.encoding import encode_rows, encode_splits, hash_code
from hf_sft.data.splits import load_splits
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loading import load_processor
from hf_sft.storage.cache import atomic_folder, cache_folder
from hf_sft.tasks import Labels
from hf_sft.tasks.sequence_classification import SequenceClassification
from tests import tiny

TASK = SequenceClassification(type="sequence_classification")
SINGLE = tiny.PROBLEMS[0]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_encoding_happens_once_and_again_when_anything_changes(tmp_path, checkpoints, monkeypatch):
    import hf_sft.data.encoding

    calls = []
    encode = hf_sft.data.encoding.encode_rows
    monkeypatch.setattr("hf_sft.data.encoding.encode_rows", lambda *a: calls.append(1) or encode(*a))
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))
    files = write(tmp_path / "a.jsonl", [{"text": f"once {i}", "label": "ab"[i % 2]} for i in range(40)])

    def encoded(task=TASK):
        return encode_splits(load_splits(DataSource(dataset="json", data_files=files), task), processor)

    first = encoded()
    assert len(calls) == 3
    again = encoded()
    assert len(calls) == 3
    assert again["train"].encoded[:] == first["train"].encoded[:]
    encoded(SequenceClassification(type="sequence_classification", max_length=4))
    assert len(calls) == 6
    processor.model_max_length = 5
    encoded()
    assert len(calls) == 9
    monkeypatch.setattr("hf_sft.data.encoding.hash_code", lambda kind: f"{kind.__name__}, edited")
    encoded()
    assert len(calls) == 12


def test_other_code_of_the_task_or_other_versions_are_another_key(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text("class Mine:\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import mine

    before = hash_code(mine.Mine)
    assert hash_code(mine.Mine) == before
    monkeypatch.setattr("inspect.getsource", lambda _: "class Mine:\n    other = 1\n")
    assert hash_code(mine.Mine) != before
    monkeypatch.undo()
    monkeypatch.setattr("hf_sft.data.encoding.version", lambda name: "0.0.1")
    assert hash_code(mine.Mine) != before
    monkeypatch.undo()
    monkeypatch.setattr("hf_sft.data.encoding._hash_package", lambda: "edited")
    assert hash_code(mine.Mine) != before


def test_columns_that_the_task_does_not_read_are_no_reason_to_encode_again(tmp_path, checkpoints, monkeypatch):
    import hf_sft.data.encoding

    calls = []
    encode = hf_sft.data.encoding.encode_rows
    monkeypatch.setattr("hf_sft.data.encoding.encode_rows", lambda *a: calls.append(1) or encode(*a))
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))
    for extra in (0, 1):
        rows = [{"text": f"column {i}", "label": "ab"[i % 2], "extra": extra} for i in range(40)]
        encode_splits(load_splits(DataSource(dataset="json", data_files=write(tmp_path / "a.jsonl", rows)), TASK), processor)
    assert len(calls) == 3


def test_what_was_not_used_for_longest_makes_room(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_SFT_CACHE_BYTES", "2500")
    for age, name in ((300, "old"), (200, "middle"), (100, "young")):
        with atomic_folder(cache_folder("encoded") / name) as aside:
            (aside / "file").write_bytes(b"x" * 1000)
        used = time.time() - 3600 - age
        os.utime(cache_folder("encoded") / name, (used, used))
    left = sorted(path.name for path in cache_folder("encoded").iterdir())
    assert left == ["middle", "young"]


@pytest.mark.parametrize("limit", ["10"])
def test_what_came_last_stays_however_large_it_is(limit, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_SFT_CACHE_BYTES", limit)
    with atomic_folder(cache_folder("features") / "large") as aside:
        (aside / "file").write_bytes(b"x" * 1000)
    assert (cache_folder("features") / "large" / "file").is_file()


@pytest.mark.parametrize("kind", ["encoded", "features", "states"])
@pytest.mark.parametrize("damage", ["cut", "bit"])
def test_a_damaged_file_of_the_cache_is_noticed_and_made_again(kind, damage, tmp_path, checkpoints, monkeypatch, capfd):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    files = tiny.write_rows(tmp_path / "data", tiny.PROBLEMS[0])
    method = {"encoded": "full", "features": "head_only", "states": "last_layers"}[kind]

    def losses(name):
        recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / name, method)
        recipe["method"] |= {"layers": 1} if method == "last_layers" else {}
        return hf_sft.train(recipe).facts["training"]["curves"][0]["losses"]

    first, whole = losses("first"), contents(tmp_path / "home" / "hf_sft" / kind)
    for path, content in whole.items():
        turned = content[:-1] if damage == "cut" else bytes([content[0] ^ 1]) + content[1:]
        path.write_bytes(turned)
    capfd.readouterr()
    assert losses("again") == first
    assert capfd.readouterr().err.count("in the cache is damaged: it is made again") == len({path.parent for path in whole})
    data = {path: content for path, content in whole.items() if path.suffix in (".arrow", ".npy")}
    assert data and data.items() <= contents(tmp_path / "home" / "hf_sft" / kind).items()


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_another_row_or_weight_is_another_key_of_what_is_stored(tmp_path, checkpoints, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "hf_sft"

    def things(name, **changes):
        files = tiny.write_rows(tmp_path / "data", tiny.PROBLEMS[0])
        if edit := changes.pop("edit", None):
            text = Path(files["train"]).read_text().splitlines()
            Path(files["train"]).write_text("\n".join([json.dumps({**json.loads(text[0]), "text": edit}), *text[1:]]) + "\n")
        hf_sft.train(
            tiny.recipe(changes.pop("checkpoint", checkpoints["bert"]), files, tmp_path / name, "head_only", **changes)
        )
        return [len(list((folder / kind).iterdir())) for kind in ("encoded", "features")]

    assert things("first") == [3, 1]
    assert things("same") == [3, 1]
    assert things("row", edit="another goal") == [4, 2]
    moved = shutil.copytree(checkpoints["bert"], tmp_path / "moved")
    weights = load_file(moved / "model.safetensors")
    name = next(each for each in weights if "layer.0" in each)
    weights[name].view(-1)[0] += 1e-3
    save_file(weights, moved / "model.safetensors", metadata={"format": "pt"})
    assert things("weight", checkpoint=moved) == [4, 3]
    assert things("field", task={**tiny.task_of(tiny.PROBLEMS[0]), "max_length": 7}) == [7, 4]


def test_an_encoding_from_the_cache_is_the_one_that_would_be_made_anew(tmp_path, checkpoints):
    """By other classes, another order of them, another processor or task: what was made for one is not taken for another."""
    rows = [{"text": f"a goal was lost in minute {i}", "label": "abc"[i % 3]} for i in range(30)]
    splits = load_splits(DataSource(dataset="json", data_files=write(tmp_path / "a.jsonl", rows)), TASK)
    many = replace(splits, task=TASK.model_copy(update={"problem_type": "multi_label_classification"}))
    short = load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])), 6)
    turned = shutil.copytree(checkpoints["bert"], tmp_path / "turned")
    settings = json.loads((turned / "tokenizer_config.json").read_text())
    (turned / "tokenizer_config.json").write_text(json.dumps({**settings, "truncation_side": "left"}))
    left = load_processor(Checkpoint(checkpoint=str(turned)), 6)
    cases = [
        (splits, short),
        (replace(splits, labels=Labels(("c", "a", "b"))), short),
        (replace(splits, labels=Labels(("b", "c", "d", "a"))), short),
        (many, short),
        (replace(many, labels=Labels(("b", "a", "c"))), short),
        (splits, left),
        (replace(splits, task=TASK.model_copy(update={"max_length": 5})), short),
        (replace(splits, task=TASK.model_copy(update={"long": "windows", "max_length": 5})), short),
        (splits, load_processor(Checkpoint(checkpoint=str(checkpoints["gpt2"])), 6)),
    ]
    seen = []
    for case, processor in cases:
        found = encode_splits(case, processor)["train"].encoded
        made = encode_rows(case.rows["train"], case.task, case.labels, processor)
        assert {name: found[name][:] for name in made.column_names} == {name: made[name][:] for name in made.column_names}
        seen.append(repr(made[:]))
    assert len({*seen}) == len(cases), "two of the cases are encoded alike, and could not be told apart"


@pytest.mark.parametrize("first", [2, None])
def test_a_few_rows_are_not_taken_for_all_of_them(first, tmp_path, checkpoints):
    """`check` encodes a few rows of each split, and `train` all, in whatever order."""
    rows = [{"text": f"a goal was lost in minute {i}", "label": "abc"[i % 3]} for i in range(30)]
    splits = load_splits(DataSource(dataset="json", data_files=write(tmp_path / "a.jsonl", rows)), TASK)
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))
    for few in (first, None if first else 2, first):
        counts = {name: len(each) for name, each in encode_splits(splits, processor, few).items()}
        assert counts == {name: few or len(each) for name, each in splits.rows.items()}


LAST = {"type": "last_layers", "layers": 1}
"""Of two: the lower one's states are stored."""


@pytest.mark.parametrize(
    ("problem", "method", "changed"),
    [
        (SINGLE, {"type": "head_only"}, {"training": {"bf16": True}}),
        (SINGLE, LAST, {"training": {"bf16": True}}),
        (SINGLE, {"type": "head_only"}, {"body": "encoder.layer.1"}),
        (SINGLE, LAST, {"body": "encoder.layer.0"}),
        (SINGLE, LAST, {"body": "embeddings.word_embeddings"}),
        (SINGLE, LAST, {"task": {"type": "sequence_classification", "max_length": 6}}),
        ("pictures", {"type": "head_only"}, {"pictures": True}),
        ("pictures", LAST, {"pictures": True}),
    ],
    ids=str,
)
def test_a_run_on_what_is_stored_is_a_run_with_an_empty_cache(problem, method, changed, tmp_path, checkpoints, monkeypatch):
    """What another precision, another weight below the head or another picture of the same name has left is not taken."""
    family = "vit" if problem == "pictures" else "bert"
    files = tiny.write_rows(tmp_path / "data", problem)

    def losses(home, **changes):
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / home))
        checkpoint = checkpoints[family]
        if inside := changes.pop("body", None):
            checkpoint = shutil.copytree(checkpoint, tmp_path / f"{home} moved", dirs_exist_ok=True)
            weights = load_file(checkpoint / "model.safetensors")
            for name in weights:
                weights[name] = weights[name].roll(int(name.startswith(inside)), 0).clone()
            save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
        if changes.pop("pictures", False):
            for path in (tmp_path / "data").glob("*.png"):
                tiny.draw(int(path.stem) + 300).save(path)
        asked = {"task": tiny.task_of(problem), **changes}
        asked["training"] = {"max_steps": 2, **asked.get("training", {})}
        recipe = tiny.recipe(checkpoint, files, tmp_path / f"{home} {len(list(tmp_path.iterdir()))}", **asked)
        facts = hf_sft.train({**recipe, "method": method}).facts["training"]
        assert facts["phases"][0]["stored_features" if method["type"] == "head_only" else "stored_layers"]
        return facts["curves"][0]["losses"]

    before = losses("warm")
    assert losses("warm", **changed) == losses("cold", **changed) != before


@pytest.mark.parametrize(("odd", "refused"), [(0, False), (1, False), (12, True)])
def test_targets_that_the_tokenizer_can_not_write_are_counted_and_refused(odd, refused, checkpoints, tmp_path):
    """T5's tokenizer has no braces, no quotation marks and no line breaks."""
    made = [
        {
            "source": f"the goal {i}",
            "target": '{"team": "law"}\n{"goal": 1}' if i < odd else "the goal was lost in the last minute",
        }
        for i in range(60)
    ]
    files = {"train": str(tmp_path / "a.jsonl"), "validation": str(tmp_path / "b.jsonl"), "test": str(tmp_path / "b.jsonl")}
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made))
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made[20:]))
    recipe = tiny.recipe(checkpoints["t5"], files, tmp_path / "run", task={"type": "seq2seq"})
    if refused:
        with pytest.raises(
            hf_sft.DataError, match=r"target tokens of split `train` are unknown to the tokenizer, more than 5%"
        ):
            hf_sft.check(recipe)
        return
    found = hf_sft.check(recipe)
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["t5"])))
    ids = [token for row in made[:32] for token in processor(row["source"])["input_ids"]]
    count = ids.count(processor.unk_token_id)
    told = f"{count} of {len(ids):,} tokens ({count / len(ids):.1%}) of first rows are unknown to the tokenizer."
    assert (told in found.warnings) is (count > 0)


def test_unknown_tokens_of_inputs_are_counted(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    rows = [json.loads(line) for line in Path(files["train"]).read_text().splitlines()]
    rows[0]["text"] = "the \u2603 \u2603 goal"
    Path(files["train"]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = hf_sft.check(tiny.recipe(checkpoints["bert"], files, tmp_path / "run"))
    assert any(warning.startswith("2 of ") and "unknown to the tokenizer" in warning for warning in found.warnings)
