"""Chat templates that a recipe names, and the clock that some of them read."""

import json
import re
from datetime import datetime
from typing import Any

from hf_sft.errors import CheckpointError, nearest, suggest
from hf_sft.storage.package_paths import path_of

CLOCK = "strftime_now"
"""The function by which templates write today's date."""
CLOCK_CALL = re.compile(rf"{CLOCK}\(\s*(['\"])(.*?)\1\s*\)")
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
"""Templates for checkpoints that have none. `plain` has no role names: prompt, line break, answer, end token."""


def uses_clock(template: str) -> bool:
    """Whether a template writes today's date."""
    return CLOCK in template


def stop_clock(template: str, date: str) -> str:
    """The template with a date, like 2026-11-29, in place of today's. Raises `CheckpointError`."""
    day = datetime.fromisoformat(date)
    fixed = CLOCK_CALL.sub(lambda found: json.dumps(day.strftime(found[2])), template)
    if re.search(rf"{CLOCK}\s*\(", fixed):
        raise CheckpointError(
            "the chat template writes today's date by a format that is no plain text: what is learned would change each day.\n"
            "  Name another `task.chat_template`: a file in which the date stands as text."
        )
    return fixed


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
    file = path_of(name)
    if not file.is_file():
        raise CheckpointError(
            f"`task.chat_template: {name}` is neither {', '.join(NAMED)} nor a file.{suggest(nearest(name, NAMED))}"
        )
    return file.read_text(encoding="utf-8")
