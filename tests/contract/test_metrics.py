"""Metrics have scikit-learn's values, and none depends on how rows are cut."""

from dataclasses import fields

import numpy as np
import pytest
from sklearn import metrics as sk

import hf_sft
from hf_sft.answers.contract import ClassAnswers, NumberAnswers, SetAnswers
from hf_sft.answers.likelihoods import MaskedAnswers, TextAnswers, TurnAnswers
from hf_sft.errors import RecipeError
from hf_sft.evaluation.bootstrap import measure, score_rows
from hf_sft.metrics import find_metric
from tests import tiny
from tests.metric_cases import (
    KINDS,
    METRICS,
    NUMBERS,
    answers_of,
    library_value,
    make_rows,
    names_for,
    predictions_of,
    sklearn_value,
)

SINGLE, MULTI, REGRESSION = ClassAnswers, SetAnswers, NumberAnswers

SKLEARN = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}

CASES = [(name, kind) for name, metric in METRICS.items() for kind in KINDS if issubclass(kind, metric.measures)]

IDS = [f"{name}-{kind.__name__}" for name, kind in CASES]


def test_the_names_are_those_that_recipes_use():
    rates = {f"{rate}_{average}" for rate in SKLEARN for average in ("micro", "macro", "weighted")}
    assert {name for name, _ in CASES} == {"accuracy", "matthews", "roc_auc", *NUMBERS} | rates
    assert {name for name, metric in METRICS.items() if not metric.greater_is_better} == {"mse", "mae"}
    assert all(metric.description.endswith(".") and "\n" not in metric.description for metric in METRICS.values())
    assert all((metric.weighted is None) == (metric.row_statistics is not None) for metric in METRICS.values())


@pytest.mark.parametrize(("name", "kind"), CASES, ids=IDS)
@pytest.mark.parametrize("seed", range(3))
def test_values_are_those_of_scikit_learn_and_scipy(name, kind, seed):
    references, answers = make_rows(kind, seed=seed)
    value = measure([name], answers, references)[name]
    assert type(value) is float
    assert value == pytest.approx(library_value(name, references, answers), abs=1e-12)
    assert score_rows([name], answers, references)[name].value == value


@pytest.mark.parametrize("seed", range(20))
def test_small_and_lopsided_rows_have_scikit_learns_values_too(seed):
    rng = np.random.default_rng(seed)
    num_rows, num_labels = int(rng.integers(1, 30)), int(rng.integers(2, 9))
    for kind in (SINGLE, MULTI):
        shape = (num_rows, num_labels) if kind is MULTI else num_rows
        references, predictions = (rng.integers(2 if kind is MULTI else num_labels, size=shape) for _ in range(2))
        if seed % 4 == 0:
            references[...] = 0
        if seed % 4 == 1:
            predictions[...] = references
        names = [name for name in names_for(kind) if name != "roc_auc"]
        values = measure(names, answers_of(kind, predictions, num_labels=num_labels), references)
        for name in names:
            assert values[name] == pytest.approx(sklearn_value(name, references, predictions), abs=1e-12), name


@pytest.mark.parametrize("middle", [0, 1e4, -1e6])
def test_numbers_far_from_zero_keep_their_digits(middle):
    references, answers = make_rows(REGRESSION)
    values = measure(names_for(REGRESSION), NumberAnswers(answers.values + middle), references + middle)
    for name, value in values.items():
        assert value == pytest.approx(sklearn_value(name, references, answers.values), rel=1e-8), name


def test_roc_auc_is_scikit_learns_for_two_classes_many_classes_and_label_sets():
    rng = np.random.default_rng(0)
    for num_labels, arguments in ((2, {}), (4, {"multi_class": "ovr", "average": "macro"})):
        references = rng.integers(num_labels, size=80)
        scores = rng.dirichlet(np.ones(num_labels), size=80)
        known = sk.roc_auc_score(references, scores[:, 1] if num_labels == 2 else scores, **arguments)
        assert measure(["roc_auc"], answers_of(SINGLE, None, scores), references)["roc_auc"] == pytest.approx(known, abs=1e-12)
    references, scores = (rng.random((80, 3)) < 0.3).astype(int), rng.random((80, 3))
    known = sk.roc_auc_score(references, scores, average="macro")
    assert measure(["roc_auc"], answers_of(MULTI, None, scores), references)["roc_auc"] == pytest.approx(known, abs=1e-12)


