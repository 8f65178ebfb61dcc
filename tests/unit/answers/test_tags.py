"""Entities and their scores are seqeval's, whatever the scheme of the tags."""

from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from seqeval import metrics as seqeval
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from hf_sft.answers.tags import EntityAnswers, TagAnswers, count_repaired, find_scheme, is_iob1, read_entities, to_iob2
from hf_sft.evaluation.bootstrap import measure
from hf_sft.evaluation.evaluate import EvaluationAccumulator, evaluate_blocks
from hf_sft.evaluation.plan import EvaluationPlan
from hf_sft.tasks import Labels
from tests.unit.tasks.tagging_cases import task

NAMES = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


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
