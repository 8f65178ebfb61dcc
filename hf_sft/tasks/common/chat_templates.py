"""A conversation as a chat template writes it, and which of its characters are the assistant's own.

A template is code that nobody can see into. So a conversation is written twice: as it is, and with marks in place of what its
turns say and think. Between the marks stands what the template adds; it must stand in the conversation too, and what is left
is then exactly the content, whether or not the template knows the `generation` blocks of transformers. Tool calls stand
between the marks as they are; where they end is found by writing the conversation once more with words in their place.
"""

import contextlib
import json
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NotRequired, TypeAlias, TypedDict

from jinja2 import TemplateError

from hf_sft.errors import CheckpointError, first_line
from hf_sft.tasks.common.control_tokens import control_tokens


class Turn(TypedDict):
    """What one side says; transformers' own form."""

    role: str
    content: str
    reasoning_content: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]
    silent: NotRequired[bool]


Tools: TypeAlias = list[dict[str, Any]] | None
"""JSON schemas of the functions that an assistant may call."""
ASSISTANT = "assistant"
SILENT = "silent"
"""The key of a turn that carries no loss; no template sees it."""
THOUGHTS = ("reasoning_content", "thinking", "reasoning")
"""Keys of what an assistant thinks before it answers; templates read the first, or one of the others."""
THINKS = re.compile(r"\s*<think>\n?(.*?)\n?</think>\s*(.*)", re.DOTALL)
"""Thoughts and answer, written in one text."""
MARK = "\ue000{}\ue001"
"""Of turn i, in characters for private use: no template trims them, and no text has them. 2i is what it says, 2i + 1 what it
thinks."""
MARKED = re.compile("\ue000([0-9]+)\ue001")


SECONDS, LONGEST = 10, 20_000_000
"""That a template may take to write a conversation, and the characters that it may write."""
FRAMES = 1000
"""Number of cached renderings, by the conversation's shape."""


