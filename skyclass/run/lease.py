"""One driver a run folder: epochs, a heartbeat, and a fence.

leases/000001.json   who drives; the time of its last change is the heartbeat     create-if-absent
leases/000001.done   that driver has left

A driver holds the highest epoch. The next one takes the epoch above it once the holder has left, is surely dead, or
has given no sign for `SILENT_S`, by the clock of who waits: clocks are never compared. A driver that was passed over
(suspended, cut off) finds a higher epoch before it writes what only a driver may write, and stops. Tiles need no such
fence: they are claimed create-if-absent, and two attempts have the same bytes.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..claims import claim, probe
from ..errors import LeaseHeld, LeaseLost
from ..files import beside, read_whole, storing, sync_folder, write_durably
from .folder import RunFolder

log = logging.getLogger(__name__)

BEAT_S = 2.0
SILENT_S = 30.0
"""A holder that was not heard for so long is passed over: many beats, for a disk may be slow."""


@dataclass(frozen=True)
class Lease:
    """The right to drive a run folder, as long as no higher epoch is there."""

    folder: RunFolder
    epoch: int

    def check(self) -> None:
        """Raise `LeaseLost` when another driver has taken over."""
        if (highest := newest_epoch(self.folder)) != self.epoch:
            raise LeaseLost(
                f"{self.folder.path}: another driver has taken over (epoch {highest}, this one had {self.epoch}) after "
                f"this one gave no sign for {SILENT_S:g} s: it goes on where this one stops"
            )


@contextmanager
def hold_lease(folder: RunFolder) -> Iterator[Lease]:
    """Give the lease of a run folder; while the block runs it is kept alive, after it others may take it at once.

    Raises `LeaseHeld`, naming the holder, after watching its heartbeat for a moment.
    """
    folder.make()
    with storing(folder.leases):
        folder.leases.mkdir(exist_ok=True)
        probe(folder.leases)
        lease = _take(folder)
        _sweep(lease)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(_path(lease), ended), daemon=True, name="skyclass-heartbeat")
    heart.start()
    try:
        yield lease
    finally:
        ended.set()
        heart.join()
        _path(lease).with_suffix(".done").touch()


def newest_epoch(folder: RunFolder) -> int:
    """Return the highest epoch that was ever taken, 0 in a new folder."""
    return max((int(path.stem) for path in folder.leases.glob("*.json") if path.stem.isdecimal()), default=0)


def _path(lease: Lease) -> Path:
    return lease.folder.leases / f"{lease.epoch:06d}.json"


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        try:
            os.utime(path)  # the time of the store's clock
        except FileNotFoundError:  # another driver has taken over and swept
            return
        except OSError as error:  # a disk that is away for a moment: the next beat may come through
            log.warning("no heartbeat at %s: %s", path, error)


def _take(folder: RunFolder) -> Lease:
    """Return the lease of the epoch above the highest, once nobody holds that."""
    pid = os.getpid()
    holder = {"host": socket.gethostname(), "pid": pid, **_process_table(), "start": _start(pid)}
    temp = beside(folder.leases / "lease")
    write_durably(temp, json.dumps(holder).encode())
    try:
        while True:
            held = Lease(folder, newest_epoch(folder))
            if held.epoch:
                _await_end(held)
            lease = Lease(folder, held.epoch + 1)
            if claim(temp, _path(lease)):
                sync_folder(folder.leases)
                return lease
    finally:
        temp.unlink(missing_ok=True)


def _await_end(held: Lease) -> None:
    """Return when the holder of a lease has left, is dead, or is silent; raise `LeaseHeld` at its next heartbeat."""
    path, since = _path(held), time.monotonic()
    holder, beat = _read(path), _last_beat(path)
    while not (path.with_suffix(".done").exists() or _is_dead(holder)):
        if time.monotonic() - since > SILENT_S:
            log.warning("%s is passed over: it gave no sign for %g s", _words(holder), SILENT_S)
            return
        if _last_beat(path) != beat:
            raise LeaseHeld(
                f"{held.folder.path} is in use by {_words(holder)}: wait for it, or give another output folder"
            )
        time.sleep(BEAT_S / 10)


def _last_beat(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # a still newer driver has swept
        return -1


def _sweep(lease: Lease) -> None:
    """Remove the leases of earlier epochs: whoever still believes in one finds a higher epoch."""
    for path in lease.folder.leases.iterdir():
        if path.stem.isdecimal() and int(path.stem) < lease.epoch:
            path.unlink(missing_ok=True)


def _words(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"


def _read(path: Path) -> dict[str, Any]:
    """Return the holder of a lease: `host`, `boot`, `start` and `pid`; nothing where the lease is damaged."""
    try:
        holder = json.loads(read_whole(path))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    is_sound = (
        isinstance(holder, dict)
        and all(isinstance(holder.get(name, ""), str) for name in ("host", "boot", "pid_namespace", "start"))
        and type(holder.get("pid")) is int
        and 0 < holder["pid"] < 2**31
    )
    return holder if is_sound else {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Return True if the holder is surely gone; its process id says so only in the process table that it belongs to.

    Hosts may share a name, and containers share that of their host: where boot or PID namespace differ, the heartbeat
    decides.
    """
    table = {"host": socket.gethostname(), **_process_table()}
    if any(holder.get(name) != value for name, value in table.items()):
        return False
    pid = int(holder["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it lives, and belongs to another user
        pass
    return "" not in (holder.get("start", ""), start := _start(pid)) and holder["start"] != start


def _process_table() -> dict[str, str]:
    """Return what tells one table of process ids from another: the boot of the host, and the PID namespace."""
    return {"boot": _text("/proc/sys/kernel/random/boot_id"), "pid_namespace": _link("/proc/self/ns/pid")}


def _start(pid: int) -> str:
    """Return when a process started, in ticks since boot, because process ids are used again; "" where unknown.

    A container may see the /proc of another PID namespace, whose numbers are other processes.
    """
    if _link("/proc/self") != str(os.getpid()):
        return ""
    return _text(f"/proc/{pid}/stat").rpartition(")")[2].split()[19] if Path(f"/proc/{pid}/stat").exists() else ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:  # not Linux
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:  # not Linux
        return ""
