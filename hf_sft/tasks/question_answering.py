"""Which span of a context answers a question, or does none?

The data are rows as SQuAD has them, or SQuAD's own nested file: a question, a context, and answers as
`{text: […], answer_start: […]}`, a list of `{text, answer_start}`, or texts alone; a row without any has no answer in its
context. An answer without an offset is read where its text first stands. An answer that does not stand at its offset is read
where its text stands, if that is one place, and counted.

A context that is longer than the model takes goes through overlapping windows. A span counts when it lies in the context, ends
after it begins, and is short enough; the best of all windows answers. A window that does not hold the answer is taught to say
so, by pointing at its first token; a row has no answer when every window says so more than it says anything else.
"""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import numpy as np
import scipy
import torch
from datasets import Dataset
from pydantic import Field
from torch import Tensor, nn
from transformers import AutoModelForQuestionAnswering
from transformers.data.data_collator import pad_without_fast_tokenizer_warning

from hf_sft.answers.contract import AnswerKind, Answers
from hf_sft.answers.scripts import is_unspaced
from hf_sft.answers.spans import SpanAnswers, choose_threshold, find_sentence, place_answer, read_answers, trim
from hf_sft.losses import FAR, Items, RowOutputs
from hf_sft.tasks import Batch, Labels, Task
from hf_sft.tasks.common.baselines import Answerer, Fit
from hf_sft.tasks.common.windows import count_most, shorten
from hf_sft.tasks.common.windows_of_contexts import find_tokens, join_windows

SOME = 200
"""Contexts that tell how a language is written."""
QUESTION = 4
"""A question takes at most this part of a window: a fourth."""
N_BEST = 20
"""Spans of each window that are considered."""
NULL = -1.0
"""Where a span stands that says that there is no answer."""


