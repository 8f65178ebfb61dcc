import socket
import time
import tracemalloc

import evaluate
import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from hf_sft.errors import RecipeError
from hf_sft.intervals import _mean_auc, bootstrap, score_counts, score_numbers
from hf_sft.metrics import METRICS, MULTI, REGRESSION, SINGLE, load_metric, ranked_columns, score

SKLEARN = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}
NUMBERS = {
    "pearson": lambda r, p: stats.pearsonr(r, p).statistic,
    "spearman": lambda r, p: stats.spearmanr(r, p).statistic,
    "mse": sk.mean_squared_error,
    "mae": sk.mean_absolute_error,
    "r2": sk.r2_score,
}
CASES = [(name, problem_type) for name, spec in METRICS.items() for problem_type in spec.problem_types]


def names_for(problem_type):
    return [name for name, spec in METRICS.items() if problem_type in spec.problem_types]


def make_rows(problem_type, num_rows=60, num_labels=5, seed=0):
    """References, predictions and scores; of single labels the last is no reference, the first no prediction."""
    rng = np.random.default_rng(seed)
    if problem_type == REGRESSION:
        references = rng.normal(size=num_rows).round(1)
        predictions = (references + rng.normal(size=num_rows)).round(1)
        return references, predictions, predictions
    logits = rng.normal(size=(num_rows, num_labels)).round(1)
    if problem_type == MULTI:
        references = (rng.random((num_rows, num_labels)) < 0.4).astype(np.int64)
        references[:, 1], logits[:, 2] = 0, -1
        return references, (logits > 0).astype(np.int64), 1 / (1 + np.exp(-logits))
    references = rng.integers(num_labels - 1, size=num_rows)
    scores = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return references, np.maximum(logits.argmax(1), 1), scores


def sklearn_value(name, references, predictions):
    if name in NUMBERS:
        return NUMBERS[name](references, predictions)
    if name == "accuracy":
        return sk.accuracy_score(references, predictions)
    if name == "matthews":
        return sk.matthews_corrcoef(references, predictions)
    rate, average = name.split("_")
    return SKLEARN[rate](references, predictions, average=average, zero_division=0)


def counts_of(references, predictions, num_labels):
    """What `score_counts` takes, for one resample that is the rows themselves."""
    if references.ndim == 1:
        references, predictions = np.eye(num_labels)[references], np.eye(num_labels)[predictions]
        present = (references + predictions).sum(0, keepdims=True) > 0
    else:
        present = np.ones(num_labels)
    right = (references == predictions).all(1).mean(keepdims=True)
    both = references * predictions
    return *(column.sum(0, keepdims=True).astype(float) for column in (both, predictions, references)), right, present


def test_the_names_are_those_that_recipes_use():
    rates = {f"{rate}_{average}" for rate in SKLEARN for average in ("micro", "macro", "weighted")}
    assert set(METRICS) == {"accuracy", "matthews", "roc_auc", *NUMBERS} | rates
    assert {name for name, spec in METRICS.items() if not spec.greater_is_better} == {"mse", "mae"}
    assert all(spec.description.endswith(".") and "\n" not in spec.description for spec in METRICS.values())


@pytest.mark.parametrize(("name", "problem_type"), [case for case in CASES if case[0] != "roc_auc"])
def test_values_are_those_of_scikit_learn_and_scipy(name, problem_type):
    references, predictions, scores = make_rows(problem_type)
    value = score(name, predictions, references, scores, problem_type=problem_type)
    assert type(value) is float
    assert value == pytest.approx(sklearn_value(name, references, predictions), abs=1e-12)


def test_roc_auc_is_scikit_learns_for_two_classes_many_classes_and_label_sets():
    rng = np.random.default_rng(0)
    for num_labels, arguments in ((2, {}), (4, {"multi_class": "ovr", "average": "macro"})):
        references = rng.integers(num_labels, size=80)
        scores = rng.dirichlet(np.ones(num_labels), size=80)
        known = sk.roc_auc_score(references, scores[:, 1] if num_labels == 2 else scores, **arguments)
        assert score("roc_auc", None, references, scores, problem_type=SINGLE) == pytest.approx(known, abs=1e-12)
    references, scores = (rng.random((80, 3)) < 0.3).astype(int), rng.random((80, 3))
    known = sk.roc_auc_score(references, scores, average="macro")
    assert score("roc_auc", None, references, scores, problem_type=MULTI) == pytest.approx(known, abs=1e-12)


