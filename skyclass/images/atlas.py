"""FITS header -> `AtlasImage`, or `RejectedFile` with the reason.

Only AllWISE Atlas intensity images are accepted: an image of another product has another scale or zero point, and
would give wrong classes without an error. The image may be in the primary HDU or in the first extension. Its WCS may
have CDELT with or without an identity PC matrix, or a diagonal CD matrix.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections import ChainMap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy.io import fits

from ..types import ATLAS_COADD_ID, PIXEL_SCALE_ARCSEC, FileStamp, ImageFile

SCALE_TOLERANCE_ARCSEC = 1e-3
ROTATION_TOLERANCE_DEG = 1e-6

CARD_BYTES = 80
END_CARD = b"END".ljust(CARD_BYTES)
BLOCK_BYTES = 2880
MAX_HEADER_BLOCKS = 64
IMAGE_NAME = re.compile(r"(\d{4}[pm]\d{3}_[a-z]{2}\d+)-(w[1-4])-int-3")
COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"\x1f\x9d": ("compress", "uncompress"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"PK\x03\x04": ("ZIP", "unzip"),
}
"""First bytes of a compressed file -> the name of the format, and the program that unpacks it."""
UNPARSABLE = re.compile(r"Unparsable card \((.*)\), fix it first with .*", re.DOTALL)
"""What astropy says of a card that it cannot read."""
AS_SERVED = "use the file as the archive serves it, neither resampled nor edited"
ATLAS_NAMES = "use the Atlas files named <coadd_id>-w<band>-int-3.fits"

MAX_SIDE_PX = 8192
"""Twice the side of an Atlas tile. A larger number is an error in the header, and its array would fill the memory."""
MAX_FILE_BYTES = 4_000_000_000

Cards = Mapping[str, Any]


@dataclass(frozen=True)
class AtlasImage:
    """One band of a tile as the header of its file describes it; shape and WCS have the same meaning as in `Tile`.

    `path` is the complete path or URL of the file, for messages. `file.name` is relative to the image source.
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
        """Shape and WCS, which are equal in all bands of a tile."""
        return self.shape, self.crval_deg, self.crpix, self.cdelt_deg


@dataclass(frozen=True)
class RejectedFile:
    """A file that cannot be used: the reason with its remedy, and the tile and band that the file claims, or ""."""

    path: str
    reason: str
    coadd_id: str = ""
    band: str = ""


def reject(path: str, reason: str) -> RejectedFile:
    """Return the rejection of a file whose header is unknown; tile and band are those of its name, if it has them."""
    match = IMAGE_NAME.search(path.split("/")[-1])
    return RejectedFile(path, reason, *(match.groups() if match else ()))


def read_header(path: str, name: str, head: bytes, stamp: FileStamp) -> AtlasImage | RejectedFile:
    """Return the image that these first bytes of a file describe, or the reason why the file is rejected."""
    if fault := _content_fault(head, stamp.size_bytes):
        return reject(path, fault)
    try:
        return _from_headers(path, ImageFile(name, len(head), hashlib.sha256(head).hexdigest(), stamp), head)
    except (OSError, ValueError, TypeError, KeyError, OverflowError, fits.VerifyError, Warning) as error:
        return reject(path, f"damaged FITS header ({_damage(error)}): fetch the file again")


def _damage(error: Exception) -> str:
    """Return the message of astropy about a header, without its advice to repair the file in Python."""
    return UNPARSABLE.sub(r"card \1 cannot be read", str(error))


# --- bytes -----------------------------------------------------------------------------------------


def header_blocks(data: bytes) -> bytes:
    """Return the header at the beginning of `data`, to the end of the block that holds the END card.

    If the primary HDU has no pixels, the header of the first extension is included. Of bytes that are no header, or a
    header without END, the result holds at most `MAX_HEADER_BLOCKS` blocks.
    """
    stream = io.BytesIO(data)
    head = _blocks(stream, b"SIMPLE")
    return head + _blocks(stream, b"XTENSION") if re.search(rb"NAXIS   = +0[ /]", head) else head


def _blocks(stream: io.BytesIO, first: bytes) -> bytes:
    head = b""
    for _ in range(MAX_HEADER_BLOCKS):
        block = stream.read(BLOCK_BYTES)
        head += block
        if len(block) < BLOCK_BYTES or not head.startswith(first) or _has_end(block):
            break
    return head


def _has_end(block: bytes) -> bool:
    at = block.find(END_CARD)
    while at > 0 and at % CARD_BYTES:
        at = block.find(END_CARD, at + 1)
    return at >= 0


