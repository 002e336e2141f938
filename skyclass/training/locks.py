"""A lock on a file that ends with the process that holds it, on file systems that have such locks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

LockState = Literal["taken", "held", "unsupported"]


@contextmanager
def file_lock(path: Path, wait: bool = True) -> Iterator[LockState]:
    """Hold the lock of a file during the block, and give what came of it.

    "held" means that another process holds the lock, which happens only without `wait`. "unsupported" means that the
    file system has no locks, which depends on how it is mounted.
    """
    # A soft lock would survive a killed process.
    lock = FileLock(path, blocking=wait, fallback_to_soft=False)
    state: LockState = "taken"
    try:
        lock.acquire()
    except Timeout:
        state = "held"
    except OSError:  # ENOSYS, ENOLCK or EOPNOTSUPP
        state = "unsupported"
    try:
        yield state
    finally:
        lock.release()
