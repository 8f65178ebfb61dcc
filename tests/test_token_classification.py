"""What only tagging must get right: words keep their tags through sub-words and windows, and entities are seqeval's."""

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, List, Value
from seqeval import metrics as seqeval
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoModelForTokenClassification, PreTrainedTokenizerFast

import hf_sft
from hf_sft.answers.marked_spans import TextEntityAnswers, tag_units
from hf_sft.answers.tags import EntityAnswers, TagAnswers, count_repaired, find_scheme, is_iob1, read_entities, to_iob2
from hf_sft.evaluation.bootstrap import measure
from hf_sft.evaluation.evaluate import EvaluationAccumulator, evaluate_blocks
from hf_sft.evaluation.plan import EvaluationPlan
from hf_sft.tasks import Labels
from hf_sft.tasks.common.baselines import fit_all
from hf_sft.tasks.common.windows import cut, cut_windows
from hf_sft.tasks.token_classification import TokenClassification
from tests import tiny

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def task(**fields: Any) -> TokenClassification:
    return TokenClassification(type="token_classification", **fields)


@pytest.fixture(scope="module")
def processor() -> PreTrainedTokenizerFast:
    """One letter a token, the first of a word without ##; zero-width signs leave none."""
    letters = "abcdefghijklmnopqrstuvwxyz.,'"
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    vocabulary = {token: i for i, token in enumerate([*special, *letters, *(f"##{letter}" for letter in letters)])}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, model_input_names=inputs, **names)


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


def random_tags(rng: np.random.Generator, count: int = 100) -> list[np.ndarray]:
    return [rng.integers(len(NAMES), size=rng.integers(1, 20)) for _ in range(count)]


def answers_of(ids: list[np.ndarray], kind: type[TagAnswers] = EntityAnswers) -> TagAnswers:
    return kind([np.eye(len(NAMES))[each] for each in ids], NAMES, [["w"] * len(each) for each in ids], [None] * len(ids))


def test_entity_metrics_are_seqevals_on_a_hundred_random_sentences():
    rng = np.random.default_rng(0)
    true = random_tags(rng)
    said = [np.where(rng.random(len(ids)) < 0.6, ids, rng.integers(len(NAMES), size=len(ids))) for ids in true]
    answers, references = answers_of(said), EntityAnswers.read_references(true)
    named = [[[NAMES[i] for i in ids] for ids in tags] for tags in (true, said)]
    strict: dict[str, Any] = {"mode": "strict", "scheme": IOB2}
    wanted = {
        "f1": seqeval.f1_score(*named, **strict),
        "precision": seqeval.precision_score(*named, **strict),
        "recall": seqeval.recall_score(*named, **strict),
        "accuracy": seqeval.accuracy_score(*named),
    }
    assert measure(tuple(wanted), answers, references) == pytest.approx(wanted, abs=1e-12)


def test_the_scores_of_each_type_and_the_confusions_are_seqevals():
    rng = np.random.default_rng(1)
    true = [to_iob2([NAMES[i] for i in ids]) for ids in random_tags(rng)]
    said = [np.where(rng.random(len(t)) < 0.6, [NAMES.index(x) for x in t], rng.integers(5, size=len(t))) for t in true]
    rows = Dataset.from_dict({"words": [["w"] * len(tags) for tags in true], "tags": true})
    kept = [[np.log(np.eye(5, dtype=np.float32)[ids] + 1e-6)] for ids in said]
    found = evaluate_blocks("test", [(rows, kept)], EvaluationAccumulator(task(scheme="iob"), Labels(NAMES), EvaluationPlan()))
    named = [[NAMES[i] for i in ids] for ids in said]
    report: Any = seqeval.classification_report(true, named, output_dict=True, mode="strict", scheme=IOB2)
    assert [row["label"] for row in found.per_class] == ["PER", "LOC"]
    for row in found.per_class:
        mine = (row["precision"], row["recall"], row["f1"], row["entities"])
        assert mine == pytest.approx(tuple(report[row["label"]][n] for n in ("precision", "recall", "f1-score", "support")))
    assert found.scores["f1"].value == pytest.approx(report["micro avg"]["f1-score"], abs=1e-12)
    assert found.scores["f1"].low < found.scores["f1"].value < found.scores["f1"].high
    pairs = {(row["reference"], row["prediction"]): row["entities"] for row in found.confusions}
    true_per = sum(span[2] == "PER" for tags in true for span in read_entities(tags))
    right = round(found.per_class[0]["recall"] * true_per)
    assert right + pairs["PER", "LOC"] + pairs["PER", None] == true_per
    worst = found.mistakes[0]
    wrong = sum(a != b for a, b in zip(true[worst["row"]], named[worst["row"]], strict=True))
    assert worst["score"] == pytest.approx(wrong, abs=0.01) and worst["scored"].startswith(f"{wrong} wrong tag(s)")


