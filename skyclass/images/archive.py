"""Where Atlas tiles come from: the one entrance, `open_archive`, and tiles on disk. Far ones are in `remote.py`.

A local location is either the archive's own layout (S3, IBE and local mirrors share it)

    [wise/allwise/images/p3am_cdd/]{cid[:2]}/{cid[:4]}/{cid}/{cid}-w{b}-int-3.fits

where every path is computed and nothing is listed, or any folder of Atlas FITS files, whole tiles or
cutouts of them, which is indexed once by what the headers say. At `s3://` and `https://` there
is the archive's own layout only.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ArchiveError, ConfigError, TileFault
from ..locations import refuse_logins, user_path, without_secrets
from ..regular import open_regular, read_small
from ..text import counted
from ..types import BANDS, Archive, FileStamp, Float32, Tile
from .atlas import (
    AtlasArchive,
    check_pixels,
    check_rows,
    each_band,
    layout_path,
    names_near,
    own_image,
    raise_missing,
    row_range,
    tile_of,
)
from .header import AtlasImage, Refusal, header_blocks, read_header, refuse
from .identity import changed_fault, image_file, stamp_change
from .image_sets import combine, image_sets
from .remote import LAYOUT_HINT, SCHEMES, open_remote

LAYOUT_PREFIXES = ("", *("wise/allwise/images/p3am_cdd".split("/", n)[n] for n in (3, 2, 1, 0)))
FITS_SUFFIXES = tuple(
    suffix + packed
    for suffix in (".fits", ".fit", ".fts")
    for packed in ("", ".gz", ".fz", ".bz2", ".xz", ".zst", ".z", ".zip")
)
LAYOUT_PACKED = ("", ".gz", ".fz", ".bz2")
"""What may follow the name of an image in the archive's layout: packed images are refused, with the remedy."""
READ_ROWS = 64
"""Of an image, a megabyte: they fit the cache of a core."""
HASH_BYTES = 1 << 20
PREFLIGHT_TILES = 200
"""Tiles that are opened in search of a usable one before a run begins."""
MAX_CHECKSUM_BYTES = 4096
"""Of an `.md5` file; real ones have about 70."""


# --- one file --------------------------------------------------------------------------------------


def describe(path: str) -> AtlasImage | Refusal:
    """Return what a file holds: an `AtlasImage`, or a `Refusal` with the reason.

    The header is read each time, and interpreted once per process as long as it and the file's stamp are the same.
    """
    try:
        with open_regular(path) as stream:
            stamp = _stamp(os.fstat(stream.fileno()))
            return _describe(path, header_blocks(stream), stamp, stamp.device)
    except OSError as error:
        return refuse(path, f"cannot be read ({error.strerror or error}): check path and permissions")


@lru_cache(maxsize=512)
def _describe(path: str, head: bytes, stamp: FileStamp, device: int | None) -> AtlasImage | Refusal:
    # `device` is only a part of the cache's key, because stamps are equal without it.
    return read_header(path, head, stamp)


def _stamp(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ino, device=status.st_dev)


