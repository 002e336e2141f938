"""The lease of a run folder, which one driver holds: epochs, a heartbeat, and a fence.

leases/000001.json   the driver of epoch 1; the modification time is its heartbeat     create-if-absent
leases/000001.done   this driver has finished

A driver holds the highest epoch. Another driver takes the next epoch once the holder has finished, has certainly ended,
or has sent no heartbeat for `SILENT_S` seconds of the other driver's clock: clocks are never compared. A driver that
was suspended or cut off finds a higher epoch before it writes a file that only a driver may write, and stops. Tiles
need no fence: workers claim them create-if-absent, and two attempts have the same bytes.
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
from ..files import beside, read_whole, sync_folder, translate_write_errors, write_durably
from .folder import RunFolder

log = logging.getLogger(__name__)

BEAT_S = 2.0
SILENT_S = 30.0
"""Another driver takes over after so long without a heartbeat: many times `BEAT_S`, because a disk may be slow."""


@dataclass(frozen=True)
class Lease:
    """The right to write to a run folder, as long as no higher epoch exists."""

    folder: RunFolder
    epoch: int

    def check(self) -> None:
        """Raise `LeaseLost` when another driver has taken over."""
        if (highest := newest_epoch(self.folder)) != self.epoch:
            raise LeaseLost(
                f"{self.folder.path}: another driver has taken over (epoch {highest}; this driver had {self.epoch}) "
                f"after this driver sent no heartbeat for {SILENT_S:g} s: the other driver continues the run"
            )


@contextmanager
def hold_lease(folder: RunFolder) -> Iterator[Lease]:
    """Hold the lease of a run folder during the block, with a heartbeat; afterwards another driver can take it at once.

    Raises `LeaseHeld`, which names the holder, at the next heartbeat of a holder.
    """
    folder.make()
    with translate_write_errors(folder.leases):
        folder.leases.mkdir(exist_ok=True)
        probe(folder.leases)
        lease = _take(folder)
        _remove_earlier(lease)
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
    """Return the highest epoch of a folder, 0 if there is none."""
    return max((int(path.stem) for path in folder.leases.glob("*.json") if path.stem.isdecimal()), default=0)


def _path(lease: Lease) -> Path:
    return lease.folder.leases / f"{lease.epoch:06d}.json"


def _beat(path: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT_S):
        try:
            os.utime(path)  # the time of the store's clock
        except FileNotFoundError:  # another driver has taken over and removed it
            return
        except OSError as error:  # the disk may be away for a moment: the next heartbeat may succeed
            log.warning("no heartbeat at %s: %s", path, error)


def _take(folder: RunFolder) -> Lease:
    """Wait until no driver holds the highest epoch, then take the next epoch and return its lease."""
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
    """Wait until the holder of a lease has finished, ended, or is silent; raise `LeaseHeld` at its next heartbeat."""
    path, since = _path(held), time.monotonic()
    holder, beat = _read(path), _last_beat(path)
    while not (path.with_suffix(".done").exists() or _is_dead(holder)):
        if time.monotonic() - since > SILENT_S:
            log.warning("taking over from %s, which sent no heartbeat for %g s", _describe(holder), SILENT_S)
            return
        if _last_beat(path) != beat:
            raise LeaseHeld(
                f"{held.folder.path} is in use by {_describe(holder)}: wait for it, or give another output folder"
            )
        time.sleep(BEAT_S / 10)


def _last_beat(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:  # a driver with a still higher epoch has removed it
        return -1


def _remove_earlier(lease: Lease) -> None:
    """Remove the leases of earlier epochs; a driver that still holds one finds the higher epoch."""
    for path in lease.folder.leases.iterdir():
        if path.stem.isdecimal() and int(path.stem) < lease.epoch:
            path.unlink(missing_ok=True)


def _describe(holder: dict[str, Any]) -> str:
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}"


def _read(path: Path) -> dict[str, Any]:
    """Return the host and the process that hold a lease, as `_take` writes them; {} where the lease is damaged."""
    try:
        holder = json.loads(read_whole(path))
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    is_valid = (
        isinstance(holder, dict)
        and all(isinstance(holder.get(name, ""), str) for name in ("host", "boot", "pid_namespace", "start"))
        and type(holder.get("pid")) is int
        and 0 < holder["pid"] < 2**31
    )
    return holder if is_valid else {}


def _is_dead(holder: dict[str, Any]) -> bool:
    """Return whether the process of a holder has certainly ended, which only the same process table can show.

    Hosts may share a name, and containers may share the name of their host. Where the boot or the PID namespace
    differs, the answer is False, and the heartbeat decides.
    """
    table = {"host": socket.gethostname(), **_process_table()}
    if any(holder.get(name) != value for name, value in table.items()):
        return False
    pid = int(holder["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs, and belongs to another user
        pass
    return "" not in (holder.get("start", ""), start := _start(pid)) and holder["start"] != start


def _process_table() -> dict[str, str]:
    """Return the identity of the process table: the boot of the host, and the PID namespace."""
    return {"boot": _text("/proc/sys/kernel/random/boot_id"), "pid_namespace": _link("/proc/self/ns/pid")}


def _start(pid: int) -> str:
    """Return when a process started, in ticks since boot, because process ids are reused; "" where unknown.

    It is unknown where /proc belongs to another PID namespace, whose process ids mean other processes.
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
