"""A span of a context as an answer: where it is, what SQuAD's script compares of it, and where it was meant to be."""

import ast
import contextlib
import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np

from hf_sft.answers.contract import Answers, Mistake
from hf_sft.answers.scripts import split_words

Span: TypeAlias = tuple[int, int]
"""The first character, and the one after the last."""
AROUND = 60
"""Characters that a report shows on both sides of a span."""
SENTENCE = re.compile("[^.!?\u3002\uff01\uff1f\n]+(?:[.!?\u3002\uff01\uff1f]+|\n|$)")


def read_answers(cell: Any) -> list[tuple[Any, int | None]]:
    """Texts and their first characters; None for a text without one, and an empty list for no answer.

    A cell is `{text: […], answer_start: […]}` as SQuAD has it, a list of `{text, answer_start}`, a text or a list of texts; or
    one of those written as text.
    """
    if isinstance(cell, str) and cell.strip()[:1] in ("{", "["):
        cell = _read_literal(cell)
    if cell is None:
        return []
    if isinstance(cell, dict):
        texts = _as_list(cell.get("text"))
        starts = _as_list(cell.get("answer_start")) or [None] * len(texts)
        pairs = list(zip(texts, starts, strict=False)) if len(texts) == len(starts) else [(text, None) for text in texts]
    else:
        pairs = [
            (each.get("text"), each.get("answer_start")) if isinstance(each, dict) else (each, None) for each in _as_list(cell)
        ]
    read = [(str(text) if isinstance(text, int | float) else text, start) for text, start in pairs]
    return [(text, start) for text, start in read if text not in (None, "")]


def _as_list(value: Any) -> list:
    return [] if value is None else value if isinstance(value, list) else [value]


def _read_literal(cell: str) -> Any:
    """What a text writes in JSON, in Python, or as pandas writes numpy's arrays; the text itself where it is none of them."""
    plain = re.sub(r"array\((\[.*?\])(?:, dtype=[\w']+)?\)", r"\1", cell, flags=re.DOTALL)
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
            return read(plain)
    return cell


def place_answer(context: str, text: str, start: int | None) -> Span | None:
    """Where an answer stands: at its offset; else where its text stands, if that is one place only; without an offset at the
    first place."""
    if start is not None and start >= 0 and context[start : start + len(text)] == text:
        return start, start + len(text)
    found = context.find(text)
    unclear = start is not None and context.find(text, found + 1) >= 0
    return (found, found + len(text)) if found >= 0 and not unclear else None