@contextlib.contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` inside, where signals can be had: on Unix, in the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(*_: Any) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Written:
    """A conversation as the template writes it."""

    text: str
    own: tuple[tuple[int, int], ...]
    """Where each turn of the assistant that carries loss begins and ends, in characters: what it must write itself, with what
    ends the turn."""
    values: tuple[tuple[int, int], ...]
    """Where what turns say and think begins and ends."""
    forgotten: bool
    """Whether the template leaves out thoughts of turns before the last answer."""


@dataclass(frozen=True)
class _Frame:
    """What a template writes around what turns say and think."""

    between: tuple[str, ...]
    """Before the first mark, between two, after the last."""
    marks: tuple[int, ...]
    """The number of the mark after each part but the last."""
    own: dict[int, tuple[int, int]]
    """Of each turn of the assistant where its own part begins and ends, in characters of the text with marks."""
    forgotten: bool


class ChatTemplate:
    """A processor's chat template, or another one in its place."""

    def __init__(self, processor: Any, template: str | None = None):
        self._processor, self._template = processor, template
        self._frames: dict[str, _Frame] = {}

    def write(self, turns: Sequence[Turn], ask: bool = False, tools: Tools = None) -> str:
        """The conversation as text; `ask` for the assistant's next turn. Raises `ValueError` where the template refuses it."""
        shown: Any = [{key: value for key, value in turn.items() if key != SILENT} for turn in turns]
        try:
            with _limited(SECONDS):
                text = self._processor.apply_chat_template(
                    shown, tools=tools, tokenize=False, add_generation_prompt=ask, chat_template=self._template
                )
        except TemplateError as error:
            raise ValueError(f"is refused by the chat template: {str(error).strip().rstrip('.')}") from None
        except TimeoutError:
            raise ValueError(f"keeps the chat template busy for more than {SECONDS} s") from None
        except (ArithmeticError, LookupError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            raise ValueError(f"breaks the chat template: {type(error).__name__}: {first_line(error)}") from None
        if len(text) > LONGEST:
            raise ValueError(f"becomes {len(text):,} characters by the chat template, of at most {LONGEST:,}")
        return text

    def mark(self, turns: Sequence[Turn], tools: Tools = None, ask: bool = False) -> Written:
        """The conversation, and what of it is the assistant's own. Raises `ValueError` where the template drops or rewrites
        the content."""
        text = self.write(turns, ask, tools)
        try:
            return self._mark(text, turns, tools, ask)
        except ValueError as error:
            apart = [_split_thoughts(turn) for turn in turns]
            if apart == list(turns):
                raise
            try:  # thoughts inside the content, which the template writes where it would write thoughts
                return self._mark(text, apart, tools, ask)
            except ValueError:
                raise error from None

    def _mark(self, text: str, turns: Sequence[Turn], tools: Tools, ask: bool) -> Written:
        frame = self._frame(turns, tools, ask)
        at, marked_at, values = 0, 0, []
        shifts = [(0, 0)]
        for (before, after), mark in zip(pairwise(frame.between), frame.marks, strict=True):
            turn = turns[mark // 2]
            content = turn["content"] if mark % 2 == 0 else turn.get(THOUGHTS[0], "")
            start = at + len(before)
            for words in dict.fromkeys((content, content.strip(), content.rstrip(), content.lstrip(), content.strip("\n"))):
                if text.startswith(before, at) and text.startswith(words + after, start):
                    break
            else:
                raise ValueError(f"has a turn of `{turn['role']}` that the chat template rewrites")
            at = start + len(words)
            marked_at += len(before) + len(MARK.format(mark))
            shifts.append((marked_at, at - marked_at))
            values.append((start, at))
        if text[at:] != frame.between[-1]:
            raise ValueError("has a last turn that the chat template rewrites")
        own = [
            (_shift(start, shifts), _shift(end, shifts)) for i, (start, end) in frame.own.items() if not turns[i].get(SILENT)
        ]
        return Written(text, tuple(own), tuple(values), frame.forgotten)

    def _frame(self, turns: Sequence[Turn], tools: Tools, ask: bool) -> _Frame:
        shapes = [{**turn, "content": bool(turn["content"]), **{k: "" for k in THOUGHTS if k in turn}} for turn in turns]
        key = json.dumps([shapes, tools, ask], default=str)
        if key not in self._frames:
            if len(self._frames) >= FRAMES:
                self._frames.clear()
            self._frames[key] = self._find_frame(turns, tools, ask)
        return self._frames[key]

    def _find_frame(self, turns: Sequence[Turn], tools: Tools, ask: bool) -> _Frame:
        marked = [_with_marks(turn, i) for i, turn in enumerate(turns)]
        text = self.write(marked, ask, tools)
        parts = MARKED.split(text)
        marks = tuple(map(int, parts[1::2]))
        answers = [i for i, turn in enumerate(turns) if turn["role"] == ASSISTANT]
        forgotten = False
        for i, turn in enumerate(marked):
            for kind, value in enumerate((turn["content"], turn.get(THOUGHTS[0], ""))):
                times = marks.count(2 * i + kind)
                if not value or times == 1:
                    continue
                if times == 0 and kind and i != answers[-1]:
                    forgotten = True
                    continue
                what = "drops" if times == 0 else "writes twice"
                raise ValueError(f"has {'thoughts in ' * kind}a turn of `{turn['role']}` that the chat template {what}")
            if "tool_calls" in turn:
                without: Any = {key: value for key, value in turn.items() if key != "tool_calls"}
                if self.write([*marked[:i], without, *marked[i + 1 :]], ask, tools) == text:
                    raise ValueError("has tool calls that the chat template drops")
        if tools and self.write(marked, ask) == text:
            raise ValueError("comes with tools that the chat template drops")
        own = {} if ask else {i: self._find_own(marked, i, text, tools) for i in answers}
        return _Frame(tuple(parts[::2]), marks, own, forgotten)

    def _find_own(self, marked: Sequence[Turn], i: int, text: str, tools: Tools) -> tuple[int, int]:
        """Where turn i begins behind what asks for it, and ends with what ends it, in the text with marks."""
        places = [match.span() for match in MARKED.finditer(text) if int(match[1]) // 2 == i]
        try:
            prompt = self.write(marked[:i], ask=True, tools=tools) if i else text
        except ValueError:
            prompt = text
        begins = len(prompt) if text.startswith(prompt) and i and len(prompt) < len(text) else None
        if places:
            first = places[0][0]
            begins = first if begins is None or begins > first else begins
        if "tool_calls" not in marked[i]:
            last = places[-1][1]
            return begins or 0, last + (len(self.end) if text.startswith(self.end, last) else 0)
        if begins is None:
            raise ValueError("has tool calls that can't be told from what the chat template adds")
        return begins, self._find_end_of_calls(marked, i, text, tools)

    def _find_end_of_calls(self, marked: Sequence[Turn], i: int, text: str, tools: Tools) -> int:
        """Where what turn i calls, and what ends the turn, ends: what stands behind calls stands behind words too."""
        words: Any = {key: value for key, value in marked[i].items() if key != "tool_calls"}
        words["content"] = MARK.format(2 * i)
        behind = MARKED.split(self.write([*marked[:i], words, *marked[i + 1 :]], tools=tools).partition(words["content"])[2])[
            0
        ]
        later = (match.start() for match in MARKED.finditer(text) if int(match[1]) // 2 > i)
        upto = next(later, len(text))
        if behind.startswith(self.end) and text[:upto].endswith(behind):
            return upto - len(behind) + len(self.end)
        alone = self.write(marked[: i + 1], tools=tools).removesuffix(self._rest)
        if not text.startswith(alone):
            raise ValueError("has tool calls that can't be told from what the chat template adds")
        return len(alone)

    @cached_property
    def control(self) -> set[str]:
        """The special tokens of the tokenizer, as they are written."""
        return control_tokens(self._processor)

    @cached_property
    def _behind(self) -> str:
        """What the template writes behind the last answer."""
        turns = [Turn(role="user", content=MARK.format(0)), Turn(role=ASSISTANT, content=MARK.format(2))]
        try:
            return MARKED.split(self.write(turns))[-1]
        except ValueError as error:
            raise CheckpointError(
                f"the chat template can't write a question and its answer: such a conversation {error}.\n"
                "  Mend it, or name another one as `task.chat_template`."
            ) from None

    @cached_property
    def _rest(self) -> str:
        """What the template writes behind the end of the last answer."""
        return self._behind.removeprefix(self.end)

    @cached_property
    def end(self) -> str:
        """What ends a turn of the assistant, up to the first special token behind it, or the first added one where there is no
        special one. Raises `CheckpointError` where none does: a model that learns from it never stops."""
        for tokens in (self.control, {str(token) for token in self._processor.added_tokens_decoder.values()}):
            if found := [(self._behind.index(token) + len(token)) for token in tokens if token in self._behind]:
                return self._behind[: min(found)]
        raise CheckpointError(
            "the chat template writes no special token behind what the assistant says, so nothing would tell the model to "
            f"stop.\n  It writes {self._behind!r}.  Expected the tokenizer's end token: name another `task.chat_template`."
        )

    @property
    def end_id(self) -> int:
        """The token that ends a turn of the assistant."""
        return self._processor(self.end, add_special_tokens=False)["input_ids"][-1]


def _with_marks(turn: Turn, i: int) -> Turn:
    """A turn with marks in place of what it says and thinks; what is empty beside calls or thoughts stays so."""
    thoughts = {key: MARK.format(2 * i + 1) for key in THOUGHTS if key in turn}
    is_empty = not turn["content"] and ("tool_calls" in turn or bool(thoughts))
    marked: Any = {**turn, "content": "" if is_empty else MARK.format(2 * i), **thoughts}
    return marked


def _split_thoughts(turn: Turn) -> Turn:
    found = THINKS.fullmatch(turn["content"]) if turn["role"] == ASSISTANT and THOUGHTS[0] not in turn else None
    if found is None:
        return turn
    apart: Any = {**turn, THOUGHTS[0]: found[1], "content": found[2]}
    return apart


def _shift(place: int, shifts: list[tuple[int, int]]) -> int:
    """A place in the text with marks as one in the text."""
    return place + [shift for start, shift in shifts if start <= place][-1]
