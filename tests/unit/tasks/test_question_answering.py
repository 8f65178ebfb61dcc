"""What only question answering must get right: characters through tokens and windows, no answers, SQuAD's figures."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

import hf_sft
from hf_sft.answers.spans import SpanAnswers, choose_threshold, exact, find_sentence, overlap, read_answers
from hf_sft.evaluation.bootstrap import measure
from hf_sft.models.checkpoint import Checkpoint
from hf_sft.models.loading import load_processor
from hf_sft.tasks.question_answering import QuestionAnswering
from tests import tiny


def task(**fields: Any) -> QuestionAnswering:
    return QuestionAnswering(type="question_answering", **fields)


@pytest.mark.parametrize(
    ("prediction", "references", "match", "f1"),
    [
        ("Denver Broncos", ["Denver Broncos"], 1, 1),
        ("the Denver Broncos!", ["Denver Broncos"], 1, 1),
        ("  DENVER  broncos ", ["Denver Broncos", "Broncos"], 1, 1),
        ("Broncos", ["Denver Broncos"], 0, 2 / 3),
        ("the Broncos of Denver", ["Denver Broncos"], 0, 4 / 5),
        ("a cat", ["the cat"], 1, 1),
        ("theatre", ["atre"], 0, 0),
        ("308", ["308 points", "gave up 308"], 0, 2 / 3),
        ("cat cat", ["cat"], 0, 2 / 3),
        ("co-operate", ["cooperate"], 1, 1),
        ("naïve café", ["naïve café"], 1, 1),
        ("«Ann»", ["Ann"], 0, 0),
        ("", [], 1, 1),
        ("Ann", [], 0, 0),
        ("", ["Ann"], 0, 0),
    ],
)
def test_the_figures_are_those_of_squads_script(prediction, references, match, f1):
    """`«` is punctuation to a reader, and not to the script: only ASCII is."""
    answers = SpanAnswers([(0, len(prediction)) if prediction else None], np.ones(1), [prediction])
    values = measure(("exact_match", "f1"), answers, SpanAnswers.read_references([references]))
    assert values == pytest.approx({"exact_match": match, "f1": f1})
    assert max(exact(prediction, each) for each in references or [""]) == match
    assert max(overlap(prediction, each) for each in references or [""]) == pytest.approx(f1)


def test_a_mistake_shows_both_answers_where_they_stand():
    before, after = "x" * 50 + " ", " then Bo came late" + "y" * 50
    context = f"{before}Ann left{after}"
    at = context.find
    cases = [  # what is answered, what is right, and how both are shown
        ("Bo", ["Ann"], "[Bo]", "[Ann]"),
        ("Bo", [], "[Bo]", "(no answer)"),
        (None, ["Ann left"], "(no answer)", "[Ann left]"),
        ("Ann", ["nowhere"], "[Ann]", "nowhere"),
    ]
    for said, known, shown, right in cases:
        spans = [None if said is None else (at(said), at(said) + len(said))]
        references = np.empty(1, dtype=object)
        references[0] = known
        (found,) = SpanAnswers(spans, np.array([1.5]), [context]).mistakes(references)
        for text, part in ((found.prediction, shown), (found.reference, right)):
            bare = part.strip("[]")
            assert text == part if part == bare else part in text and text.replace(part, bare).strip("…") in context
        assert (found.row, found.score) == (0, 1.5)


def test_answerable_rows_and_others_are_scored_apart():
    answers = SpanAnswers([(0, 3), None, (0, 3)], np.ones(3), ["Ann", "Bob", "Cid"])
    known = SpanAnswers.read_references([["Ann"], [], []])
    assert measure(("f1", "f1_answerable", "f1_unanswerable"), answers, known) == {
        "f1": pytest.approx(2 / 3),
        "f1_answerable": 1.0,
        "f1_unanswerable": 0.5,
    }


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("stride", [1, 10])
def test_an_answer_in_any_place_of_a_long_context_comes_back_as_it_stands(family, stride, checkpoints):
    """The model is one that has learned its labels by heart: it points at them in each window, and at nothing elsewhere."""
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints[family])))
    words = [tiny.WORDS[(5 * i) % len(tiny.WORDS)] for i in range(150)]
    context, asked = " ".join(words), task(max_length=32, stride=stride)
    starts = np.cumsum([0, *(len(word) + 1 for word in words)])
    for place in range(0, 148, 7):
        text = " ".join(words[place : place + 2])
        answers = {"text": [text], "answer_start": [int(starts[place])]}
        rows = Dataset.from_dict({"question": ["the goal"], "context": [context], "answers": [answers]})
        examples = asked.encode(rows[:], processor, None)
        assert max(map(len, examples["input_ids"])) <= 32 and len(examples["row"]) > 4
        kept = []
        for (first, last), begins, ends in zip(examples["labels"], examples["starts"], examples["ends"], strict=True):
            logits = np.zeros((2, len(begins)), dtype=np.float32)
            logits[0, first] = logits[1, last] = 9.0
            kept.append(asked._best_spans(*logits, np.array(begins), np.array(ends)))
        assert any(last for _, last in examples["labels"])
        (said,) = asked.answer([kept], rows, None).as_json()
        assert (said["answer"], said["start"]) == (text, starts[place])


def test_a_row_s_windows_do_not_depend_on_the_rows_beside_it_and_long_questions_are_cut(checkpoints):
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))
    context = " ".join(tiny.WORDS * 3)
    rows = {"question": ["the goal", "a match " * 60], "context": [context] * 2}
    together = task().encode(rows, processor, None)
    alone = task().encode({name: column[:1] for name, column in rows.items()}, processor, None)
    count = len(alone["row"])
    assert together["input_ids"][:count] == alone["input_ids"] and together["row"][:count] == [0] * count
    assert together["truncated"] == [False] * count + [True] * (len(together["row"]) - count)
    assert max(map(len, together["input_ids"])) <= 64


def test_a_span_lies_in_the_context_ends_after_it_begins_and_is_short_enough():
    asked, rng = task(max_answer_length=3), np.random.default_rng(0)
    begins = np.array([-1, -1, -1, *range(0, 40, 2), -1, -1])
    for _ in range(50):
        first, last = rng.normal(size=(2, len(begins))).astype(np.float32)
        best = asked._best_spans(first, last, begins, np.where(begins < 0, -1, begins + 1))
        tokens = ((best[1:, 1] - 1) - best[1:, 0]) / 2 + 1
        assert best[0, 0] == -1 and best[0, 2] == pytest.approx(first[0] + last[0])
        assert (best[1:, 0] >= 0).all() and (tokens >= 1).all() and (tokens <= 3).all()
        brute = max(first[i] + last[j] for i in range(3, 23) for j in range(i, min(i + 3, 23)))
        assert best[1, 2] == pytest.approx(brute, abs=1e-6)


def test_a_row_has_no_answer_when_every_window_says_so_and_a_threshold_moves_that():
    rows = Dataset.from_dict({"question": ["q"], "context": ["Ann left"]})

    def windows(*nulls: float) -> list[np.ndarray]:
        return [np.array([[-1, -1, null], [0, 3, 4.0]], dtype=np.float32) for null in nulls]

    for asked, nulls, answer in (
        (task(), (5, 5), ""),
        (task(), (5, 3), "Ann"),
        (task(null_threshold=2.0), (5, 5), "Ann"),
        (task(null_threshold=-2.0), (3, 3), ""),
        (task(no_answer=False), (9, 9), "Ann"),
    ):
        assert asked.answer([windows(*nulls)], rows, None).as_json()[0]["answer"] == answer


def test_the_null_threshold_is_the_one_with_which_validation_has_the_best_f1():
    """Tried against every threshold there is; equally good ones give 0, if it is among them."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        above, gains = rng.integers(-9, 9, 12) + 0.25, rng.choice([-1.0, -0.5, 0.0, 1.0], 12)
        chosen = choose_threshold(above, gains)
        tried = {least: gains[above > least].sum() for least in (*(np.sort(above) - 1e-3), above.max() + 1, 0)}
        assert gains[above > chosen].sum() == max(tried.values())
        assert chosen == 0 or tried[0] < max(tried.values())
        ends = np.sort(above)
        between = [(a + b) / 2 for a, b in pairwise([ends[0] - 2, *np.unique(above), ends[-1] + 2])]
        equal = [least for least in between if gains[above > least].sum() == max(tried.values())]
        assert chosen == 0 or abs(chosen) <= min(map(abs, equal)) + 1e-9, "of equally good ones the nearest to 0"
    assert choose_threshold(np.array([3.0, 1.0]), np.array([-1.0, -1.0])) == 4.0
    assert choose_threshold(np.array([-3.0, -1.0]), np.array([1.0, 1.0])) == -4.0