# --- the archive -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalArchive:
    """Atlas tiles in a local folder; opens a file only when asked, so it is cheap to pickle.

    `images` is None in the archive layout, where paths are computed; for any other folder it is the
    index: (coadd_id, band, path below `root`), sorted. `refused` counts the files that were passed over.
    """

    root: str
    bands: tuple[str, ...]
    images: tuple[tuple[str, str, str], ...] | None = None
    refused: int = 0

    def tile(self, coadd_id: str, bands: tuple[str, ...], verify: bool = False) -> Tile:
        """Return the tile as the headers of `bands` describe it.

        With `verify` each file is read whole and compared with the `.md5` beside it, as IRSA publishes them, where
        there is one. Raises `TileFault` whose `kind` is "missing_tile", "missing_band" or "bad", with the reason.
        """
        if not bands:
            raise ValueError("no band was asked for")
        sets = self._image_sets(coadd_id, bands)
        for image in chain.from_iterable(sets) if verify else ():
            if fault := _checksum_fault(image.path):
                raise TileFault(coadd_id, f"{image.path} {fault}: fetch it again", image.band)
        return combine([tile_of(images, self.root) for images in sets])

    def bands_of(self, coadd_id: str) -> tuple[str, ...]:
        """Return the bands, of all four, of which the archive has a file; () if it has no such tile."""
        return tuple(band for band in BANDS if self._paths(coadd_id, band))

    def read_rows(self, tile: Tile, band: str, start: int, stop: int) -> Float32:
        """Return rows `start:stop` (0-based) of a band: (rows, columns) native float32 DN, read from first to last.

        Raises `TileFault` if the file cannot be read, is no longer the one that `tile` was made from, or has a row
        with more than `MAX_ZERO_FRACTION` exact zeros; `ValueError` if the rows are not on the tile.
        """
        check_rows(tile, start, stop)
        with self._open(tile, band) as stream:
            _seek(stream, tile, band, start)
            pixels = _read(stream, stop - start, tile.shape[1])
        check_pixels(tile, band, start, pixels)
        return pixels

    def pixel_sha256(self, tile: Tile, start: int = 0, stop: int | None = None) -> dict[str, str]:
        """Return the SHA-256 of the pixels of rows `start:stop`, by the names of the tile's files."""
        return {
            image_file(part, band).name: self._band_sha256(part, band, *row_range(part, start, stop))
            for part in tile.image_sets
            for band in part.bands
        }

    def _band_sha256(self, tile: Tile, band: str, start: int, stop: int) -> str:
        with self._open(tile, band) as stream:
            _seek(stream, tile, band, start)
            return _sha256(stream, 4 * tile.shape[1] * (stop - start))

    @contextmanager
    def _open(self, tile: Tile, band: str) -> Iterator[io.FileIO]:
        """Give the open file of a band; `TileFault` unless it is the file of `tile`, before and after it is used."""
        file = image_file(tile, band)
        path = os.path.join(self.root, file.name)
        try:
            with open_regular(path) as stream:
                _check_stamp(stream, tile, band, path)
                if _sha256(stream, file.data_offset) != file.header_sha256:
                    raise changed_fault(tile, band, path, "it has another header")
                try:
                    yield stream
                finally:
                    _check_stamp(stream, tile, band, path)
        except FileNotFoundError as error:
            raise changed_fault(tile, band, path, "it was removed") from error
        except OSError as error:
            if error.errno == errno.ESTALE:  # on NFS, another file has the name
                raise changed_fault(tile, band, path, "it was replaced") from error
            reason = f"{path} cannot be read ({error.strerror or error}): check the disk, fetch it again"
            raise TileFault(tile.coadd_id, reason, band) from error

    def list_tiles(self, near: tuple[ArrayLike, ArrayLike] | None = None) -> list[Tile]:
        """Return the footprints of the tiles, sorted by name, to assign positions to.

        A tile that lacks a wanted band is there too. In a plain folder `bands` are those of the wanted
        that the tile has; in the archive layout one header is read for each tile, and `bands` is that
        one. `near` (ra, dec in degrees) spares the headers of tiles that hold none of the positions.
        A tile without any good header is left out: its footprint is not known.
        """
        if self.images is not None:
            return self._indexed_tiles()
        names: Iterable[str] = _layout_names(Path(self.root))
        if near is not None:
            names = names_near(names, *near)
        tiles = (self._first_tile(name) for name in names)
        return [tile for tile in tiles if tile is not None]

    def _paths(self, coadd_id: str, band: str) -> list[str]:
        """Return the existing files of one band of a tile: none, one, or (in a plain folder) several."""
        if self.images is None:
            name = layout_path(coadd_id, band)
            paths = (os.path.join(self.root, name + packed) for packed in LAYOUT_PACKED if name)
            return list(islice(filter(os.path.exists, paths), 1))
        at = bisect_left(self.images, (coadd_id, band, ""))
        found = []
        while at < len(self.images) and self.images[at][:2] == (coadd_id, band):
            found.append(os.path.join(self.root, self.images[at][2]))
            at += 1
        return found

    def _image_sets(self, coadd_id: str, bands: tuple[str, ...]) -> list[list[AtlasImage]]:
        """Return the image sets of a tile, or raise the `TileFault` that says why there is none."""
        images = each_band(bands, partial(self._images, coadd_id))
        if all(len(of_band) == 1 for of_band in images):
            return [list(chain.from_iterable(images))]
        return image_sets(chain.from_iterable(images), bands)

    def _images(self, coadd_id: str, band: str) -> list[AtlasImage]:
        """Return the good images of a band; raise `TileFault` if there is none, or another one."""
        paths = self._paths(coadd_id, band)
        if not paths:
            raise_missing(self.root, coadd_id, band, self.bands_of(coadd_id))
        return [own_image(describe(path), coadd_id, band) for path in paths]

    def _indexed_tiles(self) -> list[Tile]:
        """Return one tile for each distinct footprint in the index, bad files left out."""
        groups: dict[tuple[object, ...], dict[str, AtlasImage]] = {}
        for coadd_id, band, path in self.images or ():
            image = describe(os.path.join(self.root, path))
            if band in self.bands and isinstance(image, AtlasImage):
                groups.setdefault((coadd_id, *image.geometry), {}).setdefault(band, image)
        return [tile_of(list(images.values()), self.root) for images in groups.values()]

    def _first_tile(self, coadd_id: str) -> Tile | None:
        """Return a tile with the first band whose header is good, of the wanted bands or any other."""
        for band in dict.fromkeys((*self.bands, *BANDS)):
            image = describe(os.path.join(self.root, layout_path(coadd_id, band)))
            if isinstance(image, AtlasImage):
                return tile_of([image], self.root)
        return None


