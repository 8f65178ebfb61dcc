"""Rows and answers of every kind of label, and scikit-learn's values for them."""

import numpy as np
from scipy import stats
from scipy.special import expit
from sklearn import metrics as sk

from hf_sft.answers.contract import ClassAnswers, NumberAnswers, SetAnswers
from hf_sft.metrics import list_metrics

SINGLE, MULTI, REGRESSION = ClassAnswers, SetAnswers, NumberAnswers

KINDS = (SINGLE, MULTI, REGRESSION)

METRICS = {
    name: metric
    for name, metrics in list_metrics().items()
    for metric in metrics
    if any(issubclass(kind, metric.measures) for kind in KINDS)
}

SKLEARN = {"precision": sk.precision_score, "recall": sk.recall_score, "f1": sk.f1_score}

NUMBERS = {
    "pearson": lambda r, p: stats.pearsonr(r, p).statistic,
    "spearman": lambda r, p: stats.spearmanr(r, p).statistic,
    "mse": sk.mean_squared_error,
    "mae": sk.mean_absolute_error,
    "r2": sk.r2_score,
}


def names_for(kind):
    return [name for name, metric in METRICS.items() if issubclass(kind, metric.measures)]


def answers_of(kind, predictions, scores=None, num_labels=None):
    if kind is REGRESSION:
        return NumberAnswers(np.asarray(predictions, dtype=float))
    if scores is None:
        num_labels = num_labels or int(np.max(predictions, initial=0)) + 1
        scores = np.eye(num_labels)[np.asarray(predictions, dtype=int)] if kind is SINGLE else np.asarray(predictions, float)
    return kind(np.asarray(scores, dtype=float), tuple("abcdefghijklmnopqrstuvwxyz"[: np.shape(scores)[1]]))


def make_rows(kind, num_rows=60, num_labels=5, seed=0):
    """References and answers; of single labels the last is no reference, the first no prediction."""
    rng = np.random.default_rng(seed)
    if kind is REGRESSION:
        references = rng.normal(size=num_rows).round(1)
        return references, NumberAnswers((references + rng.normal(size=num_rows)).round(1))
    logits = rng.normal(size=(num_rows, num_labels)).round(1)
    if kind is MULTI:
        references = (rng.random((num_rows, num_labels)) < 0.4).astype(np.int64)
        references[:, 1], logits[:, 2] = 0, -1
        return references, answers_of(MULTI, None, expit(logits))
    logits[:, 0] -= 9
    references = rng.integers(num_labels - 1, size=num_rows)
    return references, answers_of(SINGLE, None, np.exp(logits) / np.exp(logits).sum(1, keepdims=True))


def predictions_of(answers):
    """Read from the scores, and not from what is tested: the likeliest class, each class above one half, or the number."""
    if isinstance(answers, NumberAnswers):
        return answers.values
    return answers.scores.argmax(1) if isinstance(answers, SINGLE) else np.where(answers.scores > 0.5, 1, 0)


def sklearn_value(name, references, predictions):
    if name in NUMBERS:
        return NUMBERS[name](references, predictions)
    if name == "accuracy":
        return sk.accuracy_score(references, predictions)
    if name == "matthews":
        return sk.matthews_corrcoef(references, predictions)
    rate, average = name.split("_")
    return SKLEARN[rate](references, predictions, average=average, zero_division=0)


def library_value(name, references, answers):
    if name != "roc_auc":
        return sklearn_value(name, references, predictions_of(answers))
    columns = range(answers.scores.shape[1])
    known = [references[:, k] == 1 if references.ndim == 2 else references == k for k in columns]
    asked = [k for k in columns if 0 < known[k].sum() < len(known[k])]
    return np.mean([sk.roc_auc_score(known[k], answers.scores[:, k]) for k in asked])
