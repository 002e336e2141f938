"""What an Atlas image is: header, pixels, tile and name, whether the bytes came from a disk or an archive far away.

Anything that is not an AllWISE Atlas intensity image is refused with the reason: a look-alike read with the
wrong scale or zero point would give wrong classes without a word.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NoReturn, Protocol, cast

import numpy as np
from astropy.io import fits
from numpy.typing import ArrayLike

from .errors import TileFault
from .sky import healpix, pixel_centres, pixel_radius_deg, unit_vectors
from .types import BANDS, PIXEL_SCALE_ARCSEC, Archive, FileStamp, Float32, Float64, ImageFile, Tile

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
TILE_NAME = re.compile(r"(\d{4})([pm])(\d{3})_[a-z]{2}\d+")
IMAGE_NAME = re.compile(r"(\d{4}[pm]\d{3}_[a-z]{2}\d+)-(w[1-4])-int-3")


@dataclass(frozen=True)
class AtlasImage:
    """One band of a tile as its file's header describes it. The geometry reads as in `Tile`.

    `path` is the whole path or URL of the file; `file.name` is the same here, and relative to the archive in a `Tile`.
    """

    path: str
    coadd_id: str
    band: str
    shape: tuple[int, int]
    crval_deg: tuple[float, float]
    crpix: tuple[float, float]
    cdelt_deg: tuple[float, float]
    zero_point_mag: float
    file: ImageFile

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


class AtlasArchive(Archive, Protocol):
    """An archive that can also say what it holds."""

    def bands_of(self, coadd_id: str) -> tuple[str, ...]:
        """Return the bands, of all four, of which it has a file; () if it has no such tile."""
        ...

    def list_tiles(self, near: tuple[ArrayLike, ArrayLike] | None = None) -> list[Tile]:
        """Return the footprints of the tiles, sorted by name; those near positions (ra, dec in degrees) if given."""
        ...

    def pixel_sha256(self, tile: Tile, start: int = 0, stop: int | None = None) -> dict[str, str]:
        """Return the SHA-256 of the pixels of rows `start:stop`, by the names of the tile's files.

        Raises `TileFault` like `read_rows`, but for no value of a pixel. The pixels are the bytes of the file,
        big-endian float32: equal digests mean equal rows, whichever copy was read.
        """
        ...


# --- the header ------------------------------------------------------------------------------------


def read_header(path: str, head: bytes, stamp: FileStamp) -> AtlasImage | Refusal:
    """Return what a file with these first bytes holds: an `AtlasImage`, or a `Refusal` with the reason."""
    named = IMAGE_NAME.search(path.rsplit("/", 1)[-1])
    coadd_id, band = named.groups() if named else ("", "")
    fault = _content_fault(head, stamp.size_bytes)
    if fault:
        return Refusal(path, fault, coadd_id, band)
    try:
        return _from_header(path, fits.Header.fromfile(io.BytesIO(head)), head, stamp)
    except (OSError, ValueError, TypeError, KeyError, fits.VerifyError, Warning) as error:
        return Refusal(path, f"damaged FITS header ({error}): fetch the file again", coadd_id, band)


def header_blocks(stream: io.RawIOBase | io.BufferedIOBase) -> bytes:
    """Return the blocks up to the one with the END card, or what there is within reason."""
    head = b""
    for _ in range(MAX_HEADER_BLOCKS):
        block = stream.read(BLOCK_BYTES) or b""
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


def _from_header(path: str, header: fits.Header, head: bytes, stamp: FileStamp) -> AtlasImage | Refusal:
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
    needed = len(head) + 4 * rows * columns
    if stamp.size_bytes < needed:
        reason = f"truncated: {stamp.size_bytes} bytes, header and pixels need {needed}, fetch it again"
        return Refusal(path, reason, coadd_id, band)
    return AtlasImage(
        path=path, coadd_id=coadd_id, band=band, shape=(rows, columns),
        crval_deg=(float(header["CRVAL1"]), float(header["CRVAL2"])),
        crpix=(float(header["CRPIX1"]), float(header["CRPIX2"])),
        cdelt_deg=(float(header["CDELT1"]), float(header["CDELT2"])),
        zero_point_mag=float(header["MAGZP"]),
        file=ImageFile(path, len(head), hashlib.sha256(head).hexdigest(), stamp),
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


# --- a tile ----------------------------------------------------------------------------------------


def own_image(image: AtlasImage | Refusal, coadd_id: str, band: str) -> AtlasImage:
    """Return the image if it is good and the one that was asked for, or raise the `TileFault` that says why not."""
    if isinstance(image, Refusal):
        raise TileFault(coadd_id, f"{image.path} is refused: {image.reason}", band)
    if (image.coadd_id, image.band) != (coadd_id, band):
        claim = f"{image.coadd_id} {image.band}"
        reason = f"{image.path} says in its header that it is {claim}: fetch it again"
        raise TileFault(coadd_id, reason, band)
    return image


def raise_missing(root: str, coadd_id: str, band: str, present: Sequence[str]) -> NoReturn:
    """Raise the `TileFault` of a band that is not there, given those that are."""
    if present:
        reason = f"missing band under {root}, which has {', '.join(present)} of this tile: fetch it"
        raise TileFault(coadd_id, reason, band, "missing_band")
    raise TileFault(coadd_id, f"missing tile: no image of it under {root}, fetch it", None, "missing_tile")


def tile_of(images: Sequence[AtlasImage], root: str) -> Tile:
    """Return the tile of its bands' images below `root`, in their order; `TileFault` unless they share one geometry."""
    first = images[0]
    for image in images[1:]:
        if image.geometry != first.geometry:
            reason = f"its WCS or shape differs from {first.band}: take all bands from one source"
            raise TileFault(image.coadd_id, reason, image.band)
    return Tile(
        coadd_id=first.coadd_id, bands=tuple(image.band for image in images), shape=first.shape,
        crval_deg=first.crval_deg, crpix=first.crpix, cdelt_deg=first.cdelt_deg,
        zero_point_mag=tuple(image.zero_point_mag for image in images),
        files=tuple(replace(image.file, name=image.path.removeprefix(f"{root}/")) for image in images),
    )  # fmt: skip


