"""What belongs to a process: its environment, its memory, its group.

The command sets these in its own process. `import hf_sft`, `hf_sft.train()` and the other functions of the Python API leave
them as they are in somebody's program.

glibc hands large freed blocks back to the kernel, which must clear them when the next step asks for them again: when all
weights of MiniLM are trained, 28,000 pages a step, a fifth of its time.

oneDNN makes a kernel for each shape, and keeps the last 1,024 of them; PyTorch keeps the last 1,024 that it used. Texts
have many shapes, of which few are met again but in the same step. With 64 of each, MiniLM on banking77 takes 0.92 GiB, and
1.41 with 256 of oneDNN's and PyTorch's 1,024 (LoRA 0.77 and 1.26). It takes as long within what the machine lets one tell
(some 5%); with 16 it still does.
"""

import atexit
import contextlib
import ctypes
import gc
import os
import sys
import warnings
from collections.abc import Iterator, Mapping

QUIET = {
    "TOKENIZERS_PARALLELISM": "true",
    "TRANSFORMERS_VERBOSITY": "error",
    "DATASETS_VERBOSITY": "error",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""Our progress bars stay; the libraries' logs and hints do not."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
NEVER = -1
KERNELS = "64"
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's, and PyTorch's beside it; both are read when the first kernel is made."""
LARGE = (2**30, 2**25)
"""Bytes from which a block is mapped on its own; older versions of glibc take no more than the second."""


def set_up() -> None:
    """What the command sets before anything is imported; `ready` comes after that.

    Variables that the environment has already are not changed. While torch, transformers and datasets are imported the garbage
    collector is off: it would find nothing, and take as long as all the rest (2.4 of 5.0 s).
    """
    gc.disable()
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore")
    atexit.register(leave_group)


def ready() -> None:
    """What the command sets when all is imported."""
    gc.freeze()  # what was imported stays
    gc.enable()
    use_memory_well()


def leave_group() -> None:
    """End what the processes of a launch talk by, before Python ends: its threads would abort a process now and then."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def runs_on_cpu() -> bool:
    """True without an accelerator, or where the Accelerate configuration does not use it."""
    import torch

    return not torch.accelerator.is_available() or os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true")


def use_memory_well() -> None:
    """On a CPU, from now on: few kernels are cached, and freed memory is not handed back, where the C library is glibc.

    Variables of either cache that the environment has already are not changed.
    """
    if not runs_on_cpu():
        return
    for cache in CACHES:
        os.environ.setdefault(cache, KERNELS)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    if sys.platform == "linux":
        mallopt(TRIM_THRESHOLD, NEVER)
        any(mallopt(MMAP_THRESHOLD, size) for size in LARGE)


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Variables for the length of a block, where the environment does not have them already."""
    added = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


@contextlib.contextmanager
def same_threads() -> Iterator[None]:
    """Whatever a block sets, torch has the same number of threads after it."""
    import torch

    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
