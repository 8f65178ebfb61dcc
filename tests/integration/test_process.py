"""A program that calls us finds its process as it was; the command sets its own."""

import ctypes
import json
import subprocess
import sys
from typing import Any

import pytest

from tests import tiny

WATCH = """
import ctypes, gc, json, os, signal, sys

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p
library.free.argtypes = [ctypes.c_void_p]
fields = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
library.mallinfo2.restype = type("Mallinfo2", (ctypes.Structure,), {"_fields_": [(name, ctypes.c_size_t) for name in fields]})

def maps_large_blocks():
    before, block = library.mallinfo2().hblks, library.malloc(ctypes.c_size_t(2**26))
    try:
        return library.mallinfo2().hblks > before
    finally:
        library.free(block)

def found():
    import torch
    signals = {name: str(signal.getsignal(getattr(signal, name))) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGALRM")}
    return {
        **{f"${name}": value for name, value in os.environ.items()},
        "maps large blocks": maps_large_blocks(),
        "process group": torch.distributed.is_initialized(),
        "threads": torch.get_num_threads(),
        "collector": [gc.isenabled(), gc.get_freeze_count(), gc.get_threshold()],
        "paths": sys.path[:],
        "signals": signals,
        "folder": os.getcwd(),
    }
"""
PROGRAM = """
recipe = json.loads(sys.argv[1])
import sklearn  # sets variables of its own when it is imported
before = found()
import hf_sft
report = hf_sft.train(recipe)
hf_sft.evaluate(report.folder)
hf_sft.predict(report.folder, ["goal"])
after = found()
print(json.dumps(sorted(name for name in before | after if before.get(name) != after.get(name))))
"""
COMMAND = """
from hf_sft.cli import main
sys.argv = ["hf-sft", "check", sys.argv[1]]
try:
    main()
except SystemExit as left:
    assert not left.code
assert gc.isenabled() and gc.get_freeze_count() > 100_000, "what was imported is out of its sight"
print(json.dumps([maps_large_blocks(), os.environ["LRU_CACHE_CAPACITY"], os.environ["DATASETS_VERBOSITY"]]))
"""
glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="the C library does not say what is in use")


def run(program: str, *words: str) -> Any:
    done = subprocess.run([sys.executable, "-c", WATCH + program, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@glibc
def test_a_program_that_trains_scores_and_predicts_finds_its_process_as_it_was(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", tiny.PROBLEMS[0], train=20)
    recipe = tiny.recipe(checkpoints["bert"], files, tmp_path / "run")
    assert run(PROGRAM, json.dumps(recipe)) == []


@glibc
def test_the_command_sets_its_memory_and_its_environment(checkpoints, tmp_path):
    files = tiny.write_rows(tmp_path / "data", tiny.PROBLEMS[0], train=20)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(tiny.recipe(checkpoints["bert"], files, tmp_path / "run")))
    assert run(COMMAND, str(recipe)) == [False, "64", "error"]
