"""What the C library does with memory that a step gives back.

glibc hands large freed blocks back to the kernel, which must clear them when the next step asks for them again: with all
weights of MiniLM moving, 28,000 pages a step, a fifth of its time.
"""

import ctypes
import sys

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
NEVER = -1
LARGE = (2**30, 2**25)
"""Bytes from which a block is mapped on its own; older versions of glibc take no more than the second."""


def keep_freed_memory() -> None:
    """Have glibc, where it is glibc, keep what is freed for what comes next: in this process, from now on."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return
    if sys.platform == "linux":
        mallopt(TRIM_THRESHOLD, NEVER)
        any(mallopt(MMAP_THRESHOLD, size) for size in LARGE)
