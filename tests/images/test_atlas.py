"""Headers of image files: which are accepted, and what is said of the others."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from skyclass.images import atlas
from skyclass.images.atlas import AtlasImage, RejectedFile, header_blocks, number, read_header, reject
from skyclass.types import FileStamp, ImageFile
from tests.support.atlas_files import CDELT_DEG, COADD_ID, COLUMNS, ROWS, atlas_header

BLOCK = 2880
CARDS: dict[str, object] = {"SIMPLE": True, "BITPIX": -32, "NAXIS": 2, "NAXIS1": COLUMNS, "NAXIS2": ROWS}
CARDS |= dict(atlas_header())
NAME = f"{COADD_ID}-w2-int-3.fits"


def described(content: bytes, size_bytes: int | None = None, path: str = "/a/x.fits") -> AtlasImage | RejectedFile:
    """Return the image in a file, whose size may be said to be another."""
    stamp = FileStamp(len(content) if size_bytes is None else size_bytes)
    return read_header(path, path.rsplit("/", 1)[-1], header_blocks(content), stamp)


def accepted(content: bytes, size_bytes: int | None = None) -> AtlasImage:
    image = described(content, size_bytes)
    assert isinstance(image, AtlasImage), image
    return image


def reason(content: bytes, size_bytes: int | None = None) -> str:
    rejected = described(content, size_bytes)
    assert isinstance(rejected, RejectedFile), rejected
    return rejected.reason


def header_of(**changes: object) -> bytes:
    """Return the cards of a primary HDU with an Atlas image; None takes a card out."""
    return cards_of({k: v for k, v in (CARDS | changes).items() if v is not None})


def problems_of(**changes: object) -> str:
    """Return what is wrong with an image whose cards have these changes, without a file; None takes a card out."""
    return atlas._problems({k: v for k, v in (CARDS | changes).items() if v is not None}, "")


def cards_of(cards: dict[str, object]) -> bytes:
    lines = b""
    for name, value in cards.items():
        text = (
            {True: "T", False: "F"}[value]
            if isinstance(value, bool)
            else f"'{value}'"
            if isinstance(value, str)
            else value
        )
        lines += f"{name:8}= {text!s:>20}".encode().ljust(80)
    lines += b"END".ljust(80)
    return lines.ljust(-(-len(lines) // BLOCK) * BLOCK)


def file_of(**changes: object) -> bytes:
    return header_of(**changes) + bytes(4 * ROWS * COLUMNS)


def test_an_image_has_what_its_cards_say():
    content = file_of(BAND=4, MAGZP=13.0)
    image = accepted(content)
    assert image.file == ImageFile(
        "x.fits", BLOCK, hashlib.sha256(content[:BLOCK]).hexdigest(), FileStamp(len(content))
    )
    assert (image.path, image.coadd_id, image.band, image.zero_point_mag) == ("/a/x.fits", COADD_ID, "w4", 13.0)
    assert (image.shape, image.crval_deg, image.crpix) == ((ROWS, COLUMNS), (9.890156, 40.89), (20.0, 18.0))
    assert image.cdelt_deg == (-CDELT_DEG, CDELT_DEG)
    assert image.geometry == (image.shape, image.crval_deg, image.crpix, image.cdelt_deg)


def test_a_rejected_file_has_the_tile_and_band_of_its_name_or_its_cards():
    for path, claim in (
        (f"/a/b/{NAME}", (COADD_ID, "w2")),
        (f"/a/{COADD_ID}-w4-int-3.fits.gz", (COADD_ID, "w4")),
        (f"/a/copy of {NAME}", (COADD_ID, "w2")),
        (f"/{COADD_ID}-w2-int-3/x.fits", ("", "")),
        (f"/a/{COADD_ID}-w5-int-3.fits", ("", "")),
    ):
        rejected = reject(path, "why")
        assert (rejected.path, rejected.reason) == (path, "why") and (rejected.coadd_id, rejected.band) == claim
    by_cards = described(file_of(MAGZP=None), path=f"/a/{NAME}")
    assert isinstance(by_cards, RejectedFile) and (by_cards.coadd_id, by_cards.band) == (COADD_ID, "w1")
    for changes, claim in (
        ({"BAND": 5}, (COADD_ID, "")),
        ({"FILETYPE": "mask"}, ("", "")),
        ({"COADDID": None}, ("", "")),
    ):
        other = described(file_of(**changes))
        assert isinstance(other, RejectedFile) and (other.coadd_id, other.band) == claim


# --- bytes -----------------------------------------------------------------------------------------


def test_the_header_ends_with_the_block_of_its_end_card():
    first, pixels = header_of(), b"\x01" * 3 * BLOCK
    assert header_blocks(first + pixels) == first
    cards = {"SIMPLE": True} | {f"KEY{n}": n for n in range(35)}
    assert len(cards_of(cards)) == 2 * BLOCK and header_blocks(cards_of(cards) + pixels) == cards_of(cards)
    text = b"SIMPLE  =".ljust(80) + b"COMMENT a word END".ljust(160) + b"END".ljust(80)
    assert header_blocks(text.ljust(BLOCK) + pixels) == text.ljust(BLOCK)
    inside = b"SIMPLE  =".ljust(80) + b"COMMENT END".ljust(160)
    assert len(header_blocks(inside.ljust(BLOCK) + first + pixels)) == 2 * BLOCK, "END within a card ends nothing"
    aligned = (b"SIMPLE  =".ljust(79) + b"END").ljust(160) + b"END".ljust(80)
    assert header_blocks(aligned.ljust(BLOCK) + pixels) == aligned.ljust(BLOCK)
    for shift in (1, 79, 81):
        shifted = b"SIMPLE  =".ljust(BLOCK + shift) + b"END".ljust(BLOCK - shift) + b"END".ljust(BLOCK)
        assert header_blocks(shifted + pixels) == shifted, "END does not begin a card"


def test_of_bytes_without_an_end_the_header_is_bounded():
    endless = b"SIMPLE  =".ljust(BLOCK)
    assert len(header_blocks(endless + bytes(100 * BLOCK))) == 64 * BLOCK
    assert len(header_blocks(b"\x01" * 5 * BLOCK)) == BLOCK, "no header"
    assert header_blocks(endless[:1000]) == endless[:1000] and header_blocks(b"") == b""
    assert len(header_blocks(endless + bytes(BLOCK + 7))) == 2 * BLOCK + 7
    last = endless + b" " * 62 * BLOCK + b"END".ljust(BLOCK)
    assert len(header_blocks(last + bytes(BLOCK))) == 64 * BLOCK


@pytest.mark.parametrize(
    ("value", "is_read"),
    [("NAXIS   =                    0", True), ("NAXIS   = 0", True), ("NAXIS   =                    2", False)],
)
def test_the_header_of_an_extension_is_read_where_the_primary_has_no_pixels(value, is_read):
    primary = (b"SIMPLE  =".ljust(80) + value.encode().ljust(80) + b"END".ljust(80)).ljust(BLOCK)
    extension = (b"XTENSION= 'IMAGE'".ljust(80) + b"END".ljust(80)).ljust(BLOCK)
    assert header_blocks(primary + extension + bytes(BLOCK)) == (primary + extension if is_read else primary)


def test_what_is_no_header_is_told_by_its_first_bytes():
    cases = [
        (b"", 0, "empty file: fetch it again"),
        (b"SIMPLE  =", 4_000_000_001, "4,000,000,001 bytes, more than any Atlas image has: fetch it again"),
        (b"SIMPLE  =", 4_000_000_000, "truncated: 4000000000 bytes end inside the FITS header, fetch it again"),
        (b"\x1f\x8b", 9, "gzip content, which skyclass does not read: unpack it with gunzip"),
        (b"\x1f\x9d", 9, "compress content, which skyclass does not read: unpack it with uncompress"),
        (b"\x28\xb5\x2f\xfd", 9, "zstd content, which skyclass does not read: unpack it with unzstd"),
        (b"PK\x03\x04", 9, "ZIP content, which skyclass does not read: unpack it with unzip"),
        (b" \n<?xml", 9, "an HTML or XML page, not FITS (an error page saved under this name?): fetch it again"),
        (b"SIMPLE", 9, "not a FITS file: fetch it again"),
        (b"   ", 9, "not a FITS file: fetch it again"),
        (
            b"SIMPLE  = T".ljust(80) + b"END".ljust(80),
            160,
            "truncated: 160 bytes end inside the FITS header, fetch it again",
        ),
    ]
    for head, size_bytes, words in cases:
        assert reason(head, size_bytes) == words


def test_a_file_must_be_as_long_as_header_and_pixels():
    content = file_of()
    whole = BLOCK + 4 * ROWS * COLUMNS
    assert len(content) == whole and accepted(content, whole) and accepted(content, whole + 1)
    words = f"truncated: {whole - 1} bytes, header and pixels need {whole}, fetch it again"
    assert reason(content, whole - 1) == words


# --- cards -----------------------------------------------------------------------------------------


def test_a_number_may_be_text():
    cases = [
        (2, 2.0),
        (2.5, 2.5),
        (" -2.5e1 ", -25.0),
        ("inf", np.inf),
        ("two", np.nan),
        (True, np.nan),
        (None, np.nan),
        ([], np.nan),
    ]
    for value, expected in cases:
        np.testing.assert_equal(number({"A": value}, "A"), expected)
        np.testing.assert_equal(number({"A": value}, "A", 7.0), expected)
    assert np.isnan(number({}, "A")) and number({}, "A", 7.0) == 7.0
    assert np.isnan(number({"A": 10**400}, "A"))


SERVED = "use the file as the archive serves it, neither resampled nor edited"
NAMED = "use the Atlas files named <coadd_id>-w<band>-int-3.fits"
SIP = "SIP distortion, as in a WISE single exposure"


def test_another_product_is_told_from_an_atlas_image():
    cases = [
        ({"CTYPE1": "RA---SIN-SIP"}, SIP),
        ({"CTYPE2": "DEC--TAN-SIP"}, SIP),
        ({"A_ORDER": 2}, SIP),
        (
            {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN"},
            "TAN projection, as in an unWISE coadd (other scale and zero point)",
        ),
        ({"CTYPE1": "RA---TAN"}, "projection RA---TAN/DEC--SIN instead of RA---SIN/DEC--SIN"),
        ({"CTYPE2": None}, "projection RA---SIN/none instead of RA---SIN/DEC--SIN"),
        ({"FILETYPE": None}, "FILETYPE is 'none' instead of 'intensity image'"),
        ({"COADDID": "0098"}, "COADDID is 0098"),
        ({"BAND": 0}, "BAND is 0"),
        ({"BAND": 5}, "BAND is 5"),
        ({"BUNIT": None}, "BUNIT is missing instead of DN"),
        ({"BAND": None, "BUNIT": "Jy", "BITPIX": 16}, "BAND is missing; BUNIT is Jy instead of DN"),
    ]
    for changes, problems in cases:
        assert problems_of(**changes) == f"{problems}: {NAMED}"


def test_each_problem_of_format_and_geometry_is_named():
    cases = [
        ({"BITPIX": 16}, "BITPIX is 16 instead of -32"),
        ({"BSCALE": 2.0, "BZERO": 1.0}, "BSCALE is 2.0 instead of 1; BZERO is 1.0 instead of 0"),
        ({"NAXIS1": 0}, "NAXIS1 is 0"),
        ({"NAXIS2": 8193}, "NAXIS2 is 8193"),
        ({"MAGZP": None}, "MAGZP is missing"),
        ({"CRVAL1": None, "CRPIX2": "nan"}, "CRVAL1 is missing; CRPIX2 is nan, no finite number"),
        ({"CDELT1": None, "CRVAL2": "x"}, "CRVAL2 is x, no finite number; CDELT1 is missing"),
        (
            {"MAGZP": "x", "CROTA2": 1.0},
            "MAGZP is x, no finite number; the image is rotated or skewed (CROTA2, or the CD or PC matrix)",
        ),
        ({"CDELT1": CDELT_DEG}, "CDELT1 is 1.375 arcsec instead of -1.375"),
        ({"CDELT2": -2 * CDELT_DEG}, "CDELT2 is -2.75 arcsec instead of 1.375"),
        ({"CD1_1": -1.0, "CD2_2": CDELT_DEG}, "CD1_1 is -3600 arcsec instead of -1.375"),
        ({"CD1_1": -CDELT_DEG, "CD2_2": 1.0}, "CD2_2 is 3600 arcsec instead of 1.375"),
    ]
    for changes, problems in cases:
        assert problems_of(**changes) == f"{problems}: {SERVED}"


def test_what_differs_within_the_tolerances_is_accepted():
    cases = [
        {"BSCALE": 1.0, "BZERO": 0.0},
        {"BSCALE": "1", "BZERO": "0.0"},
        {"BAND": "1"},
        {"BAND": 2},
        {"BAND": 3.0},
        {"BAND": 4},
        {"NAXIS1": 8192, "NAXIS2": 1},
        {"NAXIS1": 1, "NAXIS2": 8192},
        {"CROTA1": 0.0, "CROTA2": None},
        {"CROTA2": 9e-7},
        {"CDELT1": -1.3759 / 3600, "CDELT2": 1.3741 / 3600},
        {"PC1_1": 1.0, "PC2_1": 1.5e-8},
        {"CD1_1": -CDELT_DEG, "CD2_2": CDELT_DEG, "CDELT1": None, "CDELT2": None, "CROTA2": 30.0},
    ]
    for changes in cases:
        assert problems_of(**changes) == ""


def test_what_differs_by_more_is_refused():
    """An angle of 1e-6 degrees is an off-diagonal element of 1.7e-8 of the PC, and of 6.7e-12 of the CD matrix."""
    cases = [
        ({"CDELT1": -1.3761 / 3600}, "CDELT1 is -1.3761 arcsec"),
        ({"CDELT2": 1.3739 / 3600}, "CDELT2 is 1.3739 arcsec"),
        ({"CROTA1": 1.1e-6}, "rotated"),
        ({"CROTA2": -1.1e-6}, "rotated"),
        ({"CROTA2": "much"}, "rotated"),
        ({"PC1_2": 2e-8}, "rotated"),
        ({"PC2_1": -2e-8}, "rotated"),
        ({"PC002001": 0.1}, "rotated"),
        ({"CD1_1": -CDELT_DEG, "CD2_2": CDELT_DEG, "CD1_2": -1e-11}, "rotated"),
        ({"CD1_1": -CDELT_DEG, "CD2_2": CDELT_DEG, "CD2_1": 1e-11}, "rotated"),
        ({"CD2_1": 0.0}, "CD1_1 is 0 arcsec instead of -1.375; CD2_2 is 0 arcsec"),
        ({"CD1_2": 0.0}, "CD1_1 is 0 arcsec instead of -1.375; CD2_2 is 0 arcsec"),
    ]
    for changes, words in cases:
        assert words in problems_of(**changes)


def test_the_sides_of_an_image_are_whole_numbers_of_at_most_8192_pixels():
    assert accepted(header_of(NAXIS1=8192, NAXIS2=1), BLOCK + 4 * 8192).shape == (1, 8192)
    assert reason(header_of(NAXIS1=8192, NAXIS2=8192), BLOCK) == (
        f"truncated: 2880 bytes, header and pixels need {BLOCK + 4 * 8192**2}, fetch it again"
    )
    assert "NAXIS1 is 37.0" in reason(header_of(NAXIS1=37.0), BLOCK) and "NAXIS2 is missing" in reason(
        header_of(NAXIS2=None)
    )


# --- the first extension ---------------------------------------------------------------------------

IMAGE = {"XTENSION": "IMAGE", "BITPIX": -32, "NAXIS": 2, "NAXIS1": COLUMNS, "NAXIS2": ROWS, "PCOUNT": 0, "GCOUNT": 1}
EMPTY = {"SIMPLE": True, "BITPIX": 8, "NAXIS": 0}


def test_an_image_in_the_first_extension_has_the_cards_of_both_headers():
    primary = EMPTY | {"MAGZP": 19.25, "COADDID": "1111p000_ac51"}
    extension = IMAGE | {k: v for k, v in dict(atlas_header()).items() if k != "MAGZP"}
    content = cards_of(primary) + cards_of(extension) + bytes(4 * ROWS * COLUMNS)
    image = accepted(content)
    assert (image.zero_point_mag, image.coadd_id, image.file.data_offset) == (19.25, COADD_ID, 2 * BLOCK)
    assert reason(content[:-1]).startswith(
        f"truncated: {len(content) - 1} bytes, header and pixels need {len(content)}"
    )
    wrong = cards_of(EMPTY) + cards_of(extension) + bytes(4 * ROWS * COLUMNS)
    assert reason(wrong) == f"in extension 1, MAGZP is missing: {SERVED}"


def test_an_extension_without_an_image_is_told():
    cases = [
        (None, "the primary HDU has no pixels, and no extension follows: fetch it again"),
        (
            {"NAXIS": 0},
            "the primary HDU has no pixels, and extension 1 is empty too: copy the image to the primary HDU",
        ),
        (
            {"XTENSION": "TABLE"},
            "the primary HDU has no pixels, and extension 1 is a TABLE: copy the image to the primary HDU",
        ),
        (
            {"XTENSION": "BINTABLE", "ZIMAGE": True, "ZCMPTYPE": "RICE_1"},
            "the image is in extension 1, compressed (RICE_1), which skyclass does not read: unpack it with funpack",
        ),
        (
            {"XTENSION": "BINTABLE", "ZIMAGE": True},
            "the image is in extension 1, compressed (unknown), which skyclass does not read: unpack it with funpack",
        ),
        (
            {"XTENSION": "BINTABLE", "ZIMAGE": False},
            "the primary HDU has no pixels, and extension 1 is a BINTABLE: copy the image to the primary HDU",
        ),
    ]
    for extension, words in cases:
        content = cards_of(EMPTY) + (b"" if extension is None else cards_of(IMAGE | extension))
        assert reason(content) == words


def test_a_header_that_cannot_be_interpreted_is_damaged():
    content = file_of()
    at = content.index(b"NAXIS1") + 25
    damaged = reason(content[:at] + b"4 5 6" + content[at + 5 :])
    assert damaged.startswith("damaged FITS header (card NAXIS1 cannot be read): fetch")
    assert damaged.endswith("): fetch the file again")
