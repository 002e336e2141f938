"""An image source: names and bytes of image files. To read Atlas images from a new kind of store, write one of these.

A source knows which files belong to a tile and returns byte ranges of them. It knows nothing of FITS, pixels, faults of
tiles or checks: `AtlasArchive` does these for all sources alike. `open_archive` accepts the locations of a new
kind once a package declares it as an entry point, or `skyclass.images.archive.SOURCES` has an entry for its scheme.
`MemorySource` below is a complete example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

from ..types import FileStamp
from .atlas import BLOCK_BYTES, MAX_HEADER_BLOCKS, AtlasImage, RejectedFile, header_blocks, read_header, reject
from .layout import Positions, layout_coadd_ids, layout_footprints, layout_path, names_near

HEADER_BLOCKS = (16, 2 * MAX_HEADER_BLOCKS)
"""FITS blocks that are read in search of the end of the header: a real header has two, so 16 suffice nearly always."""


class Piece(NamedTuple):
    """Consecutive bytes of a file, a multiple of 4 unless the file ends, and the stamp of the file after the read.

    `data` is valid until the next piece is requested.
    """

    data: memoryview
    stamp: FileStamp


class SourceChanged(OSError):
    """The name of a file leads to other content than before; the message says how that was seen."""


class ImageSource(Protocol):
    """Names and bytes of Atlas image files. Every worker makes its own source from the location of the images."""

    @property
    def location(self) -> str:
        """Where the files are, for messages: `location/name` is the path or URL of a file."""
        ...

    @property
    def is_remote(self) -> bool:
        """Whether each read is a request over a network.

        If so, the process caches headers, with the source as a part of the key, and checksum files are not read.
        A remote source is therefore hashable, and differs from the source of an earlier call of its function.
        """
        ...

    def names(self, coadd_id: str, band: str) -> Sequence[str]:
        """Return the names of the images of one band of a tile: none, one or several.

        A remote source may return the expected name without checking that the file exists.
        """
        ...

    def read(self, name: str, start: int, stop: int) -> Iterator[Piece]:
        """Yield bytes `start:stop` of a file in order, in at least one piece; fewer bytes if the file ends before.

        Raises `FileNotFoundError` if there is no such file, `SourceChanged` if it was replaced, and `OSError` if it
        cannot be read.
        """
        ...

    def footprints(self, bands: Sequence[str], near: Positions | None) -> Iterable[Sequence[str]]:
        """Yield the names of the images of each footprint of a tile, one group for each footprint.

        Images of a group are alternatives, and the first readable one is used. `bands` are the bands of interest. With
        `near`, footprints that hold none of these positions may be left out.
        """
        ...


@runtime_checkable
class IndexedSource(Protocol):
    """A source that knows which of its files are refused, because it has read them all. This is optional."""

    def refused(self, coadd_id: str, bands: Sequence[str]) -> Sequence[RejectedFile]:
        """Return the refused files that may be images of the tile in these bands, the likeliest first."""
        ...


@dataclass(frozen=True, eq=False)
class MemorySource:
    """Image files in memory, in the layout of the archive: a mapping from names to contents."""

    files: Mapping[str, bytes]
    location: str = "memory:"
    is_remote: ClassVar[bool] = False

    def names(self, coadd_id: str, band: str) -> Sequence[str]:
        """Return the name in the layout if there is such a file."""
        name = layout_path(coadd_id, band)
        return (name,) if name in self.files else ()

    def read(self, name: str, start: int, stop: int) -> Iterator[Piece]:
        """Yield the bytes in one piece."""
        if name not in self.files:
            raise FileNotFoundError(name)
        content = self.files[name]
        yield Piece(memoryview(content)[start:stop], FileStamp(len(content), tag=hashlib.sha256(content).hexdigest()))

    def footprints(self, bands: Sequence[str], near: Positions | None) -> Iterable[Sequence[str]]:
        """Yield the images of each tile."""
        coadd_ids = layout_coadd_ids(self.files)
        return layout_footprints(coadd_ids if near is None else names_near(coadd_ids, near), bands)


_: type[ImageSource] = MemorySource


# --- headers ---------------------------------------------------------------------------------------


class Head(NamedTuple):
    """The header of a file, or as much of the file as shows that it has none; and the stamp of the file."""

    data: bytes
    stamp: FileStamp


def read_head(source: ImageSource, name: str) -> Head:
    """Return the header of a file; `OSError` if the file is missing or cannot be read."""
    for n_blocks in HEADER_BLOCKS:
        data, stamp = b"", FileStamp(0)
        for piece in source.read(name, 0, n_blocks * BLOCK_BYTES):
            data, stamp = data + piece.data, piece.stamp
        head = header_blocks(data)
        if len(head) < n_blocks * BLOCK_BYTES:
            break
    return Head(head, stamp)


def image_of(source: ImageSource, name: str, head: Head) -> AtlasImage | RejectedFile:
    """Return the image that a header describes, or why the file is rejected; interpreted once per process."""
    return _image_of(f"{source.location}/{name}", name, head, head.stamp.device)


@lru_cache(maxsize=512)
def _image_of(path: str, name: str, head: Head, device: int | None) -> AtlasImage | RejectedFile:
    # `device` is part of the cache's key because the equality of stamps ignores it.
    return read_header(path, name, head.data, head.stamp)


def describe(source: ImageSource, name: str) -> AtlasImage | RejectedFile:
    """Return the image in a file, or why the file is rejected."""
    try:
        return image_of(source, name, read_head(source, name))
    except OSError as error:
        return unreadable(source, name, error)


def unreadable(source: ImageSource, name: str, error: OSError) -> RejectedFile:
    """Return the rejection of a file that cannot be read."""
    reason = f"cannot be read ({error.strerror or error}): check path and permissions"
    return reject(f"{source.location}/{name}", reason)
