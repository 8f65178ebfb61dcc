"""Splits are made fairly, subsets are nested, and what was decided is said."""

import json
from collections import Counter

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from hf_sft.data.data_source import DataSource
from hf_sft.data.row_hash import hash_rows
from hf_sft.data.splits import load_splits
from hf_sft.errors import DataError
from hf_sft.tasks.chat import Chat
from hf_sft.tasks.seq2seq import Seq2Seq
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


@pytest.mark.parametrize("seed", range(20))
def test_neither_a_text_nor_a_group_is_on_two_sides_however_they_overlap(seed, tmp_path):
    """Texts link groups and groups link texts: rows at the ends of such a chain have neither in common, and go together."""
    draw = np.random.default_rng(seed)
    texts, groups = draw.integers(70, size=(2, 60))
    rows = [{"text": f"t{t}", "g": f"g{g}" if g else None, "i": i} for i, (t, g) in enumerate(zip(texts, groups, strict=True))]
    files = write(tmp_path / "a.jsonl", [{**row, "label": "ab"[row["i"] % 2]} for row in rows])
    source = DataSource(dataset="json", data_files=files, group="g", splits={"validation": 0.2, "test": 0.2}, seed=seed)
    made = load_splits(source, TASK).rows
    assert sorted(i for split in made.values() for i in split["i"]) == list(range(60))
    for column in ("text", "g"):
        sides = Counter(value for split in made.values() for value in {*split[column]} - {None})
        assert {*sides.values()} == {1}, column


def test_splits_depend_on_the_data_seed_alone(tmp_path):
    files = write(tmp_path / "a.jsonl", many())

    def test_rows(seed):
        return load_splits(DataSource(dataset="json", data_files=files, seed=seed), TASK).rows["test"]["text"][:]

    assert test_rows(1) == test_rows(1) != test_rows(2)


@pytest.mark.parametrize(
    ("group", "test", "train"),
    [(None, [3, 5, 33, 36, 47], [30, 2, 12, 41, 31]), ("g", [30, 31, 32, 33, 34], [35, 2, 9, 43, 36])],
)
def test_a_seed_gives_the_split_that_it_gave_in_earlier_versions(group, test, train, tmp_path):
    files = write(tmp_path / "a.jsonl", many(100))
    rows = load_splits(DataSource(dataset="json", data_files=files, group=group, rows=20), TASK).rows
    assert rows["test"]["text"][::2] == [f"text {number}" for number in test]
    assert rows["train"]["text"][:5] == [f"text {number}" for number in train]


def answered(kind, answers):
    """Rows of a task that writes, one for each answer."""
    if kind == "seq2seq":
        return Seq2Seq(type="seq2seq"), [{"source": f"source {i}", "target": answer} for i, answer in enumerate(answers)]
    if kind == "prompt":
        task = Chat(type="chat", chat_template="plain", prompt="prompt")
        return task, [{"prompt": f"prompt {i}", "completion": answer} for i, answer in enumerate(answers)]
    turns = [[f"question {i}", answer] for i, answer in enumerate(answers)]
    talks = [[{"role": r, "content": c} for r, c in zip(("user", "assistant"), each, strict=True)] for each in turns]
    return Chat(type="chat", chat_template="plain"), [{"messages": talk} for talk in talks]


@pytest.mark.parametrize("kind", ["chat", "prompt", "seq2seq"])
def test_answers_that_are_written_are_no_strata(kind, tmp_path):
    own, stock = [f"answer {i}" for i in range(160)], ["I can't say.", "Ask again."] * 20
    for answers in (own, [*own, *stock]):
        task, rows = answered(kind, answers)
        splits = load_splits(DataSource(dataset=write(tmp_path / "a.jsonl", rows)), task)
        tenth = len(answers) // 10
        assert {name: len(split) for name, split in splits.rows.items()} == {
            "train": len(answers) - 2 * tenth,
            "validation": tenth,
            "test": tenth,
        }
        assert not any("stratified" in note or "classes" in note for note in splits.notes)


