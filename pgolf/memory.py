"""What the process asks of the system's allocator."""

import contextlib
import ctypes

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
