"""What simple methods answer on the same rows: the numbers that a fine-tuned model has to beat."""

import warnings
from collections.abc import Callable

import numpy as np
from datasets import Dataset
from scipy.special import log_softmax, logit
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

from hf_sft.tasks import Labels, Task


def answer_simply(task: Task, train: Dataset, rows: Dataset, labels: Labels | None) -> tuple[dict[str, np.ndarray], list[str]]:
    """By name, what simple methods answer on `rows` after seeing `train`, in the shape of `Task.output`; and which of them
    could not be fitted, with the reason. Nothing is raised: a finished training is not lost over a baseline.

    They are the majority class (or the mean), and TF-IDF with logistic (or ridge) regression, all at scikit-learn's
    defaults but for sublinear counts of words and pairs of words.
    """
    known, count = np.array(task.targets(train[:], labels)), len(rows)
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2 if len(train) > 500 else 1)
    logistic = LogisticRegression(C=10.0, max_iter=1000)
    texts, asked = task.texts(train), task.texts(rows)

    def majority() -> np.ndarray:
        if known.ndim == 2:
            return np.tile(logit(np.clip(known.mean(0), 1e-9, 1 - 1e-9)), (count, 1))
        shares = np.bincount(known, minlength=len(labels or ())) / len(known)
        return np.tile(np.log(np.maximum(shares, 1e-9)), (count, 1))

    def tfidf_logreg() -> np.ndarray:
        if known.ndim == 2:
            each = make_pipeline(words, OneVsRestClassifier(logistic)).fit(texts, known)
            chances = np.asarray(each.predict_proba(asked)).reshape(count, -1)
            return logit(np.clip(chances[:, -known.shape[1] :], 1e-9, 1 - 1e-9))
        model = make_pipeline(words, logistic).fit(texts, known)
        logits = np.full((count, len(labels or ())), -np.inf)
        logits[:, model.classes_] = model.predict_log_proba(asked)
        return log_softmax(np.maximum(logits, -30.0), axis=-1)

    def mean() -> np.ndarray:
        return np.full((count, 1), known.mean())

    def tfidf_ridge() -> np.ndarray:
        return make_pipeline(words, Ridge()).fit(texts, known).predict(asked).reshape(-1, 1)

    methods: tuple[Callable[[], np.ndarray], ...] = (mean, tfidf_ridge) if labels is None else (majority, tfidf_logreg)
    found, failed = {}, []
    for method in methods:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of labels that all rows have or none; the score says the rest
                found[method.__name__] = method()
        except Exception as error:  # whatever scikit-learn finds wrong with these texts and labels
            failed.append(f"baseline {method.__name__} could not be fitted: {str(error).strip().splitlines()[0]}")
    return found, failed
