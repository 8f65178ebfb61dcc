"""Imports of our own processes take shortcuts; what is imported is the same."""

import subprocess
import sys

LISTED = """
import hashlib
import transformers, transformers.models
modules = (transformers, transformers.models)
listed = [sorted(module._class_to_module.items()) for module in modules]
known = [sorted(module._modules) for module in modules]
print(len(listed[0]), len(listed[1]), hashlib.sha256(repr((listed, known)).encode()).hexdigest())
"""
QUICKLY = """
from hf_sft.storage.imports import quick_imports
with quick_imports():
    import hf_sft.runs.train
"""


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_transformers_lists_the_same_models_as_without_shortcuts():
    plain = run(LISTED)
    assert min(map(int, plain.split()[:2])) > 1000
    assert run(QUICKLY + LISTED) == plain


def test_models_are_looked_for_once():
    code = """
import os
looked = []
plain = os.scandir
os.scandir = lambda path=".": looked.append(str(path)) or plain(path)
"""
    count = "print(sum(path.endswith('models/bert') for path in looked))"
    assert run(f"{code}{QUICKLY}{count}") == "1\n"
    assert run(f"{code}import transformers.models\n{count}") == "2\n", "transformers does it by itself: the shortcut can go"


def test_the_losses_of_object_detection_find_their_solver_when_they_ask_for_it():
    check = """
import sys
assert not [name for name in sys.modules if name.startswith(("scipy.optimize", "scipy.sparse", "sklearn", "evaluate"))]
from transformers.loss.loss_for_object_detection import linear_sum_assignment
print([places.tolist() for places in linear_sum_assignment([[4, 1, 3], [2, 0, 5], [3, 2, 2]])])
import scipy.optimize
assert scipy.optimize.minimize and sys.modules["scipy.optimize"].__file__
"""
    assert run(QUICKLY + check) == "[[0, 1, 2], [1, 0, 2]]\n"


def test_who_asks_for_something_else_meanwhile_gets_it():
    code = """
from hf_sft.storage.imports import _later
with _later("fractions", "gcd"):
    from fractions import Fraction
    import fractions
print(Fraction(1, 2), fractions.Fraction is Fraction)
with _later("fractions", "gcd"):
    import fractions
print(fractions.Fraction is Fraction)
"""
    assert run(code) == "1/2 True\nTrue\n"
