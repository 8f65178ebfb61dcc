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

from hf_sft.answers.contract import Answers, ClassAnswers, NumberAnswers, SetAnswers
from hf_sft.answers.scripts import is_unspaced
from hf_sft.errors import first_line

Answerer: TypeAlias = Callable[[Any], Answers]
"""Rows to their answers."""
SOME = 500
"""Texts that tell how a language is written."""
Fit: TypeAlias = Callable[[], Answerer]
"""Sees train; may fail as the method does."""


@dataclass(frozen=True)
class Features:
    """What a simple method sees of its inputs."""

    name: str
    make: Callable[[Any, Any], Any]
    """Inputs and targets of train to scikit-learn's transformer."""


def of_classes(inputs: Any, targets: Sequence[int], names: tuple[str, ...], features: Features) -> dict[str, Fit]:
    """The shares of the classes in train, which choose the most frequent; and logistic regression on features."""
    ids = np.array(targets)

    def majority() -> Answerer:
        shares = np.bincount(ids, minlength=len(names)) / len(ids)
        return lambda given: ClassAnswers(np.tile(shares, (len(given), 1)), names)

    def logreg() -> Answerer:
        from sklearn.pipeline import make_pipeline

        model = make_pipeline(features.make(inputs, ids), _logistic()).fit(inputs, ids)

        def answer(given: Any) -> Answers:
            scores = np.zeros((len(given), len(names)))
            scores[:, model.classes_] = model.predict_proba(given)
            return ClassAnswers(scores, names)

        return answer

    return {"majority": majority, f"{features.name}_logreg": logreg}


def of_sets(inputs: Any, targets: Sequence[Sequence[float]], names: tuple[str, ...], features: Features) -> dict[str, Fit]:
    """The share of each class in train; and a logistic regression on features for each class."""
    sets = np.array(targets)

    def majority() -> Answerer:
        return lambda given: SetAnswers(np.tile(sets.mean(0), (len(given), 1)), names)

    def logreg() -> Answerer:
        from sklearn.multiclass import OneVsRestClassifier
        from sklearn.pipeline import make_pipeline

        model = make_pipeline(features.make(inputs, sets), OneVsRestClassifier(_logistic())).fit(inputs, sets)
        # Of one class it gives two columns, no and yes.
        return lambda given: SetAnswers(np.asarray(model.predict_proba(given))[:, -len(names) :], names)

    return {"majority": majority, f"{features.name}_logreg": logreg}


def of_numbers(inputs: Any, targets: Sequence[float], features: Features) -> dict[str, Fit]:
    """The mean of train; and ridge regression on features."""
    numbers = np.array(targets)

    def mean() -> Answerer:
        return lambda given: NumberAnswers(np.full(len(given), numbers.mean()))

    def ridge() -> Answerer:
        from sklearn.linear_model import Ridge
        from sklearn.pipeline import make_pipeline

        model = make_pipeline(features.make(inputs, numbers), Ridge()).fit(inputs, numbers)
        return lambda given: NumberAnswers(model.predict(given).reshape(-1))

    return {"mean": mean, f"{features.name}_ridge": ridge}


def _words(texts: Sequence[str], targets: Any) -> Any:
    """scikit-learn's defaults, but for sublinear counts of words and pairs of words.

    Where words stand without spaces between them, single characters and pairs of them are tried too, inside train: what fits
    better there is taken.
    """
    words = _tfidf("word", len(texts))
    if not is_unspaced(texts[:SOME]):
        return words
    try:
        return max((words, _tfidf("char", len(texts))), key=lambda features: _score_inside(features, texts, targets))
    except ValueError:  # no word at all
        return _tfidf("char", len(texts))


def _tfidf(unit: str, rows: int) -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(analyzer=unit, sublinear_tf=True, ngram_range=(1, 2), min_df=2 if rows > 500 else 1)


def _score_inside(features: Any, texts: Sequence[str], targets: Any) -> float:
    """How near ridge regression on features comes to what a fifth of train has, fitted on the rest."""
    from sklearn.linear_model import Ridge
    from sklearn.model_selection import train_test_split
    from sklearn.pipeline import make_pipeline

    numbers = np.asarray(targets)
    numbers = np.eye(int(numbers.max()) + 1)[numbers] if numbers.dtype.kind in "iu" and numbers.ndim == 1 else numbers
    fitted, tried, known, true = train_test_split(texts, numbers, test_size=0.2, random_state=0)
    return -float(np.square(make_pipeline(features, Ridge()).fit(fitted, known).predict(tried) - true).mean())


WORDS = Features("tfidf", _words)
"""Of texts."""


def _pixels(images: Any, targets: Any) -> Any:
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
    """The baselines' answers; one that fails is removed, and named in `failed`."""
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
            failed.append(f"baseline {name} could not be {done}: {first_line(error)}")
    return results
