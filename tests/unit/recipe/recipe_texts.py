"""Recipes as text, and the problems that they have."""

import re

import pytest

from hf_sft.errors import RecipeError
from hf_sft.recipe.recipe import load_recipe

MRPC = """\
model:
  checkpoint: google-bert/bert-base-uncased
  revision: main
data:
  dataset: nyu-mll/glue
  config: mrpc
  splits: {train: train, validation: 0.1}
task:
  type: sequence_classification
  text: sentence1
  text_pair: sentence2
method:
  type: lora
  r: 4
aids:
  - {type: early_stopping, patience: 2}
training:
  batch_size: 16
  learning_rate: 2e-4
evaluation:
  metrics: [accuracy, f1_macro]
  best: f1_macro
output:
  folder: runs/mrpc
seed: 3
"""

SHORTEST = """\
model: {checkpoint: bert}
data: {dataset: glue}
task: {type: sequence_classification}
method: {type: head_only}
output: {folder: run}
"""


def edited(old: str, new: str, text: str = MRPC) -> str:
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in the recipe"
    return text.replace(old, new)


def complaint(path: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as raised:
        load_recipe(path, overrides)
    return str(raised.value)


def problems(path: str, *overrides: str) -> list[tuple[str, str, str]]:
    """The rows of a complaint: line, place, message."""
    return [tuple(re.split(r"  +", row.strip(), maxsplit=2)) for row in complaint(path, *overrides).splitlines()[2:]]  # type: ignore
