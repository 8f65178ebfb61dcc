"""JSON that every reader takes: a number that is not finite is null."""

import json
import math
from typing import Any


def finite(value: Any) -> Any:
    """The same, with None for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {key: finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def dump_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(finite(value), ensure_ascii=False, indent=indent, allow_nan=False)