def open_archive(location: str, bands: Sequence[str]) -> AtlasArchive:
    """Return the archive at a local folder: archive layout (or a folder above it), or any Atlas files.

    At `s3://bucket/prefix` and `https://host/path` it is the archive's layout there, and nothing is asked for yet.
    Raises `ArchiveError` when there is no such folder, it holds no usable Atlas image (the first refusals are
    listed), or a wanted band is absent from the whole of a plain folder.
    """
    wanted = tuple(bands)
    if not wanted or not set(wanted) <= set(BANDS) or len(set(wanted)) < len(wanted):
        raise ConfigError(f"bands are {wanted}: give one or more of {', '.join(BANDS)}, each once")
    refuse_logins({"images": str(location)})
    if str(location).startswith(SCHEMES):
        return open_remote(str(location), wanted)
    root = _local_root(str(location))
    for prefix in LAYOUT_PREFIXES:
        if next(_layout_names(root / prefix), None):
            return LocalArchive(str(root / prefix), wanted)
    return _index_folder(root, wanted)


def require_usable_tile(archive: Archive, location: str, coadd_ids: Sequence[str], bands: tuple[str, ...]) -> None:
    """Raise `ArchiveError` when none of the first tiles is usable; one message with the first reasons."""
    faults: list[TileFault] = []
    for coadd_id in coadd_ids[:PREFLIGHT_TILES]:
        try:
            archive.tile(coadd_id, bands)
        except TileFault as fault:
            faults.append(fault)
        else:
            return
    if not faults:
        raise ArchiveError(f"{location}: none of the positions lies on a tile of this folder")
    reasons = "; ".join(map(str, faults[:5]))
    nowhere = location.startswith(SCHEMES) and all(fault.kind == "missing_tile" for fault in faults)
    hint = f"; {LAYOUT_HINT}" if nowhere else ""
    raise ArchiveError(f"{location}: of {counted(len(faults), 'tile')} looked at, none is usable: {reasons}{hint}")


def _local_root(location: str) -> Path:
    """Return the folder of a location, or raise an `ArchiveError` that names the way out."""
    if "://" in location and not location.startswith("file://"):
        raise ArchiveError(
            f"images at {without_secrets(location)}: give a folder, s3://bucket/prefix or https://host/path; tiles "
            "elsewhere must be copied first, and that folder given"
        )
    root = user_path(location).absolute()
    if root.is_file():
        raise ArchiveError(f"images at {location}: this is a file, give the folder that holds it")
    if not root.is_dir():
        raise ArchiveError(f"images at {location}: there is no such folder")
    return root


def _index_folder(root: Path, bands: tuple[str, ...]) -> LocalArchive:
    """Return the archive of a plain folder, every FITS file in it known by its header."""
    found = [describe(path) for path in sorted(_fits_files(root))]
    good = [image for image in found if isinstance(image, AtlasImage)]
    if not good:
        raise ArchiveError(f"images at {root}: no usable Atlas image.{_refused(found)}", _refusals(root, found))
    unpacked = {image.path for image in good}
    # A damaged file that says which tile it is stays in: its sources are flagged bad, not lost. What was unpacked is no
    # longer needed.
    kept = good + [
        item
        for item in found
        if isinstance(item, Refusal) and item.band and os.path.splitext(item.path)[0] not in unpacked
    ]
    absent = set(bands) - {item.band for item in kept}
    if absent:
        have = ", ".join(sorted({image.band for image in good}))
        raise ArchiveError(
            f"images at {root}: no image of {', '.join(sorted(absent))} in the whole folder, only of {have}; "
            f"add them or use a model of other bands.{_refused(found)}",
            _refusals(root, found),
        )
    images = tuple(sorted((i.coadd_id, i.band, os.path.relpath(i.path, root)) for i in kept))
    return LocalArchive(str(root), bands, images, len(found) - len(kept))


