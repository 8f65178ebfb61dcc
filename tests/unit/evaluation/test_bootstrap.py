"""Intervals are those of ordinary resampling, and depend neither on how rows are cut nor on other metrics."""

import tracemalloc

import numpy as np
import pytest
from scipy import stats

from hf_sft.answers.contract import ClassAnswers, NumberAnswers, SetAnswers
from hf_sft.answers.tags import TagAnswers
from hf_sft.evaluation import bootstrap as scoring
from hf_sft.evaluation.bootstrap import draw_weights, paired, score_rows
from tests.metric_cases import answers_of, library_value, make_rows, names_for

SINGLE, MULTI, REGRESSION = ClassAnswers, SetAnswers, NumberAnswers


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_a_resample_is_the_metric_of_the_rows_as_often_as_they_were_drawn(kind, monkeypatch):
    """Each of the thousand values is the library's, on rows repeated as the weights say."""
    monkeypatch.setattr(scoring, "BLOCK", 16)
    references, answers = make_rows(kind)
    names = names_for(kind)
    scores = score_rows(names, answers, references)
    weights = draw_weights(0, 60)
    for place in (0, 1, 499, 999):
        rows = np.repeat(np.arange(60), weights[:, place])
        for name in names:
            known = library_value(name, references[rows], answers.take(rows))
            assert scores[name].resampled[place] == pytest.approx(known, abs=1e-12), name


def test_weights_are_a_rows_own_and_poisson():
    whole = draw_weights(0, 5000)
    assert whole.shape == (5000, 1000)
    np.testing.assert_array_equal(whole[1234:1300], draw_weights(1234, 1300))
    assert not np.array_equal(whole[:10], draw_weights(0, 10, seed=1))
    for count in range(6):
        assert (whole == count).mean() == pytest.approx(stats.poisson.pmf(count, 1), abs=5e-4)
    assert abs(np.corrcoef(whole[0], whole[1])[0, 1]) < 0.12 and abs(np.corrcoef(whole[:, 0], whole[:, 1])[0, 1]) < 0.06


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_intervals_are_those_of_ordinary_resampling(kind):
    references, answers = make_rows(kind, num_rows=300, num_labels=3)
    names = [n for n in ("accuracy", "f1_macro", "roc_auc", "pearson", "spearman", "mse") if n in names_for(kind)]
    scores = score_rows(names, answers, references, level=0.8)
    rng = np.random.default_rng(1)
    drawn = [rng.integers(300, size=300) for _ in range(500)]
    for name in names:
        values = [library_value(name, references[rows], answers.take(rows)) for rows in drawn]
        # The tenth percentiles of 500 and of 1000 draws have standard errors of 0.08 and 0.05 standard deviations.
        wanted = tuple(np.percentile(values, [10, 90]))
        assert (scores[name].low, scores[name].high) == pytest.approx(wanted, abs=0.3 * np.std(values)), name


@pytest.mark.parametrize("kind", [SINGLE, MULTI, REGRESSION])
def test_intervals_depend_on_no_cut_and_on_no_other_metric(kind, monkeypatch):
    references, answers = make_rows(kind)
    names = names_for(kind)
    scores = score_rows(names, answers, references)
    assert list(scores) == names
    narrow = score_rows(names, answers, references, level=0.5)
    for name, score in scores.items():
        assert score.low < score.high
        assert score_rows([name], answers, references)[name] == score
        assert score.low <= narrow[name].low <= narrow[name].high <= score.high
    assert score_rows(names, answers, references, seed=1) != scores
    monkeypatch.setattr(scoring, "BLOCK", 7)
    monkeypatch.setattr(scoring, "CHUNK", 1000)
    cut = score_rows(names, answers, references)
    for name in names:
        assert (cut[name].low, cut[name].high) == pytest.approx((scores[name].low, scores[name].high), abs=1e-12)


def test_the_difference_of_two_models_on_the_same_rows_has_a_narrower_interval_than_either():
    rng = np.random.default_rng(0)
    references = rng.integers(2, size=500)
    first = np.where(rng.random(500) < 0.8, references, 1 - references)
    second = np.where(rng.random(500) < 0.02, 1 - first, first)
    scores = [score_rows(["accuracy"], answers_of(SINGLE, each), references)["accuracy"] for each in (first, second)]
    gap = paired(*scores)
    assert gap.value == pytest.approx(scores[0].value - scores[1].value)
    assert gap.low <= gap.value <= gap.high and gap.high - gap.low < 0.6 * (scores[0].high - scores[0].low)


def test_global_randomness_is_left_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    score_rows(["accuracy"], answers_of(SINGLE, [0, 1]), np.array([0, 0]))
    assert np.random.get_state()[1].tolist() == before


@pytest.mark.parametrize("name", ["accuracy", "f1_micro", "f1_macro", "f1_weighted", "precision_macro"])
def test_resamples_without_a_row_are_left_out(name):
    """Of one row, which is right, a third of the resamples hold none: they say nothing of how sure its score is."""
    words = [["goal", "market"]]
    for answers, references in (
        (answers_of(SINGLE, [1]), np.array([1])),
        (answers_of(MULTI, None, [[0.9, 0.1]]), np.array([[1, 0]])),
        (TagAnswers([np.eye(3)[[1, 2]]], ("O", "a", "b"), words, [None]), TagAnswers.read_references([[1, 2]])),
    ):
        score = score_rows([name], answers, references)[name]
        full = 0.5 if (name, type(answers)) in {("f1_macro", MULTI), ("precision_macro", MULTI)} else 1.0
        assert (score.low, score.value, score.high) == (full,) * 3


def test_resamples_without_a_value_are_left_out():
    references = np.array([0, 0, 0, 1])
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])
    score = score_rows(["roc_auc"], answers_of(SINGLE, None, scores), references)["roc_auc"]
    assert (score.low, score.high) == (1.0, 1.0) and np.isnan(score.resampled).any()
    few = score_rows(["pearson"], NumberAnswers(np.array([0.0, 1.0, 0.5])), np.array([0.0, 0.4, 0.4]))["pearson"]
    assert np.isfinite([few.low, few.high]).all()


def test_intervals_of_accuracy_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(400):
        references = rng.integers(2, size=200)
        predictions = np.where(rng.random(200) < 0.8, references, 1 - references)
        score = score_rows(["accuracy"], answers_of(SINGLE, predictions), references, seed=seed)["accuracy"]
        held += score.low <= 0.8 <= score.high
    assert 0.92 <= held / 400 <= 0.98


def test_twenty_thousand_rows_of_77_classes_take_little_memory():
    rng = np.random.default_rng(0)
    references = rng.integers(77, size=20_000)
    predictions = np.where(rng.random(20_000) < 0.9, references, rng.integers(77, size=20_000))
    answers = ClassAnswers(np.eye(77)[predictions], ("",) * 77)
    tracemalloc.start()
    scores = score_rows(["accuracy", "f1_macro"], answers, references)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 80 * 2**20
    assert scores["f1_macro"].low < scores["f1_macro"].value < scores["f1_macro"].high
