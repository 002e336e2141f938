"""Commits of tiles: written once, journalled, verified, and withdrawn to classify a tile again."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..claims import claim
from ..errors import CommitConflict, StoreError
from ..files import (
    beside,
    parquet_bytes,
    read_whole,
    sha256_of,
    sync_folder,
    translate_write_errors,
    write_durably,
)
from ..images.identity import FileRecord
from ..regular import open_regular, regular_opener
from ..schema import FOOTER_KEY, class_counts, classes_of, conform, flag_counts, flagged
from ..text import counted
from ..types import Json
from .folder import RunFolder

log = logging.getLogger(__name__)

FILE_FIELDS = {"size_bytes", "mtime_ns", "inode", "tag", "data_offset", "header_sha256"}
"""Fields that the record of an image file must have (see identity.py)."""


@dataclass(frozen=True)
class Commit:
    """A committed tile. `file` is relative to the run folder; `classes` and `flags` count rows by class and by flag.

    `fault` is the reason of a quarantined tile, whose rows have no class. `bad_values` counts, by column, the values of
    the catalogue that were read as missing. `images` is the record of the image files of the tile (see records.py).
    """

    coadd_id: str
    file: str
    sha256: str
    nbytes: int
    rows: int
    n_flagged: int
    classes: dict[str, int]
    flags: dict[str, int]
    fault: str | None = None
    bad_values: dict[str, int] = field(default_factory=dict)
    images: FileRecord = field(default_factory=dict)


def commit_tile(
    folder: RunFolder,
    coadd_id: str,
    table: pa.Table,
    fault: str | None = None,
    bad_values: Mapping[str, int] | None = None,
    images: FileRecord | None = None,
) -> Commit:
    """Write the rows of a tile to disk exactly once, and return the commit.

    The file is written under a temporary name, read back, and claimed under its name, which succeeds once. A later
    attempt with the same bytes returns the first commit; other bytes raise `CommitConflict`. A claimed file that is
    unreadable after a power cut is replaced. Raises `StoreError` where the rows do not fit the schema, or the disk is
    full.
    """
    target = folder.tile_path(coadd_id)
    rows = conform(table)
    counts: Json = {"rows": len(rows), "n_flagged": flagged(rows)}
    counts |= {"classes": class_counts(rows, classes_of(rows.schema)), "flags": flag_counts(rows)}
    footer: Json = {"coadd_id": coadd_id, **counts, "fault": fault, "bad_values": dict(bad_values or {})}
    footer["images"] = images or {}
    data = parquet_bytes(rows, {FOOTER_KEY: json.dumps(footer, sort_keys=True).encode()})
    digest = hashlib.sha256(data).hexdigest()
    commit = Commit(file=_relative(target), sha256=digest, nbytes=len(data), **footer)
    temp = beside(target)
    try:
        with translate_write_errors(target):
            write_durably(temp, data)
            if _footer(temp) != footer:
                raise StoreError(f"{temp} reads back differently from what was written: check the disk")
            return _claim_tile(temp, target, commit)
    finally:
        temp.unlink(missing_ok=True)


def _claim_tile(temp: Path, target: Path, commit: Commit) -> Commit:
    """Give a written file the name of its tile, and return the commit; it may be the one of an earlier attempt."""
    winner = commit if claim(temp, target) else _resolve_claimed(temp, target, commit)
    sync_folder(target.parent)
    return winner


def _relative(tile: Path) -> str:
    return f"{tile.parent.name}/{tile.name}"


def _resolve_claimed(temp: Path, target: Path, mine: Commit) -> Commit:
    """Return the commit of a tile whose file exists: the existing commit, or `mine` if the file is damaged."""
    theirs = read_commit(target)
    if theirs is None:
        os.replace(temp, target)
        return mine
    if theirs.sha256 != mine.sha256 and theirs.images == mine.images:  # other images: the first commit is valid
        raise CommitConflict(
            f"tile {mine.coadd_id} is committed as {target} with sha256 {theirs.sha256[:12]} and "
            f"{theirs.rows} rows; another attempt gave {mine.sha256[:12]} and {mine.rows} rows: the "
            "classification is not deterministic. Remove that file to take the new rows, or use one kind of "
            "device for a run"
        )
    return theirs


def _footer(path: Path) -> Json | None:
    """Return the fields of a commit in the footer of a tile's file, or None where the file is incomplete."""
    try:
        with open_regular(path) as stream:
            metadata = pq.read_metadata(stream)
    except pa.ArrowInvalid:
        return None
    except OSError as error:
        if error.errno:  # an error without a number comes from the Parquet reader: the footer is incomplete
            raise StoreError(f"{path} cannot be read ({error.strerror}): check the disk, or remove it") from error
        return None
    try:
        fields = json.loads((metadata.metadata or {}).get(FOOTER_KEY, b"{}"))
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) and fields.get("rows") == metadata.num_rows else None


def read_commit(path: Path) -> Commit | None:
    """Return the commit in a tile's file, hashed; None where the file is incomplete or has the rows of another tile."""
    fields = _footer(path)
    if fields is None or fields.get("coadd_id") != path.stem:
        return None
    return _commit_of(fields | {"file": _relative(path), "sha256": sha256_of(path), "nbytes": path.stat().st_size})


