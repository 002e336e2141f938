"""The image files of a committed tile: recorded at its commit, and compared when the run is resumed.

A record has for each file, by its name below the archive, the fields of `identity.file_record` and, for local files,
the SHA-256 of the pixels. A local file with the recorded size and time is the recorded one, and is not opened. Any
other local file is compared by its header and its pixels, because a copy has a new time and the same content. A remote
file is compared by its ETag.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ..errors import TileFault
from ..types import Tile
from .archive import AtlasArchive
from .identity import FileRecord, changed_fault, file_record, stamp_change


@dataclass(frozen=True)
class Comparison:
    """How the files of a committed tile differ from their record, or "", and the record of the present files."""

    coadd_id: str
    difference: str
    record: FileRecord


def record_files(archive: AtlasArchive, tile: Tile) -> FileRecord:
    """Return the record of the files of a tile; `TileFault` if one has changed since the tile was opened."""
    record = file_record(tile)
    for image_set in local_sets(tile):
        for name, digest in archive.pixel_sha256(image_set).items():
            record[name]["pixel_sha256"] = digest
    return record


def local_sets(tile: Tile) -> Iterator[Tile]:
    """Yield the image sets of a tile whose files have no `tag` in their stamps. A tag identifies the content."""
    yield from (s for s in tile.image_sets if s.files and not any(file.stamp.tag for file in s.files))


def replaced_fault(first: Tile, other: Tile) -> TileFault:
    """Return the fault of a tile whose files differ between two of its strips."""
    for band, old, new in zip(first.bands, first.files, other.files, strict=False):
        if old != new:
            return changed_fault(first, band, old.name, stamp_change(old.stamp, new.stamp) or "it has another header")
    return TileFault(first.coadd_id, "it has other images than before", None, "changed")


def is_untouched(root: str, record: FileRecord) -> bool:
    """Return whether all files of a record are local and have the recorded size and time."""
    try:
        stats = [os.stat(os.path.join(root, name)) for name in record]
    except OSError:  # moved, removed, or remote
        return False
    recorded = [(fields["size_bytes"], fields["mtime_ns"]) for fields in record.values()]
    return [(status.st_size, status.st_mtime_ns) for status in stats] == recorded


def compare_files(archive: AtlasArchive, bands: tuple[str, ...], coadd_id: str, record: FileRecord) -> Comparison:
    """Return whether a tile of the archive still has the files of a record, at this or another location."""
    if is_untouched(archive.root, record):
        return Comparison(coadd_id, "", record)
    try:
        tile = archive.tile(coadd_id, bands)
        present = file_record(tile)
        if difference := _content_difference(record, present):
            return Comparison(coadd_id, difference, present)
        if all(_is_same(record, fields) for fields in present.values()):
            return Comparison(coadd_id, "", record)
        present = record_files(archive, tile)
    except TileFault as fault:
        return Comparison(coadd_id, str(fault), record)
    return Comparison(coadd_id, _pixel_difference(record, present), present)


def _by_header(record: FileRecord) -> dict[str, tuple[str, dict[str, Any]]]:
    return {fields["header_sha256"]: (name, fields) for name, fields in record.items()}


def _content_difference(old: FileRecord, new: FileRecord) -> str:
    """Return the files of a record that have another header or size in the other record, or ""."""
    new_files = _by_header(new)
    changed = [
        name
        for header, (name, fields) in _by_header(old).items()
        if header not in new_files or new_files[header][1]["size_bytes"] != fields["size_bytes"]
    ]
    return f"{', '.join(changed)} changed (another header or size)" if changed else ""


def _is_same(old: FileRecord, fields: dict[str, Any]) -> bool:
    """Return whether the file with this header has the recorded time and tag."""
    _, recorded = _by_header(old)[fields["header_sha256"]]
    return (recorded["tag"], recorded["mtime_ns"]) == (fields["tag"], fields["mtime_ns"])


def _pixel_difference(old: FileRecord, new: FileRecord) -> str:
    """Return the files whose pixels differ between the records, or were not recorded, or ""."""
    recorded = _by_header(old)
    changed = []
    for header, (name, fields) in _by_header(new).items():
        digest = recorded[header][1].get("pixel_sha256")
        if digest is None and not _is_same(old, fields):
            changed.append(f"{name} (another ETag or place, and its pixels were not recorded)")
        elif digest != fields.get("pixel_sha256"):
            changed.append(f"{name} (other pixels)")
    return f"{', '.join(changed)} changed" if changed else ""
