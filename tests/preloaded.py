"""What forks of the tests' server have from the beginning: all that a training imports, which takes longer than a tiny one."""

# ruff: noqa: F401
import sklearn.feature_extraction.text
import sklearn.linear_model
import sklearn.multiclass
import sklearn.pipeline

import hf_sft.reports.plots
import hf_sft.runs.train
from hf_sft.block import list_kinds, load_kind
from hf_sft.metrics import list_metrics
from tests import quaint, tiny

list_metrics()
for folder in ("methods", "aids", "tasks"):
    for kind in list_kinds(folder):
        load_kind(folder, kind)