def existing_commit(folder: RunFolder, coadd_id: str) -> Commit | None:
    """Return the commit of a tile that is on disk, or None."""
    path = folder.tile_path(coadd_id)
    return read_commit(path) if path.exists() else None


def committed(folder: RunFolder) -> dict[str, Commit]:
    """Return the commits of a run by tile, sorted. The tiles' files decide, not the journal.

    A file with the size in the journal is not opened again; any other file is read and hashed. An incomplete file is no
    commit, and its tile is classified again. A complete file whose bytes differ from the journal was changed after its
    commit: the commit of the journal is returned, and `refuse_changed` finds the difference.
    """
    events = [event for event in read_journal(folder) if event.get("event") in ("commit", "retry")]
    latest = {event["file"]: event for event in events if isinstance(event.get("file"), str)}
    commits: dict[str, Commit] = {}
    for path in sorted(folder.tiles.glob("[!.]*.parquet")):
        event = latest.get(_relative(path))
        recorded = _commit_of(event) if event is not None and event["event"] == "commit" else None
        if recorded is None or recorded.nbytes != path.stat().st_size:
            recorded = _changed_commit(path, recorded) if recorded else read_commit(path)
        if recorded is not None:
            commits[recorded.coadd_id] = recorded
    return commits


def _changed_commit(path: Path, recorded: Commit) -> Commit | None:
    """Return the recorded commit of a tile whose file has another size; None where the file is incomplete."""
    if _footer(path) is None:
        log.warning("%s is damaged: check the disk; the tile is classified again", path)
        return None
    return recorded


def retry_quarantined(folder: RunFolder) -> list[str]:
    """Withdraw the commits of quarantined tiles, so that they are classified again; return their names.

    Only the driver that holds the lease calls this. If it is killed, the commits withdrawn so far stay withdrawn.
    """
    faulty = [commit for commit in committed(folder).values() if commit.fault]
    for commit in faulty:
        uncommit(folder, commit, str(commit.fault))
    return [commit.coadd_id for commit in faulty]


def uncommit(folder: RunFolder, commit: Commit, reason: str) -> None:
    """Withdraw a commit, so that the tile is classified again. Only the driver that holds the lease calls this."""
    append_journal(folder, "retry", file=commit.file, coadd_id=commit.coadd_id, fault=reason)
    with translate_write_errors(folder.tiles):
        folder.tile_path(commit.coadd_id).unlink(missing_ok=True)
        sync_folder(folder.tiles)


def refuse_changed(folder: RunFolder, commits: Iterable[Commit]) -> None:
    """Raise `StoreError` for tiles whose files changed after the commit; withdraw these commits."""
    changed = [c for c in commits if sha256_of(folder.path / c.file) != c.sha256]
    for commit in changed:
        uncommit(folder, commit, "changed on disk")
    if changed:
        names = ", ".join(c.coadd_id for c in changed[:5])
        raise StoreError(
            f"{folder.tiles}: changed after their commit: {counted(len(changed), 'tile')} ({names}); nothing was "
            "published. These commits are withdrawn: check the disk, then run the same command again"
        )


def _commit_of(values: Json) -> Commit | None:
    """Return the commit that a footer or an event of the journal describes; None where a value is invalid."""
    counts = [values.get(name) for name in ("classes", "flags", "bad_values")]
    is_valid = (
        all(isinstance(values.get(name), str) for name in ("coadd_id", "file", "sha256"))
        and all(_is_count(values.get(name)) for name in ("nbytes", "rows", "n_flagged"))
        and all(isinstance(count, dict) and all(map(_is_count, count.values())) for count in counts)
        and isinstance(values.get("fault", 0), str | None)
        and _is_file_record(values.get("images"))
    )
    return Commit(**{name: values[name] for name in Commit.__dataclass_fields__}) if is_valid else None


def _is_file_record(value: object) -> bool:
    return isinstance(value, dict) and all(
        isinstance(fields, dict) and FILE_FIELDS <= set(fields) for fields in value.values()
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def append_journal(folder: RunFolder, event: str, **fields: Any) -> None:
    """Append an event to the journal and wait for the disk. Only the driver does: appends of two would mix."""
    line = json.dumps({"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **fields})
    with translate_write_errors(folder.journal_path), open(folder.journal_path, "ab+", opener=regular_opener) as file:
        is_torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
        file.write((b"\n" if is_torn else b"") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def journal_commit(folder: RunFolder, commit: Commit) -> None:
    """Append a commit to the journal."""
    append_journal(folder, "commit", **asdict(commit))


def read_journal(folder: RunFolder) -> list[Json]:
    """Return the events of the journal in order, without lines that a killed driver left incomplete."""
    if not folder.journal_path.exists():
        return []
    events = []
    for line in read_whole(folder.journal_path).splitlines():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):  # an incomplete line: the file of its tile has the same facts
            continue
        if isinstance(event, dict):
            events.append(event)
    return events
