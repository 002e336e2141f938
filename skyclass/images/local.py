"""Image files on a disk: a folder in the layout of the archive, or any folder of Atlas FITS files.

In the layout every path is computed and nothing is listed. Any other folder, of complete tiles or of cutouts of them,
is indexed once by the headers of its files.
"""

from __future__ import annotations

import errno
import io
import os
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, NoReturn

import numpy as np

from ..errors import ArchiveError
from ..locations import user_path
from ..regular import open_regular
from ..types import FileStamp
from .atlas import AtlasImage, RejectedFile
from .layout import LAYOUT_PREFIXES, Positions, layout_footprints, layout_path, names_near
from .source import Piece, SourceChanged, describe
from .tiles import covers

PACKED = (".gz", ".fz", ".bz2", ".xz", ".zst", ".z", ".zip")
FITS_SUFFIXES = tuple(suffix + packed for suffix in (".fits", ".fit", ".fts") for packed in ("", *PACKED))
LAYOUT_PACKED = ("", ".gz", ".fz", ".bz2")
"""Suffixes of an image in the layout. A compressed image is rejected with the command that unpacks it."""
PIECE_BYTES = 1 << 20
"""One read. The pixels of a piece fit the cache of a core, so that the byte swap that follows costs little."""
BAND_IN_NAME = re.compile(r"(?<![a-z0-9])w[1-4](?![a-z0-9])")
TILE_IN_NAME = re.compile(r"\d{4}[pm]\d{3}_[a-z]{2}\d+")
MAX_REJECTIONS = 5
"""Rejected files that a message lists."""


@dataclass(frozen=True)
class LocalSource:
    """Atlas images in a local folder.

    `index` is None in the layout of the archive, where paths are computed. For any other folder it lists
    (coadd_id, band, path below `location`), sorted. `rejected` holds the files that cannot be used. The index contains
    those of them whose tile and band are known, too.
    """

    location: str
    index: tuple[tuple[str, str, str], ...] | None = None
    rejected: tuple[RejectedFile, ...] = ()
    is_remote: ClassVar[bool] = False

    def names(self, coadd_id: str, band: str) -> Sequence[str]:
        """Return the names of the existing files of one band of a tile; in the layout there is at most one."""
        if self.index is not None:
            first, last = (bisect_left(self.index, (coadd_id, band + end, "")) for end in ("", "\0"))
            return [name for _, _, name in self.index[first:last]]
        name = layout_path(coadd_id, band)
        paths = (name + packed for packed in LAYOUT_PACKED if name)
        return list(islice((path for path in paths if os.path.exists(os.path.join(self.location, path))), 1))

    def read(self, name: str, start: int, stop: int) -> Iterator[Piece]:
        """Yield bytes `start:stop` of a file, at most `PIECE_BYTES` at a time, all in the same buffer."""
        buffer = np.empty(min(PIECE_BYTES, stop - start), np.uint8).data
        try:
            with open_regular(os.path.join(self.location, name)) as stream:
                stream.seek(start)
                for at in range(start, stop, PIECE_BYTES):
                    wanted = buffer[: min(PIECE_BYTES, stop - at)]
                    n_bytes = _fill(stream, wanted)
                    yield Piece(wanted[:n_bytes], _stamp(os.fstat(stream.fileno())))
                    if n_bytes < len(wanted):
                        return
        except OSError as error:
            if error.errno == errno.ESTALE:  # NFS: the name belongs to another file now
                raise SourceChanged("it was replaced") from error
            raise

    def footprints(self, bands: Sequence[str], near: Positions | None) -> Iterable[Sequence[str]]:
        """Yield each image of these bands in the index; in the layout, the images of each tile."""
        if self.index is not None:
            return [[name] for _, band, name in self.index if band in bands]
        coadd_ids: Iterable[str] = layout_names(Path(self.location))
        return layout_footprints(coadd_ids if near is None else names_near(coadd_ids, near), bands)

    def refused(self, coadd_id: str, bands: Sequence[str]) -> Sequence[RejectedFile]:
        """Return the files left out of the index whose paths name no other tile or band, those of a band first."""
        files = {f: f.path.removeprefix(self.location).lower() for f in self.rejected if not f.band}
        named = {file: set(BAND_IN_NAME.findall(path)) for file, path in files.items()}
        tiles = {file: TILE_IN_NAME.findall(path) for file, path in files.items()}
        may_be = [
            f for f in files if (not named[f] or named[f] & set(bands)) and (not tiles[f] or coadd_id in tiles[f])
        ]
        return sorted(may_be, key=lambda file: (not named[file], file.path))


def open_local(location: str, bands: tuple[str, ...]) -> LocalSource:
    """Return the images in a folder: the layout of the archive, below this folder or its parents, or any Atlas files.

    Raises `ArchiveError` if there is no such folder, if it holds no usable Atlas image (the first rejections are
    listed), or if a folder outside the layout has no image of one of the bands.
    """
    root = _local_root(location)
    for prefix in LAYOUT_PREFIXES:
        if next(layout_names(root / prefix), None):
            return LocalSource(str(root / prefix))
    return _index_folder(root, bands)


def _local_root(location: str) -> Path:
    root = user_path(location).absolute()
    if root.is_file():
        raise ArchiveError(f"images at {location}: this is a file, give the folder that holds it")
    if not root.is_dir():
        raise ArchiveError(f"images at {location}: there is no such folder")
    return root