def render(spans: list[tuple[int, int, str]], length: int, scheme: str) -> list[str]:
    """Tags of entities in one of the four schemes."""
    tags = ["O"] * length
    for start, end, kind in spans:
        inside = ["I"] * (end - start)
        if scheme in ("iobes", "bilou"):
            single, last = ("S", "E") if scheme == "iobes" else ("U", "L")
            inside[0], inside[-1] = "B", last
            inside = [single] if end - start == 1 else inside
        elif scheme == "iob2" or (start and tags[start - 1][2:] == kind):
            inside[0] = "B"
        tags[start:end] = [f"{prefix}-{kind}" for prefix in inside]
    return tags


@pytest.mark.parametrize(("scheme", "theirs"), [("iob2", IOB2), ("iob1", IOB1), ("iobes", IOBES), ("bilou", BILOU)])
def test_every_scheme_marks_in_iob2_the_entities_that_it_marked(scheme, theirs):
    rng = np.random.default_rng(2)
    made, wanted = [], []
    for _ in range(100):
        spans, place = [], int(rng.integers(0, 2))
        while place < 12:
            end = place + int(rng.integers(1, 4))
            spans.append((place, end, str(rng.choice(["PER", "LOC"]))))
            place = end + int(rng.integers(0, 2))
        wanted.append(spans)
        made.append(render(spans, 16, scheme))
    read = [[(e.start, e.end, e.tag) for e in sentence] for sentence in Entities(made, theirs).entities]
    assert read == wanted
    assert [read_entities(to_iob2(tags)) for tags in made] == wanted
    assert find_scheme({tag for tags in made for tag in tags}) == scheme.rstrip("12")
    assert is_iob1(made) == (scheme == "iob1") and (sum(map(count_repaired, made)) > 0) == (scheme == "iob1")


def test_an_inside_that_goes_on_with_nothing_begins_an_entity_and_is_counted():
    rows = Dataset.from_dict({"words": [list("abcd")] * 2, "tags": [["O", "I-X", "I-X", "B-X"], ["B-X", "O", "I-Y", "O"]]})
    found, labels, said = task().resolve({"train": rows})
    assert found.references(rows) == [["O", "B-X", "I-X", "B-X"], ["B-X", "O", "B-Y", "O"]]
    assert said == ["2 tag(s) of split `train` go on with an entity that has not begun: each is read as B-."]
    assert labels is not None and found.invalid_rows(rows, labels) == {}


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


def answered(found, rows, labels, processor):
    """What a model that knows each unit's true tag answers, and those tags, from the examples themselves."""
    examples = found.encode(rows[:], processor, labels)
    kept, tags = [[] for _ in range(len(rows))], [[] for _ in range(len(rows))]
    for row, ids, places, *units in zip(*(examples[n] for n in ("row", "labels", "words", "starts", "ends")), strict=True):
        true = [ids[place] for place in places]
        kept[row].append(np.column_stack([*units, np.log(np.eye(len(labels))[true] + 0.01)]))
        tags[row] += [labels.names[i] for i in true]
    return found.answer(kept, rows, labels), tags


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


