"""What does the assistant say next?  Conversations, and prompts with their completions.

The data: a column of conversations, each a list of turns with `role` and `content` (or `from` and `value`), with tool calls
and thoughts as transformers' templates take them; or a column of prompts, or several that are put together, and one of
completions; and beside them a column of system turns, and one of tools. A chat template makes text of them. Only what the
assistant has to write itself carries loss, its calls and thoughts too, and so does the token that ends its turn; nothing else
does. Control tokens that the data spells stay text.
"""

import datetime
import json
from collections.abc import Iterator
from typing import Any, ClassVar, Self

import numpy as np
from datasets import Dataset
from pydantic import Field
from torch import nn

from hf_sft.answers.contract import AnswerKind, Answers
from hf_sft.answers.likelihoods import TurnAnswers
from hf_sft.errors import CheckpointError, DataError
from hf_sft.losses import RowOutputs
from hf_sft.tasks import Labels, Task
from hf_sft.tasks.common.baselines import Fit
from hf_sft.tasks.common.causal import Carried, NextToken, flat, gram_baselines, join_pieces
from hf_sft.tasks.common.chat_templates import ASSISTANT, SILENT, ChatTemplate, Tools, Turn, Written
from hf_sft.tasks.common.control_tokens import encode_written, holds_control
from hf_sft.tasks.common.conversation_rows import ConversationRows
from hf_sft.tasks.common.conversations import SWITCHES, flaw_of_talk, flaw_of_tools, say_turn, up_to_last_answer
from hf_sft.tasks.common.generation import GenerationOptions
from hf_sft.tasks.common.named_templates import NAMED, find_template, stop_clock, uses_clock
from hf_sft.tasks.common.windows import count_most

TOKENS = 256
"""Of an answer, at most, when nobody says how many."""


