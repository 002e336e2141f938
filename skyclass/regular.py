"""Reading input files: only regular files are opened, so that no FIFO, device or endless file blocks a process."""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path

KINDS = {
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_regular(path: str | Path) -> io.FileIO:
    """Return a file opened for reading, unbuffered; `OSError` for anything but a regular file, which is not waited for.

    The kind is checked before the file is opened, because to open a device may change it, and again on the open file.
    """
    _check_regular(os.stat(path))
    stream = io.FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    try:
        _check_regular(os.fstat(stream.fileno()))
    except OSError:
        stream.close()
        raise
    return stream


def regular_opener(path: str, flags: int) -> int:
    """Return a descriptor for `open(path, mode, opener=regular_opener)`; `OSError` for anything but a regular file."""
    if os.path.exists(path):
        _check_regular(os.stat(path))
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    try:
        _check_regular(os.fstat(descriptor))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def read_small(path: str | Path, limit_bytes: int) -> bytes:
    """Return the content of a regular file; `OSError` if it has more than `limit_bytes`."""
    with open_regular(path) as stream:
        content = stream.read(limit_bytes + 1)
    if len(content) > limit_bytes:
        raise OSError(errno.EFBIG, f"it has more than {limit_bytes:,} bytes")
    return content


def _check_regular(status: os.stat_result) -> None:
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        raise OSError(errno.EINVAL, f"it is {KINDS.get(kind, 'no file')}, not a regular file")
