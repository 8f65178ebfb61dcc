"""What the libraries below do with memory on a CPU.

glibc hands large freed blocks back to the kernel, which must clear them when the next step asks for them again: with all
weights of MiniLM moving, 28,000 pages a step, a fifth of its time.

oneDNN makes a kernel for each shape, and keeps the last 1,024 of them; PyTorch keeps the last 1,024 that it asked for. Texts
have many shapes, of which few are met again but in the same step. With 64 of each, MiniLM on banking77 takes 0.92 GiB, and
1.41 with 256 of oneDNN's and PyTorch's 1,024 (LoRA 0.77 and 1.26). It takes as long within what the machine lets one tell
(some 5%); with 16 it still does.
"""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
NEVER = -1
KERNELS = "64"
CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
"""oneDNN's, and PyTorch's beside it; both are read when the first kernel is made."""
LARGE = (2**30, 2**25)
"""Bytes from which a block is mapped on its own; older versions of glibc take no more than the second."""


def use_memory_well() -> None:
    """In this process, from now on: few kernels are kept, and freed memory is, where the C library is glibc.

    What the environment says of either cache stands.
    """
    for cache in CACHES:
        os.environ.setdefault(cache, KERNELS)
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    if sys.platform == "linux":
        mallopt(TRIM_THRESHOLD, NEVER)
        any(mallopt(MMAP_THRESHOLD, size) for size in LARGE)
