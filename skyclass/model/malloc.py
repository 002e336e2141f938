"""Memory of processes that infer: memory that a batch frees is kept for the next batch.

By default glibc returns large blocks to the system at once, and the nannies of Dask lower the limit to 64 KiB. A
network that needs the same megabytes for each batch then spends up to a fifth of its time on page faults.
"""

from __future__ import annotations

import ctypes

TRIM_FROM_BYTES = 2**28
MMAP_FROM_BYTES = 2**25

MALLOC_ENVIRONMENT = {
    "MALLOC_TRIM_THRESHOLD_": str(TRIM_FROM_BYTES),
    "MALLOC_MMAP_THRESHOLD_": str(MMAP_FROM_BYTES),
}
"""Environment of a process with the same settings."""

TRIM, MMAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD in malloc.h."""


def keep_memory() -> None:
    """Let this process keep the memory that it frees if its C library is glibc. Importing this module sets nothing."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(TRIM, TRIM_FROM_BYTES)
        mallopt(MMAP, MMAP_FROM_BYTES)