def _content_fault(head: bytes, size_bytes: int) -> str:
    """Return why bytes are no FITS header, or ""."""
    if size_bytes == 0:
        return "empty file: fetch it again"
    if size_bytes > MAX_FILE_BYTES:
        return f"{size_bytes:,} bytes, more than any Atlas image has: fetch it again"
    for magic, (kind, program) in COMPRESSED.items():
        if head.startswith(magic):
            return f"{kind} content, which skyclass does not read: unpack it with {program}"
    if head.lstrip()[:1] == b"<":
        return "an HTML or XML page, not FITS (an error page saved under this name?): fetch it again"
    if not head.startswith(b"SIMPLE  ="):
        return "not a FITS file: fetch it again"
    if not _has_end(head[-BLOCK_BYTES:]) or len(head) % BLOCK_BYTES:
        return f"truncated: {size_bytes} bytes end inside the FITS header, fetch it again"
    return ""


# --- cards -----------------------------------------------------------------------------------------


def _from_headers(path: str, file: ImageFile, head: bytes) -> AtlasImage | RejectedFile:
    """Return the image of the primary HDU or, if that HDU has no pixels, of the first extension."""
    stream = io.BytesIO(head)
    cards = fits.Header.fromfile(stream)
    if cards.get("NAXIS") != 0:
        return _from_cards(path, file, cards, "")
    if stream.tell() == len(head):
        return reject(path, "the primary HDU has no pixels, and no extension follows: fetch it again")
    extension = fits.Header.fromfile(stream)
    return _from_cards(path, file, ChainMap(extension, cards), str(extension.get("XTENSION", "")).strip())


def _from_cards(path: str, file: ImageFile, cards: Cards, extension: str) -> AtlasImage | RejectedFile:
    """Return the image that the cards describe, or a rejection that names every problem."""
    is_intensity = str(cards.get("FILETYPE", "")).strip() == "intensity image"
    coadd_id = str(cards.get("COADDID", "")).strip() if is_intensity else ""
    band = f"w{number(cards, 'BAND'):.0f}" if coadd_id and number(cards, "BAND") in (1, 2, 3, 4) else ""
    if problem := _problems(cards, extension) or _size_problem(cards, file):
        return RejectedFile(path, problem, coadd_id, band)
    return AtlasImage(
        path=path, coadd_id=coadd_id, band=band, shape=(int(cards["NAXIS2"]), int(cards["NAXIS1"])),
        crval_deg=(number(cards, "CRVAL1"), number(cards, "CRVAL2")),
        crpix=(number(cards, "CRPIX1"), number(cards, "CRPIX2")),
        cdelt_deg=_scales(cards)[0], zero_point_mag=number(cards, "MAGZP"), file=file,
    )  # fmt: skip


def _problems(cards: Cards, extension: str) -> str:
    """Return every reason to reject an image with these cards, and the remedy, or ""."""
    if problem := _extension_problem(cards, extension):
        return problem
    wrong_product = _product_problems(cards)
    problems = wrong_product or [*_format_problems(cards), *_geometry_problems(cards)]
    where = "in extension 1, " if extension else ""
    return f"{where}{'; '.join(problems)}: {ATLAS_NAMES if wrong_product else AS_SERVED}" if problems else ""


def _size_problem(cards: Cards, file: ImageFile) -> str:
    """Return why the file cannot hold all pixels of the image, or ""."""
    needed = file.data_offset + 4 * int(cards["NAXIS1"]) * int(cards["NAXIS2"])
    if file.stamp.size_bytes >= needed:
        return ""
    return f"truncated: {file.stamp.size_bytes} bytes, header and pixels need {needed}, fetch it again"


def number(cards: Cards, name: str, default: float = np.nan) -> float:
    """Return the value of a keyword as a number, also if the card holds it as text; NaN for anything else."""
    value = cards.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return np.nan
    try:
        return float(value)
    except (ValueError, OverflowError):
        return np.nan


def _extension_problem(cards: Cards, extension: str) -> str:
    """Return why pixels cannot be read from an extension of this type, or ""."""
    if cards.get("ZIMAGE") is True:
        kind = str(cards.get("ZCMPTYPE", "unknown")).strip()
        return f"the image is in extension 1, compressed ({kind}), which skyclass does not read: unpack it with funpack"
    if extension in ("", "IMAGE") and cards.get("NAXIS") != 0:
        return ""
    content = f"a {extension}" if cards.get("NAXIS") != 0 else "empty too"
    return f"the primary HDU has no pixels, and extension 1 is {content}: copy the image to the primary HDU"