@pytest.mark.parametrize(("labels", "named"), [("ab", True), ([1.5, 2.5], False), ([["a"], ["a", "b"]], False)])
def test_one_class_for_each_row_is_what_shares_evenly_and_nothing_else(labels, named, tmp_path):
    made = split(tmp_path, [{"text": f"t{i}", "label": labels[i % 4 == 0]} for i in range(100)])
    told = [note for note in made.notes if "equal inputs on one side" in note]
    assert len(told) == 2 and all(("stratified" in note) is named for note in told)
    if named:
        assert all(rows["label"][:].count("b") in (2, 3) for name, rows in made.rows.items() if name != "train")


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


def test_as_many_rows_as_train_has_are_all_of_them_and_one_more_is_refused(tmp_path):
    files = write(tmp_path / "a.jsonl", [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(50)])
    rows = load_splits(DataSource(dataset="json", data_files=files, rows=40), TASK).rows["train"]
    assert sorted(rows["text"]) == sorted(
        load_splits(DataSource(dataset="json", data_files=files), TASK).rows["train"]["text"]
    )
    with pytest.raises(DataError, match=r"`data\.rows` is 41, but train has 40 rows"):
        load_splits(DataSource(dataset="json", data_files=files, rows=41), TASK)
    named = [f"{i} of `{name}`" for i, name in ((20, "a"), (20, "b"))]
    for count, few in ((20, False), (21, True)):
        made = load_splits(DataSource(dataset="json", data_files=files, rows_per_label=count), TASK)
        assert len(made.rows["train"]) == 40 and any(", ".join(named) in note for note in made.notes) is few


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


def test_invalid_rows_are_left_out_when_asked_and_counted(tmp_path):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(50)] + [{"text": "", "label": "a"}]
    files = write(tmp_path / "a.jsonl", rows)
    splits = load_splits(DataSource(dataset="json", data_files=files, drop_invalid=True), TASK)
    assert sum(len(split) for split in splits.rows.values()) == 50
    assert any("1 of 51 rows" in note for note in splits.notes)


def test_a_step_is_dealt_to_processes_without_losing_or_repeating_a_row():
    from hf_sft.data.examples import cut_step

    lengths = np.random.default_rng(0).integers(1, 40, 37)
    for processes in (1, 2, 3, 5, 40):
        shares = cut_step(np.arange(37), lengths, 64, processes)
        assert len({len(share) for share in shares}) == 1
        rows = sorted(row for share in shares for m in share if m.counts for row in m.places)
        assert rows == list(range(37))
        for m in (m for share in shares for m in share):
            assert len(m.places) == 1 or len(m.places) * lengths[list(m.places)].max() <= 64


def split(path, count_or_rows, **fields):
    rows = count_or_rows if isinstance(count_or_rows, list) else [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(100)]
    return load_splits(DataSource(dataset="json", data_files=write(path / "rows.jsonl", rows), **fields), TASK)


def sizes(splits):
    return {name: len(rows) for name, rows in splits.rows.items()}


@pytest.mark.parametrize(
    "splits", [{"train": 0.8, "validation": 0.1, "test": 0.1}, {"train": "80%", "validation": "10%", "test": "10%"}]
)
def test_fractions_for_all_three_splits_are_welcome(splits, tmp_path):
    assert sizes(split(tmp_path, 100, splits=splits)) == {"train": 80, "validation": 10, "test": 10}


@pytest.mark.parametrize("share", [-0.5, 0, 0.0, 1, 1.0, 1.5, "0%", "100%"])
@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_a_fraction_that_is_none_is_refused(name, share, tmp_path):
    if name == "train" and share in (1, "100%"):  # all that is not held out is no mistake in itself
        with pytest.raises(DataError, match=r"add up to 1\.2; expected at most 1, with rows left to train on"):
            split(tmp_path, 100, splits={"train": share})
        return
    with pytest.raises(DataError, match=rf"`data\.splits\.{name}` must be a split's name or a fraction between 0 and 1; got"):
        split(tmp_path, 100, splits={name: share})


