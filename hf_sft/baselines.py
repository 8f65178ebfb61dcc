"""What simple methods answer on the same rows: the numbers that a fine-tuned model has to beat.

Each is fitted on train when it is called, and gives what answers texts then. scikit-learn is imported only there: it takes
half a second, which would pass before the first step.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from hf_sft.answers import Answers, ClassAnswers, NumberAnswers, SetAnswers

Answerer: TypeAlias = Callable[[Any], Answers]
"""Rows to their answers."""
Fit: TypeAlias = Callable[[], Answerer]
"""Sees train; may fail as the method does."""


@dataclass(frozen=True)
class Features:
    """What a simple method sees of its inputs."""

    name: str
    make: Callable[[int], Any]
    """Rows of train to scikit-learn's transformer."""


def of_classes(inputs: Any, targets: Sequence[int], names: tuple[str, ...], features: Features) -> dict[str, Fit]:
    """The shares of the classes in train, which choose the most frequent; and logistic regression on features."""
    ids = np.array(targets)

    def majority() -> Answerer:
        shares = np.bincount(ids, minlength=len(names)) / len(ids)
        return lambda asked: ClassAnswers(np.tile(shares, (len(asked), 1)), names)

    def logreg() -> Answerer:
        from sklearn.pipeline import make_pipeline

        model = make_pipeline(features.make(len(ids)), _logistic()).fit(inputs, ids)

        def answer(asked: Any) -> Answers:
            scores = np.zeros((len(asked), len(names)))
            scores[:, model.classes_] = model.predict_proba(asked)
            return ClassAnswers(scores, names)

        return answer

    return {"majority": majority, f"{features.name}_logreg": logreg}


def of_sets(inputs: Any, targets: Sequence[Sequence[float]], names: tuple[str, ...], features: Features) -> dict[str, Fit]:
    """The share of each class in train; and a logistic regression on features for each class."""
    sets = np.array(targets)

    def majority() -> Answerer:
        return lambda asked: SetAnswers(np.tile(sets.mean(0), (len(asked), 1)), names)

    def logreg() -> Answerer:
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.pipeline import make_pipeline

        model = make_pipeline(features.make(len(sets)), OneVsRestClassifier(_logistic())).fit(inputs, sets)
        # Of one class it gives two columns, no and yes.
        return lambda asked: SetAnswers(np.asarray(model.predict_proba(asked))[:, -len(names) :], names)

    return {"majority": majority, f"{features.name}_logreg": logreg}


def of_numbers(inputs: Any, targets: Sequence[float], features: Features) -> dict[str, Fit]:
    """The mean of train; and ridge regression on features."""
    numbers = np.array(targets)

    def mean() -> Answerer:
        return lambda asked: NumberAnswers(np.full(len(asked), numbers.mean()))

    def ridge() -> Answerer:
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline

        model = make_pipeline(features.make(len(numbers)), Ridge()).fit(inputs, numbers)
        return lambda asked: NumberAnswers(model.predict(asked).reshape(-1))

    return {"mean": mean, f"{features.name}_ridge": ridge}


def _words(rows: int) -> Any:
    """scikit-learn's defaults, but for sublinear counts of words and pairs of words."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2 if rows > 500 else 1)


WORDS = Features("tfidf", _words)
"""Of texts."""


def _pixels(rows: int) -> Any:
    from sklearn.preprocessing import MaxAbsScaler

    return MaxAbsScaler()


PIXELS = Features("pixels", _pixels)
"""Of small pictures: shape (rows, pixels)."""


def _logistic() -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=10.0, max_iter=1000)


def fit_all(methods: dict[str, Fit]) -> tuple[dict[str, Answerer], list[str]]:
    """Those that could be fitted; and which could not, with the reason: a finished training is not lost over a baseline."""
    failed: list[str] = []
    return _try_all(methods, "fitted", failed), failed


def ask_all(rivals: dict[str, Answerer], rows: Any, failed: list[str]) -> dict[str, Answers]:
    """The rivals' answers; one that fails is struck out, and said to have `failed`."""
    answers = _try_all({name: partial(answer, rows) for name, answer in rivals.items()}, "asked", failed)
    for name in rivals.keys() - answers.keys():
        del rivals[name]
    return answers


def _try_all(calls: dict[str, Callable[[], Any]], done: str, failed: list[str]) -> dict[str, Any]:
    results = {}
    for name, call in calls.items():
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of labels that all rows have or none; the score says the rest
                results[name] = call()
        except Exception as error:  # whatever scikit-learn finds wrong with these texts and labels
            failed.append(f"baseline {name} could not be {done}: {str(error).strip().splitlines()[0]}")
    return results