def test_roc_auc_leaves_out_a_class_that_no_row_has():
    references, scores = (
        np.array([0, 1, 0, 1]),
        np.array([[0.9, 0.1, 0], [0.2, 0.8, 0], [0.3, 0.6, 0.1], [0.6, 0.3, 0.1]]),
    )
    known = np.mean([sk.roc_auc_score(references == k, scores[:, k]) for k in (0, 1)])
    assert score("roc_auc", None, references, scores, problem_type=SINGLE) == pytest.approx(known, abs=1e-12)


def test_roc_auc_asks_for_scores():
    with pytest.raises(ValueError, match="needs scores"):
        score("roc_auc", [0, 1], [0, 1], problem_type=SINGLE)


@pytest.mark.parametrize(("name", "problem_type"), CASES)
def test_undefined_values_are_nan_or_scikit_learns_and_never_warn(name, problem_type):
    shape = (4, 2) if problem_type == MULTI else (4,)
    constant, scores = np.zeros(shape, dtype=int), np.full((4, 2), 0.5)
    value = score(name, constant, constant, scores, problem_type=problem_type)
    assert np.isnan(value) == (name in {"roc_auc", "pearson", "spearman"})
    assert np.isnan(score(name, constant[:0], constant[:0], scores[:0], problem_type=problem_type))
    one = score(name, constant[:1], constant[:1], scores[:1], problem_type=problem_type)
    assert np.isnan(one) == (name in {"roc_auc", "pearson", "spearman", "r2"})
    low, high = bootstrap([name], constant, constant, scores, problem_type, resamples=20)[name]
    assert np.isnan(low) == np.isnan(high) == np.isnan(value)


def test_predictions_that_are_not_finite_give_nan_and_no_interval():
    references, predictions = np.arange(5.0), np.array([0, 1, np.nan, 3, np.inf])
    for name in NUMBERS:
        assert np.isnan(score(name, predictions, references, problem_type=REGRESSION))
        assert np.isnan(bootstrap([name], predictions, references, None, REGRESSION)[name]).all()


@pytest.mark.parametrize(("name", "problem_type"), CASES)
def test_batches_give_the_value_of_the_whole(name, problem_type):
    references, predictions, scores = make_rows(problem_type)
    given = scores if METRICS[name].needs_scores else predictions
    metric = load_metric(name, problem_type, num_labels=5)
    assert isinstance(metric, evaluate.Metric)
    assert metric.name == name
    for _ in range(2):
        for start in range(0, 60, 25):
            rows = slice(start, start + 25)
            metric.add_batch(predictions=given[rows], references=references[rows].astype(np.float32))
        found = metric.compute()
        expected = score(name, predictions, references.astype(np.float32), scores, problem_type=problem_type)
        assert found == {name: pytest.approx(expected, abs=1e-12)}
    assert metric.compute(predictions=given, references=references).keys() == {name}


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_features_fit_the_problem_type(problem_type):
    features = load_metric(names_for(problem_type)[0], problem_type, num_labels=3).features
    inner = features["references"].feature if problem_type == MULTI else features["references"]
    assert inner.dtype == ("float64" if problem_type == REGRESSION else "int64")
    assert features["predictions"] == features["references"]
    if problem_type != REGRESSION:
        assert load_metric("roc_auc", problem_type, num_labels=3).features["predictions"].feature.dtype == "float64"


def test_scores_with_another_number_of_labels_are_refused():
    metric = load_metric("roc_auc", SINGLE, num_labels=3)
    with pytest.raises(ValueError, match=r"List\(Value\('float64'\), length=3\)"):
        metric.add_batch(predictions=np.full((4, 2), 0.5), references=[0, 1, 2, 0])


def test_nothing_is_written_and_nothing_is_asked_of_the_network(tmp_path, monkeypatch):
    def refuse(*arguments, **keywords):
        raise OSError("a metric asked for the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", str(tmp_path / "metrics"))
    monkeypatch.chdir(tmp_path)
    metrics = [load_metric("accuracy", SINGLE, 2) for _ in range(3)]
    for predicted, metric in enumerate(metrics):
        metric.add_batch(predictions=[predicted, 1], references=[0, 0])
    assert list(tmp_path.iterdir()) == []
    assert [metric.compute() for metric in metrics] == [{"accuracy": 0.5}, {"accuracy": 0.0}, {"accuracy": 0.0}]
    assert list(tmp_path.iterdir()) == []


