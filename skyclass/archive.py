"""Atlas tiles on disk: the only file of skyclass that opens one.

A location is either the archive's own layout (S3, IBE and local mirrors share it)

    [wise/allwise/images/p3am_cdd/]{cid[:2]}/{cid[:4]}/{cid}/{cid}-w{b}-int-3.fits

where every path is computed and nothing is listed, or any folder of Atlas FITS files, whole tiles or
cutouts of them, which is indexed once by what the headers say. Anything that is not an AllWISE Atlas
intensity image is refused with the reason: a look-alike read with the wrong scale or zero point would
give wrong classes without a word.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import sys
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike

from .errors import ArchiveError, ConfigError, TileFault
from .sky import healpix, pixel_centres, pixel_radius_deg, unit_vectors
from .types import BANDS, PIXEL_SCALE_ARCSEC, Float32, Tile

MIN_FINITE_FRACTION = 0.02
"""Share of finite pixels in the rows of a strip below which they are refused: the emptiest real cutout known, on M42,
has 60 %, and a whole strip is wider than any nebula."""
MAX_ZERO_FRACTION = 0.05
"""Share of exactly 0.0 pixels in one row above which it is refused, whatever rows are read with it. A partly
fetched file holds zeroed blocks; a real Atlas image marks missing pixels as NaN and its sky is never exactly 0 in
float32 (no exact zero in the nine real cutouts these rules were checked on)."""

SCALE_TOLERANCE_ARCSEC = 1e-3
ROTATION_TOLERANCE_DEG = 1e-6
TILE_HALF_DIAGONAL_DEG = 1.11
"""Half of the 1.5644 degree side of an Atlas tile, times the square root of 2."""
NAME_ROUNDING_DEG = 0.15
"""A tile's name truncates RA and Dec of its centre to 0.1 degree each."""

BLOCK_BYTES = 2880
MAX_HEADER_BLOCKS = 64
LAYOUT_PREFIXES = ("", *("wise/allwise/images/p3am_cdd".split("/", n)[n] for n in (3, 2, 1, 0)))
FITS_SUFFIXES = (".fits", ".fit", ".fts", ".fits.gz", ".fits.fz")
TILE_NAME = re.compile(r"(\d{4})([pm])(\d{3})_[a-z]{2}\d+")
IMAGE_NAME = re.compile(r"(\d{4}[pm]\d{3}_[a-z]{2}\d+)-(w[1-4])-int-3")


@dataclass(frozen=True)
class AtlasImage:
    """One band of a tile as its file's header describes it; `data_offset` is in bytes.

    The geometry reads as in `Tile`.
    """

    path: str
    coadd_id: str
    band: str
    shape: tuple[int, int]
    crval_deg: tuple[float, float]
    crpix: tuple[float, float]
    cdelt_deg: tuple[float, float]
    zero_point_mag: float
    data_offset: int

    @property
    def geometry(self) -> tuple[object, ...]:
        """What all bands of a tile must share."""
        return self.shape, self.crval_deg, self.crpix, self.cdelt_deg


@dataclass(frozen=True)
class Refusal:
    """A file that cannot be used: why, what to do, and the tile and band it says it is (or "")."""

    path: str
    reason: str
    coadd_id: str = ""
    band: str = ""


# --- one file --------------------------------------------------------------------------------------


