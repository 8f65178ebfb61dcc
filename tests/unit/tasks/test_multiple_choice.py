"""What only choosing must get right: endings flattened and put back, rows with different numbers of them, the budget."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForMultipleChoice

import hf_sft
from hf_sft.aids.label_smoothing import smooth
from hf_sft.answers.choices import read_place
from hf_sft.data.encoding import encode_rows
from hf_sft.data.examples import Examples, cut_step
from hf_sft.losses import item_loss
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loading import load_model, load_processor
from hf_sft.tasks.common.baselines import fit_all
from hf_sft.tasks.multiple_choice import MultipleChoice
from tests import tiny


def task(**fields: Any) -> MultipleChoice:
    return MultipleChoice(type="multiple_choice", **fields)


@pytest.fixture(scope="module")
def run(finished_run) -> Path:
    return finished_run("choices")


def test_a_row_s_logits_are_those_of_the_model_s_own_shape_and_do_not_depend_on_other_rows(run):
    finished = hf_sft.runs.prepare.load_run(run)
    rows = Dataset.from_list(tiny.rows("choices", 11, 200))
    collate = finished.task.collator(finished.processor)
    encoded = encode_rows(rows, finished.task, None, finished.processor)
    with torch.no_grad():
        together = finished.task.inference_step(finished.model, collate(encoded.to_list()))
    model = AutoModelForMultipleChoice.from_pretrained(run).eval()
    assert {len(logits) for logits in together} == {2, 3, 4}
    for row, logits in zip(rows, together, strict=True):
        pairs = finished.processor([row["context"]] * len(row["choices"]), row["choices"], padding=True, return_tensors="pt")
        with torch.no_grad():
            own = model(**{name: tensor.unsqueeze(0) for name, tensor in pairs.items()}).logits[0].numpy()
        np.testing.assert_allclose(logits, own, atol=1e-5)


def test_losses_see_a_row_s_own_endings_alone_with_label_smoothing_too(checkpoints):
    rows = Dataset.from_list(tiny.rows("choices", 9))
    checkpoint = Checkpoint(checkpoint=str(checkpoints["bert"]))
    processor = load_processor(checkpoint)
    model = load_model(checkpoint, task(), None, processor).model
    examples = encode_rows(rows, task(), None, processor).to_list()
    collate = task().collator(processor)
    items = task().items(model, collate(examples))
    for loss in (item_loss, lambda items: smooth(item_loss, 0.1, items)):
        alone = torch.cat([loss(task().items(model, collate([example]))) for example in examples])
        torch.testing.assert_close(loss(items), alone, rtol=1e-5, atol=1e-5)
        assert float(loss(items).detach().max()) < 5


def test_the_budget_of_a_micro_batch_counts_the_tokens_of_all_endings(checkpoints):
    rows = Dataset.from_list(tiny.rows("choices", 60))
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))
    examples = Examples(rows, encode_rows(rows, task(), None, processor), task().collator(processor))
    cuts = cut_step(np.arange(60), examples.costs, 128)[0]
    for cut in cuts:
        tokens = sum(len(ids) for place in cut.places for ids in examples.encoded[place]["input_ids"])
        assert len(cut.places) == 1 or tokens <= 128
    assert len(cuts) > 10


def test_several_columns_are_endings_and_letters_are_places(checkpoints, tmp_path):
    assert [read_place(value) for value in (2, "2", "C", "c", " 0 ", None, "", "CC", True)] == [2, 2, 2, 2, 0, -1, -1, -1, -1]
    rows = Dataset.from_dict({"q": ["goal match"], "a": ["lost"], "b": ["rose"], "answer": ["B"]})
    asked = task(context="q", choices=("a", "b"), label="answer")
    assert asked.invalid_rows(rows, None) == {} and asked.references(rows) == [1]
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))
    (encoded,) = asked.encode(rows[:], processor, None)["input_ids"]
    assert [processor.decode(ids) for ids in encoded] == [
        "[CLS] goal match [SEP] lost [SEP]",
        "[CLS] goal match [SEP] rose [SEP]",
    ]


def named(labels, endings=("red", "green", "blue", "grey"), **fields):
    """The places that a task reads, of rows with these endings; None for what it refuses."""
    rows = Dataset.from_dict({"context": ["a"] * len(labels), "choices": [list(endings)] * len(labels), "label": labels})
    resolved, _, notes = task(**fields).resolve({"train": rows})
    assert resolved.invalid_rows(rows, None) == {}
    return resolved.references(rows), resolved.label_base, notes


@pytest.mark.parametrize(
    ("labels", "places", "base"),
    [
        (["A", "D", "b"], [0, 3, 1], "letter"),
        (["0", "3", "1"], [0, 3, 1], 0),
        ([0, 2], [0, 2], 0),
        ([1, 4, 2], [0, 3, 1], 1),
        (["1", " 4"], [0, 3], 1),
        (["red", "grey ", "green"], [0, 3, 1], "text"),
    ],
)
def test_a_label_names_an_ending_by_place_letter_or_text(labels, places, base):
    found, how, notes = named(labels)
    assert found == places and how == base and bool(notes) is (base == 1)


def test_numbers_that_are_endings_and_no_places_name_endings():
    assert named(["30", "7", "30"], endings=("7", "30")) == ([1, 0, 1], "text", [])


@pytest.mark.parametrize("labels", [["A", "B", "1", "3"], ["B", "2"], ["red", "1"], ["a", "blue", "0"]])
def test_labels_of_two_kinds_are_refused(labels):
    with pytest.raises(hf_sft.DataError, match=r"names the right ending in two ways: .* in \d rows, '\d' in"):
        named(labels)


@pytest.mark.parametrize("labels", [[1, 2, 3], ["1", "3"], [2, 2]])
def test_places_of_which_none_is_zero_are_asked_about(labels):
    with pytest.raises(hf_sft.DataError, match=r"`task.label_base=1`.*`task.label_base=0`"):
        named(labels)
    assert named(labels, label_base=1)[0] == [int(label) - 1 for label in labels]
    assert named(labels, label_base=0)[0] == [int(label) for label in labels]


GOOD = {"context": "the goal", "choices": ["was", "lost"], "label": 0}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({**GOOD, "label": 2}, r"`label` has the value 2, which is the place of no ending, in 1 row\(s\) of split `test`: 1"),
        ({**GOOD, "label": None}, r"`label` has the value None, which is the place of no ending"),
        ({**GOOD, "choices": ["was"]}, r"less than two endings to choose from"),
        ({**GOOD, "choices": []}, r"less than two endings to choose from"),
        ({**GOOD, "choices": ["was", " "]}, r"An ending is empty, or no text"),
        ({**GOOD, "context": ""}, r"`context` is empty, or no text"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_named(row, message, checkpoints, tmp_path):
    files = {}
    for name, rows in (("train", [GOOD, GOOD]), ("validation", [GOOD]), ("test", [GOOD, row])):
        files[name] = str(tmp_path / f"{name}.jsonl")
        Path(files[name]).write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(hf_sft.DataError, match=message):
        hf_sft.check(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task={"type": "multiple_choice"}))


def test_a_checkpoint_without_such_a_head_is_refused(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "choices")
    with pytest.raises(hf_sft.CheckpointError, match="GPT2Config, and transformers has no AutoModelForMultipleChoice"):
        hf_sft.check(tiny.recipe(checkpoints["gpt2"], files, tmp_path / "run", task=tiny.task_of("choices")))


def test_the_baselines_take_the_most_frequent_place_and_the_shared_words():
    train = Dataset.from_dict({"context": ["x"] * 3, "choices": [["a", "b"]] * 3, "label": [1, 1, 0]})
    asked = Dataset.from_dict({"context": ["the goal was lost"], "choices": [["lost goal", "a song", "law"]]})
    fitted, failed = fit_all(task().baselines(train, None))
    assert not failed and {name: answer(asked).as_json()[0]["choice"] for name, answer in fitted.items()} == {
        "majority": 1,
        "word_overlap": 0,
    }


def test_a_run_answers_scores_and_shows_its_mistakes(run):
    rows = tiny.rows("choices", 11, 200)
    answers = hf_sft.predict(run, [*rows, {"context": "", "choices": ["a", "b"], "label": 0}])
    written = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [answer["choice"] for answer in answers[:-1]] == [line["choice"] for line in written]
    assert answers[-1]["choice"] is None and answers[0]["reference"] == rows[0]["label"]
    assert [len(answer["scores"]) for answer in answers[:-1]] == [len(row["choices"]) for row in rows]
    report = json.loads((run / "report.json").read_text())
    right = np.mean([line["choice"] == line["reference"] for line in written])
    assert report["metrics"]["test"]["accuracy"]["value"] == pytest.approx(right)
    assert set(report["baselines"]) == {"majority", "word_overlap"} and report["data"]["labels"] is None
    again = hf_sft.evaluate(run)
    assert again.scores["accuracy"].value == pytest.approx(right) and again.mistakes[0]["text"].count("\n") >= 2
    card = (run / "README.md").read_text()
    snippet = card.partition("```python\n")[2].partition("```")[0]
    compile(snippet, "card", "exec")
    assert "it answers with one of a row's endings" in card and "pipeline(" not in snippet and "hf_sft.predict(run" in snippet


def test_check_shows_every_ending_and_marks_the_right_one(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "choices")
    found = hf_sft.check(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task=tiny.task_of("choices")))
    first, shown = tiny.rows("choices", 1)[0], found.facts["as the model sees it"].splitlines()
    assert len(shown) == len(first["choices"]) and shown[first["label"]].startswith(f"→ {first['label']}:")