@pytest.mark.parametrize("odd", ["0", "B_PER", "PER"])
def test_a_few_tags_of_another_form_are_named_with_their_rows(odd, tmp_path):
    good = {"words": list("abcde"), "tags": ["B-PER", "I-PER", "O", "O", "O"]}
    bad = {**good, "tags": ["B-PER", "I-PER", "O", odd, "O"]}
    with pytest.raises(hf_sft.DataError, match=rf"has the tag '{odd}', which is neither O nor a prefix .* `train`: 7"):
        load(tmp_path, [good] * 7 + [bad] + [good] * 20, [good])
    splits = load(tmp_path, [good] * 7 + [bad] + [good] * 20, [good], drop_invalid=True)
    assert splits.task.scheme == "iob" and splits.labels.names == ("O", "B-PER", "I-PER")


CONLL = "-DOCSTART- -X- O O\n\nAnn NNP B-NP B-PER\nleft VBD B-VP O\n. . O O\n\n\nShe PRP B-NP O\nleft VBD B-VP O\n"
CONLLU = (
    "# sent_id = 1\n# text = can't go\n1-2\tcan't\t_\t_\t_\t_\t_\t_\t_\t_\n1\tca\tcan\tAUX\t_\t_\t3\taux\t_\t_\n"
    "2\tn't\tnot\tPART\t_\t_\t3\tadvmod\t_\t_\n3\tgo\tgo\tVERB\t_\t_\t0\troot\t_\t_\n"
)


@pytest.mark.parametrize("name", ["a.conll", "a.txt", "a.iob", "a.conll.gz"])
def test_files_with_a_word_on_each_line_are_read(name, tmp_path):
    import gzip

    from hf_sft.data.data_source import DataSource
    from hf_sft.data.sources import load_source

    content = CONLL.encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    source = {"dataset": "conll", "data_files": str(tmp_path / name)} if name == "a.txt" else {"dataset": str(tmp_path / name)}
    rows = load_source(DataSource(**source), ("words",), [])[0]["train"]
    assert rows["words"][:] == [["Ann", "left", "."], ["She", "left"]]
    assert rows["tags"][:] == [["B-PER", "O", "O"], ["O", "O"]] and rows["column_2"][0] == ["NNP", "VBD", "."]


def test_conll_u_has_its_own_columns_and_no_ranges(tmp_path):
    from hf_sft.data.data_source import DataSource
    from hf_sft.data.sources import load_source

    (tmp_path / "a.conllu").write_text(CONLLU)
    rows = load_source(DataSource(dataset=str(tmp_path / "a.conllu")), ("words",), [])[0]["train"]
    assert rows[0]["words"] == ["ca", "n't", "go"] and rows[0]["tags"] == ["AUX", "PART", "VERB"]
    assert rows[0]["deprel"] == ["aux", "advmod", "root"]


def test_a_line_with_another_number_of_columns_is_named(tmp_path):
    from hf_sft.data.data_source import DataSource
    from hf_sft.data.sources import load_source

    (tmp_path / "a.conll").write_text("Ann B-PER\nleft\n")
    with pytest.raises(hf_sft.DataError, match=r"a\.conll`, line 2: 1 columns .'left'.\.\n.*as in .*line 1: 2"):
        load_source(DataSource(dataset=str(tmp_path / "a.conll")), ("words",), [])


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


def load(folder: Path, train: list[dict], test: list[dict], fields: dict | None = None, **data: Any) -> Any:
    from hf_sft.data.data_source import DataSource
    from hf_sft.data.splits import load_splits

    files = {}
    for name, rows in (("train", train), ("validation", train), ("test", test)):
        files[name] = str(folder / f"{name}.jsonl")
        Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return load_splits(DataSource(dataset="json", data_files=files, **data), task(**(fields or {})))


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


def test_text_and_spans_go_together():
    with pytest.raises(hf_sft.RecipeError, match=r"task\.text +`text` and `spans` go together"):
        hf_sft.check(tiny.recipe(Path("x"), {}, Path("y"), task={"type": "token_classification", "text": "t"}))


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