def test_fractions_that_do_not_add_up_leave_the_rest_unused_and_say_so(tmp_path):
    made = split(tmp_path, 100, splits={"train": 0.5, "validation": 0.1, "test": 0.1})
    assert sizes(made) == {"train": 50, "validation": 10, "test": 10}
    assert any("add up to 0.7: 0.3 of train is not used" in note for note in made.notes)


def test_many_small_classes_give_the_totals_that_were_asked_for(tmp_path):
    rows = [{"text": f"{c} {i}", "label": f"class {c:02}"} for c in range(37) for i in range(5)]
    made = split(tmp_path, rows)
    assert all(abs(sizes(made)[name] - wanted) <= 1 for name, wanted in (("train", 148), ("validation", 18.5), ("test", 18.5)))
    for name, kept in made.rows.items():
        counts = [kept["label"][:].count(f"class {c:02}") for c in range(37)]
        assert max(counts) - min(counts) <= (2 if name == "train" else 1)
    assert any("of 37 classes have no row in split `test`" in note for note in made.notes)


def test_classes_of_four_rows_do_reach_the_test_split(tmp_path):
    rows = [{"text": f"{c} {i}", "label": f"class {c:02}"} for c in range(44) for i in range(4 if c else 14)]
    made = split(tmp_path, rows)
    assert all(abs(sizes(made)[name] - 18.6) <= 1 for name in ("validation", "test"))


def test_the_only_row_of_a_class_is_there_to_be_learned_from(tmp_path):
    rows = [{"text": f"text {i}", "label": f"lone {i}" if i < 9 else "often"} for i in range(40)]
    files = write(tmp_path / "a.jsonl", rows)
    for seed in range(5):
        source = DataSource(dataset="json", data_files=files, splits={"validation": 0.3, "test": 0.3}, seed=seed)
        splits = load_splits(source, TASK)
        assert {f"lone {i}" for i in range(9)} <= {*splits.rows["train"]["label"]}
        assert any("9 of 10 classes have no row in split `test`: `lone 0`" in note for note in splits.notes)


def test_a_slice_that_runs_backwards_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"`train\[80:20\]` is not a slice, or one without rows"):
        split(tmp_path, 100, splits={"test": "train[80:20]"})


def test_slices_can_be_added(tmp_path):
    made = split(
        tmp_path, 100, splits={"train": "train[:20]+train[40:]", "validation": "train[20:30]", "test": "train[30:40]"}
    )
    assert sizes(made) == {"train": 80, "validation": 10, "test": 10}
    assert made.rows["train"]["text"][19:21] == ["t19", "t40"]


@pytest.mark.parametrize("name", ["dev", "valid", "val", "eval"])
def test_a_split_of_another_name_is_taken_for_validation_aloud(name, tmp_path):
    files = {}
    for each in ("train", name):
        files[each] = write(tmp_path / f"{each}.jsonl", [{"text": f"{each}{i}", "label": "ab"[i % 2]} for i in range(20)])
    made = load_splits(DataSource(dataset="json", data_files=files), TASK)
    assert made.rows["validation"]["text"][0] == f"{name}0" and made.source.splits["validation"] == name
    assert any(f"split `{name}` is taken for validation" in note for note in made.notes)


def test_keep_takes_booleans_and_refuses_words(tmp_path):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "ok": i < 60, "no": "no", "one": int(i < 60)} for i in range(100)]
    for column in ("ok", "one"):
        made = split(tmp_path, rows, keep=column)
        assert sum(sizes(made).values()) == 60 and any("left 60 of 100" in note for note in made.notes)
    with pytest.raises(DataError, match=r"`data.keep` names column `no`, which holds 'no'"):
        split(tmp_path, rows, keep="no")
    with pytest.raises(DataError, match=r"no rows left: `data.keep` \(column `never`\) is false in all 100"):
        split(tmp_path, [{**row, "never": False} for row in rows], keep="never")


def test_rows_without_a_group_are_not_one_group(tmp_path):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2], "g": None if i % 2 else ""} for i in range(100)]
    assert sizes(split(tmp_path, rows, group="g")) == {"train": 80, "validation": 10, "test": 10}


