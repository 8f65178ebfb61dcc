"""Words keep their tags through sub-words and windows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

import hf_sft
from hf_sft.answers.tags import TagAnswers
from hf_sft.evaluation.bootstrap import measure
from hf_sft.tasks import Labels
from hf_sft.tasks.common.baselines import fit_all
from hf_sft.tasks.common.windows import cut, cut_windows
from tests import tiny
from tests.unit.tasks.tagging_cases import load, task


def sentences(count: int, most: int = 40) -> list[list[str]]:
    rng = np.random.default_rng(0)
    return [
        ["".join(rng.choice(list("abcde"), rng.integers(1, 6))) for _ in range(rng.integers(1, most))] for _ in range(count)
    ]


def test_the_first_sub_word_of_a_word_carries_its_tag_and_nothing_else_does(processor):
    rows = Dataset.from_dict({"words": [["abc", "d", "efg"]], "tags": [["B-PER", "O", "B-LOC"]]})
    found, labels, _ = task().resolve({"train": rows})
    encoded = found.encode(rows[:], processor, labels)
    assert processor.convert_ids_to_tokens(encoded["input_ids"][0]) == [
        "[CLS]",
        "a",
        "##b",
        "##c",
        "d",
        "e",
        "##f",
        "##g",
        "[SEP]",
    ]
    assert labels is not None and labels.names == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    assert encoded["labels"] == [[-100, 3, -100, -100, 0, 1, -100, -100, -100]]
    assert encoded["words"] == [[1, 4, 5]] and encoded["items"] == [3]


@pytest.mark.parametrize("max_length", [8, 13, 40])
def test_every_word_is_answered_once_where_most_is_seen_on_both_sides(max_length, processor):
    rows = sentences(60)
    windows = cut_windows([cut(words) for words in rows], processor, max_length)
    assert max(len(ids) for ids in windows["input_ids"]) <= max_length
    for row, words in enumerate(rows):
        mine = [i for i, of in enumerate(windows["row"]) if of == row]
        assert [number for i in mine for number in windows["numbers"][i]] == list(range(len(words)))
        tokens = [f"##{letter}" if place else letter for word in words for place, letter in enumerate(word)]
        firsts = [place for place, token in enumerate(tokens) if not token.startswith("##")]
        start, shown = 0, []
        for i in mine:
            inner = processor.convert_ids_to_tokens(windows["input_ids"][i])[1:-1]
            start = next(s for s in range(start, len(tokens)) if tokens[s : s + len(inner)] == inner) if i != mine[0] else 0
            start = len(tokens) - len(inner) if i == mine[-1] else start
            shown.append((start, start + len(inner)))
        for i, (start, _) in zip(mine, shown, strict=True):
            for place, number in zip(windows["words"][i], windows["numbers"][i], strict=True):
                assert start + place - 1 == firsts[number]

                def room(window: tuple[int, int], at: int = firsts[number], shown=shown) -> float:
                    before = at - window[0] if window != shown[0] else np.inf
                    after = window[1] - 1 - at if window != shown[-1] else np.inf
                    return min(before, after) if window[0] <= at < window[1] else -1

                assert room(shown[mine.index(i)]) == max(map(room, shown))


def test_words_come_back_as_they_were_even_those_that_leave_no_token(processor):
    words = ["ab", "\u200b", "c d", "", "\u00ad", "e"]
    windows = cut_windows([cut(["a"]), cut(words)], processor, 8)
    assert [n for numbers, row in zip(windows["numbers"], windows["row"], strict=True) if row == 1 for n in numbers] == [
        *range(6)
    ]
    shown = [processor.convert_ids_to_tokens(ids) for ids in windows["input_ids"]]
    assert sum(tokens.count("[UNK]") for tokens in shown[1:]) >= 3 and "[UNK]" not in shown[0]


@pytest.mark.parametrize("kind", ["names", "integers", "classes"])
def test_tags_may_be_names_integers_or_a_class_label(kind):
    tags: Any = [[0, 2, 1], [1, 1, 0]]
    names = ["NOUN", "VERB", "X"]
    features = Features(words=List(Value("string")), tags=List(ClassLabel(names=names)))
    columns = {"words": [list("abc")] * 2, "tags": [[names[i] for i in row] for row in tags] if kind == "names" else tags}
    rows = Dataset.from_dict(columns, features=features if kind == "classes" else None)
    found, labels, _ = task().resolve({"train": rows})
    assert found.scheme == "plain" and found.default_metrics[0] == "accuracy" and found.answer_kind() is TagAnswers
    assert labels == Labels(("0", "1", "2") if kind == "integers" else tuple(names))


@pytest.mark.parametrize("odd", ["0", "B_PER", "PER"])
def test_a_few_tags_of_another_form_are_named_with_their_rows(odd, tmp_path):
    good = {"words": list("abcde"), "tags": ["B-PER", "I-PER", "O", "O", "O"]}
    bad = {**good, "tags": ["B-PER", "I-PER", "O", odd, "O"]}
    with pytest.raises(hf_sft.DataError, match=rf"has the tag '{odd}', which is neither O nor a prefix .* `train`: 7"):
        load(tmp_path, [good] * 7 + [bad] + [good] * 20, [good])
    splits = load(tmp_path, [good] * 7 + [bad] + [good] * 20, [good], drop_invalid=True)
    assert splits.task.scheme == "iob" and splits.labels.names == ("O", "B-PER", "I-PER")


def test_tags_without_a_type_mark_entities_of_one_type(tmp_path):
    rows = [{"words": list("abc"), "tags": ["B", "I", "O"]}, {"words": list("ab"), "tags": ["O", "B"]}]
    splits = load(tmp_path, rows, rows)
    assert splits.labels.names == ("O", "B-ENTITY", "I-ENTITY") and splits.task.scheme == "iob"
    assert splits.task.references(splits.rows["test"]) == [["B-ENTITY", "I-ENTITY", "O"], ["O", "B-ENTITY"]]
    assert any("have no type" in note for note in splits.notes)


@pytest.mark.parametrize("mark", [-1, -100])
def test_a_word_marked_as_having_no_tag_is_neither_learned_nor_scored(mark, processor, tmp_path):
    rows = [{"words": list("abcd"), "tags": [0, mark, 2, 1]}, {"words": list("ab"), "tags": [1, 0]}] * 4
    splits = load(tmp_path, rows, rows)
    assert splits.labels.names == ("0", "1", "2")
    encoded = splits.task.encode(splits.rows["test"][:2], processor, splits.labels)
    assert encoded["labels"] == [[-100, 0, -100, 2, 1, -100], [-100, 1, 0, -100]] and encoded["items"] == [3, 2]
    examples = [{name: encoded[name][i] for name in ("input_ids", "words", "labels")} for i in range(2)]
    batch = splits.task.collator(processor)(examples)
    model = lambda **_: type("Output", (), {"logits": torch.zeros(2, 6, 3)})  # noqa: E731
    assert splits.task.items(model, batch).targets.tolist() == [0, 2, 1, 1, 0]
    said, true = [0, 1, 2, 1, 1, 1], [0, 2, 1, 1, 0]
    scores = np.eye(3)[said]
    answers = splits.task.answer(
        [[np.log(scores[:4] + 0.01)], [np.log(scores[4:] + 0.01)]], splits.rows["test"].select([0, 1]), splits.labels
    )
    references = type(answers).read_references(splits.task.targets(splits.rows["test"][:2], splits.labels))
    wanted = np.mean([a == b for a, b in zip([0, 2, 1, 1, 1], true, strict=True)])
    assert measure(("accuracy",), answers, references) == {"accuracy": pytest.approx(wanted)}
    assert len(answers.mistakes(references)) == 1 and answers.confusions(references).total() == 5


def test_minus_one_is_a_tag_where_the_recipe_says_so(tmp_path):
    rows = [{"words": list("ab"), "tags": [0, -1]}] * 4
    assert load(tmp_path, rows, rows, {"minus_one_is_class": True}).labels.names == ("-1", "0")


GOOD = {"words": ["a", "b"], "tags": ["B-X", "O"]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"words": ["a", "b"], "tags": ["O"]},
            r"`tags` differ in length in 1 row\(s\) .*: 1",
        ),
        ({"words": ["a"], "tags": ["B-Z"]}, r"`tags` has the tag 'B-Z', which `train` never shows"),
        ({"words": ["a"], "tags": ["X"]}, r"`tags` has the tag 'X', which is neither O nor a prefix with a type"),
        ({"words": [], "tags": []}, r"`words` is empty in 1 row"),
        ({"words": ["a", None], "tags": ["O", "O"]}, r"`words` holds a word that is null"),
        ({"words": None, "tags": ["O"]}, r"`words` is null"),
        ({"words": ["a"], "tags": None}, r"`tags` is null, or holds a null"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_named(row, message, tmp_path):
    with pytest.raises(hf_sft.DataError, match=message):
        load(tmp_path, [GOOD, GOOD], [GOOD, row])
    assert len(load(tmp_path, [GOOD, GOOD], [GOOD, row], drop_invalid=True).rows["test"]) == 1


@pytest.mark.parametrize(
    ("fields", "row", "message"),
    [
        (
            {},
            {"words": "a b", "tags": "O O"},
            r"`words` \(`task.words`\) holds Value\('string'\).*\n  For text with marked spans",
        ),
        (
            {"text": "text", "spans": "spans"},
            {"text": "a", "spans": "PER"},
            r"`spans` \(`task.spans`\) holds .*Expected lists of",
        ),
    ],
)
def test_columns_of_another_kind_are_told_apart(fields, row, message, tmp_path):
    with pytest.raises(hf_sft.DataError, match=message):
        load(tmp_path, [row, row], [row], fields)


def test_the_baseline_gives_each_word_its_most_frequent_tag():
    train = Dataset.from_dict({"words": [["run", "run", "run", "dog"], ["cat"]], "tags": [["V", "V", "N", "N"], ["N"]]})
    found, labels, _ = task().resolve({"train": train})
    fitted, failed = fit_all(found.baselines(train, labels))
    (answer,) = fitted["most_frequent_tag"](Dataset.from_dict({"words": [["run", "dog", "new"]]})).as_json()
    assert not failed and answer["tags"] == ["V", "N", "N"] and answer["scores"] == [0.666667, 1.0, 0.6]


@pytest.fixture(scope="module")
def run(finished_run) -> Path:
    return finished_run("entities")


def test_a_run_answers_words_and_text_and_keeps_empty_rows_in_their_place(run):
    words = ["the", "goal", "was", "lost"] * 8
    asked = [{"words": words}, {"words": []}, {"words": None}, {"words": ["goal"]}]
    answers = hf_sft.predict(run, asked)
    assert [answer["row"] for answer in answers] == [0, 1, 2, 3]
    assert answers[0]["words"] == words and len(answers[0]["tags"]) == len(answers[0]["scores"]) == 32
    assert answers[1] == answers[2] | {"row": 1} == {"row": 1, "words": None, "tags": None, "scores": None, "entities": None}
    (text,) = hf_sft.predict(run, [" ".join(words)])
    assert text["tags"] == answers[0]["tags"]
    spans = [" ".join(words)[entity["start"] : entity["end"]] for entity in text["entities"]]
    assert spans == [" ".join(words[e["start"] : e["end"]]) for e in answers[0]["entities"]] and spans


def test_the_report_shows_types_confusions_and_both_taggings(run):
    report = json.loads((run / "report.json").read_text())
    assert report["task"] == "token_classification" and report["pipeline_tag"] == "token-classification"
    assert set(report["metrics"]["test"]) == {"f1", "precision", "recall", "accuracy"}
    assert [row["label"] for row in report["per_class"]["test"]] == ["ODD", "SHORT"]
    assert set(report["baselines"]) == {"most_frequent_tag"}
    page, card = (run / "report.html").read_text(), (run / "README.md").read_text()
    assert ">entities</th>" in page and "wrong tag(s), whose scores add up to" in page and "]ODD" in page
    assert 'pipeline("token-classification", model=run)' in card and 'aggregation_strategy="first"' in card
    assert "it answers with one tag for each word, which mark entities" in card
    lines = [json.loads(line) for line in (run / "predictions" / "test.jsonl").read_text().splitlines()]
    assert all(len(line["tags"]) == len(line["reference"]) == len(line["words"]) for line in lines)


def test_check_shows_a_sentence_with_its_tags(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "entities")
    found = hf_sft.check(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task=tiny.task_of("entities")))
    first = tiny.rows("entities", 1)[0]
    shown = " ".join(f"{word}/{tag}" for word, tag in zip(first["words"], first["tags"], strict=True))
    assert f"[CLS] {shown} [SEP]" in found.facts["as the model sees it"] and found.facts["scheme"] == "iob"


@pytest.mark.parametrize("method", ["full", "head_only", "lora", "lp_ft"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_saved_tagger_gives_the_logits_it_had(family, method, checkpoints, tmp_path, monkeypatch):
    import hf_sft.runs.train

    measured: list[Any] = []
    evaluate = hf_sft.runs.train.evaluate_blocks

    def watch(split, ran, *rest):
        measured[:] = list(ran)
        return evaluate(split, measured, *rest)

    monkeypatch.setattr("hf_sft.runs.train.evaluate_blocks", watch)
    files = tiny.write_rows(tmp_path / "data", "entities")
    recipe = tiny.recipe(checkpoints[family], files, tmp_path / "run", method, task=tiny.task_of("entities"))
    report = hf_sft.train(recipe)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "run").eval()
    ((rows, kept),) = measured
    processor = hf_sft.runs.prepare.load_run(tmp_path / "run").processor
    windows = cut_windows([cut(words) for words in rows["words"]], processor, tiny.task_of("entities")["max_length"])
    assert len(windows["row"]) > len(rows)
    with torch.no_grad():
        logits = [model(torch.tensor([ids])).logits[0].numpy() for ids in windows["input_ids"]]
    flat = [part for parts in kept for part in parts]
    for found, places, wanted in zip(logits, windows["words"], flat, strict=True):
        np.testing.assert_allclose(found[places], wanted, atol=1e-5, rtol=1e-5)
    again = hf_sft.evaluate(tmp_path / "run")
    assert {n: s.value for n, s in again.scores.items()} == {n: s["value"] for n, s in report.metrics["test"].items()}


def byte_level() -> Tokenizer:
    """As GPT-2's and RoBERTa's: a word that others stand before begins with its space, and some signs are several tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator([" ".join(words) for words in sentences(50)], trainer)
    return tokenizer


