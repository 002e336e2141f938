"""Checkpoints: written whole or not at all, and never trusted without their digest.

A file is one line of text with the SHA-256 of what follows, then the state as torch writes it. It is read back
with `weights_only`, so nothing in it can run code. A torn file is removed, and the one before it counts.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import torch

from ..files import replacing

log = logging.getLogger(__name__)

KEEP = 2
"""The newest may be torn by a dying disk; then the one before it counts."""


def save_checkpoint(folder: Path, number: int, state: dict[str, Any]) -> Path:
    """Write `state` as checkpoint `number` (rising) and remove all but the newest two; return its path."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    path = folder / f"{number:012d}.ckpt"
    with replacing(path) as temp, open(temp, "xb") as file:
        file.write(hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    for old in [*_newest_first(folder)[KEEP:], *folder.glob(".*.ckpt")]:  # only one process writes here
        old.unlink()
    return path


def latest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Return the newest whole state in a folder, None when there is none; a torn file is told and removed."""
    for path in _newest_first(folder):
        if (state := _read(path)) is not None:
            return state
        log.warning("%s is torn: going on from the checkpoint before it", path)
        path.unlink()  # else it would count as one of those that are kept
    return None


def _read(path: Path) -> dict[str, Any] | None:
    digest, _, content = path.read_bytes().partition(b"\n")
    if hashlib.sha256(content).hexdigest().encode() != digest:
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    return state


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("[0-9]*.ckpt"), reverse=True)  # `*` would take the names of unfinished ones too
