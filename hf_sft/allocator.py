"""What the libraries below do with memory on a CPU.

glibc hands large freed blocks back to the kernel, which must clear them when the next step asks for them again: with all
weights of MiniLM moving, 28,000 pages a step, a fifth of its time.

oneDNN makes a kernel for each shape, and keeps the last 1,024 of them. Texts have many shapes, so few are met again: with 256
the same training takes 1.55 GiB instead of 1.85, and as long within what the machine lets one tell (some 5%).
"""

import ctypes
import os
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
NEVER = -1
KERNELS = 256
LARGE = (2**30, 2**25)
"""Bytes from which a block is mapped on its own; older versions of glibc take no more than the second."""


def use_memory_well() -> None:
    """In this process, from now on: few kernels are kept, and freed memory is, where the C library is glibc.

    What the environment says of oneDNN (`ONEDNN_PRIMITIVE_CACHE_CAPACITY`) stands.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(KERNELS))  # read when the first kernel is made
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    if sys.platform == "linux":
        mallopt(TRIM_THRESHOLD, NEVER)
        any(mallopt(MMAP_THRESHOLD, size) for size in LARGE)