def test_the_threshold_is_chosen_by_f1_and_the_note_s_figures_are_f1_s_with_it_and_without():
    """Answers that overlap in part: by exact match they are no better than silence, by F1 they are."""
    context = "Ann Lee of Bern left Rome in May"
    starts = [match.start() for match in re.finditer(r"\w+", context)]
    rng, other = np.random.default_rng(0), 0
    for _ in range(40):
        spans, cells = rng.integers(0, len(starts), (12, 2)), rng.integers(0, len(starts), (12, 3))
        known = [context[starts[min(a, b)] :].split()[: 1 + abs(a - b)] for a, b, _ in cells]
        texts = [" ".join(words) if silent % 3 else "" for words, (*_, silent) in zip(known, cells, strict=True)]
        answers = [{"text": [text] if text else [], "answer_start": [context.index(text)] if text else []} for text in texts]
        rows = Dataset.from_dict({"question": ["q"] * 12, "context": [context] * 12, "answers": answers})
        ends = [context.find(" ", starts[max(pair)]) % (len(context) + 1) for pair in spans]
        kept = [
            [np.array([[-1, -1, null], [starts[min(pair)], end, 0.0]], dtype=np.float32)]
            for pair, end, null in zip(spans, ends, rng.normal(size=12).round(2), strict=True)
        ]
        asked, _, _ = task(no_answer=True).resolve({"train": rows})
        tuned, (note,) = asked.calibrate([(rows.select(range(7)), kept[:7]), (rows.select(range(7, 12)), kept[7:])], None)

        def score(metric: str, threshold: float, asked=asked, kept=kept, rows=rows, texts=texts) -> float:
            found = asked.model_copy(update={"null_threshold": threshold}).answer(kept, rows, None)
            return measure([metric], found, SpanAnswers.read_references([[text] if text else [] for text in texts]))[metric]

        tried = [float(row[0][0, 2]) + shift for row in kept for shift in (-1e-3, 1e-3)] + [0.0]
        best = score("f1", tuned.null_threshold)
        assert best == pytest.approx(max(score("f1", each) for each in tried))
        assert f"F1 {best:.3f} there" in note and note.endswith(f"with 0 it is {score('f1', 0.0):.3f}.")
        other += score("exact_match", tuned.null_threshold) < max(score("exact_match", each) for each in tried) - 1e-9
    assert other > 5, "exact match would choose the same nearly everywhere"