def test_too_few_parts_for_a_split_are_the_cause_that_is_named(tmp_path):
    rows = [{"text": "always the same", "label": "ab"[i % 2]} for i in range(50)]
    with pytest.raises(DataError, match=r"no rows left: train brings 50 rows, in 1 parts"):
        split(tmp_path, rows)


def test_all_rows_invalid_names_the_reason(tmp_path):
    files = {
        n: write(
            tmp_path / f"{n}.jsonl", [{"text": " " if n == "test" else f"{n}{i}", "label": "ab"[i % 2]} for i in range(20)]
        )
        for n in ("train", "test")
    }
    with pytest.raises(DataError, match=r"split `test` has no rows left(.|\n)*column `text` is empty in 20 row"):
        load_splits(DataSource(dataset="json", data_files=files, drop_invalid=True), TASK)


def test_rows_of_test_that_train_has_too_are_counted(tmp_path):
    train = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(40)]
    test = [{"text": f"t{i}", "label": "ab"[(i + (i > 30)) % 2]} for i in range(25, 50)]
    files = {"train": write(tmp_path / "a.jsonl", train), "test": write(tmp_path / "b.jsonl", test)}
    made = load_splits(DataSource(dataset="json", data_files=files), TASK)
    in_train = set(made.rows["train"]["text"])
    seen = [row["text"] in in_train for row in made.rows["test"]]
    assert list(made.seen["test"]) == [i for i, known in enumerate(seen) if known] and len(made.seen["validation"]) == 0
    assert any(f"{sum(seen)} of 25 rows of split `test` have an input that train has too" in note for note in made.notes)
    other = {**files, "test": write(tmp_path / "c.jsonl", test[15:])}
    assert not any("train has too" in n for n in load_splits(DataSource(dataset="json", data_files=other), TASK).notes)


def test_rows_per_label_says_where_a_class_has_fewer(tmp_path):
    made = split(
        tmp_path, [{"text": f"t{i}", "label": "few" if i % 20 == 0 else "many"} for i in range(100)], rows_per_label=10
    )
    assert any("`data.rows_per_label` is 10; train has fewer: 4 of `few`" in note for note in made.notes)


def test_a_fingerprint_knows_values_and_nothing_else(tmp_path):
    rows = [{"text": f"t{i}", "label": "ab"[i % 2]} for i in range(3000)]
    made = Dataset.from_list(rows)
    read = load_splits(DataSource(dataset="json", data_files=write(tmp_path / "a.jsonl", rows), splits={"test": 0.5}), TASK)
    there = {text: i for i, text in enumerate(made["text"][:])}
    again = made.select([there[text] for text in read.rows["test"]["text"]])
    assert hash_rows(read.rows["test"]) == hash_rows(again) == hash_rows(Dataset.from_list(again.to_list()))
    assert hash_rows(made) != hash_rows(made.select([1, 0, *range(2, 3000)]))
    assert hash_rows(made) != hash_rows(Dataset.from_list([*rows[:-1], {**rows[-1], "label": "c"}]))


def test_a_step_is_cut_where_it_takes_least():
    """Of all cuts of a few sorted examples into micro-batches within the budget, none takes less."""
    from itertools import combinations, pairwise

    from hf_sft.data.examples import BESIDE, cut_step

    def total(sizes: list[int], falling: np.ndarray) -> float:
        ends = [0, *np.cumsum(sizes).tolist()]
        return sum((end - start) * falling[start] + budget / BESIDE for start, end in pairwise(ends))

    draw, budget = np.random.default_rng(0), 64
    for count in range(1, 11):
        costs = draw.integers(1, 30, count)
        falling = np.sort(costs)[::-1]
        ways = [np.diff([0, *cut, count]).tolist() for n in range(count) for cut in combinations(range(1, count), n)]
        allowed = [way for way in ways if all(n == 1 or n * falling[sum(way[:i])] <= budget for i, n in enumerate(way))]
        chosen = [len(each.places) for each in cut_step(np.arange(count), costs, budget)[0]]
        assert chosen in allowed and total(chosen, falling) == min(total(way, falling) for way in allowed)