def _fill(stream: io.FileIO, buffer: memoryview) -> int:
    """Fill the buffer and return the number of bytes read.

    A network file system may return fewer bytes than asked for. Reads repeat until the buffer is full or the file ends.
    """
    n_bytes = 0
    while n_bytes < len(buffer) and (n_read := stream.readinto(buffer[n_bytes:])):
        n_bytes += n_read
    return n_bytes


def _stamp(status: os.stat_result) -> FileStamp:
    return FileStamp(status.st_size, status.st_mtime_ns, status.st_ino, device=status.st_dev)


# --- a folder outside the layout -------------------------------------------------------------------


def _index_folder(root: Path, bands: tuple[str, ...]) -> LocalSource:
    """Return the source of a folder whose FITS files are indexed by their headers."""
    folder = LocalSource(str(root))
    files = _with_tiles_by_name({name: describe(folder, name) for name in sorted(_fits_files(root))})
    good = {name: image for name, image in files.items() if isinstance(image, AtlasImage)}
    rejections = [f"{name}: {file.reason}" for name, file in files.items() if isinstance(file, RejectedFile)]
    refused = " Refused:" if rejections else ""
    if not good:
        what = refused or " It holds no FITS file."
        raise ArchiveError(f"images at {root}: no usable Atlas image.{what}", _first(rejections))
    # A damaged file that names its tile stays in the index: its sources are flagged, not lost. A compressed file whose
    # unpacked copy is there too is not needed.
    is_useful = {name: bool(file.band) and os.path.splitext(name)[0] not in good for name, file in files.items()}
    indexed = {name: file for name, file in files.items() if name in good or is_useful[name]}
    if absent := set(bands) - {file.band for file in indexed.values()}:
        have = ", ".join(sorted({image.band for image in good.values()}))
        raise ArchiveError(
            f"images at {root}: no image of {', '.join(sorted(absent))} in the whole folder, only of {have}; "
            f"add them or use a model of other bands.{refused}",
            _first(rejections),
        )
    index = tuple(sorted((file.coadd_id, file.band, name) for name, file in indexed.items()))
    needed = (file for name, file in files.items() if os.path.splitext(name)[0] not in good)
    return LocalSource(str(root), index, tuple(file for file in needed if isinstance(file, RejectedFile)))


def _with_tiles_by_name(files: Mapping[str, AtlasImage | RejectedFile]) -> dict[str, AtlasImage | RejectedFile]:
    """Return the files of a folder. A refused file gets tile and band if its name tells them.

    For example, 2010H-w1.fits and 2010H-w3.fits are good images of one tile. Then the refused file 2010H-w2.fits is
    taken for the W2 image of this tile. It is not where another, good image of W2 covers the same footprint.
    """
    alike: dict[str, list[AtlasImage]] = {}
    in_band: dict[tuple[str, str], list[AtlasImage]] = {}
    for name, image in files.items():
        if isinstance(image, AtlasImage):
            in_band.setdefault((image.coadd_id, image.band), []).append(image)
            if _bands_in(name) == {image.band}:
                alike.setdefault(_name_of_any_band(name), []).append(image)

    def with_tile(name: str, file: AtlasImage | RejectedFile) -> AtlasImage | RejectedFile:
        images, bands = alike.get(_name_of_any_band(name), []), _bands_in(name)
        is_one = len({(image.coadd_id, image.geometry) for image in images}) == len(bands) == 1
        if not isinstance(file, RejectedFile) or file.band or not is_one:
            return file
        (band,), coadd_id = bands, images[0].coadd_id
        if file.coadd_id not in ("", coadd_id) or any(
            covers(image, images[0]) for image in in_band.get((coadd_id, band), [])
        ):
            return file
        return replace(file, coadd_id=coadd_id, band=band)

    return {name: with_tile(name, file) for name, file in files.items()}


def _bands_in(name: str) -> set[str]:
    return set(BAND_IN_NAME.findall(name.lower()))


def _name_of_any_band(name: str) -> str:
    """Return the name of a FITS file with a wildcard for the band, and without the ending of a compressed file."""
    stem, ending = os.path.splitext(name.lower())
    return BAND_IN_NAME.sub("w?", stem if ending in PACKED else stem + ending)


def _fits_files(root: Path) -> Iterator[str]:
    """Yield the paths of the FITS files below a folder; a folder that several symbolic links lead to counts once."""
    seen: set[tuple[int, int]] = set()
    for folder, subfolders, names in os.walk(root, followlinks=True, onerror=_raise_unreadable):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link to a parent, or a second link to the same folder
            subfolders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        subfolders.sort()
        for name in names:
            path = os.path.join(folder, name)
            if os.path.islink(path) and not name.startswith(".") and not os.path.exists(path):
                raise ArchiveError(f"images at {root}: the symbolic link {path} leads nowhere; repair or remove it")
            if name.lower().endswith(FITS_SUFFIXES):
                yield os.path.relpath(path, root)


def _raise_unreadable(error: OSError) -> NoReturn:
    reason = f"images: {error.filename} cannot be read ({error.strerror or error}); check its permissions, or remove it"
    raise ArchiveError(reason) from error


def _first(rejections: list[str]) -> list[str]:
    n_more = len(rejections) - MAX_REJECTIONS
    return [*rejections[:MAX_REJECTIONS], f"and {n_more} more"] if n_more > 0 else rejections


# --- the layout ------------------------------------------------------------------------------------


def layout_names(root: Path) -> Iterator[str]:
    """Yield the names of the tiles in the layout below a folder, sorted; none if the folder has another layout."""
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