def test_what_validation_chose_is_saved_and_what_the_recipe_says_stays(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "questions", train=20)
    given = tiny.task_of("questions")
    report = hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task=given))
    threshold = report.facts["recipe"]["task"]["null_threshold"]
    assert any(f"validation chose `null_threshold` {threshold:.3f}" in note for note in report.facts["data"]["warnings"])
    best = report.metrics["validation"]["f1"]["value"]
    for other in (-3, -1, 0, 1, 3):
        again = [f"output.folder={tmp_path / str(other)}", f"task.null_threshold={other}"]
        said = hf_sft.train(tmp_path / "run" / "recipe.yaml", again)
        assert said.facts["recipe"]["task"]["null_threshold"] == other
        assert said.metrics["validation"]["f1"]["value"] <= best
    same = hf_sft.train(tmp_path / "run" / "recipe.yaml", [f"output.folder={tmp_path / 'same'}"])
    assert same.metrics == report.metrics


TAUGHT = {"batch_size": 16, "max_steps": 150, "optim": "adamw_torch", "learning_rate": 3e-3, "weight_decay": 0.0}


def test_a_context_of_two_thousand_words_is_answered_as_a_short_one_by_a_model_taught_to(checkpoints, tmp_path):
    """The answer is the word `court`, wherever it is; train has contexts of one window and of several."""
    others = [word for word in tiny.WORDS if word != "court"]

    def make(words: int, place: int, seed: int) -> dict[str, Any]:
        said = [str(word) for word in np.random.default_rng(seed).choice(others, words)]
        said[place] = "court"
        known = {"text": ["court"], "answer_start": [sum(len(word) + 1 for word in said[:place])]}
        return {"question": "the law", "context": " ".join(said), "answers": known}

    files = {}
    for name, count in (("train", 160), ("validation", 8), ("test", 8)):
        files[name] = str(tmp_path / f"{name}.jsonl")
        made = [make(20 + (7 * i) % 100, (11 * i) % (20 + (7 * i) % 100), i) for i in range(count)]
        Path(files[name]).write_text("".join(json.dumps(row) + "\n" for row in made))
    recipe = tiny.recipe(
        checkpoints["bert"], files, tmp_path / "run", task={"type": "question_answering", "stride": 8}, training=TAUGHT
    )
    hf_sft.train(recipe)
    rows = [make(2000, place, 1000 + place) for place in (0, 1, 37, 500, 999, 1313, 1998, 1999)]
    answers = hf_sft.predict(tmp_path / "run", rows)
    assert [(a["answer"], a["start"]) for a in answers] == [("court", row["answers"]["answer_start"][0]) for row in rows]


