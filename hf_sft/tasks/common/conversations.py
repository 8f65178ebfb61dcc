"""Conversations as files have them, as transformers' chat templates take them: turns with roles, tool calls, reasoning.

Read are transformers' and OpenAI's form (`role`, `content`, `tool_calls`, `reasoning_content`, results of the role `tool`) and
ShareGPT's (`from`, `value`; `function_call` and `observation`). A turn of the assistant with a false `weight`, `train`, `loss`
or `trainable` carries no loss.
"""

import contextlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from hf_sft.tasks.common.chat_templates import ASSISTANT, SILENT, THOUGHTS, Turn

ROLES = {
    **dict.fromkeys(("human", "user"), "user"),
    **dict.fromkeys(("gpt", "bot", "model", "ai", "chatgpt", ASSISTANT), ASSISTANT),
    **dict.fromkeys(("observation", "function_response", "tool_response", "tool"), "tool"),
    "system": "system",
}
"""What others call them, whatever their case."""
CALLS = ("function_call", "tool_call")
"""Roles of ShareGPT's turns that call a tool."""
SWITCHES = ("weight", "train", "loss", "trainable")
"""Keys that switch off the loss of a turn."""
BESIDE = ("tool_calls", "name", "tool_call_id")
"""Keys that templates read beside role and content."""


def read_turns(cell: Any) -> list[Turn]:
    """The turns of a cell; an empty list for a cell that has none."""
    if not isinstance(cell, list):
        return []
    return [_read_turn(turn) if isinstance(turn, dict) else Turn(role="", content=turn) for turn in cell]


def read_tools(cell: Any) -> list[dict[str, Any]] | None:
    """The tools of a conversation: a list of JSON schemas, or such a list written as text; None if there are none.

    Raises `ValueError` for something else.
    """
    if isinstance(cell, str):
        cell = json.loads(cell) if cell.strip() else None
    if cell is not None and not (isinstance(cell, list) and all(isinstance(tool, dict) for tool in cell)):
        raise ValueError(f"{type(cell).__name__} in place of a list of tools")
    return [_without_nulls(tool) for tool in cell] if cell else None


def flaw_of_tools(cell: Any) -> str | None:
    """What is wrong with a cell of tools; None if nothing is."""
    try:
        read_tools(cell)
    except ValueError as error:
        return f"holds no list of JSON schemas ({error})"
    return None


def _read_turn(turn: dict[str, Any]) -> Turn:
    names = ("role", "content") if turn.get("role") is not None or "from" not in turn else ("from", "value")
    role, content = map(turn.get, names)
    read: Any = {"role": ROLES.get(str(role).lower(), str(role)), "content": _join_parts(content)}
    if str(role).lower() in CALLS:
        read |= {"role": ASSISTANT, "content": "", "tool_calls": _read_calls(content)}
    for name in BESIDE:
        if turn.get(name):
            read[name] = _read_calls(turn[name]) if name == "tool_calls" else turn[name]
    if isinstance(turn.get("function_call"), dict):
        read["tool_calls"] = _read_calls([turn["function_call"]])
    for name in THOUGHTS:
        if isinstance(turn.get(name), str) and turn[name].strip():
            read[THOUGHTS[0]] = read[name] = turn[name]
    if read["content"] is None and ("tool_calls" in read or THOUGHTS[0] in read):
        read["content"] = ""
    if read["role"] == ASSISTANT and any(_is_off(turn.get(name)) for name in SWITCHES):
        read[SILENT] = True
    return read


def _is_off(value: Any) -> bool:
    return value is not None and str(value).lower() in ("0", "0.0", "false", "no")


def _join_parts(content: Any) -> Any:
    """Parts of text as one; other parts are left, and named as a flaw."""
    if isinstance(content, list) and content and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    return content


def _read_calls(calls: Any) -> Any:
    """Calls as templates take them: `{type: function, function: {name, arguments}}`, arguments as a mapping."""
    if isinstance(calls, str):
        try:
            calls = json.loads(calls)
        except json.JSONDecodeError:
            return calls
    calls = [calls] if isinstance(calls, dict) else calls
    if not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls):
        return calls
    return [_read_call(_without_nulls(call)) for call in calls]


def _read_call(call: dict[str, Any]) -> dict[str, Any]:
    call = call if isinstance(call.get("function"), dict) else {"type": "function", "function": call}
    function = dict(call["function"])
    if isinstance(function.get("arguments"), str):
        with contextlib.suppress(json.JSONDecodeError):  # some tools take a text
            function["arguments"] = json.loads(function["arguments"])
    return {**call, "function": {**function, "arguments": function.get("arguments", {})}}


def _without_nulls(value: Any) -> Any:
    """Without the keys that a table gives to a mapping since another row's has them."""
    if isinstance(value, dict):
        return {key: _without_nulls(each) for key, each in value.items() if each is not None}
    return [_without_nulls(each) for each in value] if isinstance(value, list) else value


def together(cells: Sequence[Any]) -> Any:
    """Columns of a prompt as one; what is empty is left out, as in Alpaca's rows without an input."""
    if not all(cell is None or isinstance(cell, str) for cell in cells):
        return next(cell for cell in cells if not isinstance(cell, str | None))
    return "\n\n".join(cell for cell in cells if cell and cell.strip())


def flaw_of_talk(talk: list[Turn]) -> str | None:
    """What is wrong with a conversation, whatever the template; None if nothing is."""
    if not talk:
        return "holds no conversation (a list of turns with `role` and `content`)"
    roles = list(dict.fromkeys(turn["role"] for turn in talk))
    if roles == [ASSISTANT]:
        return "has nothing that an assistant is asked"
    for turn, before in zip(talk, [None, *talk], strict=False):
        role, content = turn["role"], turn["content"]
        calls = turn.get("tool_calls")
        if role in ("", "None"):
            return "has a turn without a role"
        if calls is not None and not (isinstance(calls, list) and all(_is_call(call) for call in calls)):
            return f"has a tool call without a name ({str(calls)[:60]})"
        if isinstance(content, list):
            return f"has a turn of `{role}` with a part of type `{_first_type(content)}`: only text is read"
        if not isinstance(content, str):
            return f"has a turn of `{role}` that is {'null' if content is None else f'{type(content).__name__}, not text'}"
        if not content.strip() and role not in ("system", "tool") and not (calls or THOUGHTS[0] in turn):
            return f"has an empty turn of `{role}`"
        if before is not None and before["role"] == role != "tool":
            return f"has two turns of `{role}` in a row"
    unknown = [role for role in roles if role not in ROLES.values()]
    if unknown and ASSISTANT not in roles:
        return f"has the roles {', '.join(roles)}: expected user and assistant, and system or tool"
    return None


def _is_call(call: Any) -> bool:
    return isinstance(call, dict) and bool(call.get("function", {}).get("name"))


def _first_type(parts: Iterable[Any]) -> str:
    kinds = [part.get("type") if isinstance(part, dict) else type(part).__name__ for part in parts]
    return str(next((kind for kind in kinds if kind != "text"), "text"))


def up_to_last_answer(talk: list[Turn]) -> list[Turn]:
    """The turns up to the last of the assistant."""
    last = max((i for i, turn in enumerate(talk) if turn["role"] == ASSISTANT), default=len(talk) - 1)
    return talk[: last + 1]


def say_turn(turn: Turn) -> str:
    """What a turn says, as a person reads it: its words, and its calls."""
    calls = turn.get("tool_calls")
    parts = [turn["content"], json.dumps(calls, ensure_ascii=False) if calls else ""]
    return "\n".join(str(part) for part in parts if part)
