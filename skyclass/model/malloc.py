"""How processes that infer hold memory: what a batch has freed is kept for the next one.

By default glibc gives large blocks back to the system at once, and Dask's nannies make it do so at 64 KiB. A network
that reuses the same megabytes for each batch then spends up to a fifth of its time on page faults.
"""

from __future__ import annotations

import ctypes

TRIM_FROM_BYTES = 2**28
MMAP_FROM_BYTES = 2**25

MALLOC_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(TRIM_FROM_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(MMAP_FROM_BYTES),
}
"""The same for a process that is yet to start."""

TRIM, MMAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h."""


def keep_memory() -> None:
    """Let this process keep the memory that it frees, where its C library is glibc. Nothing is set on import."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(TRIM, TRIM_FROM_BYTES)
        mallopt(MMAP, MMAP_FROM_BYTES)
