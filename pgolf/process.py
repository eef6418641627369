"""What the process asks of the system it runs on."""

import contextlib
import ctypes
import os

# the names and numbers of glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_KEPT = 32 << 20  # as much as glibc allows


def keep_freed_memory() -> None:
    """Large blocks go back to the system when they are freed, and the next ones come as fresh pages that must be zeroed
    first, again in every training step on a CPU. Keep them instead. Other allocators are left as they are."""
    with contextlib.suppress(OSError, AttributeError):
        allocator = ctypes.CDLL(None)
        allocator.mallopt(M_MMAP_THRESHOLD, LARGEST_KEPT)
        allocator.mallopt(M_TRIM_THRESHOLD, 1 << 30)


def wait_briefly() -> None:
    """To be called before torch is loaded. Threads that wait for each other at the end of every operator spin, by GNU's
    choice for milliseconds: where anything else wants the same cores, it and we then crawl. Let them sleep after
    microseconds instead, unless somebody has chosen."""
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = "2000"
