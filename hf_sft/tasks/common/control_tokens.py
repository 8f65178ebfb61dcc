"""Control tokens that data spells, such as `<|im_end|>` in an answer: they stay text, and only the template's are tokens."""

import re
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

Place: TypeAlias = tuple[int, int]
"""The first character, and the one after the last."""


def control_tokens(processor: Any) -> set[str]:
    """The special tokens of a tokenizer, as they are written."""
    added = processor.added_tokens_decoder.values()
    return {str(token) for token in added if token.special} | {*processor.all_special_tokens} - {""}


def holds_control(text: str, values: Sequence[Place], control: set[str]) -> bool:
    """Whether some of the values, which are places of a text, spell a control token."""
    return any(token in text[start:end] for start, end in values for token in control)


def encode_written(text: str, values: Sequence[Place], processor: Any, control: set[str]) -> tuple[list[int], list[Place]]:
    """The tokens of a text, and the characters of each; what `values` spell of the `control` tokens stays text."""
    if not holds_control(text, values, control):
        encoded = processor(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return encoded["input_ids"], encoded["offset_mapping"]
    # A tokenizer looks for its special tokens first, and encodes each stretch between them apart. The same is done here, but
    # that only those outside the values are found.
    ids: list[int] = []
    offsets: list[Place] = []
    backend = processor.backend_tokenizer
    before, backend.encode_special_tokens = backend.encode_special_tokens, True
    try:
        for start, end, is_control in _cut(text, values, control):
            if is_control:
                ids.append(processor.convert_tokens_to_ids(text[start:end]))
                offsets.append((start, end))
                continue
            encoded = backend.encode(text[start:end], add_special_tokens=False)
            ids += encoded.ids
            offsets += [(start + first, start + last) for first, last in encoded.offsets]
    finally:
        backend.encode_special_tokens = before
    return ids, offsets


def _cut(text: str, values: Sequence[Place], control: set[str]) -> Iterator[tuple[int, int, bool]]:
    """The control tokens outside the values, and the stretches between them."""
    pattern = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))))
    at = done = 0
    while found := pattern.search(text, at):
        inside = next((end for start, end in values if start < found.end() and found.start() < end), None)
        if inside is not None:
            at = max(inside, found.start() + 1)
            continue
        if done < found.start():
            yield done, found.start(), False
        yield found.start(), found.end(), True
        at = done = found.end()
    if done < len(text):
        yield done, len(text), False