class Chat(ConversationRows, NextToken, Task):
    """Answer as the assistant of a conversation, or complete a prompt."""

    no_loss_message: ClassVar[str | None] = (
        "show nothing that an assistant says: their conversations have no such turn, or are cut before"
    )
    silent_share: ClassVar[float] = 0.05
    other_names: ClassVar[dict[str, str]] = dict.fromkeys(("sft", "conversation", "conversational", "instruction"), "chat")

    chat_template: str | None = None
    """`chatml`, `plain` (the prompt, a line break, the answer), or a file, where the checkpoint's own is not what you want."""
    max_length: int | None = Field(default=None, ge=8)
    """A conversation is truncated to its first `max_length` tokens; as many as the checkpoint allows when not given."""
    date: str | None = Field(default=None, pattern=r"\d{4}-\d\d-\d\d")
    """The date that a template with a clock writes, like 2026-11-29; the day on which training begins when not given."""
    packing: bool = False
    """Train on blocks of several conversations; `training.batch_size` counts blocks then. Otherwise a row is one."""

    @property
    def default_metrics(self) -> tuple[str, ...]:
        return ("loss", "perplexity")

    def resolve(self, splits: dict[str, Dataset]) -> tuple[Self, Labels | None, list[str]]:
        notes = []
        for name, rows in splits.items():
            talks = self._talks(rows)
            open_ended = sum(bool(talk) and talk[-1]["role"] != ASSISTANT for talk in talks)
            if open_ended:
                note = f"{open_ended} of {len(rows)} rows of split `{name}` end with words that nobody answers"
                notes.append(f"{note}: these are left out.")
            answers = [turn for talk in talks for turn in talk if turn["role"] == ASSISTANT]
            if silent := sum(SILENT in turn for turn in answers):
                note = f"{silent} of {len(answers)} turns of the assistant in split `{name}` carry no loss"
                notes.append(f"{note}: their {', '.join(SWITCHES)} says so.")
        return self, None, notes

    def _talks(self, rows: Dataset) -> list[list[Turn]]:
        return self.conversations(self._cells(rows))

    def _cells(self, rows: Dataset) -> dict[str, list]:
        names = (*self._prompts, self._said) if self._prompts else (self._talk,)
        return {name: rows[name][:] for name in (*names, *self.optional_columns()) if name in rows.column_names}

    def invalid_rows(self, rows: Dataset, labels: Labels | None) -> dict[str, list[int]]:
        problems: dict[str, list[int]] = {}
        cells = self._cells(rows)
        for row, talk in enumerate(self.conversations(cells)):
            if flaw := flaw_of_talk(talk):
                column = f"column `{self._talk}` " if not self._prompts else "prompt and completion: a conversation "
                problems.setdefault(column + flaw, []).append(row)
        for row, cell in enumerate(cells.get(self.tools or "", [])):
            if flaw := flaw_of_tools(cell):
                problems.setdefault(f"column `{self.tools}` {flaw}", []).append(row)
        return problems

    def config_fields(self, labels: Labels | None) -> dict[str, Any]:
        return {}

    def probe(self, model: nn.Module, processor: Any) -> tuple[Self, list[str]]:
        """The processor gets the chat template, which the run folder holds; the model's config gets the end of a turn."""
        text = find_template(self.chat_template, processor)
        if not getattr(processor, "is_fast", False):
            raise CheckpointError(
                "the checkpoint's tokenizer can't tell which characters a token stands for, and chat needs that.\n"
                "  Expected one with a tokenizer.json (a fast one).  Use another checkpoint, or convert its tokenizer."
            )
        if text is not None:
            processor.chat_template = text
        date, dated = self.date, []
        if uses_clock(processor.chat_template):
            date = date or datetime.date.today().isoformat()
            text = processor.chat_template = stop_clock(processor.chat_template, date)
            dated.append(f"the chat template writes the date: {date} from now on.  Another one: `task.date`.")
        end, how = ChatTemplate(processor).end_id, getattr(model, "generation_config", None)
        if how is not None:
            ends = how.eos_token_id if isinstance(how.eos_token_id, list) else [how.eos_token_id]
            how.eos_token_id = sorted({end, *(each for each in ends if each is not None)})
        found, notes = super().probe(model, processor)
        template_named = self.chat_template if self.chat_template in NAMED else text
        return found.model_copy(update={"chat_template": template_named, "date": date}), [*dated, *notes]

    def _template(self, processor: Any) -> ChatTemplate:
        return ChatTemplate(processor, find_template(self.chat_template, processor))

    def encode(self, rows: dict[str, list], processor: Any, labels: Labels | None) -> dict[str, list]:
        """Conversations up to the last turn of the assistant: `input_ids`, `lengths` (of the one piece), and `loss_mask`."""
        template = self._template(processor)
        most = count_most(processor, self.max_length)
        examples: dict[str, list] = {
            name: []
            for name in ("input_ids", "lengths", "loss_mask", "items", "truncated", "silent", "flaw", "forgotten", "spelled")
        }
        talks = self.conversations(rows)
        for talk, tools in zip(talks, self._tools_of(rows, len(talks)), strict=True):
            ids, mask, flaw, written = [], [], "", None
            try:
                ids, mask, written = _tokens(template, up_to_last_answer(talk), tools, processor)
            except ValueError as error:
                flaw = str(error)
            examples["forgotten"].append(written is not None and written.forgotten)
            examples["spelled"].append(written is not None and holds_control(written.text, written.values, template.control))
            loss_mask = mask[:most]
            examples["input_ids"].append(ids[:most])
            examples["loss_mask"].append(loss_mask)
            examples["lengths"].append([len(loss_mask)])
            examples["items"].append(sum(loss_mask[1:]))
            examples["truncated"].append(len(ids) > most)
            examples["silent"].append(not any(loss_mask[1:]) and any(mask[1:]))
            examples["flaw"].append(flaw)
        return examples

    def join(self, encoded: Dataset, processor: Any) -> Dataset:
        """Blocks of whole conversations; those that carry no loss are left out."""
        table: Any = encoded.filter(lambda items: items > 0, input_columns="items").with_format("arrow")[:]
        (tokens, ends), (mask, _) = flat(table["input_ids"]), flat(table["loss_mask"])
        columns = {"input_ids": tokens, "loss_mask": mask}
        return join_pieces(columns, ends[:-1], ends[1:], count_most(processor, self.max_length))

    def targets(self, rows: dict[str, list], labels: Labels | None) -> list[float]:
        return [0.0] * len(rows[self.input_columns()[0]])

    def references(self, rows: Dataset) -> list[str | None]:
        """What the assistant says last."""
        return [say_turn(talk[-1]) if talk and talk[-1]["role"] == ASSISTANT else None for talk in self._talks(rows)]

    def answer_kind(self) -> AnswerKind:
        return TurnAnswers

    def answer(self, outputs: RowOutputs, rows: Dataset, labels: Labels | None) -> Answers:
        sums = np.array([np.sum(each, axis=0, dtype=np.float64) for each in outputs])
        return TurnAnswers(sums[:, 0], sums[:, 1])

    def baselines(self, train: Dataset, labels: Labels | None, processor: Any = None) -> dict[str, Fit]:
        def read(rows: Dataset) -> list[Carried]:
            examples = self.encode(self._cells(rows), processor, None)
            return list(zip(examples["input_ids"], examples["loss_mask"], strict=True))

        return gram_baselines(read, lambda nats, tokens, rows: TurnAnswers(nats, tokens), train, len(processor))

    def complete(
        self, model: Any, rows: Dataset, processor: Any, how: GenerationOptions, budget: int
    ) -> Iterator[dict[str, Any]]:
        """What the assistant says next: to a conversation that it ends, what it would say in place of its last turn."""
        template = self._template(processor)

        def prompts(room: int) -> list[list[int]]:
            prompts, cells = [], self._cells(rows)
            for row, (talk, tools) in enumerate(zip(self.conversations(cells), self._tools_of(cells, len(rows)), strict=True)):
                try:
                    prompts.append(self._ask(template, talk, tools, processor, room))
                except ValueError as error:
                    raise DataError(f"row {row} can't be answered: it {error}.") from None
            return prompts

        how = how.at_most(min(TOKENS, processor.model_max_length // 2))
        return self._write(model, prompts, processor, how, {template.end_id, processor.eos_token_id}, budget)

    def _ask(self, template: ChatTemplate, talk: list[Turn], tools: Tools, processor: Any, room: int) -> list[int]:
        """The tokens that ask for the next turn; the oldest turns are left out where there is no room for all."""
        prompt = talk[:-1] if talk[-1]["role"] == ASSISTANT else talk
        text, values = template.write(prompt, ask=True, tools=tools), ()
        if any(token in turn["content"] for turn in prompt for token in template.control):
            values = template.mark(prompt, tools, ask=True).values
        ids, _ = encode_written(text, values, processor, template.control)
        start = int(prompt[0]["role"] == "system")
        if len(ids) > room and len(prompt) > start + 2:
            return self._ask(template, [*prompt[:start], *prompt[start + 2 :]], tools, processor, room)
        return ids[-room:]

    def control_tokens(self, processor: Any) -> list[int]:
        return [self._template(processor).end_id]

    def written_prompt(self, row: Dataset, processor: Any) -> list[int] | None:
        cells = self._cells(row)
        ((talk,), (tools,)) = self.conversations(cells), self._tools_of(cells, 1)
        return self._ask(self._template(processor), talk, tools, processor, processor.model_max_length // 2)

    def prompts(self, rows: Dataset, processor: Any) -> Dataset:
        """The rows themselves: each holds its prompt."""
        return rows

    def texts(self, rows: Dataset) -> list[str]:
        return ["\n".join(f"{turn['role']}: {say_turn(turn)}" for turn in talk) for talk in self._talks(rows)]

    def identities(self, rows: Dataset) -> list[str]:
        """The turns before the last answer: what follows it carries no loss."""
        talks = [up_to_last_answer(talk) for talk in self._talks(rows)]
        return [json.dumps(talk[:-1] if talk and talk[-1]["role"] == ASSISTANT else talk) for talk in talks]

    def show(self, example: dict[str, Any], processor: Any, labels: Labels | None) -> str:
        """The tokens that carry loss stand between « and »."""
        tokens, mask = processor.convert_ids_to_tokens(example["input_ids"]), [*example["loss_mask"], 0]
        shown = [
            f"{'«' if mask[i] > (i and mask[i - 1]) else ''}{token}{'»' if mask[i] > mask[i + 1] else ''}"
            for i, token in enumerate(tokens)
        ]
        return f"{' '.join(shown)}  [{len(tokens)} tokens, loss on those in « », {sum(example['loss_mask'])}]"

    def example_call(self) -> str:
        if self._prompts and self.chat_template == "plain":
            return 'answer("What is asked.\\n", max_new_tokens=40)'
        return 'answer([{"role": "user", "content": "What is asked."}], max_new_tokens=40)'

    @classmethod
    def sample(cls) -> tuple[Self, Dataset]:
        pairs = [
            ("the coach was good", "the match was lost"),
            ("the bank cut its rates", "shares fell"),
            ("the court", "ruled"),
        ]
        talks = [[Turn(role="user", content=question), Turn(role=ASSISTANT, content=answer)] for question, answer in pairs] * 4
        return cls(type="chat", chat_template="plain"), Dataset.from_dict({"messages": talks})


def _tokens(template: ChatTemplate, talk: list[Turn], tools: Tools, processor: Any) -> tuple[list[int], list[int], Written]:
    """The tokens of a conversation, and 1 for those of which a part is the assistant's own. Raises `ValueError`."""
    written = template.mark(talk, tools)
    ids, offsets = encode_written(written.text, written.values, processor, template.control)
    own = np.zeros(len(written.text) + 1, dtype=np.int64)
    for start, end in written.own:
        own[start + 1 : end + 1] = 1
    so_far = np.cumsum(own)
    starts, ends = np.array(offsets).T
    return ids, (so_far[ends] > so_far[starts]).astype(int).tolist(), written