def test_an_answer_that_no_window_holds_is_counted(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "questions", train=20)
    context = " ".join(tiny.WORDS)
    whole = {"question": "a", "context": context, "answers": {"text": [context], "answer_start": [0]}}
    with Path(files["train"]).open("a") as file:
        file.write(json.dumps(whole) + "\n")
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task={**tiny.task_of("questions"), "max_length": 32})
    report = hf_sft.train(recipe)
    assert report.facts["data"]["lost"] == {"train": 1, "validation": 0, "test": 0}
    assert "1 of 21 rows of split `train` have an answer that no window holds whole." in report.facts["data"]["warnings"]


def test_answers_come_in_squads_two_shapes_and_are_read_where_they_stand():
    assert read_answers({"text": ["a"], "answer_start": [3]}) == read_answers([{"text": "a", "answer_start": 3}]) == [("a", 3)]
    known = [
        {"text": ["left"], "answer_start": [4]},
        {"text": ["left"], "answer_start": [0]},
        {"text": [], "answer_start": []},
    ]
    rows = Dataset.from_dict({"question": ["who"] * 3, "context": ["Ann left"] * 3, "answers": known})
    found, labels, said = task().resolve({"train": rows})
    assert found.no_answer is True and task().resolve({"train": rows.select([0])})[0].no_answer is False
    assert labels is None and found.invalid_rows(rows, None) == {}
    assert said == [
        "1 answer(s) of split `train` stand once in their context, elsewhere than at their offset: "
        "read there ('left' at 4, not 0).",
        "1 of 3 rows of split `train` have no answer.",
    ]


