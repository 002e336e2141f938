"""Claiming a name: of several processes, on one host or many, exactly one creates a file, and never a part of one.

Where hard links work, the whole file is written under a temporary name beside the target and linked to it: the link
succeeds once. Some file systems have no hard links (SMB, exFAT, some FUSE). There the claimant creates a marker,
`.NAME.claim`, exclusively, renames its file to the target, and removes the marker. If it dies in between, the marker
stays without a target: after `SILENT_S` another claimant takes the marker away and claims the name itself.
"""

from __future__ import annotations

import errno
import logging
import os
import time
import uuid
from pathlib import Path

from .errors import StoreError
from .files import NOT_SUPPORTED, beside, sync_folder, translate_write_errors, write_durably

log = logging.getLogger(__name__)

NO_LINKS = (*NOT_SUPPORTED, errno.EPERM, errno.EXDEV, errno.EMLINK)
"""What file systems without hard links answer to a link: Linux documents EPERM, AFS gives EXDEV, FUSE ENOSYS."""
SILENT_S = 30.0
"""A marker that stays for so long without a target belongs to a claimant that has died."""
POLL_S = 0.05


def claim(temp: Path, target: Path) -> bool:
    """Return whether this attempt created `target` from `temp`, a file beside it; nothing is ever replaced.

    If NFS resends the request, `link` may fail although it succeeded; the link count decides.
    """
    try:
        os.link(temp, target)
    except FileExistsError:
        return os.stat(temp).st_nlink == 2
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _claim_by_marker(temp, target)
    return True


def marker_of(target: Path) -> Path:
    """Return the marker of a claim that is under way."""
    return target.parent / f".{target.name}.claim"


def _claim_by_marker(temp: Path, target: Path) -> bool:
    marker, token = marker_of(target), uuid.uuid4().hex.encode()
    while not target.exists():
        try:
            write_durably(marker, token)
        except FileExistsError:
            _await_claimant(marker, target)
            continue
        if target.exists() or not _holds(marker, token):  # claimed before, or passed over since
            _remove_own(marker, token)
            return False
        os.replace(temp, target)
        sync_folder(target.parent)
        _remove_own(marker, token)
        return True
    return False


def _await_claimant(marker: Path, target: Path) -> None:
    """Return when the target is there, or the marker is not; take away a marker whose claimant has died."""
    since, token = time.monotonic(), _read(marker)
    while token is not None and _holds(marker, token) and not target.exists():
        if time.monotonic() - since > SILENT_S:
            log.warning("%s: the process that began to claim it gave no sign for %g s: passed over", target, SILENT_S)
            _take_away(marker)
            return
        time.sleep(POLL_S)


def _take_away(marker: Path) -> None:
    """Remove a marker; of several that come at once, one renames it, and the others find it gone."""
    aside = beside(marker)
    try:
        os.rename(marker, aside)
    except FileNotFoundError:
        return
    aside.unlink(missing_ok=True)


def _read(marker: Path) -> bytes | None:
    try:
        return marker.read_bytes()
    except FileNotFoundError:
        return None


def _holds(marker: Path, token: bytes) -> bool:
    return _read(marker) == token


def _remove_own(marker: Path, token: bytes) -> None:
    if _holds(marker, token):
        marker.unlink(missing_ok=True)


def probe(folder: Path) -> str:
    """Return how names are claimed in a folder: "links" or "markers". Raise `StoreError` where neither works."""
    first, second = beside(folder / "probe"), beside(folder / "probe")
    with translate_write_errors(folder):
        write_durably(first, b"1")
    try:
        if _links(first, second):
            return "links"
        missing = _missing_for_markers(first, second)
    finally:
        for path in (first, second):
            path.unlink(missing_ok=True)
    if missing:
        raise StoreError(
            f"{folder}: this file system has no hard links and {missing}, so that two processes could overwrite each "
            "other's results: choose an output folder on another file system"
        )
    log.info("%s: this file system has no hard links; names are claimed by markers", folder)
    return "markers"


def _links(first: Path, second: Path) -> bool:
    with translate_write_errors(first.parent):
        try:
            os.link(first, second)
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            return False
    return True


def _missing_for_markers(first: Path, second: Path) -> str:
    """Return what a file system lacks that markers need, or ""."""
    try:
        write_durably(first, b"2")
    except FileExistsError:
        pass
    else:
        return "creates a file that exists already (no exclusive creation)"
    try:
        os.replace(first, second)
    except OSError as error:
        return f"cannot rename a file ({error.strerror})"
    return ""
