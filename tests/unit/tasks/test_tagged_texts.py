"""Spans that are marked in texts become tags of words, and come back as characters."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

import hf_sft
from hf_sft.answers.marked_spans import TextEntityAnswers, tag_units
from hf_sft.answers.tags import read_entities
from hf_sft.evaluation.bootstrap import measure
from hf_sft.tasks.common.baselines import fit_all
from hf_sft.tasks.common.windows import cut
from tests import tiny
from tests.unit.tasks.tagging_cases import answered, load, task


def test_spans_of_text_become_tags_of_its_words_and_come_back_as_characters(processor):
    text = "Ann Lee, of Bern-West, left."
    spans = [{"start": 0, "end": 7, "label": "PER"}, {"start": 12, "end": 21, "label": "LOC"}]
    rows = Dataset.from_dict({"text": [text], "spans": [spans]})
    found, labels, notes = task(text="text", spans="spans").resolve({"train": rows})
    assert found.units == "words" and notes == [] and found.references(rows) == [spans]
    assert labels is not None and found.invalid_rows(rows, labels) == {}
    answers, tags = answered(found, rows, labels, processor)
    assert tags == [["B-PER", "I-PER", "O", "O", "B-LOC", "I-LOC", "I-LOC", "O", "O", "O"]]
    (answer,) = answers.as_json()
    assert [(e["type"], e["start"], e["end"], e["text"]) for e in answer["entities"]] == [
        ("PER", 0, 7, "Ann Lee"),
        ("LOC", 12, 21, "Bern-West"),
    ]
    assert answer["words"] == ["Ann", "Lee", ",", "of", "Bern", "-", "West", ",", "left", "."]


def test_a_unit_is_tagged_by_the_span_that_covers_most_of_its_characters():
    """Counted character by character: also one that a span only touches; of two that cover as much the first."""
    rng = np.random.default_rng(0)
    partly = 0
    for _ in range(300):
        edges = np.unique(rng.integers(0, 30, 8)).tolist()
        spans = [(start, end, "XY"[i % 2]) for i, (start, end) in enumerate(pairwise(edges)) if rng.random() < 0.6]
        units = [unit for unit in pairwise(np.unique(rng.integers(0, 30, 9)).tolist()) if rng.random() < 0.8]
        tags, last = [], None
        for unit in units:
            covered = Counter(i for place in range(*unit) for i, (start, end, _) in enumerate(spans) if start <= place < end)
            owner = min(covered, key=lambda i: (-covered[i], i), default=None)
            tags.append("O" if owner is None else ("I-" if owner == last else "B-") + spans[owner][2])
            partly += owner is not None and covered[owner] < unit[1] - unit[0]
            last = owner
        assert tag_units(units, spans) == tags
    assert partly > 100


def seqeval_by_characters(rows, entities, referred):
    """The F1 of seqeval, strictly, on a tag for each character."""

    def tag(text, spans):
        tags = ["O"] * len(text)
        for start, end, kind in spans:
            tags[start:end] = [f"B-{kind}", *[f"I-{kind}"] * (end - start - 1)]
        return tags

    texts = rows["text"]
    true, said = ([tag(*pair) for pair in zip(texts, each, strict=True)] for each in (referred, entities))
    return seqeval.f1_score(true, said, mode="strict", scheme=IOB2, zero_division=0)


MARKED = {
    "chinese": ("张伟住在北京第0街。", [(0, 2, "PER"), (4, 6, "LOC")]),
    "japanese": ("田中さんは東京に住む", [(0, 2, "PER"), (5, 7, "LOC")]),
    "units": ("take 10mg of aspirin", [(5, 7, "DOSE"), (7, 9, "UNIT"), (13, 20, "DRUG")]),
    "names": ("user0_london said", [(0, 5, "USER"), (6, 12, "CITY")]),
    "arabic": ("وبرلين جميلة", [(1, 6, "LOC")]),
    "hindi": ("प्रिया दिल्ली में है", [(0, 6, "PER"), (7, 13, "LOC")]),
    "thai": ("สมชายอยู่กรุงเทพ", [(0, 5, "PER"), (9, 16, "LOC")]),
    "mark": ("caf\u0065\u0301 Ann", [(6, 9, "PER")]),
}


@pytest.fixture(scope="module")
def by_character() -> PreTrainedTokenizerFast:
    """One character a token, whatever it is."""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    characters = sorted({character for text, _ in MARKED.values() for character in text} - {" "})
    vocabulary = {token: i for i, token in enumerate([*special, *characters])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split("", behavior="isolated")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=12, **names)


@pytest.mark.parametrize("kind", MARKED)
def test_spans_of_any_script_come_back_as_the_file_has_them(kind, by_character):
    text, spans = MARKED[kind]
    marked = [{"start": start, "end": end, "label": label} for start, end, label in spans]
    rows = Dataset.from_dict({"text": [text], "spans": [marked]})
    found, labels, notes = task(text="text", spans="spans").resolve({"train": rows})
    assert found.units == ("words" if kind in ("hindi", "mark") else "tokens") and bool(notes) is (found.units == "tokens")
    answers, _ = answered(found, rows, labels, by_character)
    assert answers.entities == [spans]
    assert [e["text"] for e in answers.as_json()[0]["entities"]] == [text[start:end] for start, end, _ in spans]
    references = type(answers).read_references(found.targets(rows[:], labels))
    assert measure(("f1", "accuracy"), answers, references) == {"f1": 1.0, "accuracy": 1.0}


@pytest.mark.parametrize("units", ["words", "tokens"])
def test_spans_are_scored_as_the_file_has_them_by_seqeval(units, by_character):
    rows = Dataset.from_list(
        [
            {"text": text, "spans": [{"start": start, "end": end, "label": label} for start, end, label in spans]}
            for text, spans in MARKED.values()
        ]
    )
    found, labels, _ = task(text="text", spans="spans", units=units).resolve({"train": rows})
    answers, _ = answered(found, rows, labels, by_character)
    references = type(answers).read_references(found.targets(rows[:], labels))
    scores = measure(("f1", "precision", "recall"), answers, references)
    assert scores["f1"] == pytest.approx(seqeval_by_characters(rows, answers.entities, references.tolist()))
    assert (scores["f1"] == 1) is (units == "tokens")
    encoded = found.encode(rows[:], by_character, labels)
    cut_rows = {row for row, inside in zip(encoded["row"], encoded["inside"], strict=True) if inside}
    assert len(cut_rows) == (0 if units == "tokens" else 6)


def test_spans_inside_a_token_are_counted_and_scored_as_missing(processor):
    """The tokenizer has letters alone: 北京 is one unknown token."""
    rows = Dataset.from_dict({"text": ["ab北京"] * 2, "spans": [[{"start": 2, "end": 3, "label": "X"}]] * 2})
    found, labels, _ = task(text="text", spans="spans").resolve({"train": rows})
    whole = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"[UNK]": 0, "ab北京": 1}, unk_token="[UNK]")), unk_token="[UNK]"
    )
    answers, _ = answered(found, rows, labels, whole)
    assert found.encode(rows[:], whole, labels)["inside"] == [True, True]
    references = type(answers).read_references(found.targets(rows[:], labels))
    assert measure(("f1",), answers, references) == {"f1": 0.0}


@pytest.mark.parametrize(
    "spans",
    [
        [{"start_offset": 0, "end_offset": 3, "label": "PER"}],
        [[0, 3, "PER"]],
        [{"start": 0, "end": 3, "entity_group": "PER", "score": 1.0}],
        [{"start": 0, "end": 3, "type": "PER"}],
    ],
)
def test_spans_as_other_tools_write_them(spans, tmp_path):
    rows = [{"text": "Ann left", "spans": spans}] * 3
    splits = load(tmp_path, rows, rows, {"text": "text", "spans": "spans"})
    assert splits.task.references(splits.rows["test"]) == [[{"start": 0, "end": 3, "label": "PER"}]] * 3


def test_the_baseline_and_the_model_are_scored_alike_on_texts(by_character):
    rows = Dataset.from_dict({"text": ["Ann left", "Ann Lee"], "spans": [[{"start": 0, "end": 3, "label": "PER"}]] * 2})
    found, labels, _ = task(text="text", spans="spans").resolve({"train": rows})
    fitted, failed = fit_all(found.baselines(rows, labels))
    answers = fitted["most_frequent_tag"](rows)
    references = type(answers).read_references(found.targets(rows[:], labels))
    assert not failed and measure(("f1",), answers, references) == {"f1": 1.0}


@pytest.mark.parametrize("units", ["words", "tokens"])
def test_a_run_on_spans_answers_and_scores_characters(units, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "entities", train=20)
    for path in files.values():
        made = [json.loads(line) for line in Path(path).read_text().splitlines()]
        for row in made:
            (text, places), tags = cut(row.pop("words")), row.pop("tags")
            spans = [(places[first][0], places[last - 1][1], kind) for first, last, kind in read_entities(tags)]
            row |= {"text": text, "spans": [dict(zip(("start", "end", "label"), span, strict=True)) for span in spans]}
        Path(path).write_text("".join(json.dumps(row) + "\n" for row in made))
    block = {"type": "token_classification", "text": "text", "spans": "spans", "max_length": 8, "units": units}
    report = hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task=block))
    lines = [json.loads(line) for line in (tmp_path / "run/predictions/test.jsonl").read_text().splitlines()]
    rows = [json.loads(line) for line in Path(files["test"]).read_text().splitlines()]
    assert [line["reference"] for line in lines] == [row["spans"] for row in rows]
    said = [[(e["start"], e["end"], e["type"]) for e in line["entities"]] for line in lines]
    true = [[(s["start"], s["end"], s["label"]) for s in row["spans"]] for row in rows]
    texts = Dataset.from_list([{"text": row["text"]} for row in rows])
    assert report.metrics["test"]["f1"]["value"] == pytest.approx(seqeval_by_characters(texts, said, true))
    again = hf_sft.predict(tmp_path / "run", rows)
    assert [each["entities"] for each in again] == [line["entities"] for line in lines]
    assert [each["reference"] for each in again] == [row["spans"] for row in rows]
    assert all(
        e["text"] == row["text"][e["start"] : e["end"]]
        for row, each in zip(rows, again, strict=True)
        for e in each["entities"]
    )


SPANS = {"text": "Ann left", "spans": [{"start": 0, "end": 3, "label": "PER"}]}


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([{"start": 5, "end": 9, "label": "PER"}], "a span that does not lie in the text"),
        ([{"start": 3, "end": 4, "label": "PER"}], "a span without a word"),
        ([{"start": 0, "end": 8, "label": "PER"}, {"start": 4, "end": 8, "label": "PER"}], "spans that overlap"),
        ([{"start": 0, "end": 3, "label": "LOC"}], "the label 'LOC', which `train` never shows"),
    ],
)
def test_spans_that_cannot_be_learned_from_are_named(spans, message, tmp_path):
    with pytest.raises(hf_sft.DataError, match=message):
        load(tmp_path, [SPANS] * 2, [{**SPANS, "spans": spans}], {"text": "text", "spans": "spans"})


def test_text_and_spans_go_together():
    with pytest.raises(hf_sft.RecipeError, match=r"task\.text +`text` and `spans` go together"):
        hf_sft.check(tiny.recipe(Path("x"), {}, Path("y"), task={"type": "token_classification", "text": "t"}))


def test_an_entity_of_a_text_has_the_mean_score_of_its_units_and_a_mistake_is_a_row_that_differs():
    """Three rows: right, wrong in its second entity, and without any; scores to six places."""
    text, names = "Ann met Bo in Rome", ("O", "B-per", "I-per", "B-loc")
    units = [(0, 3), (4, 7), (8, 10), (11, 13), (14, 18)]
    said = [[1, 0, 1, 0, 3], [1, 0, 3, 0, 3], [0, 0, 0, 0, 0]]
    scores = np.random.default_rng(0).uniform(0.01, 0.2, (3, 5, 4))
    for row, tags in enumerate(said):
        scores[row, range(5), tags] += 0.5
    references = np.empty(3, dtype=object)
    references[:] = [[(0, 3, "per"), (8, 10, "per"), (14, 18, "loc")]] * 2 + [[]]
    answers = TextEntityAnswers([*scores], names, [text.split()] * 3, [None] * 3, [text] * 3, [units] * 3)
    for row, answer in enumerate(answers.as_json()):
        for entity in answer["entities"]:
            place = [start for start, _ in units].index(entity["start"])
            assert entity["text"] == text[entity["start"] : entity["end"]] == text.split()[place]
            assert entity["score"] == round(float(scores[row, place].max()), 6)
    (mistake,) = answers.mistakes(references)
    assert mistake.row == 1 and mistake.score == pytest.approx(scores[1, 2].max())
    assert "[Bo]per" in mistake.reference and "[Bo]loc" in mistake.prediction
    over = np.eye(4)[[1, 2, 2, 0, 0]] * np.array([[0.1], [0.3], [0.5], [0.9], [0.9]]) + 0.05
    ((entity,),) = [
        answer["entities"] for answer in TextEntityAnswers([over], names, [text.split()], [None], [text], [units]).as_json()
    ]
    assert (entity["text"], entity["score"]) == ("Ann met Bo", 0.35)