GOOD = {"question": "who", "context": "Ann left, Ann came", "answers": {"text": ["left"], "answer_start": [4]}}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {**GOOD, "answers": {"text": ["Bob"], "answer_start": [0]}},
            r"an answer that does not stand in the context at its offset \('Bob', where 'Ann' stands\) in 1 row",
        ),
        (
            {**GOOD, "answers": {"text": ["Ann"], "answer_start": [3]}},
            r"an answer that does not stand in the context at its offset",
        ),
        ({**GOOD, "context": " "}, r"`context` is empty, or no text, in 1 row\(s\) of split `test`: 1"),
        ({**GOOD, "question": None}, r"`question` is empty, or no text"),
    ],
)
def test_rows_that_cannot_be_learned_from_are_named(row, message, checkpoints, tmp_path):
    files = {}
    for name, rows in (("train", [GOOD, GOOD]), ("validation", [GOOD]), ("test", [GOOD, row])):
        files[name] = str(tmp_path / f"{name}.jsonl")
        Path(files[name]).write_text("".join(json.dumps(each) + "\n" for each in rows))
    with pytest.raises(hf_sft.DataError, match=message):
        hf_sft.check(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task={"type": "question_answering"}))


CONTEXT = "She lives in Paris, and Ann in Rome since 5 years."


@pytest.mark.parametrize(
    ("cell", "texts"),
    [
        ("{'text': ['Paris'], 'answer_start': [13]}", ["Paris"]),
        ('{"text": ["Paris"], "answer_start": [13]}', ["Paris"]),
        ("{'text': array(['Paris', 'Rome'], dtype=object), 'answer_start': array([13, 31])}", ["Paris", "Rome"]),
        ("{'text': array([], dtype=object), 'answer_start': array([], dtype=int32)}", []),
        ("Paris", ["Paris"]),
        ("['Paris']", ["Paris"]),
        (["Paris", "Rome"], ["Paris", "Rome"]),
        (["5"], ["5"]),
        ([5], ["5"]),
        ({"text": ["Paris"]}, ["Paris"]),
        ({"text": "Paris", "answer_start": 13}, ["Paris"]),
        ({"text": ["Paris"], "answer_start": []}, ["Paris"]),
        ([{"text": "Paris"}], ["Paris"]),
        ({"text": [""], "answer_start": [-1]}, []),
        ({"text": [], "answer_start": []}, []),
        ([{"text": "", "answer_start": -1}], []),
        ("", []),
        (None, []),
    ],
)
def test_answers_come_in_many_forms(cell, texts, checkpoints):
    rows = Dataset.from_list([{"question": "Where?", "context": CONTEXT, "answers": cell}])
    rows = rows if texts or cell is not None else Dataset.from_dict({**rows.to_dict(), "answers": [None]})
    asked, _, _ = task().resolve({"train": rows})
    assert asked.references(rows) == [texts] and asked.invalid_rows(rows, None) == {}
    processor = load_processor(Checkpoint(checkpoint=str(checkpoints["bert"])))
    encoded = asked.encode(rows[:], processor, None)
    first, last = encoded["labels"][0]
    taught = CONTEXT[encoded["starts"][0][first] : encoded["ends"][0][last]] if last else ""
    assert taught == (texts[0] if texts else "")


def test_an_answer_without_an_offset_that_stands_twice_is_counted():
    rows = Dataset.from_list([{"question": "Where?", "context": "in Rome, or Rome", "answers": ["Rome"]}])
    _, _, notes = task().resolve({"train": rows})
    assert any("1 answer(s) of split `train` have no offset and stand in their context more than once" in n for n in notes)
    rows = Dataset.from_list([{"question": "Where?", "context": "in Rome", "answers": ["Paris"]}])
    assert any("which stands nowhere" in problem for problem in task().invalid_rows(rows, None))


