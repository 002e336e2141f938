"""Identity of image files: the record of the files of a tile, and the fault of a file that changed.

A record is JSON: for each file, by its name below the location of the archive, the fields of its `FileStamp` and
`ImageFile`. A later run compares it with the present files (`records.py`). A copy of a file has the same size and
header, and another inode or time: then only the pixels show whether it is the same image (`AtlasArchive.pixel_sha256`).
"""

from __future__ import annotations

from typing import Any

from ..errors import TileFault
from ..types import FileStamp, ImageFile, Tile

FileRecord = dict[str, dict[str, Any]]
"""Name of a file -> `size_bytes`, `mtime_ns`, `inode`, `tag`, `data_offset` and `header_sha256`."""


def file_record(tile: Tile) -> FileRecord:
    """Return the files of a tile as JSON, without the device numbers, which differ between hosts."""
    return {file.name: _file_fields(file) for image_set in tile.image_sets for file in image_set.files}


def _file_fields(file: ImageFile) -> dict[str, Any]:
    stamp = {"size_bytes": file.stamp.size_bytes, "mtime_ns": file.stamp.mtime_ns, "inode": file.stamp.inode}
    return stamp | {"tag": file.stamp.tag, "data_offset": file.data_offset, "header_sha256": file.header_sha256}


def image_file(tile: Tile, band: str) -> ImageFile:
    """Return the file of a band; `ValueError` for a tile without this band, or without files."""
    if band not in tile.bands or len(tile.files) != len(tile.bands):
        raise ValueError(
            f"tile {tile.coadd_id} has no file of {band}, only of {', '.join(tile.bands[: len(tile.files)])}"
        )
    return tile.files[tile.bands.index(band)]


def stamp_change(old: FileStamp, new: FileStamp) -> str:
    """Return the differences between two stamps of one name, or ""; device numbers count if both are known."""
    differences = [
        f"{label} {before} is now {after}"
        for label, before, after in (
            ("size", old.size_bytes, new.size_bytes),
            ("ETag or date", old.tag, new.tag),
            ("time of change (ns)", old.mtime_ns, new.mtime_ns),
            ("inode", old.inode, new.inode),
        )
        if before != after
    ]
    if None not in (old.device, new.device) and old.device != new.device:
        differences.append(f"device {old.device} is now {new.device}")
    return ", ".join(differences)


def changed_fault(tile: Tile, band: str, path: str, difference: str) -> TileFault:
    """Return the fault of a file that is no longer the one with which the tile was opened."""
    reason = f"{path} changed during the run ({difference}): run again when nothing writes to the images"
    return TileFault(tile.coadd_id, reason, band, "changed")