class QuestionAnswering(Task):
    """Find the span of a context that answers a question, or say that none does."""

    auto_model: ClassVar[Any] = AutoModelForQuestionAnswering
    pipeline_tag: ClassVar[str] = "question-answering"
    peft_type: ClassVar[str | None] = "QUESTION_ANS"
    other_names: ClassVar[dict[str, str]] = dict.fromkeys(("qa", "squad", "extractive_qa"), "question_answering")

    question: str = "question"
    """The column of the question."""
    context: str = "context"
    """The column of the text that may hold the answer."""
    answers: str = "answers"
    """The column of the answers, as SQuAD has them."""
    max_length: int | None = Field(default=384, ge=32)
    """Tokens of a window, the question included."""
    stride: int = Field(default=128, ge=1)
    """Tokens that the next window shows again."""
    max_answer_length: int = Field(default=30, ge=1)
    """Tokens of the longest answer that is given."""
    no_answer: bool | None = None
    """Whether a row may have no answer; as train shows when not given."""
    null_threshold: float | None = None
    """No answer is predicted if its logit exceeds the best span's by more than this. Default: the best by F1 on validation."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return ("exact_match", "f1")

    def columns(self) -> dict[str, tuple[str, ...]]:
        return {"question": (self.question,), "context": (self.context,), "answers": (self.answers,)}

    def input_columns(self) -> tuple[str, ...]:
        return (self.question, self.context)

    def resolve(self, splits: dict[str, Dataset]) -> tuple[Self, Labels | None, list[str]]:
        notes = []
        for name, rows in splits.items():
            known = [read_answers(cell) for cell in rows[self.answers][:]]
            pairs = list(zip(rows[self.context][:], known, strict=True))
            moved = [
                f"{text!r} at {place[0]}, not {start}"
                for context, answers in pairs
                for text, start in answers
                if start is not None and (place := place_answer(str(context), text, start)) and place[0] != start
            ]
            several = [
                text for context, answers in pairs for text, start in answers if start is None and str(context).count(text) > 1
            ]
            if several:
                notes.append(
                    f"{len(several)} answer(s) of split `{name}` have no offset and stand in their context more than once: "
                    f"the first place is taught ({_few(list(map(repr, several)))})."
                )
            if moved:
                notes.append(
                    f"{len(moved)} answer(s) of split `{name}` stand once in their context, elsewhere than at their offset: "
                    f"read there ({_few(moved)})."
                )
            if none := sum(not each for each in known):
                notes.append(f"{none} of {len(known)} rows of split `{name}` have no answer.")
        if is_unspaced(str(context) for context in splits["train"][self.context][:SOME]):
            notes.append("F1, and the overlap of the baseline, count each character of scripts without spaces as a word.")
        some = any(not read_answers(cell) for cell in splits["train"][self.answers])
        return self.model_copy(update={"no_answer": some if self.no_answer is None else self.no_answer}), None, notes

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        problems: dict[str, list[int]] = {}
        lost: dict[int, str] = {}
        cells = rows[self.answers][:] if self.answers in rows.column_names else [None] * len(rows)
        for row, (question, context, cell) in enumerate(
            zip(rows[self.question][:], rows[self.context][:], cells, strict=True)
        ):
            for column, text in ((self.question, question), (self.context, context)):
                if not isinstance(text, str) or not text.strip():
                    problems.setdefault(f"column `{column}` is empty, or no text,", []).append(row)
            for text, start in read_answers(cell) if isinstance(context, str) and context.strip() else ():
                if not isinstance(text, str) or place_answer(context, text, start) is None:
                    there = context[start : start + len(str(text))] if start is not None and start >= 0 else ""
                    lost[row] = f"{text!r}, where {there!r} stands" if start is not None else f"{text!r}, which stands nowhere"
        if lost:
            shown = _few(list(lost.values()))
            problem = f"column `{self.answers}` has an answer that does not stand in the context at its offset ({shown})"
            problems[problem] = list(lost)
        return problems

    def config_fields(self, labels: Labels | None) -> dict[str, Any]:
        return {}

    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Windows of rows: `input_ids` (with `token_type_ids` where the processor has them), `starts` and `ends` (the
        characters of the context that each token stands for, -1 for others), and `labels`: the answer's first and last token,
        or 0, 0."""
        most = count_most(processor, self.max_length)
        longest = most // QUESTION
        questions = [shorten(question, processor, longest) for question in rows[self.question]]
        room = most - longest - processor.num_special_tokens_to_add(pair=True)
        windows = processor(
            questions,
            rows[self.context],
            truncation="only_second",
            max_length=most,
            stride=max(1, min(self.stride, room // 2)),  # not of these questions: a row's windows are its own
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        of_row = list(windows["overflow_to_sample_mapping"])
        examples: dict[str, list] = {n: column for n, column in windows.items() if n in processor.model_input_names}
        places = [
            [place if part == 1 and place[0] < place[1] else (-1, -1) for part, place in zip(parts, offsets, strict=True)]
            for parts, offsets in zip(map(windows.sequence_ids, range(len(of_row))), windows["offset_mapping"], strict=True)
        ]
        examples |= {"row": of_row, "truncated": [questions[i] != rows[self.question][i] for i in of_row]}
        examples["starts"] = [[start for start, _ in tokens] for tokens in places]
        examples["ends"] = [[end for _, end in tokens] for tokens in places]
        if self.answers in rows:
            spans = [
                place_answer(context, *known[0]) if (known := read_answers(cell)) else None
                for context, cell in zip(rows[self.context], rows[self.answers], strict=True)
            ]
            examples["labels"] = [find_tokens(tokens, spans[i]) for tokens, i in zip(places, of_row, strict=True)]
            examples["items"] = [2] * len(of_row)
            held = {i for i, (_, last) in zip(of_row, examples["labels"], strict=True) if last}
            examples["lost"] = [spans[i] is not None and i not in held for i in of_row]
        return examples

    def targets(self, rows: dict[str, list], labels: Labels | None) -> list[list[str]]:
        return [[text for text, _ in read_answers(cell)] for cell in rows[self.answers][:]]

    def references(self, rows: Dataset) -> list[Any]:
        return self.targets({self.answers: rows[self.answers]}, None)

    def collator(self, processor: Any) -> Callable[[list[dict[str, Any]]], Batch]:
        def collate(examples: list[dict[str, Any]]) -> Batch:
            inputs = [{k: v for k, v in example.items() if k in processor.model_input_names} for example in examples]
            batch = dict(pad_without_fast_tokenizer_warning(processor, inputs, return_tensors="pt"))
            for name in ("starts", "ends"):
                batch[name] = torch.full(batch["input_ids"].shape, -1)
                for i, example in enumerate(examples):
                    batch[name][i, : len(example[name])] = torch.tensor(example[name])
            if "labels" in examples[0]:
                batch["labels"] = torch.tensor([example["labels"] for example in examples])
            return batch

        return collate

    def items(self, model: nn.Module, batch: Batch) -> Items:
        """Two for each window: where its answer begins, and where it ends; among its context's tokens and the first one."""
        real = batch["starts"] >= 0
        real[:, 0] = True
        logits = torch.stack(self._logits(model, batch), dim=1)
        real = real.unsqueeze(1).expand_as(logits).flatten(0, 1)
        return Items(logits.flatten(0, 1).masked_fill(~real, FAR), batch["labels"].flatten(), real)

    def inference_step(self, model: nn.Module, batch: Batch) -> list[np.ndarray]:
        """Of each window its best spans, float32, shape (spans, 3): first character, the one after the last, the sum of both
        logits; the first span says that there is none, at -1."""
        logits = [each.cpu().numpy() for each in self._logits(model, batch)]
        characters = [batch[name].cpu().numpy() for name in ("starts", "ends")]
        return [self._best_spans(*window) for window in zip(*logits, *characters, strict=True)]

    def _best_spans(self, first: np.ndarray, last: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        inside = np.flatnonzero(starts >= 0)
        scores = first[inside, None] + last[None, inside]
        length = inside[None, :] - inside[:, None] + 1
        scores[(length < 1) | (length > self.max_answer_length)] = -np.inf
        best = np.argsort(-scores, axis=None, kind="stable")[:N_BEST]
        i, j = np.unravel_index(best[np.isfinite(scores.ravel()[best])], scores.shape)
        spans = np.column_stack([starts[inside[i]], ends[inside[j]], scores[i, j]])
        return np.vstack([[NULL, NULL, first[0] + last[0]], spans]).astype(np.float32)

    def _logits(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        output = model(**{k: v for k, v in batch.items() if k not in ("labels", "starts", "ends")})
        return output.start_logits.float(), output.end_logits.float()

    def answer_kind(self) -> AnswerKind:
        return SpanAnswers

    def answer(self, outputs: RowOutputs, rows: Dataset, labels: Labels | None) -> SpanAnswers:
        spans, scores = [], []
        for windows, context in zip(outputs, rows[self.context], strict=True):
            none, found = join_windows(windows)
            places = [None, *(trim(context, int(start), int(end)) for start, end, _ in found)]
            logits = np.array([none - (self.null_threshold or 0), *found[:, 2]], dtype=np.float64)
            if self.no_answer is False and len(found):
                places, logits = places[1:], logits[1:]
            distinct = dict(zip(reversed(places), reversed(logits.tolist()), strict=True))  # the best of equal spans
            chances = scipy.special.softmax(list(distinct.values()))
            best = int(np.argmax(chances))
            spans.append(list(distinct)[best])
            scores.append(chances[best])
        return SpanAnswers(spans, np.array(scores), list(rows[self.context]))

    def calibrate(self, ran: Iterable[tuple[Dataset, RowOutputs]], labels: Labels | None) -> tuple[Self, list[str]]:
        """The threshold with which validation has the best F1, as SQuAD's script finds it; 0 where it can't tell."""
        if not self.no_answer or self.null_threshold is not None:
            return self, []
        spoken, parts = self.model_copy(update={"no_answer": False}), []
        for rows, outputs in ran:
            references = SpanAnswers.read_references(self.references(rows))
            answers = spoken.answer(outputs, rows, labels)
            silent = SpanAnswers([None] * len(rows), answers.scores, answers.contexts)
            joined = [join_windows(windows) for windows in outputs]
            above = [none - (found[0, 2] if len(found) else FAR) for none, found in joined]
            parts.append(np.column_stack([above, answers.compare(references)[:, 1], silent.compare(references)[:, 1]]))
        above, best, silent = np.concatenate(parts).T.astype(np.float64)
        threshold = choose_threshold(above, silent - best)
        before, after = (np.where(above > least, silent, best).mean() for least in (0, threshold))
        flattered = f"F1 {after:.3f} there, which it flatters; with 0 it is {before:.3f}"
        note = f"validation chose `null_threshold` {threshold:.3f}: {flattered}."
        return self.model_copy(update={"null_threshold": threshold}), [note]

    def baselines(self, train: Dataset, labels: Labels | None, processor: Any = None) -> dict[str, Fit]:
        def sentence() -> Answerer:
            """The sentence of the context that shares most words with the question."""

            def answer(rows: Dataset) -> Answers:
                contexts = rows[self.context][:]
                spans = [find_sentence(*pair) for pair in zip(rows[self.question][:], contexts, strict=True)]
                return SpanAnswers([*spans], np.ones(len(rows)), contexts)

            return answer

        return {"sentence": sentence}

    def texts(self, rows: Dataset) -> list[str]:
        return ["\n".join(pair) for pair in zip(rows[self.question][:], rows[self.context][:], strict=True)]

    def show(self, example: dict[str, Any], processor: Any, labels: Labels | None) -> str:
        """A window's tokens, the answer in brackets."""
        tokens, (first, last) = processor.convert_ids_to_tokens(example["input_ids"]), example.get("labels") or (0, 0)
        if last:
            tokens[first] = f"[[{tokens[first]}"
            tokens[last] = f"{tokens[last]}]]"
        around = tokens[max(0, first - 30) : last + 30] if last else tokens[:60]
        return f"{' '.join(around)}  [{len(tokens)} tokens, answer at {first} to {last}]"

    def example_call(self) -> str:
        return f'hf_sft.predict(run, [{{"{self.question}": "Who left?", "{self.context}": "Ann left."}}])'

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        contexts = ["the coach was good", "the bank cut its rates again", "the court ruled on the law"] * 4
        answers = [
            {"text": ["coach"], "answer_start": [4]},
            {"text": ["its rates"], "answer_start": [13]},
            {"text": [], "answer_start": []},
        ]
        rows = {"question": ["was good", "bank cut", "a film"] * 4, "context": contexts, "answers": answers * 4}
        return cls(type="question_answering"), Dataset.from_dict(rows)


def _few(texts: list[str]) -> str:
    """The first three."""
    return "; ".join(texts[:3]) + ("; …" if len(texts) > 3 else "")
