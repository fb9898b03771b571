"""What glibc does with the memory that tensors on the CPU give back."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Their numbers in glibc's malloc.h."""
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have freed tensors' memory kept for the next ones. Whether the C library can.

    By default glibc gives each large block back to the kernel, which then clears every page of the next one: a step of
    a small ViT takes 45,000 page faults, and none like this.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(M_MMAP_MAX, 0)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))