def check_rows(tile: Tile, start: int, stop: int) -> None:
    """Raise `ValueError` if rows `start:stop` are not on the tile."""
    if not 0 <= start < stop <= tile.shape[0]:
        raise ValueError(f"rows {start}:{stop} are not in the {tile.shape[0]} rows of {tile.coadd_id}")


def check_pixels(tile: Tile, band: str, start: int, pixels: Float32) -> None:
    """Raise `TileFault` if rows from `start` on hold too many exact zeros or too few finite pixels."""
    if np.count_nonzero(pixels == 0) > MAX_ZERO_FRACTION * pixels.shape[1]:  # fewer are no row with too many
        zero_fraction = np.mean(pixels == 0, axis=1)
        worst = int(zero_fraction.argmax())
        if zero_fraction[worst] > MAX_ZERO_FRACTION:
            share = f"{zero_fraction[worst]:.0%} of row {start + worst}"
            raise TileFault(tile.coadd_id, f"zeroed pixels: {share} are exactly 0, fetch it again", band)
    finite = np.count_nonzero(np.isfinite(pixels)) / pixels.size
    if finite < MIN_FINITE_FRACTION:
        reason = f"{finite:.1%} of rows {start} to {start + len(pixels)} are finite pixels, fetch it again"
        raise TileFault(tile.coadd_id, reason, band)


# --- names -----------------------------------------------------------------------------------------


def layout_path(coadd_id: str, band: str) -> str:
    """Return the path of a band below the root of the archive layout, or "" for what cannot be a tile's name."""
    if not TILE_NAME.fullmatch(coadd_id) or band not in BANDS:
        return ""
    return f"{coadd_id[:2]}/{coadd_id[:4]}/{coadd_id}/{coadd_id}-{band}-int-3.fits"


def names_near(names: Iterable[str], ra: ArrayLike, dec: ArrayLike) -> list[str]:
    """Return the tile names whose centre, as the name tells it, lies near any position."""
    wanted = list(names)
    places = _places(ra, dec)
    if not wanted or not len(places[0]):
        return []
    sources = unit_vectors(*places)
    matches = [cast(re.Match[str], TILE_NAME.fullmatch(name)) for name in wanted]
    centre_ra = np.array([int(m[1]) / 10 + 0.05 for m in matches])
    centre_dec = np.array([int(m[3]) / 10 * (1 if m[2] == "p" else -1) for m in matches])
    centres = unit_vectors(centre_ra, centre_dec)
    near = [bool((sources @ centre).max() >= np.cos(np.radians(_reach_deg()))) for centre in centres]
    return [name for name, keep in zip(wanted, near, strict=True) if keep]


def ra_names_near(ra: ArrayLike, dec: ArrayLike) -> set[str]:
    """Return the first four digits, RA in 0.1 degree, of all names that `names_near` could keep."""
    digits = np.arange(3600)
    near = np.zeros(3600, bool)
    for place_ra, place_dec in zip(*_places(ra, dec), strict=True):
        spread = np.sin(np.radians(_reach_deg())) / np.cos(np.radians(place_dec))
        half_width_deg = np.degrees(np.arcsin(spread)) if spread < 1 else 180.0
        near |= np.abs((digits / 10 + 0.05 - place_ra + 180) % 360 - 180) <= half_width_deg
    return {f"{number:04d}" for number in digits[near]}


def _places(ra: ArrayLike, dec: ArrayLike) -> tuple[Float64, Float64]:
    """Return RA and Dec (degrees) of the HEALPix pixels of order 6 that hold any position."""
    return pixel_centres(6, np.unique(healpix(6, ra, dec)))


def _reach_deg() -> float:
    """Return how far from such a pixel's centre the centre that a tile's name tells may lie."""
    return TILE_HALF_DIAGONAL_DEG + NAME_ROUNDING_DEG + pixel_radius_deg(6)
