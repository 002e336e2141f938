"""`AtlasArchive` reads Atlas tiles from any image source, and checks headers and pixels. `open_archive` makes one.

A source (`source.py`) returns names and bytes. This module turns the bytes into tiles and pixels, and raises the faults
of a tile. Every read compares the file with the one with which the tile was opened: by its stamp, and by its header
unless the stamp has a `tag`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import entry_points
from itertools import chain
from typing import TypeVar, cast

import numpy as np

from ..errors import ArchiveError, ConfigError, TileFault
from ..locations import refuse_logins, without_secrets
from ..types import BANDS, Float32, ImageFile, Tile
from .atlas import AtlasImage, RejectedFile
from .checks import check_pixels, check_rows, checksum_fault
from .identity import changed_fault, image_file, stamp_change
from .layout import Positions
from .local import open_local
from .remote import open_remote
from .source import Head, ImageSource, IndexedSource, SourceChanged, image_of, read_head, unreadable
from .tiles import (
    combine,
    each_band,
    footprints_of,
    image_sets,
    missing_fault,
    refused_text,
    require_image,
    tile_of,
)

T = TypeVar("T")

OpenSource = Callable[[str, tuple[str, ...]], ImageSource]
SOURCES: dict[str, OpenSource] = {
    "file": open_local,
    "http": open_remote,
    "https": open_remote,
    "s3": open_remote,
}
"""Scheme of a location -> the function (location, bands) that returns its source. Locations without a scheme are files.

