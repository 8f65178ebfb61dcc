"""A conversation as a chat template writes it, and which of its characters are the assistant's own.

A template is code that nobody can see into. So a conversation is written twice: as it is, and with a mark in place of what a
turn says. Between the marks stands what the template adds; it must stand in the conversation too, and what is left is then
what was said, exactly, whether or not the template knows the `generation` blocks of transformers.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypedDict

from jinja2 import TemplateError

from hf_sft.errors import CheckpointError, nearest, suggest


class Turn(TypedDict):
    """What one side says; transformers' own form."""

    role: str
    content: str


ASSISTANT = "assistant"
MARK = "\ue000{}\ue001"
"""Of turn i, in characters for private use: no template trims them, and no text has them."""
MARKED = re.compile("\ue000([0-9]+)\ue001")
NAMED = {
    "chatml": (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    ),
    "plain": (
        "{% for message in messages %}{{ message['content'] }}"
        "{{ eos_token if message['role'] == 'assistant' else '\n' }}{% endfor %}"
    ),
}
"""Templates for checkpoints that have none. `plain` has no names: what is asked, a line break, the answer, the end token."""


@dataclass(frozen=True)
class Written:
    """A conversation as the template writes it."""

    text: str
    own: tuple[tuple[int, int], ...]
    """Where each turn of the assistant begins and ends, in characters: what it must write itself, with what ends the turn."""


@dataclass(frozen=True)
class _Frame:
    """What a template writes around the turns of some roles."""

    between: tuple[str, ...]
    """Before the first turn, between two, after the last."""
    turns: tuple[int, ...]
    """Which turn stands after each part but the last."""
    own: tuple[int, ...]
    """How many of a part's last characters the assistant has to write too, since they are not in what it is asked by."""


class ChatTemplate:
    """A processor's chat template, or another one in its place."""

    def __init__(self, processor: Any, template: str | None = None):
        self._processor, self._template = processor, template
        self._frames: dict[tuple[str, ...], _Frame] = {}

    def write(self, turns: Sequence[Turn], ask: bool = False) -> str:
        """The conversation as text; `ask` for the assistant's next turn. Raises `ValueError` where the template refuses it."""
        try:
            return self._processor.apply_chat_template(
                list(turns), tokenize=False, add_generation_prompt=ask, chat_template=self._template
            )
        except TemplateError as error:
            raise ValueError(f"is refused by the chat template: {str(error).strip().rstrip('.')}") from None

    def mark(self, turns: Sequence[Turn]) -> Written:
        """The conversation, and what of it is the assistant's own. Raises `ValueError` where the template drops or rewrites
        what was said."""
        frame, text = self._frame(tuple(turn["role"] for turn in turns)), self.write(turns)
        at, own = 0, []
        for (before, after), turn, head in zip(pairwise(frame.between), frame.turns, frame.own, strict=True):
            role, said = turns[turn]["role"], turns[turn]["content"]
            start = at + len(before)
            for words in (said, said.strip(), said.rstrip(), said.lstrip()):
                if text.startswith(before, at) and text.startswith(words + after, start):
                    break
            else:
                raise ValueError(f"has a turn of `{role}` that the chat template rewrites")
            at = start + len(words)
            if role == ASSISTANT:
                ends = len(self.end) if after.startswith(self.end) else 0
                own.append((start - head, at + ends))
        if text[at:] != frame.between[-1]:
            raise ValueError("has a last turn that the chat template rewrites")
        return Written(text, tuple(own))

    def _frame(self, roles: tuple[str, ...]) -> _Frame:
        if roles not in self._frames:
            marked = [Turn(role=role, content=MARK.format(i)) for i, role in enumerate(roles)]
            text = self.write(marked)
            parts = MARKED.split(text)
            turns = tuple(map(int, parts[1::2]))
            for i, role in enumerate(roles):
                if (times := turns.count(i)) != 1:
                    what = "drops" if times == 0 else "writes twice"
                    raise ValueError(f"has a turn of `{role}` that the chat template {what}")
            heads = (self._own_head(marked[:i], text, MARK.format(i)) if roles[i] == ASSISTANT else 0 for i in turns)
            self._frames[roles] = _Frame(tuple(parts[::2]), turns, tuple(heads))
        return self._frames[roles]

    def _own_head(self, before: list[Turn], text: str, mark: str) -> int:
        """How many characters stand between what asks for the turn of a mark and the mark; 0 where they can't be told."""
        try:
            asked = self.write(before, ask=True) if before else text
        except ValueError:
            return 0
        return max(0, text.index(mark) - len(asked)) if text.startswith(asked) else 0

    @cached_property
    def end(self) -> str:
        """What ends a turn of the assistant, up to the first special token behind it. Raises `CheckpointError` where none
        does: a model that learns from it never stops."""
        after = self._frame(("user", ASSISTANT)).between[-1]
        special = {str(token) for token in self._processor.added_tokens_decoder.values() if token.special}
        special |= {*self._processor.all_special_tokens}
        found = [(after.index(token) + len(token)) for token in special if token in after]
        if not found:
            raise CheckpointError(
                "the chat template writes no special token behind what the assistant says, so nothing would tell the model to "
                f"stop.\n  It writes {after!r}.  Expected the tokenizer's end token there: name another `task.chat_template`."
            )
        return after[: min(found)]

    @property
    def end_id(self) -> int:
        """The token that ends a turn of the assistant."""
        return self._processor(self.end, add_special_tokens=False)["input_ids"][-1]


def find_template(name: str | None, processor: Any) -> str | None:
    """The text of a template: by its name in `NAMED`, of a file, or as it is; None for the processor's own.

    Raises `CheckpointError`.
    """
    if name is None:
        if getattr(processor, "chat_template", None):
            return None
        raise CheckpointError(
            "the checkpoint has no chat template, which says how a conversation is written.\n"
            f"  Name one: `task.chat_template` is {', '.join(NAMED)}, or a file with one (*.jinja)."
        )
    if name in NAMED:
        # Where the tokenizer begins each text with a token, so does the template.
        begins = processor.bos_token is not None and processor("a")["input_ids"][:1] == [processor.bos_token_id]
        return ("{{ bos_token }}" if begins else "") + NAMED[name]
    if "{{" in name:
        return name
    file = Path(name).expanduser()
    if not file.is_file():
        raise CheckpointError(
            f"`task.chat_template: {name}` is neither {', '.join(NAMED)} nor a file.{suggest(nearest(name, NAMED))}"
        )
    return file.read_text(encoding="utf-8")
