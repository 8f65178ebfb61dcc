"""Runs that are stopped, and what they leave."""

from pathlib import Path
from typing import Any

import pytest

from hf_sft.trainer.signals import Interrupted
from tests import stopping


def stop_full(recipes: dict[str, dict[str, Any]], output: Path, stop_in_step: Any, step: int = 12, **changes: Any) -> None:
    stop_in_step(step)
    recipe = recipes["full"]
    with pytest.raises(Interrupted):
        stopping.train({**recipe, "training": recipe["training"] | changes}, output)