def _fits_files(root: Path) -> Iterator[str]:
    """Yield the paths of the FITS files below a folder, each folder once, whatever symbolic links lead to it."""
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_raise_unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link back up, or a second link to the same folder
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders.sort()
        for name in names:
            path = os.path.join(folder, name)
            if os.path.islink(path) and not name.startswith(".") and not os.path.exists(path):
                raise ArchiveError(f"images at {root}: the symbolic link {path} leads nowhere; repair or remove it")
            if name.lower().endswith(FITS_SUFFIXES):
                yield path


def _raise_unreadable(error: OSError) -> NoReturn:
    reason = f"images: {error.filename} cannot be read ({error.strerror or error}); check its permissions, or remove it"
    raise ArchiveError(reason) from error


def _refused(found: Iterable[AtlasImage | Refusal]) -> str:
    return " Refused:" if any(isinstance(item, Refusal) for item in found) else " It holds no FITS file."


def _refusals(root: Path, found: Iterable[AtlasImage | Refusal], limit: int = 5) -> list[str]:
    refusals = [item for item in found if isinstance(item, Refusal)]
    lines = [f"{os.path.relpath(item.path, root)}: {item.reason}" for item in refusals[:limit]]
    return [*lines, f"and {len(refusals) - limit} more"] if len(refusals) > limit else lines


def _check_stamp(stream: io.FileIO, tile: Tile, band: str, path: str) -> None:
    if difference := stamp_change(image_file(tile, band).stamp, _stamp(os.fstat(stream.fileno()))):
        raise changed_fault(tile, band, path, difference)


def _seek(stream: io.FileIO, tile: Tile, band: str, row: int) -> None:
    stream.seek(image_file(tile, band).data_offset + 4 * tile.shape[1] * row)


def _read(stream: io.FileIO, n_rows: int, columns: int) -> Float32:
    """Return the next rows of a file, a megabyte at a time: the byte order is changed while they are in the cache."""
    pixels: Float32 = np.empty((n_rows, columns), np.float32)
    raw = np.empty(min(READ_ROWS, n_rows) * columns * 4, np.uint8)
    some = raw.view(">f4").reshape(-1, columns)
    for first in range(0, n_rows, READ_ROWS):
        n = min(READ_ROWS, n_rows - first)
        _fill(stream.readinto, raw.data[: 4 * columns * n])
        pixels[first : first + n] = some[:n]
    return pixels


def _sha256(stream: io.FileIO, n_bytes: int) -> str:
    """Return the SHA-256 of the next bytes of a file."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(min(n_bytes, HASH_BYTES)))
    for start in range(0, n_bytes, HASH_BYTES):
        part = buffer[: min(HASH_BYTES, n_bytes - start)]
        _fill(stream.readinto, part)
        digest.update(part)
    return digest.hexdigest()


def _checksum_fault(path: str) -> str:
    """Return why a file is not what the `.md5` beside it says, or ""; without one nothing is read."""
    try:
        said = read_small(path + ".md5", MAX_CHECKSUM_BYTES).decode(errors="replace").split()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be checked: {path}.md5 cannot be read ({error.strerror or error})"
    if not said or not re.fullmatch(r"[0-9a-fA-F]{32}", said[0]):
        return f"cannot be checked: {path}.md5 holds no checksum; fetch that again, or remove it"
    try:
        with open_regular(path) as stream:
            found = hashlib.file_digest(stream, "md5").hexdigest()
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return "" if found == said[0].lower() else f"has the MD5 {found}, and {path}.md5 says {said[0].lower()}"


def _fill(readinto: Callable[[memoryview], int | None], buffer: memoryview) -> None:
    """Fill the buffer; network file systems may answer with less than was asked for."""
    filled = 0
    while filled < len(buffer):
        count = readinto(buffer[filled:])
        if not count:
            raise OSError("the file ended early")
        filled += count


# --- the layout ------------------------------------------------------------------------------------


def _layout_names(root: Path) -> Iterator[str]:
    """Yield the tile names of an archive layout, sorted; nothing if `root` is no such layout."""
    for first in _folders(root, r"\d\d"):
        for second in _folders(first, rf"{first.name}\d\d"):
            for tile in _folders(second, rf"{second.name}[pm]\d{{3}}_[a-z]{{2}}\d+"):
                yield tile.name


def _folders(root: Path, pattern: str) -> list[Path]:
    try:
        if not root.is_dir():
            return []
        return sorted(p for p in root.iterdir() if re.fullmatch(pattern, p.name) and p.is_dir())
    except OSError as error:
        _raise_unreadable(error)