def describe(path: str) -> AtlasImage | Refusal:
    """Return what a file holds: an `AtlasImage`, or a `Refusal` with the reason.

    Headers are kept per process until the file's size or time of change differs.
    """
    try:
        status = os.stat(path)
        return _describe(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        return Refusal(path, f"cannot be read ({error.strerror or error}): check path and permissions")


@lru_cache(maxsize=512)
def _describe(path: str, size_bytes: int, mtime_ns: int) -> AtlasImage | Refusal:
    # `mtime_ns` is only a part of the cache's key: a file replaced under its name is read again.
    named = IMAGE_NAME.search(os.path.basename(path))
    coadd_id, band = named.groups() if named else ("", "")
    with open(path, "rb") as stream:
        head = _header_bytes(stream)
    fault = _content_fault(head, size_bytes)
    if fault:
        return Refusal(path, fault, coadd_id, band)
    try:
        return _from_header(path, fits.Header.fromfile(io.BytesIO(head)), len(head), size_bytes)
    except (OSError, ValueError, TypeError, KeyError, fits.VerifyError, Warning) as error:
        return Refusal(path, f"damaged FITS header ({error}): fetch the file again", coadd_id, band)


def _header_bytes(stream: io.BufferedReader) -> bytes:
    """Return the blocks up to the one with the END card, or what there is within reason."""
    head = b""
    for _ in range(MAX_HEADER_BLOCKS):
        block = stream.read(BLOCK_BYTES)
        head += block
        if len(block) < BLOCK_BYTES or not head.startswith(b"SIMPLE") or _has_end(block):
            break
    return head


def _has_end(block: bytes) -> bool:
    return any(block[at : at + 80].rstrip() == b"END" for at in range(0, len(block), 80))


def _content_fault(head: bytes, size_bytes: int) -> str:
    """Return why bytes are no FITS header, or ""."""
    if size_bytes == 0:
        return "empty file: fetch it again"
    if head.startswith(b"\x1f\x8b"):
        return "gzip content: rows cannot be read from it, unpack it with gunzip first"
    if head.lstrip()[:1] == b"<":
        return "an HTML or XML page, not FITS (an error page saved under this name?): fetch it again"
    if not head.startswith(b"SIMPLE  ="):
        return "not a FITS file: fetch it again"
    if not _has_end(head[-BLOCK_BYTES:]) or len(head) % BLOCK_BYTES:
        return f"truncated: {size_bytes} bytes end inside the FITS header, fetch it again"
    return ""


def _from_header(path: str, header: fits.Header, offset: int, size_bytes: int) -> AtlasImage | Refusal:
    """Return the image that a header describes, or the refusal with every problem found."""
    is_intensity = str(header.get("FILETYPE", "")).strip() == "intensity image"
    coadd_id = str(header.get("COADDID", "")).strip() if is_intensity else ""
    band = f"w{header['BAND']}" if coadd_id and header.get("BAND") in (1, 2, 3, 4) else ""
    kind = _kind_problems(header)
    problems = kind or [*_format_problems(header), *_geometry_problems(header)]
    if problems:
        advice = "use the Atlas files named <coadd_id>-w<band>-int-3.fits" if kind else "fetch it again"
        return Refusal(path, f"{'; '.join(problems)}: {advice}", coadd_id, band)
    columns, rows = int(header["NAXIS1"]), int(header["NAXIS2"])
    needed = offset + 4 * rows * columns
    if size_bytes < needed:
        reason = f"truncated: {size_bytes} bytes, header and pixels need {needed}, fetch it again"
        return Refusal(path, reason, coadd_id, band)
    return AtlasImage(
        path=path, coadd_id=coadd_id, band=band, shape=(rows, columns),
        crval_deg=(float(header["CRVAL1"]), float(header["CRVAL2"])),
        crpix=(float(header["CRPIX1"]), float(header["CRPIX2"])),
        cdelt_deg=(float(header["CDELT1"]), float(header["CDELT2"])),
        zero_point_mag=float(header["MAGZP"]), data_offset=offset,
    )  # fmt: skip


def _kind_problems(header: fits.Header) -> list[str]:
    """Return what shows that the file is another product than an AllWISE Atlas intensity image."""
    ctypes = [str(header.get(name, "none")) for name in ("CTYPE1", "CTYPE2")]
    filetype = str(header.get("FILETYPE", "none")).strip()
    problems = []
    if any(ctype.endswith("-SIP") for ctype in ctypes) or "A_ORDER" in header:
        problems.append("SIP distortion, as in a WISE single exposure")
    elif [ctype[-3:] for ctype in ctypes] == ["TAN", "TAN"]:
        problems.append("TAN projection, as in an unWISE coadd (other scale and zero point)")
    elif ctypes != ["RA---SIN", "DEC--SIN"]:
        problems.append(f"projection {'/'.join(ctypes)} instead of RA---SIN/DEC--SIN")
    if filetype != "intensity image":
        problems.append(f"FILETYPE is '{filetype}' instead of 'intensity image'")
    if not TILE_NAME.fullmatch(str(header.get("COADDID", "")).strip()):
        problems.append(f"COADDID is {header.get('COADDID', 'missing')}")
    if header.get("BAND") not in (1, 2, 3, 4):
        problems.append(f"BAND is {header.get('BAND', 'missing')}")
    if str(header.get("BUNIT", "")).strip() != "DN":
        problems.append(f"BUNIT is {header.get('BUNIT', 'missing')} instead of DN")
    return problems


def _format_problems(header: fits.Header) -> list[str]:
    """Return what is wrong with the pixels' format and calibration."""
    expected = {"BITPIX": -32, "NAXIS": 2, "BSCALE": 1, "BZERO": 0}
    problems = [
        f"{name} is {header.get(name, value)} instead of {value}"
        for name, value in expected.items()
        if header.get(name, value if name.startswith("B") and name != "BITPIX" else None) != value
    ]
    problems += [
        f"{name} is {header.get(name, 'missing')}"
        for name in ("NAXIS1", "NAXIS2")
        if not isinstance(header.get(name), int) or header[name] < 1
    ]
    return problems + _number_problems(header, ("MAGZP",))


def _number_problems(header: fits.Header, names: Iterable[str]) -> list[str]:
    """Return the keywords that hold no finite number."""
    return [
        f"{name} is {header.get(name, 'missing')}"
        for name in names
        if not isinstance(header.get(name), int | float) or not np.isfinite(header[name])
    ]


def _geometry_problems(header: fits.Header) -> list[str]:
    """Return what is wrong with the WCS: it must be plain SIN, north up, 1.375 arcsec a pixel."""
    problems = _number_problems(header, ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", "CDELT1", "CDELT2"))
    if problems:
        return problems
    for name, sign in (("CDELT1", -1), ("CDELT2", 1)):
        scale_arcsec = header[name] * 3600
        if abs(scale_arcsec - sign * PIXEL_SCALE_ARCSEC) > SCALE_TOLERANCE_ARCSEC:
            problems.append(f"{name} is {scale_arcsec:.5g} arcsec instead of {sign * PIXEL_SCALE_ARCSEC}")
    turned = any(abs(header.get(name, 0.0)) > ROTATION_TOLERANCE_DEG for name in ("CROTA1", "CROTA2"))
    if turned or any(re.fullmatch(r"(CD|PC)\d_\d", name) for name in header):
        problems.append("the image is rotated or has a CD/PC matrix")
    return problems


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
        images = [self._image(coadd_id, band) for band in bands]
        for image in images[1:]:
            if image.geometry != images[0].geometry:
                reason = f"its WCS or shape differs from {images[0].band}: take all bands from one source"
                raise TileFault(coadd_id, reason, image.band)
        for image in images if verify else ():
            if fault := _checksum_fault(image.path):
                raise TileFault(coadd_id, f"{image.path} {fault}: fetch it again", image.band)
        return _tile_of(images)

    def bands_of(self, coadd_id: str) -> tuple[str, ...]:
        """Return the bands, of all four, of which the archive has a file; () if it has no such tile."""
        return tuple(band for band in BANDS if self._paths(coadd_id, band))

    def read_rows(self, tile: Tile, band: str, start: int, stop: int) -> Float32:
        """Return rows `start:stop` (0-based) of a band: (rows, columns) native float32 DN, one read.

        Raises `TileFault` if the file is bad, was replaced since `tile` was made, or has a row with
        more than `MAX_ZERO_FRACTION` exact zeros; `ValueError` if the rows are not on the tile.
        """
        if not 0 <= start < stop <= tile.shape[0]:
            raise ValueError(f"rows {start}:{stop} are not in the {tile.shape[0]} rows of {tile.coadd_id}")
        image = self._image(tile.coadd_id, band)
        if image.shape != tile.shape or image.crpix != tile.crpix:
            raise TileFault(tile.coadd_id, f"{image.path} was replaced during the run: run again", band)
        pixels = _read(image, start, stop)
        zero_fraction = 1 - np.count_nonzero(pixels, axis=1) / pixels.shape[1]
        if zero_fraction.max() > MAX_ZERO_FRACTION:
            worst = int(zero_fraction.argmax())
            share = f"{zero_fraction[worst]:.0%} of row {start + worst}"
            raise TileFault(tile.coadd_id, f"zeroed pixels: {share} are exactly 0, fetch it again", band)
        finite = np.isfinite(pixels).mean()
        if finite < MIN_FINITE_FRACTION:
            reason = f"{finite:.1%} of rows {start} to {stop} are finite pixels, fetch it again"
            raise TileFault(tile.coadd_id, reason, band)
        return pixels

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
            names = _names_near(names, *near)
        tiles = (self._first_tile(name) for name in names)
        return [tile for tile in tiles if tile is not None]

    def _paths(self, coadd_id: str, band: str) -> list[str]:
        """Return the existing files of one band of a tile: none, one, or (in a plain folder) several."""
        if self.images is None:
            path = _layout_path(self.root, coadd_id, band)
            return [p for p in (path, path + ".gz") if path and os.path.exists(p)][:1]
        at = bisect_left(self.images, (coadd_id, band, ""))
        found = []
        while at < len(self.images) and self.images[at][:2] == (coadd_id, band):
            found.append(os.path.join(self.root, self.images[at][2]))
            at += 1
        return found

    def _image(self, coadd_id: str, band: str) -> AtlasImage:
        """Return the one good image of a band, or raise the `TileFault` that says why not."""
        paths = self._paths(coadd_id, band)
        if not paths:
            self._raise_missing(coadd_id, band)
        if len(paths) > 1:
            names = " and ".join(os.path.relpath(path, self.root) for path in paths[:2])
            raise TileFault(coadd_id, f"more than one image, {names}: keep one of them in the folder", band)
        image = describe(paths[0])
        if isinstance(image, Refusal):
            raise TileFault(coadd_id, f"{image.path} is refused: {image.reason}", band)
        if (image.coadd_id, image.band) != (coadd_id, band):
            claim = f"{image.coadd_id} {image.band}"
            reason = f"{image.path} says in its header that it is {claim}: fetch it again"
            raise TileFault(coadd_id, reason, band)
        return image

    def _raise_missing(self, coadd_id: str, band: str) -> None:
        present = self.bands_of(coadd_id)
        if present:
            reason = f"missing band under {self.root}, which has {', '.join(present)} of this tile: fetch it"
            raise TileFault(coadd_id, reason, band, "missing_band")
        raise TileFault(coadd_id, f"missing tile: no image of it under {self.root}, fetch it", None, "missing_tile")

    def _indexed_tiles(self) -> list[Tile]:
        """Return one tile for each distinct footprint in the index, bad files left out."""
        groups: dict[tuple[object, ...], list[AtlasImage]] = {}
        for coadd_id, band, path in self.images or ():
            image = describe(os.path.join(self.root, path))
            if band in self.bands and isinstance(image, AtlasImage):
                images = groups.setdefault((coadd_id, *image.geometry), [])
                if band not in [other.band for other in images]:
                    images.append(image)
        return [_tile_of(images) for images in groups.values()]

    def _first_tile(self, coadd_id: str) -> Tile | None:
        """Return a tile with the first band whose header is good, of the wanted bands or any other."""
        for band in dict.fromkeys((*self.bands, *BANDS)):
            image = describe(_layout_path(self.root, coadd_id, band))
            if isinstance(image, AtlasImage):
                return _tile_of([image])
        return None


def open_archive(location: str, bands: Sequence[str]) -> LocalArchive:
    """Return the archive at a local folder: archive layout (or a folder above it), or any Atlas files.

    Raises `ArchiveError` when there is no such folder, it holds no usable Atlas image (the first
    refusals are listed), or a wanted band is absent from the whole of a plain folder.
    """
    wanted = tuple(bands)
    if not wanted or not set(wanted) <= set(BANDS) or len(set(wanted)) < len(wanted):
        raise ConfigError(f"bands are {wanted}: give one or more of {', '.join(BANDS)}, each once")
    root = _local_root(str(location))
    for prefix in LAYOUT_PREFIXES:
        if next(_layout_names(root / prefix), None):
            return LocalArchive(str(root / prefix), wanted)
    return _index_folder(root, wanted)


def _local_root(location: str) -> Path:
    """Return the folder of a location, or raise an `ArchiveError` that names the way out."""
    if "://" in location and not location.startswith("file://"):
        raise ArchiveError(
            f"images at {location}: this version reads local folders only; copy the tiles first, "
            "for example with `aws s3 sync --no-sign-request`, and give that folder"
        )
    root = Path(location.removeprefix("file://")).expanduser().absolute()
    if root.is_file():
        raise ArchiveError(f"images at {location}: this is a file, give the folder that holds it")
    if not root.is_dir():
        raise ArchiveError(f"images at {location}: there is no such folder")
    return root


def _index_folder(root: Path, bands: tuple[str, ...]) -> LocalArchive:
    """Return the archive of a plain folder, every FITS file in it known by its header."""
    paths = sorted(path for path in root.rglob("*") if path.name.lower().endswith(FITS_SUFFIXES))
    found = [describe(str(path)) for path in paths if path.is_file()]
    good = [image for image in found if isinstance(image, AtlasImage)]
    if not good:
        raise ArchiveError(f"images at {root}: no usable Atlas image.{_list_refusals(root, found)}")
    known = {(image.coadd_id, image.band) for image in good}
    # A damaged file that says which tile it is stays in: its sources are flagged bad, not lost.
    damaged = [item for item in found if isinstance(item, Refusal) and item.band]
    kept = good + [item for item in damaged if (item.coadd_id, item.band) not in known]
    absent = set(bands) - {item.band for item in kept}
    if absent:
        have = ", ".join(sorted({image.band for image in good}))
        raise ArchiveError(
            f"images at {root}: no image of {', '.join(sorted(absent))} in the whole folder, only of {have}; "
            f"add them or use a model of other bands.{_list_refusals(root, found)}"
        )
    images = tuple(sorted((i.coadd_id, i.band, os.path.relpath(i.path, root)) for i in kept))
    return LocalArchive(str(root), bands, images, len(found) - len(kept))


def _list_refusals(root: Path, found: Iterable[AtlasImage | Refusal], limit: int = 5) -> str:
    refusals = [item for item in found if isinstance(item, Refusal)]
    lines = [f"\n  {os.path.relpath(item.path, root)}: {item.reason}" for item in refusals[:limit]]
    more = f"\n  and {len(refusals) - limit} more" if len(refusals) > limit else ""
    return f" Refused:{''.join(lines)}{more}" if lines else " It holds no FITS file."


def _tile_of(images: Sequence[AtlasImage]) -> Tile:
    """Return the tile of images that share one geometry, bands in the given order."""
    first = images[0]
    return Tile(
        coadd_id=first.coadd_id, bands=tuple(image.band for image in images), shape=first.shape,
        crval_deg=first.crval_deg, crpix=first.crpix, cdelt_deg=first.cdelt_deg,
        zero_point_mag=tuple(image.zero_point_mag for image in images),
    )  # fmt: skip


def _read(image: AtlasImage, start: int, stop: int) -> Float32:
    """Return rows of an image: a seek and one read, then the byte order turned in place."""
    columns = image.shape[1]
    pixels: Float32 = np.empty((stop - start, columns), np.float32)
    buffer = pixels.data.cast("B")
    try:
        with open(image.path, "rb", buffering=0) as stream:
            stream.seek(image.data_offset + 4 * columns * start)
            _fill(stream.readinto, buffer)
    except OSError as error:
        reason = f"{image.path} cannot be read ({error.strerror or error}): check the disk, fetch it again"
        raise TileFault(image.coadd_id, reason, image.band) from error
    return pixels.byteswap(inplace=True) if sys.byteorder == "little" else pixels


def _checksum_fault(path: str) -> str:
    """Return why a file is not what the `.md5` beside it says, or ""; without one nothing is read."""
    try:
        said = Path(path + ".md5").read_text(errors="replace").split()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"has an .md5 that cannot be read ({error.strerror or error})"
    if not said or not re.fullmatch(r"[0-9a-fA-F]{32}", said[0]):
        return "has an .md5 that holds no checksum"
    try:
        with open(path, "rb") as stream:
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
            raise OSError(f"the file ended {len(buffer) - filled} bytes early")
        filled += count


# --- the layout ------------------------------------------------------------------------------------


def _layout_path(root: str, coadd_id: str, band: str) -> str:
    """Return the path of a band in the archive layout, or "" for what cannot be a tile's name."""
    if not TILE_NAME.fullmatch(coadd_id) or band not in BANDS:
        return ""
    return os.path.join(root, coadd_id[:2], coadd_id[:4], coadd_id, f"{coadd_id}-{band}-int-3.fits")


def _layout_names(root: Path) -> Iterator[str]:
    """Yield the tile names of an archive layout, sorted; nothing if `root` is no such layout."""
    for first in _folders(root, r"\d\d"):
        for second in _folders(first, rf"{first.name}\d\d"):
            for tile in _folders(second, rf"{second.name}[pm]\d{{3}}_[a-z]{{2}}\d+"):
                yield tile.name


def _folders(root: Path, pattern: str) -> list[Path]:
    if not root.is_dir():
        return []
    return sorted(p for p in root.iterdir() if re.fullmatch(pattern, p.name) and p.is_dir())


def _names_near(names: Iterable[str], ra: ArrayLike, dec: ArrayLike) -> list[str]:
    """Return the tile names whose centre, as the name tells it, lies near any position."""
    wanted = list(names)
    pixels = np.unique(healpix(6, ra, dec))
    if not wanted or not len(pixels):
        return []
    sources = unit_vectors(*pixel_centres(6, pixels))
    matches = [cast(re.Match[str], TILE_NAME.fullmatch(name)) for name in wanted]
    centre_ra = np.array([int(m[1]) / 10 + 0.05 for m in matches])
    centre_dec = np.array([int(m[3]) / 10 * (1 if m[2] == "p" else -1) for m in matches])
    reach_deg = TILE_HALF_DIAGONAL_DEG + NAME_ROUNDING_DEG + pixel_radius_deg(6)
    centres = unit_vectors(centre_ra, centre_dec)
    near = [bool((sources @ centre).max() >= np.cos(np.radians(reach_deg))) for centre in centres]
    return [name for name, keep in zip(wanted, near, strict=True) if keep]