def test_kept_rows_cost_bytes_and_not_objects():
    metric = load_metric("accuracy", SINGLE, num_labels=1000)
    batch = np.arange(1000)
    metric.add_batch(predictions=batch, references=batch)
    tracemalloc.start()
    for _ in range(50):
        metric.add_batch(predictions=batch, references=batch)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert grown < 8 * 50_000  # the rows themselves are Arrow's, 16 bytes each; Python objects would be 64 and more
    assert metric.compute() == {"accuracy": 1.0}


@pytest.mark.parametrize("seed", range(20))
def test_counts_give_scikit_learns_values_to_the_last_digits(seed):
    rng = np.random.default_rng(seed)
    num_rows, num_labels = int(rng.integers(1, 30)), int(rng.integers(2, 9))
    for problem_type in (SINGLE, MULTI):
        shape = (num_rows, num_labels) if problem_type == MULTI else num_rows
        high = 2 if problem_type == MULTI else num_labels
        references, predictions = rng.integers(high, size=shape), rng.integers(high, size=shape)
        if seed % 4 == 0:
            references[...] = 0
        if seed % 4 == 1:
            predictions[...] = references
        counts = counts_of(references, predictions, num_labels)
        for name in names_for(problem_type):
            if name != "roc_auc":
                known = sklearn_value(name, references, predictions)
                assert score_counts(name, *counts)[0] == pytest.approx(known, abs=1e-12), name


@pytest.mark.parametrize("seed", range(5))
def test_vectorised_numbers_and_ranks_give_the_library_values(seed):
    references, predictions, _ = make_rows(REGRESSION, seed=seed)
    for name in NUMBERS:
        found = score_numbers(name, references[None], predictions[None])[0]
        assert found == pytest.approx(score(name, predictions, references, problem_type=REGRESSION), abs=1e-12)
    rng = np.random.default_rng(seed)
    for problem_type in (SINGLE, MULTI):
        references, _, scores = make_rows(problem_type, seed=seed)
        rows = rng.integers(60, size=60)
        weights = np.bincount(rows, minlength=60)[:, None].astype(float)
        found = _mean_auc(weights, ranked_columns(references, scores))[0]
        known = score("roc_auc", None, references[rows], scores[rows], problem_type=problem_type)
        assert found == pytest.approx(known, abs=1e-12)


@pytest.mark.parametrize("problem_type", [MULTI, REGRESSION])
def test_intervals_of_label_sets_and_numbers_are_the_percentiles_of_the_library_values_of_the_rows_drawn(problem_type):
    references, predictions, scores = make_rows(problem_type)
    names = names_for(problem_type)
    intervals = bootstrap(names, predictions, references, scores, problem_type, resamples=40, seed=7, level=0.8)
    drawn = np.random.default_rng(7).integers(60, size=(40, 60))
    for name in names:
        values = [score(name, predictions[rows], references[rows], scores[rows], problem_type=problem_type) for rows in drawn]
        assert intervals[name] == pytest.approx(tuple(np.nanpercentile(values, [10, 90])), abs=1e-12), name


def test_intervals_of_classes_are_those_of_resampling_rows_and_scoring_each():
    references, predictions, scores = make_rows(SINGLE, num_rows=200, num_labels=3)
    names = ["accuracy", "f1_macro", "matthews", "roc_auc"]
    intervals = bootstrap(names, predictions, references, scores, SINGLE, resamples=4000, level=0.8)
    rng = np.random.default_rng(1)
    drawn = [rng.integers(200, size=200) for _ in range(500)]
    for name in names:
        values = [score(name, predictions[rows], references[rows], scores[rows], problem_type=SINGLE) for rows in drawn]
        # The tenth percentile of 500 draws has a standard error of 0.08 standard deviations.
        assert intervals[name] == pytest.approx(tuple(np.percentile(values, [10, 90])), abs=0.3 * np.std(values)), name