def normalise(text: str) -> str:
    """As SQuAD's script compares: without case, punctuation, articles and spare spaces."""
    text = "".join(sign for sign in text.lower() if sign not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def exact(prediction: str, reference: str) -> float:
    return float(normalise(prediction) == normalise(reference))


def overlap(prediction: str, reference: str) -> float:
    """F1 of the words, or of the characters of scripts without spaces; where one side is empty, whether both are."""
    predicted, true = split_words(normalise(prediction)), split_words(normalise(reference))
    if not predicted or not true:
        return float(predicted == true)
    same = sum((Counter(predicted) & Counter(true)).values())
    return 2 * same / (len(predicted) + len(true))


def find_sentence(question: str, context: str) -> Span:
    """The sentence of a context that shares most words with a question."""
    question_words = _words_of(question)
    sentences = [match.span() for match in SENTENCE.finditer(context)] or [(0, len(context))]
    best = max(sentences, key=lambda span: len(question_words & _words_of(context[slice(*span)])))
    return trim(context, *best)


def _words_of(text: str) -> set[str]:
    return {word for part in re.findall(r"\w+", text.casefold()) for word in split_words(part)}


def choose_threshold(above: np.ndarray, gains: np.ndarray) -> float:
    """Above which value of `above` a row should be answered by silence, when that changes its score by `gains`, both of
    shape (rows,).

    Of equally good values 0, or the middle between two rows that is nearest to it.
    """
    order = np.argsort(-above, kind="stable")
    steps = np.concatenate([[np.inf], above[order], [-np.inf]])
    totals = np.concatenate([[0.0], np.cumsum(gains[order])])
    possible = steps[:-1] > steps[1:]  # rows of equal values fall on one side
    best = np.flatnonzero(possible & (totals >= totals[possible].max() - 1e-9))
    if any(steps[i + 1] <= 0 < steps[i] for i in best):
        return 0.0
    steps[0], steps[-1] = steps[1] + 2, steps[-2] - 2
    return float(min((steps[best] + steps[best + 1]) / 2, key=abs))


def trim(context: str, start: int, end: int) -> Span:
    """A span without the spaces at its ends, which some tokenizers count to a word."""
    text = context[start:end]
    return start + len(text) - len(text.lstrip()), end - len(text) + len(text.rstrip())


@dataclass(frozen=True)
class SpanAnswers(Answers):
    """A span of each row's context, or none. References are lists of texts, an array of objects, shape (rows,); an empty list
    where there is no answer."""

    called: ClassVar[str] = "a span of the context"
    null_answer: ClassVar[dict[str, None]] = dict.fromkeys(("answer", "start", "end", "score"))

    spans: list[Span | None]
    scores: np.ndarray
    """Probabilities among the spans that were considered, shape (rows,)."""
    contexts: list[str]

    def __len__(self) -> int:
        return len(self.spans)

    def take(self, rows: np.ndarray | slice) -> Self:
        chosen = np.arange(len(self))[rows]
        return type(self)([self.spans[i] for i in chosen], self.scores[rows], [self.contexts[i] for i in chosen])

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        spans, contexts = ([each for part in parts for each in getattr(part, name)] for name in ("spans", "contexts"))
        return cls(spans, np.concatenate([part.scores for part in parts]), contexts)

    @classmethod
    def read_references(cls, targets: Sequence[Any]) -> np.ndarray:
        references = np.empty(len(targets), dtype=object)
        references[:] = [list(texts) for texts in targets]
        return references

    @property
    def texts(self) -> list[str]:
        """The answers' words; none where there is no answer."""
        return ["" if span is None else context[slice(*span)] for span, context in zip(self.spans, self.contexts, strict=True)]

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.scores).all())

    def compare(self, references: np.ndarray) -> np.ndarray:
        """Of each row the best exact match and the best overlap with any of its references, shape (rows, 2)."""
        pairs = zip(self.texts, references, strict=True)
        best = [[max(score(text, true) for true in known or [""]) for score in (exact, overlap)] for text, known in pairs]
        return np.array(best, dtype=np.float64).reshape(len(self), 2)

    def for_evaluate(self, references: np.ndarray) -> tuple[list, list]:
        return self.texts, [list(known) for known in references]

    def as_json(self) -> list[dict[str, Any]]:
        answers = zip(self.texts, self.spans, self.scores, strict=True)
        return [
            {"answer": text, "start": span and span[0], "end": span and span[1], "score": round(float(score), 6)}
            for text, span, score in answers
        ]

    def mistakes(self, references: np.ndarray) -> list[Mistake]:
        """Answers that match no reference; both are shown with what stands around them."""
        found = []
        for row in np.flatnonzero(self.compare(references)[:, 0] == 0):
            context, span, known = self.contexts[row], self.spans[row], references[row]
            predicted = "(no answer)" if span is None else _show(context, span)
            start = context.find(known[0]) if known else -1
            true = _show(context, (start, start + len(known[0]))) if start >= 0 else "(no answer)" if not known else known[0]
            found.append(Mistake(int(row), float(self.scores[row]), true, predicted))
        return found


def _show(context: str, span: Span) -> str:
    start, end = span
    before, after = context[max(0, start - AROUND) : start], context[end : end + AROUND]
    return f"{'…' * (start > AROUND)}{before}[{context[start:end]}]{after}{'…' * (end + AROUND < len(context))}"
