"""Checkpoints: written whole or not at all, and read only if their digest is right.

A file has one line of text with the SHA-256 of the rest, and then the state as torch writes it. It is read with
`weights_only`, so nothing in it can run code. A damaged file is removed, and the checkpoint before it is used.
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
"""Checkpoints that are kept: if the newest is damaged, the one before it is used."""


def save_checkpoint(folder: Path, number: int, state: dict[str, Any]) -> Path:
    """Write `state` as checkpoint `number` (increasing), remove all but the newest two, and return its path."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getbuffer()
    path = _path(folder, number)
    with replacing(path) as temp, open(temp, "xb") as file:
        file.write(hashlib.sha256(content).hexdigest().encode() + b"\n")
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    for old in [*_newest_first(folder)[KEEP:], *folder.glob(".*.ckpt")]:  # no other process writes into this folder
        old.unlink()
    return path


def latest_checkpoint(folder: Path) -> int | None:
    """Remove damaged checkpoints, and return the number of the newest whole one, None without one."""
    for path in _newest_first(folder):
        if _content(path) is not None:
            return int(path.stem)
        log.warning("%s is damaged: resuming from the checkpoint before it", path)
        path.unlink()  # otherwise it would count as one of the `KEEP` checkpoints
    return None


def load_checkpoint(folder: Path, number: int) -> dict[str, Any]:
    """Return the state of a checkpoint; `StoreError` if this machine cannot read it."""
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
    return sorted(folder.glob("[0-9]*.ckpt"), reverse=True)  # `*` would match unfinished files, too