@pytest.mark.parametrize("rows", [2, 3, 5])
@pytest.mark.parametrize("seed", range(5))
def test_few_numbers_have_the_libraries_values_too(seed, rows):
    rng = np.random.default_rng(seed)
    references, predictions = rng.permutation(rows) * 1.5, rng.permutation(rows) + rng.integers(0, 9)
    values = measure([*NUMBERS], NumberAnswers(predictions.astype(float)), references)
    assert values == pytest.approx({name: value(references, predictions) for name, value in NUMBERS.items()}, abs=1e-12)


def test_numbers_that_are_in_proportion_are_correlated_by_one_and_never_more():
    rng = np.random.default_rng(0)
    for _ in range(300):
        references = rng.normal(size=4)
        values = measure(["pearson", "spearman"], NumberAnswers(references * rng.random() * 3), references)
        assert values["pearson"] == pytest.approx(1) and values["pearson"] <= 1 and values["spearman"] <= 1


@pytest.mark.parametrize("scale", [1e-9, 1e-3, 1e5])
def test_correlations_do_not_depend_on_the_unit_and_constants_have_none(scale):
    rng = np.random.default_rng(0)
    for _ in range(20):
        references, predictions = rng.normal(size=(2, 30))
        wanted = {name: NUMBERS[name](references, predictions) for name in ("pearson", "spearman", "r2")}
        found = measure([*wanted], NumberAnswers(predictions * scale), references * scale)
        assert found == pytest.approx(wanted, abs=1e-9)
        # As scikit-learn has it, but for rounding: 1 for all right, else 0.
        for predicted, r2 in ((np.full(30, scale), 1.0), (predictions * scale, 0.0)):
            assert measure(["r2"], NumberAnswers(predicted), np.full(30, scale)) == {"r2": r2}
        for constant in (0.1 * scale, 1234567.1):
            alike = measure(["pearson", "spearman"], NumberAnswers(np.full(30, constant)), references * scale)
            assert np.isnan([*alike.values()]).all()


@pytest.mark.parametrize("kind", [TextAnswers, TurnAnswers, MaskedAnswers])
def test_what_is_written_of_how_likely_a_row_is_are_the_metrics_of_that_row_alone(kind):
    sums = np.array([[3.5, 7, 2], [2, 1, 5], [30, 12, 4], [2, 0, 3], [2, 1, 1]], dtype=float)
    answers = kind(*sums[: len(fields(kind))])
    for row, said in enumerate(answers.as_json()):
        alone = answers.take(np.array([row]))
        assert said.pop("tokens") == alone.tokens[0]
        assert said == pytest.approx(measure([*said], alone, np.zeros(1)))


def test_probabilities_are_written_to_six_places():
    rng = np.random.default_rng(0)
    for kind in (SINGLE, MULTI):
        answers = answers_of(kind, None, rng.random((20, 3)))
        written = np.array([[*row["scores"].values()] for row in answers.as_json()])
        np.testing.assert_allclose(written, answers.scores, atol=5.0000001e-7)
        assert (np.abs(written * 1e6 - np.round(written * 1e6)) < 1e-6).all()


def test_roc_auc_leaves_out_a_class_that_no_row_has():
    references = np.array([0, 1, 0, 1])
    scores = np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.3, 0.6, 0.1], [0.6, 0.3, 0.1]])
    known = np.mean([sk.roc_auc_score(references == k, scores[:, k]) for k in (0, 1)])
    assert measure(["roc_auc"], answers_of(SINGLE, None, scores), references)["roc_auc"] == pytest.approx(known, abs=1e-12)


@pytest.mark.parametrize(("name", "kind"), CASES, ids=IDS)
def test_undefined_values_are_nan_or_scikit_learns_and_never_warn(name, kind):
    constant = np.zeros((4, 2) if kind is MULTI else 4)
    answers = answers_of(kind, constant, None if kind is REGRESSION else np.full((4, 2), 0.5))
    constant = constant if kind is REGRESSION else constant.astype(int)
    score = score_rows([name], answers, constant)[name]
    assert np.isnan(score.value) == (name in {"roc_auc", "pearson", "spearman"})
    assert np.isnan(measure([name], answers.take(slice(0, 0)), constant[:0])[name])
    one = measure([name], answers.take(slice(0, 1)), constant[:1])[name]
    assert np.isnan(one) == (name in {"roc_auc", "pearson", "spearman", "r2"})
    assert np.isnan(score.low) == np.isnan(score.high) == np.isnan(score.value)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(3))
