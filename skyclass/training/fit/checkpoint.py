"""Checkpoints: written whole or not at all, and never trusted without their digest.

A file is one line of text with the SHA-256 of what follows, then the state as torch writes it. It is read back
with `weights_only`, so nothing in it can run code. A torn file is removed, and the one before it counts.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import socket
from pathlib import Path
from typing import Any

import torch

from ...errors import StoreError
from ...files import replacing

log = logging.getLogger(__name__)

KEEP = 2
"""The newest may be torn by a dying disk; then the one before it counts."""


def save_checkpoint(folder: Path, number: int, state: dict[str, Any]) -> Path:
    """Write `state` as checkpoint `number` (rising) and remove all but the newest two; return its path."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    path = _path(folder, number)
    with replacing(path) as temp, open(temp, "xb") as file:
        file.write(hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    for old in [*_newest_first(folder)[KEEP:], *folder.glob(".*.ckpt")]:  # only one process writes here
        old.unlink()
    return path


def latest_checkpoint(folder: Path) -> int | None:
    """Return the number of the newest whole checkpoint in a folder, None without one; a torn file is removed."""
    for path in _newest_first(folder):
        if _content(path) is not None:
            return int(path.stem)
        log.warning("%s is torn: going on from the checkpoint before it", path)
        path.unlink()  # else it would count as one of those that are kept
    return None


def load_checkpoint(folder: Path, number: int) -> dict[str, Any]:
    """Return the state of a whole checkpoint; `StoreError` when this machine does not see it."""
    path = _path(folder, number)
    content = _content(path) if path.is_file() else None
    if content is None:
        raise StoreError(f"{path} cannot be read on {socket.gethostname()}: write to a folder that all nodes share")
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:012d}.ckpt"


def _content(path: Path) -> bytes | None:
    digest, _, content = path.read_bytes().partition(b"\n")
    return content if hashlib.sha256(content).hexdigest().encode() == digest else None


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.ckpt"), reverse=True)  # `*` would take the names of unfinished ones too