def metaspace() -> Tokenizer:
    """As T5's and XLM-RoBERTa's: a word begins with a sign for its space, which may be a token of its own."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=60, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False)
    tokenizer.train_from_iterator([" ".join(words) for words in sentences(50)], trainer)
    return tokenizer


@pytest.mark.parametrize("make", [byte_level, metaspace])
def test_words_are_told_apart_by_any_tokenizer(make):
    processor = PreTrainedTokenizerFast(tokenizer_object=make(), unk_token="<unk>", model_max_length=30)
    rows = [*sentences(30), ["über", "5", "🙂🙂", "a b"]]
    windows = cut_windows([cut(words) for words in rows], processor, None)
    assert len(windows["row"]) > len(rows)
    answered: list[list[str]] = [[] for _ in rows]
    for row, ids, places, numbers in zip(*(windows[n] for n in ("row", "input_ids", "words", "numbers")), strict=True):
        for place, number in zip(places, numbers, strict=True):
            token = processor.decode([ids[place]]).strip("▁ ")
            assert rows[row][number].startswith(token) or token == "<unk>" or not token.isascii()
            answered[row].append(rows[row][number])
    assert answered == rows


def test_a_tagger_is_where_the_next_recipe_begins(run, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "entities", train=20)
    report = hf_sft.train(tiny.recipe(run, files, tmp_path / "next", "head_only", task=tiny.task_of("entities")))
    assert report.facts["parameters"]["new"] == []