def test_mistakes_are_the_rows_that_are_wrong_with_how_sure_the_model_was(kind, seed):
    references, answers = make_rows(kind, seed=seed)
    predictions, found = predictions_of(answers), {each.row: each for each in answers.mistakes(references)}
    if kind is REGRESSION:
        assert [*found] == [*range(60)]
        assert [each.score for each in found.values()] == pytest.approx(abs(predictions - references))
        return
    wrong = [row for row in range(60) if np.any(predictions[row] != references[row])]
    assert [*found] == wrong and 0 < len(wrong) < 60
    for row, mistake in found.items():
        if kind is SINGLE:
            names = [answers.names[i] for i in (references[row], predictions[row])]
            sure = answers.scores[row].max()
        else:
            names = [", ".join(np.array(answers.names)[each[row] == 1]) or "(none)" for each in (references, predictions)]
            apart = predictions[row] != references[row]
            sure = max(p if p > 0.5 else 1 - p for p in answers.scores[row][apart])
        assert [mistake.reference, mistake.prediction] == names and mistake.score == pytest.approx(sure)


def test_answers_that_are_not_finite_give_nan_and_no_interval():
    references, answers = np.arange(5.0), NumberAnswers(np.array([0, 1, np.nan, 3, np.inf]))
    for score in score_rows(NUMBERS, answers, references).values():
        assert np.isnan([score.value, score.low, score.high]).all()


@pytest.mark.parametrize(("name", "kind"), CASES, ids=IDS)
def test_the_right_answers_are_the_best_there_are(name, kind):
    """By the direction that the metric has."""
    references, answers = make_rows(kind)
    if kind is SINGLE:
        right = answers_of(kind, references, num_labels=5)
    else:
        right = answers_of(kind, references, references if kind is MULTI else None)
    best, other = (measure([name], each, references)[name] for each in (right, answers))
    assert best > other if METRICS[name].greater_is_better else best < other


MODULE = """
import datasets
import evaluate

class Mine(evaluate.Metric):
    def _info(self):
        kind = datasets.Value("int64")
        features = datasets.Features(predictions=kind, references=kind)
        return evaluate.MetricInfo(description="Mine.", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        right = sum(p == r for p, r in zip(predictions, references))
        return {"rows": len(references), "mine": right / len(references)}
"""


def test_a_module_of_evaluate_gives_a_value_without_an_interval_and_only_when_it_is_trusted(checkpoints, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "mine.py").write_text(MODULE)
    name = f"evaluate:{tmp_path / 'mine'}"
    files = tiny.write_rows(tmp_path / "data", "single_label_classification")
    measured = {"metrics": [name, "accuracy"], "best": name}
    recipe = tiny.recipe(
        checkpoints["bert"], files, tmp_path / "run", evaluation=measured, training={"eval_strategy": "epoch"}
    )
    with pytest.raises(RecipeError, match=r"is code, which the recipe alone(.|\n)*--trust-remote-code"):
        hf_sft.train(recipe)
    report = hf_sft.train(recipe, trust_remote_code=True)
    assert report.metrics["test"][name]["value"] == report.metrics["test"]["accuracy"]["value"]
    assert report.metrics["test"][name]["low"] is None
    assert set(report.facts["baselines"]["majority"]["test"]) == {name, "accuracy"}
    with pytest.raises(RecipeError, match=r"is code, which the recipe alone"):
        hf_sft.evaluate(tmp_path / "run")
    with pytest.raises(RecipeError, match=r"`evaluate:nowhere/at_all` can't be loaded"):
        find_metric("evaluate:nowhere/at_all", SINGLE)


def test_an_unknown_metric_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match=r"`f1_marco` is not a metric\. Did you mean `f1_macro`\?\n.*accuracy, prec"):
        find_metric("f1_marco", SINGLE)


def test_a_metric_of_another_kind_is_answered_with_those_that_fit():
    with pytest.raises(RecipeError, match=r"`pearson` does not measure answers of one class\.\n  These do: acc"):
        find_metric("pearson", SINGLE)
    with pytest.raises(RecipeError, match=r"`matthews` does not measure answers of any number of classes"):
        find_metric("matthews", MULTI)
    with pytest.raises(RecipeError, match=r"These do: pearson, spearman, mse, mae, r2\."):
        score_rows(["accuracy"], NumberAnswers(np.ones(1)), np.ones(1))