@pytest.mark.parametrize("version", ["1.1", "2.0"])
def test_squad_s_nested_file_is_read_as_it_is(version, tmp_path):
    from hf_sft.data.data_source import DataSource
    from hf_sft.data.sources import load_source

    asked = [{"id": "a", "question": "Where?", "answers": [{"text": "Paris", "answer_start": 13}]}]
    if version == "2.0":
        plausible = {"plausible_answers": [{"text": "Rome", "answer_start": 31}]}
        asked.append({"id": "b", "question": "Who?", "answers": [], "is_impossible": True, **plausible})
    article = {"title": "T", "paragraphs": [{"context": CONTEXT, "qas": asked}, {"context": CONTEXT, "qas": asked[:1]}]}
    (tmp_path / "train.json").write_text(json.dumps({"version": version, "data": [article, article]}, indent=1))
    rows = load_source(DataSource(dataset=str(tmp_path / "train.json")), ())[0]["train"]
    assert len(rows) == 2 * (len(asked) + 1) and rows[0]["context"] == CONTEXT
    resolved, _, _ = task().resolve({"train": rows})
    assert resolved.no_answer is (version == "2.0") and resolved.references(rows)[0] == ["Paris"]


def test_characters_of_scripts_without_spaces_are_words_of_the_overlap():
    assert overlap("北京大学", "北京") == pytest.approx(2 * 2 / (4 + 2))
    assert overlap("東京 tower", "東京") == pytest.approx(2 * 2 / (3 + 2))
    assert overlap("the cat sat", "cat") == pytest.approx(2 / 3)
    rows = Dataset.from_list([{"question": "谁住在北京", "context": "王芳住在上海。张伟住在北京。", "answers": ["张伟"]}])
    assert any("each character of scripts without spaces" in note for note in task().resolve({"train": rows})[2])
    assert find_sentence(rows[0]["question"], rows[0]["context"]) == (7, 14)


def test_the_baseline_answers_each_question_from_its_own_context():
    rows = Dataset.from_dict(
        {
            "question": ["Who left Bern?", "What did the bank cut?"],
            "context": ["Ann came. Lee left Bern. Cid stayed.", "It rained. The bank cut its rates."],
            "answers": [{"text": ["Lee"], "answer_start": [10]}, {"text": [], "answer_start": []}],
        }
    )
    found = task().baselines(rows, None)["sentence"]()(rows)
    assert [answer["answer"] for answer in found.as_json()] == ["Lee left Bern.", "The bank cut its rates."]
    assert measure(["exact_match"], found, SpanAnswers.read_references([["Lee left Bern."], []])) == {"exact_match": 0.5}


def test_the_baseline_is_the_sentence_that_shares_most_words():
    context = "Ann left early. The bank cut its rates in May! Who knows?"
    start, end = find_sentence("When did the bank cut rates?", context)
    assert context[start:end] == "The bank cut its rates in May!"


@pytest.mark.parametrize("method", ["full", "head_only", "lora"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_run_answers_as_it_was_scored_and_shows_its_mistakes(family, method, checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "questions", train=20)
    report = hf_sft.train(tiny.recipe(checkpoints[family], files, tmp_path / "run", method, task=tiny.task_of("questions")))
    rows = tiny.rows("questions", 11, 200)
    answers = hf_sft.predict(tmp_path / "run", [*rows, {"question": "", "context": "a", "answers": None}])
    written = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [(a["answer"], a["start"], a["reference"]) for a in answers[:-1]] == [
        (w["answer"], w["start"], w["reference"]) for w in written
    ]
    assert answers[-1]["answer"] is None
    for answer, row in zip(answers, rows, strict=False):
        assert answer["start"] is None or row["context"][answer["start"] : answer["end"]] == answer["answer"]
    again = hf_sft.evaluate(tmp_path / "run")
    assert {n: s.value for n, s in again.scores.items()} == {n: s["value"] for n, s in report.metrics["test"].items()}
    assert (
        set(report.facts["baselines"]) == {"sentence"} and "Worst mistakes" in (tmp_path / "run" / "report.html").read_text()
    )


def test_check_marks_the_answer(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", "questions")
    Path(files["train"]).write_text("".join(json.dumps(row) + "\n" for row in tiny.rows("questions", 9, 1)))
    found = hf_sft.check(tiny.recipe(checkpoints["bert"], files, tmp_path / "run", task=tiny.task_of("questions")))
    (answer,) = tiny.rows("questions", 1, 1)[0]["answers"]["text"]
    assert f"[[{answer}]]" in found.facts["as the model sees it"]
