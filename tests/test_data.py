"""Splits are made fairly, subsets are nested, and encoding happens once."""

import json

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_sft.data import DataSource, encode_splits, load_splits
from hf_sft.models import Checkpoint, load_processor
from hf_sft.tasks.sequence_classification import SequenceClassification

TASK = SequenceClassification(type="sequence_classification")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def many(count=400):
    """Labels 3:1, each text twice, groups of five neighbours."""
    return [{"text": f"text {i // 2}", "label": "rare" if i // 2 % 4 == 0 else "often", "g": i // 10} for i in range(count)]


def test_made_splits_are_stratified_and_have_the_asked_size(tmp_path):
    files = write(tmp_path / "a.jsonl", many())
    splits = load_splits(DataSource(dataset="json", data_files=files, splits={"validation": 0.1, "test": 0.2}), TASK)
    assert {name: len(rows) for name, rows in splits.rows.items()} == {"train": 280, "validation": 40, "test": 80}
    for rows in splits.rows.values():
        assert rows["label"][:].count("rare") / len(rows) == pytest.approx(0.25, abs=0.02)


def test_equal_texts_are_never_on_two_sides(tmp_path):
    files = write(tmp_path / "a.jsonl", many())
    rows = load_splits(DataSource(dataset="json", data_files=files), TASK).rows
    texts = [set(split["text"]) for split in rows.values()]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


def test_a_group_is_never_on_two_sides(tmp_path):
    files = write(tmp_path / "a.jsonl", many())
    rows = load_splits(DataSource(dataset="json", data_files=files, group="g"), TASK).rows
    groups = [set(split["g"]) for split in rows.values()]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert len(rows["test"]) > 20


def test_splits_depend_on_the_data_seed_alone(tmp_path):
    files = write(tmp_path / "a.jsonl", many())

    def test_rows(seed):
        return load_splits(DataSource(dataset="json", data_files=files, seed=seed), TASK).rows["test"]["text"][:]

    assert test_rows(1) == test_rows(1) != test_rows(2)


@pytest.mark.parametrize("field", ["rows", "rows_per_label"])
def test_a_smaller_subset_is_inside_a_larger_one(field, tmp_path):
    files = write(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(200)])

    def train(count):
        source = DataSource(dataset="json", data_files=files, **{field: count})
        return load_splits(source, TASK).rows["train"]

    small, large = train(8), train(20)
    assert set(small["text"]) < set(large["text"])
    if field == "rows_per_label":
        assert sorted(small["label"][:]) == ["a"] * 8 + ["b"] * 8


def test_slices_and_names_of_splits(tmp_path):
    files = write(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(100)])
    named = {"train": "train[:60%]", "validation": "train[60:80]", "test": "train[-20:]"}
    rows = load_splits(DataSource(dataset="json", data_files=files, splits=named), TASK).rows
    assert {name: (split["text"][0], len(split)) for name, split in rows.items()} == {
        "train": ("t0", 60),
        "validation": ("t60", 20),
        "test": ("t80", 20),
    }


def test_class_labels_of_two_files_in_different_orders_agree_by_name(tmp_path):
    def split(names, ids):
        return Dataset.from_dict(
            {"text": [f"{names[i]} {k}" for k, i in enumerate(ids)], "label": ids},
            features=Features(text=Value("string"), label=ClassLabel(names=names)),
        )

    a, b = split(["yes", "no"], [0, 1, 0]), split(["no", "yes"], [0, 1, 0])
    DatasetDict(train=a).save_to_disk(str(tmp_path / "a"))
    saved = DatasetDict(train=a, validation=b, test=b)
    for name, rows in saved.items():
        rows.save_to_disk(str(tmp_path / "both" / name))
    (tmp_path / "both" / "dataset_dict.json").write_text(json.dumps({"splits": list(saved)}))
    splits = load_splits(DataSource(dataset=str(tmp_path / "both")), TASK)
    assert splits.labels.names == ("yes", "no")
    assert splits.rows["validation"]["label"][:] == ["no", "yes", "no"]


def test_textfolder_takes_the_label_from_the_folder_and_counts_what_it_cannot_read(tmp_path):
    for label, name, content in (("a", "1.txt", b"one"), ("a", "2.txt", b"caf\xe9"), ("b", "1.txt", b"two")) * 1:
        (tmp_path / "t" / label).mkdir(parents=True, exist_ok=True)
        (tmp_path / "t" / label / name).write_bytes(content)
    for k in range(20):
        (tmp_path / "t" / "ab"[k % 2] / f"more{k}.txt").write_text(f"more {k}")
    splits = load_splits(DataSource(dataset="textfolder", data_dir=str(tmp_path / "t")), TASK)
    assert splits.labels.names == ("a", "b")
    assert any("1 file(s) are not utf-8" in note for note in splits.notes)
    latin = load_splits(DataSource(dataset="textfolder", data_dir=str(tmp_path / "t"), encoding="latin-1"), TASK)
    assert any("café" in text for rows in latin.rows.values() for text in rows["text"])


def test_invalid_rows_are_left_out_when_asked_and_counted(tmp_path):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(50)] + [{"text": "", "label": "a"}]
    files = write(tmp_path / "a.jsonl", rows)
    splits = load_splits(DataSource(dataset="json", data_files=files, drop_invalid=True), TASK)
    assert sum(len(split) for split in splits.rows.values()) == 50
    assert any("1 of 51 rows" in note for note in splits.notes)


def test_encoding_happens_once_and_again_when_anything_changes(tmp_path, checkpoints, monkeypatch):
    import hf_sft.data

    calls = []
    encode = hf_sft.data.encode_rows
    monkeypatch.setattr("hf_sft.data.encode_rows", lambda *a: calls.append(1) or encode(*a))
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))
    files = write(tmp_path / "a.jsonl", [{"text": f"once {i}", "label": "ab"[i % 2]} for i in range(40)])

    def encoded(task=TASK):
        return encode_splits(load_splits(DataSource(dataset="json", data_files=files), task), processor)

    first = encoded()
    assert len(calls) == 3
    again = encoded()
    assert len(calls) == 3
    assert again["train"][:] == first["train"][:]
    encoded(SequenceClassification(type="sequence_classification", max_length=4))
    assert len(calls) == 6
    processor.model_max_length = 5
    encoded()
    assert len(calls) == 9


def test_a_step_is_dealt_to_processes_without_losing_or_repeating_a_row():
    from hf_sft.batching import cut_step

    lengths = np.random.default_rng(0).integers(1, 40, 37)
    for processes in (1, 2, 3, 5, 40):
        shares = cut_step(np.arange(37), lengths, 64, processes)
        assert len({len(share) for share in shares}) == 1
        rows = sorted(row for share in shares for m in share if m.counts for row in m.rows)
        assert rows == list(range(37))
        for m in (m for share in shares for m in share):
            assert len(m.rows) == 1 or len(m.rows) * lengths[list(m.rows)].max() <= 64
