"""Which image files a committed tile was made from: recorded at its commit, compared when the run is resumed.

A record holds, for each file by its name below the archive, what `identity.file_record` gives and, of local files, the
SHA-256 of the pixels. A local file of the recorded size and time is the recorded one, and is not opened. Any other is
compared by its header and its pixels, since a copy has new times and the same content; a remote file by its ETag.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import TileFault
from ..types import Tile
from .atlas import AtlasArchive
from .identity import FileRecord, changed_fault, file_record, stamp_change


@dataclass(frozen=True)
class Comparison:
    """What became of the files of a committed tile: why they are others, or "" and their record as they are now."""

    coadd_id: str
    difference: str
    record: FileRecord


def record_files(archive: AtlasArchive, tile: Tile) -> FileRecord:
    """Return the record of the files of a tile; raise the `TileFault` of one that changed since the tile was opened."""
    record = file_record(tile)
    for part in local_sets(tile):
        for name, digest in archive.pixel_sha256(part).items():
            record[name]["pixel_sha256"] = digest
    return record


def local_sets(tile: Tile) -> Iterator[Tile]:
    """Yield the image sets of a tile whose files have no ETag, which names their content."""
    yield from (part for part in tile.image_sets if part.files and not any(file.stamp.tag for file in part.files))


def replaced_fault(first: Tile, other: Tile) -> TileFault:
    """Return the fault of a tile whose files are others in one strip than in another."""
    for band, old, new in zip(first.bands, first.files, other.files, strict=False):
        if old != new:
            return changed_fault(first, band, old.name, stamp_change(old.stamp, new.stamp) or "it has another header")
    return TileFault(first.coadd_id, "it has other images than before", None, "changed")


def is_untouched(root: str, record: FileRecord) -> bool:
    """Return whether all files of a record are local and have the recorded size and time."""
    try:
        found = [os.stat(os.path.join(root, name)) for name in record]
    except OSError:  # moved, removed, or remote
        return False
    facts = ((fields["size_bytes"], fields["mtime_ns"]) for fields in record.values())
    return all((f.st_size, f.st_mtime_ns) == fact for f, fact in zip(found, facts, strict=True))


def compare_files(archive: AtlasArchive, bands: tuple[str, ...], coadd_id: str, record: FileRecord) -> Comparison:
    """Return whether a tile of the archive still has the files of a record, wherever they are now."""
    if is_untouched(getattr(archive, "root", ""), record):
        return Comparison(coadd_id, "", record)
    try:
        tile = archive.tile(coadd_id, bands)
        now = file_record(tile)
        if difference := _content_difference(record, now):
            return Comparison(coadd_id, difference, now)
        if all(_is_same(record, fields) for fields in now.values()):
            return Comparison(coadd_id, "", record)
        now = record_files(archive, tile)
    except TileFault as fault:
        return Comparison(coadd_id, str(fault), record)
    return Comparison(coadd_id, _pixel_difference(record, now), now)


def _by_header(record: FileRecord) -> dict[str, tuple[str, dict[str, Any]]]:
    return {fields["header_sha256"]: (name, fields) for name, fields in record.items()}


def _content_difference(old: FileRecord, new: FileRecord) -> str:
    """Return which files of a record have another header or size now."""
    found = _by_header(new)
    lost = [
        name
        for header, (name, fields) in _by_header(old).items()
        if header not in found or found[header][1]["size_bytes"] != fields["size_bytes"]
    ]
    return f"{', '.join(lost)} changed (another header or size)" if lost else ""


def _is_same(old: FileRecord, fields: dict[str, Any]) -> bool:
    """Return whether a file with a known header has the recorded time or ETag."""
    _, before = _by_header(old)[fields["header_sha256"]]
    return (before["tag"], before["mtime_ns"]) == (fields["tag"], fields["mtime_ns"])


def _pixel_difference(old: FileRecord, new: FileRecord) -> str:
    """Return which files of a record have other pixels now, or pixels that were not recorded."""
    before = _by_header(old)
    others = []
    for header, (name, fields) in _by_header(new).items():
        known, found = before[header][1].get("pixel_sha256"), fields.get("pixel_sha256")
        if known is None and not _is_same(old, fields):
            others.append(f"{name} (another ETag or place, and its pixels were not recorded)")
        elif known != found:
            others.append(f"{name} (other pixels)")
    return f"{', '.join(others)} changed" if others else ""
