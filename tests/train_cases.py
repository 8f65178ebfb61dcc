"""Trains every recipe of a JSON list, in order; run under a launcher by the tests that need several processes.

train_cases.py RECIPES HOW    HOW is JSON: what else `train` is told, and `slowly`, by how much each step is drawn out
"""

import atexit
import json
import sys
from pathlib import Path

import hf_sft.runs.train
from hf_sft.config import process
from tests import quaint, stopping, tiny  # noqa: F401  (a family of models, made known)

tiny.train_quickly()
how = json.loads(sys.argv[2])
stopping.slow_down(how.pop("slowly", 0.0))
atexit.register(process.leave_group)
for case in json.loads(Path(sys.argv[1]).read_text()):
    hf_sft.train(hf_sft.Recipe.model_validate(case), **how)
