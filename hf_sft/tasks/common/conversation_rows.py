"""Rows of conversations: turns in one column, or a prompt and its completion."""

from collections.abc import Sequence
from typing import Self

from datasets import Dataset
from pydantic import model_validator
from pydantic_core import PydanticCustomError

from hf_sft.tasks import TaskData
from hf_sft.tasks.common.chat_templates import ASSISTANT, Tools, Turn
from hf_sft.tasks.common.conversations import read_tools, read_turns, together


class ConversationRows(TaskData):
    """What a chat model reads of its rows."""

    messages: str | None = None
    """The column of the conversations, lists of turns with `role` and `content`; `messages` when there is no `prompt`."""
    prompt: str | list[str] | None = None
    """Instead of `messages`: the column of prompts, or several, which are joined with an empty line between."""
    completion: str | None = None
    """With `prompt`: the column of what is to be answered; `completion` when not given."""
    system: str | None = "system"
    """A column of system turns, read where a row has it and its conversation has none."""
    tools: str | None = "tools"
    """A column of tools (lists of JSON schemas, or those as text), read where a row has it."""

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.prompt is not None and self.messages is not None:
            raise PydanticCustomError("prompt", "stands in place of `messages`: leave one of them out")
        if self.prompt is None and self.completion is not None:
            raise PydanticCustomError("completion", "goes with `prompt`, which is missing")
        if self._said in self._prompts:
            raise PydanticCustomError("completion", "must be another column than that of the prompt")
        if self.prompt == []:
            raise PydanticCustomError("prompt", "must name a column")
        return self

    @property
    def _prompts(self) -> tuple[str, ...]:
        return (self.prompt,) if isinstance(self.prompt, str) else tuple(self.prompt or ())

    @property
    def _said(self) -> str:
        return self.completion or "completion"

    @property
    def _talk(self) -> str:
        return self.messages or "messages"

    def columns(self) -> dict[str, tuple[str, ...]]:
        return {"prompt": self._prompts, "completion": (self._said,)} if self._prompts else {"messages": (self._talk,)}

    def input_columns(self) -> tuple[str, ...]:
        return self._prompts or (self._talk,)

    def optional_columns(self) -> tuple[str, ...]:
        return tuple(column for column in (self.system, self.tools) if column is not None)

    def from_words(self, words: Sequence[str | None]) -> Dataset:
        """What the user says first."""
        if self._prompts:
            return super().from_words(words)
        return Dataset.from_dict({self._talk: [word and [Turn(role="user", content=word)] for word in words]})

    def conversations(self, rows: dict[str, list]) -> list[list[Turn]]:
        """Of each row its turns, with what its completion says if it has one."""
        if not self._prompts:
            return self._with_system([read_turns(cell) for cell in rows[self._talk]], rows)
        prompts = zip(*(rows[column] for column in self._prompts), strict=True)
        talks = [read_turns(cells[0]) or [Turn(role="user", content=together(cells))] for cells in prompts]
        if self._said not in rows:
            return self._with_system(talks, rows)
        answers = [read_turns(cell) or [Turn(role=ASSISTANT, content=cell)] for cell in rows[self._said]]
        return self._with_system([[*talk, *answer] for talk, answer in zip(talks, answers, strict=True)], rows)

    def _with_system(self, talks: list[list[Turn]], rows: dict[str, list]) -> list[list[Turn]]:
        if self.system is None or self.system not in rows:
            return talks
        return [
            [Turn(role="system", content=system), *talk]
            if talk and isinstance(system, str) and system.strip() and talk[0]["role"] != "system"
            else talk
            for talk, system in zip(talks, rows[self.system], strict=True)
        ]

    def _tools_of(self, rows: dict[str, list], count: int) -> list[Tools]:
        if self.tools is None or self.tools not in rows:
            return [None] * count
        return [read_tools(cell) for cell in rows[self.tools]]