@pytest.mark.parametrize("problem_type", [SINGLE, MULTI, REGRESSION])
def test_intervals_hold_their_value_and_depend_on_the_seed_alone(problem_type, monkeypatch):
    references, predictions, scores = make_rows(problem_type)
    names = names_for(problem_type)
    intervals = bootstrap(names, predictions, references, scores, problem_type, resamples=300)
    assert list(intervals) == names
    for name, (low, high) in intervals.items():
        # Chance-level macro scores are biased in resamples (labels go missing), so the value may lie just outside.
        slack = 0.25 * (high - low)
        value = score(name, predictions, references, scores, problem_type=problem_type)
        assert low < high
        assert low - slack <= value <= high + slack
        alone = bootstrap([name], predictions, references, scores, problem_type, resamples=300)
        assert alone == {name: (low, high)}
    assert intervals != bootstrap(names, predictions, references, scores, problem_type, resamples=300, seed=1)
    narrow = bootstrap(names, predictions, references, scores, problem_type, resamples=300, level=0.5)
    assert all(low <= narrow[name][0] <= narrow[name][1] <= high for name, (low, high) in intervals.items())
    monkeypatch.setattr("hf_sft.intervals.CHUNK", 1000)
    chunked = bootstrap(names, predictions, references, scores, problem_type, resamples=300)
    assert all(chunked[name] == pytest.approx(intervals[name], abs=1e-12) for name in names)


def test_global_randomness_is_left_alone():
    np.random.seed(3)
    before = np.random.get_state()[1].tolist()
    load_metric("accuracy", SINGLE, 2).compute(predictions=[0, 1], references=[0, 1])
    bootstrap(["accuracy"], [0, 1], [0, 0], None, SINGLE)
    assert np.random.get_state()[1].tolist() == before


def test_resamples_without_a_value_are_left_out():
    references, predictions = np.array([0, 0, 0, 1]), np.array([0, 1, 0, 1])
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2], [0.3, 0.7]])
    assert bootstrap(["roc_auc"], predictions, references, scores, SINGLE)["roc_auc"] == (1.0, 1.0)
    assert np.isfinite(bootstrap(["pearson"], [0.0, 1.0, 0.5], [0.0, 0.4, 0.4], None, REGRESSION)["pearson"]).all()


def test_intervals_of_accuracy_hold_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(400):
        references = rng.integers(2, size=200)
        predictions = np.where(rng.random(200) < 0.8, references, 1 - references)
        low, high = bootstrap(["accuracy"], predictions, references, None, SINGLE)["accuracy"]
        held += low <= 0.8 <= high
    assert 0.92 <= held / 400 <= 0.98


def test_a_thousand_resamples_of_banking77_take_less_than_a_second():
    rng = np.random.default_rng(0)
    references = np.repeat(np.arange(77), 40)
    predictions = np.where(rng.random(3080) < 0.9, references, rng.integers(77, size=3080))
    start = time.perf_counter()
    bootstrap(["accuracy", "f1_macro"], predictions, references, None, SINGLE)
    assert time.perf_counter() - start < 1


def test_resampling_label_sets_and_numbers_stays_within_its_memory():
    rng = np.random.default_rng(0)
    references, numbers = (rng.random((20_000, 8)) < 0.3).astype(np.int64), rng.normal(size=20_000)
    scores = rng.random((20_000, 8))
    for names, inputs, problem_type in (
        (["f1_macro", "accuracy", "roc_auc"], (references, references, scores), MULTI),
        (["pearson", "spearman", "r2"], (numbers + rng.normal(size=20_000), numbers, None), REGRESSION),
    ):
        tracemalloc.start()
        bootstrap(names, *inputs, problem_type, resamples=80)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 80 * 2**20


def test_an_unknown_metric_is_answered_with_the_nearest():
    with pytest.raises(RecipeError, match=r"`f1_marco` is not a metric\. Did you mean `f1_macro`\?\n.*accuracy, prec"):
        load_metric("f1_marco", SINGLE, 2)


def test_a_metric_of_another_problem_type_is_answered_with_those_that_fit():
    with pytest.raises(RecipeError, match=r"`pearson` does not work for single_label_classification\.\n  These do: acc"):
        load_metric("pearson", SINGLE, 2)
    with pytest.raises(RecipeError, match=r"`matthews` does not work for multi_label_classification"):
        score("matthews", [[1]], [[1]], problem_type=MULTI)
    with pytest.raises(RecipeError, match=r"These do: pearson, spearman, mse, mae, r2\."):
        bootstrap(["accuracy"], [1.0], [1.0], None, REGRESSION)
