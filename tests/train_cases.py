"""Trains every recipe of a JSON list, in order; run under a launcher by the tests that need several processes."""

import gc
import json
import sys
from pathlib import Path

import hf_sft.certificate
import hf_sft.workflow

# As in conftest.py.
gc.freeze()
hf_sft.certificate.fresh_process = lambda *arguments: lambda: hf_sft.certificate.compare(*arguments)
for case in json.loads(Path(sys.argv[1]).read_text()):
    hf_sft.train(hf_sft.Recipe.model_validate(case))