def _product_problems(cards: Cards) -> list[str]:
    """Return what shows that the file is not an AllWISE Atlas intensity image but another product."""
    ctypes = [str(cards.get(name, "none")) for name in ("CTYPE1", "CTYPE2")]
    filetype = str(cards.get("FILETYPE", "none")).strip()
    problems = []
    if any(ctype.endswith("-SIP") for ctype in ctypes) or "A_ORDER" in cards:
        problems.append("SIP distortion, as in a WISE single exposure")
    elif [ctype[-3:] for ctype in ctypes] == ["TAN", "TAN"]:
        problems.append("TAN projection, as in an unWISE coadd (other scale and zero point)")
    elif ctypes != ["RA---SIN", "DEC--SIN"]:
        problems.append(f"projection {'/'.join(ctypes)} instead of RA---SIN/DEC--SIN")
    if filetype != "intensity image":
        problems.append(f"FILETYPE is '{filetype}' instead of 'intensity image'")
    if not ATLAS_COADD_ID.fullmatch(str(cards.get("COADDID", "")).strip()):
        problems.append(f"COADDID is {cards.get('COADDID', 'missing')}")
    if number(cards, "BAND") not in (1, 2, 3, 4):
        problems.append(f"BAND is {cards.get('BAND', 'missing')}")
    if str(cards.get("BUNIT", "")).strip() != "DN":
        problems.append(f"BUNIT is {cards.get('BUNIT', 'missing')} instead of DN")
    return problems


def _format_problems(cards: Cards) -> list[str]:
    """Return the problems of the pixel format and the zero point."""
    expected = {"BITPIX": -32, "NAXIS": 2, "BSCALE": 1, "BZERO": 0}
    defaults = {"BSCALE": 1.0, "BZERO": 0.0}
    problems = [
        f"{name} is {cards.get(name, 'missing')} instead of {value}"
        for name, value in expected.items()
        if number(cards, name, defaults.get(name, np.nan)) != value
    ]
    problems += [
        f"{name} is {cards.get(name, 'missing')}"
        for name in ("NAXIS1", "NAXIS2")
        if not isinstance(cards.get(name), int) or not 1 <= cards[name] <= MAX_SIDE_PX
    ]
    return problems + _number_problems(cards, ("MAGZP",))


def _number_problems(cards: Cards, names: Iterable[str]) -> list[str]:
    """Return a problem for each of these keywords that holds no finite number."""
    return [
        f"{name} is {cards[name]}, no finite number" if name in cards else f"{name} is missing"
        for name in names
        if not np.isfinite(number(cards, name))
    ]


# --- geometry --------------------------------------------------------------------------------------


def _geometry_problems(cards: Cards) -> list[str]:
    """Return the problems of the WCS: it must be SIN, north up, with pixels of 1.375 arcsec."""
    scale_names = () if _has_cd(cards) else ("CDELT1", "CDELT2")
    problems = _number_problems(cards, ("CRVAL1", "CRVAL2", "CRPIX1", "CRPIX2", *scale_names))
    if problems:
        return problems
    cdelt_deg, off_diagonal_deg = _scales(cards)
    label = "CD" if _has_cd(cards) else "CDELT"
    for axis, scale_deg, sign in ((1, cdelt_deg[0], -1), (2, cdelt_deg[1], 1)):
        scale_arcsec = scale_deg * 3600
        if not abs(scale_arcsec - sign * PIXEL_SCALE_ARCSEC) <= SCALE_TOLERANCE_ARCSEC:
            name = f"{label}{axis}_{axis}" if label == "CD" else f"{label}{axis}"
            problems.append(f"{name} is {scale_arcsec:.5g} arcsec instead of {sign * PIXEL_SCALE_ARCSEC}")
    rotation_deg = np.degrees(off_diagonal_deg * 3600 / PIXEL_SCALE_ARCSEC)
    crota_deg = [abs(number(cards, name, 0.0)) for name in ("CROTA1", "CROTA2")] if not _has_cd(cards) else []
    if not np.max([rotation_deg, *crota_deg]) <= ROTATION_TOLERANCE_DEG:
        problems.append("the image is rotated or skewed (CROTA2, or the CD or PC matrix)")
    return problems


def _has_cd(cards: Cards) -> bool:
    return any(f"CD{i}_{j}" in cards for i in (1, 2) for j in (1, 2))


def _scales(cards: Cards) -> tuple[tuple[float, float], float]:
    """Return the pixel scale along both axes and the largest off-diagonal element of the matrix, in degrees.

    A CD matrix takes precedence over CDELT, and absent elements of a matrix have the defaults of the FITS standard.
    """
    if _has_cd(cards):
        matrix = np.array([[number(cards, f"CD{i}_{j}", 0.0) for j in (1, 2)] for i in (1, 2)])
    else:
        cdelt = np.array([[number(cards, f"CDELT{i}")] for i in (1, 2)])
        matrix = cdelt * [[number(cards, _pc_name(cards, i, j), float(i == j)) for j in (1, 2)] for i in (1, 2)]
    return (float(matrix[0, 0]), float(matrix[1, 1])), float(np.abs([matrix[0, 1], matrix[1, 0]]).max())


def _pc_name(cards: Cards, i: int, j: int) -> str:
    """Return the name of an element of the PC matrix, in the older notation (PC001001) if the file uses it."""
    older = f"PC{i:03}{j:03}"
    return older if older in cards else f"PC{i}_{j}"