Installed packages add schemes with entry points of the group `ENTRY_POINTS`."""
ENTRY_POINTS = "skyclass.image_sources"

CONFIRMATIONS = 2
"""Reads that must agree before a file counts as damaged or changed: a single answer of a server may be wrong."""
HASH_ROWS = 512
"""Rows in one read when pixels are hashed: 8 MB of a complete tile."""

_heads: dict[tuple[ImageSource, str], Head | None] = {}
"""Headers of remote files that this process has read, None for a file that does not exist."""
MAX_HEADS = 512


@dataclass(frozen=True)
class AtlasArchive:
    """The Atlas tiles of an image source, in `bands`. Each process opens its own archive with `open_archive`.

    Every method raises `ArchiveDown` if a remote source does not answer.
    """

    source: ImageSource
    bands: tuple[str, ...]

    @property
    def root(self) -> str:
        """The location of the source, below which the names of files are."""
        return self.source.location

    def tile(self, coadd_id: str, bands: tuple[str, ...], verify: bool = False) -> Tile:
        """Return the tile as the headers of `bands` describe it.

        With `verify`, headers that this process remembers are read again, so that the tile has the present files. Files
        that are not remote are read completely and compared with the `.md5` files beside them, which IRSA publishes, if
        they exist. Raises `TileFault` with the reason; its `kind` is "missing_tile", "missing_band" or "bad".
        """
        if not bands:
            raise ValueError("bands is empty: give at least one band")
        images = each_band(bands, lambda band: self._images(coadd_id, band, verify))
        sets = image_sets(images, lambda lacking: self._refused(coadd_id, lacking))
        for image in chain.from_iterable(sets) if verify and not self.source.is_remote else ():
            if fault := checksum_fault(self.source, image):
                raise TileFault(coadd_id, f"{image.path} {fault}: fetch it again", image.band)
        return combine([tile_of(images) for images in sets])

    def bands_of(self, coadd_id: str) -> tuple[str, ...]:
        """Return those of the four bands in which the tile has a file; () if the source has no such tile."""
        return tuple(band for band in BANDS if any(map(self._exists, self.source.names(coadd_id, band))))

    def read_rows(self, tile: Tile, band: str, start: int, stop: int) -> Float32:
        """Return rows `start:stop` (0-based) of a band: (rows, columns) native float32 DN.

        Raises `TileFault` if the file cannot be read, if it changed after `tile` was opened, or if a row has more than
        `MAX_ZERO_FRACTION` exact zeros. Raises `ValueError` if the rows are not on the tile.
        """
        pixels = self._read(tile, band, start, stop, partial(_decode, shape=(stop - start, tile.shape[1])))
        check_pixels(tile, band, start, pixels)
        return pixels

    def pixel_sha256(self, tile: Tile, start: int = 0, stop: int | None = None) -> dict[str, str]:
        """Return the SHA-256 of the pixels of rows `start:stop`, by the names of the files of the tile.

        The pixels are the bytes of the file, big-endian float32: equal digests mean equal rows in any copy. Raises
        `TileFault` like `read_rows`, but does not check the values of pixels.
        """
        return {
            image_file(s, band).name: self._band_sha256(s, band, start, s.shape[0] if stop is None else stop)
            for s in tile.image_sets
            for band in s.bands
        }

    def list_tiles(self, near: Positions | None = None) -> list[Tile]:
        """Return the footprints of the tiles, sorted by name, to assign positions to.

        Tiles that lack a band are included; `bands` of a footprint are those whose headers were read. With `near` (ra,
        dec in degrees), tiles that hold none of the positions may be left out, which saves their headers. A tile
        without a good header is left out, because its footprint is unknown.
        """
        images = map(self._first_good, self.source.footprints(self.bands, near))
        return footprints_of(image for image in images if image is not None)

    # --- headers ---

    def _images(self, coadd_id: str, band: str, fresh: bool) -> list[AtlasImage]:
        """Return the images of a band; `TileFault` if there are none, or if one is damaged or of another tile."""
        files = [self._describe(name, fresh) for name in self.source.names(coadd_id, band)]
        present = [file for file in files if file is not None]
        if not present:
            have = self.bands_of(coadd_id)
            refused = self._refused(coadd_id, (band,) if have else self.bands)
            raise missing_fault(self.root, coadd_id, band, have, refused)
        return [require_image(file, coadd_id, band) for file in present]

    def _refused(self, coadd_id: str, bands: Sequence[str]) -> str:
        """Return the end of a reason that names the refused files that may be of these bands of a tile, or ""."""
        source = self.source
        return refused_text(source.refused(coadd_id, bands), self.root) if isinstance(source, IndexedSource) else ""

    def _describe(self, name: str, fresh: bool = False) -> AtlasImage | RejectedFile | None:
        """Return the image in a file, why it is rejected, or None if there is no such file."""
        file: AtlasImage | RejectedFile | None = None
        for attempt in range(CONFIRMATIONS):
            try:
                head = self._head(name, fresh or attempt > 0)
                file = head and image_of(self.source, name, head)
            except OSError as error:
                file = unreadable(self.source, name, error)
            if not isinstance(file, RejectedFile):
                break
        return file

    def _first_good(self, names: Sequence[str]) -> AtlasImage | None:
        images = (image for image in map(self._describe, names) if isinstance(image, AtlasImage))
        return next(images, None)

    def _head(self, name: str, fresh: bool = False) -> Head | None:
        """Return the header of a file, None if the file does not exist; `fresh` reads a remembered header again."""
        key = (self.source, name)
        if self.source.is_remote and not fresh and key in _heads:
            return _heads[key]
        try:
            head = read_head(self.source, name)
        except FileNotFoundError:
            head = None
        if self.source.is_remote:
            if len(_heads) >= MAX_HEADS:
                _heads.clear()
            _heads[key] = head
        return head

    def _exists(self, name: str) -> bool:
        try:
            return self._head(name) is not None
        except OSError:
            return True

    # --- pixels ---

    def _band_sha256(self, tile: Tile, band: str, start: int, stop: int) -> str:
        check_rows(tile, start, stop)
        digest = hashlib.sha256()
        for first in range(start, stop, HASH_ROWS):
            digest = self._read(tile, band, first, min(first + HASH_ROWS, stop), partial(_updated, digest))
        return digest.hexdigest()

    def _read(self, tile: Tile, band: str, start: int, stop: int, convert: Callable[[Iterator[memoryview]], T]) -> T:
        """Return the result of `convert` for the bytes of rows `start:stop` of a band; `TileFault` if that fails.

        `convert` may be called again, if the file differs from that of the tile at the first attempt.
        """
        check_rows(tile, start, stop)
        file = image_file(tile, band)
        first, last = (file.data_offset + 4 * tile.shape[1] * row for row in (start, stop))
        path, difference = f"{self.root}/{file.name}", ""
        for _ in range(CONFIRMATIONS):
            try:
                if not file.stamp.tag:  # a tag identifies the content, headers included
                    self._check_header(file)
                return convert(self._pieces(file, first, last))
            except FileNotFoundError:
                difference = "it was removed"
            except SourceChanged as error:
                difference = str(error)
            except OSError as error:
                reason = f"{path} cannot be read ({error.strerror or error}): check the disk, fetch it again"
                raise TileFault(tile.coadd_id, reason, band) from error
        raise changed_fault(tile, band, path, difference)

    def _check_header(self, file: ImageFile) -> None:
        """Raise `SourceChanged` if a file has another header than when its tile was opened."""
        if _updated(hashlib.sha256(), self._pieces(file, 0, file.data_offset)).hexdigest() != file.header_sha256:
            raise SourceChanged("it has another header")

    def _pieces(self, file: ImageFile, start: int, stop: int) -> Iterator[memoryview]:
        """Yield bytes `start:stop` of a file; `SourceChanged` if its stamp is not the one with which it was opened."""
        n_bytes = 0
        for data, stamp in self.source.read(file.name, start, stop):
            if difference := stamp_change(file.stamp, stamp):
                raise SourceChanged(difference)
            n_bytes += len(data)
            yield data
        if n_bytes < stop - start:
            raise OSError("the file ended early")


def open_archive(location: str, bands: Sequence[str]) -> AtlasArchive:
    """Return the archive at a location, whose scheme selects the kind of source (`SOURCES`).

    A folder holds the layout of the archive, below it or its parents, or any Atlas files. At `s3://bucket/prefix` and
    `https://host/path` the layout is expected, and nothing is requested yet. Raises `ConfigError` for unknown bands,
    and `ArchiveError` if the location is of no known kind or holds no usable image.
    """
    wanted = tuple(bands)
    if not wanted or not set(wanted) <= set(BANDS) or len(set(wanted)) < len(wanted):
        raise ConfigError(f"bands are {wanted}: give one or more of {', '.join(BANDS)}, each once")
    location = str(location)
    refuse_logins({"images": location})
    scheme, separator, _ = location.partition("://")
    open_source = _opener(scheme if separator else "file")
    if open_source is None:
        raise ArchiveError(
            f"images at {without_secrets(location)}: give a folder, s3://bucket/prefix or https://host/path; tiles "
            f"elsewhere must be copied first, and that folder given, unless a package with an image source for "
            f"{scheme}:// is installed on this machine"
        )
    return AtlasArchive(open_source(location, wanted), wanted)


def _opener(scheme: str) -> OpenSource | None:
    """Return the function that opens a source, from `SOURCES` or from an installed package."""
    if scheme in SOURCES:
        return SOURCES[scheme]
    for entry in entry_points(group=ENTRY_POINTS, name=scheme):
        try:
            return cast(OpenSource, entry.load())
        except (ImportError, AttributeError) as error:
            raise ArchiveError(
                f"the image source {scheme}:// is {entry.value!r}, which cannot be imported ({error}): install or "
                "correct its package"
            ) from error
    return None


# --- bytes -----------------------------------------------------------------------------------------


def _decode(pieces: Iterator[memoryview], shape: tuple[int, int]) -> Float32:
    """Return big-endian bytes as a native array; each piece is converted while it is in the cache."""
    pixels: Float32 = np.empty(shape, np.float32)
    flat, at = pixels.reshape(-1), 0
    for piece in pieces:
        values = np.frombuffer(piece, ">f4")
        flat[at : at + len(values)] = values
        at += len(values)
    return pixels


def _updated(digest: hashlib._Hash, pieces: Iterator[memoryview]) -> hashlib._Hash:
    """Return a copy of a digest, updated with the bytes of the pieces."""
    digest = digest.copy()
    for piece in pieces:
        digest.update(piece)
    return digest
