"""Limits of the checks of rows, pixels and checksums."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
import pytest

from skyclass.errors import TileFault
from skyclass.images.atlas import AtlasImage
from skyclass.images.checks import check_pixels, check_rows, checksum_fault
from skyclass.images.source import MemorySource, Piece, describe
from skyclass.types import Tile
from tests.support.atlas_files import atlas_bytes

TILE = Tile("0000p000_ac51", ("w1",), (40, 20), (0.0, 0.0), (5.0, 5.0), (-0.0004, 0.0004), (20.5,))
NAME = "x.fits"


def test_rows_lie_on_the_tile():
    for start, stop in ((0, 1), (0, 40), (39, 40)):
        check_rows(TILE, start, stop)
    for start, stop in ((-1, 1), (0, 0), (5, 4), (39, 41), (40, 41)):
        with pytest.raises(ValueError, match=f"^rows {start}:{stop} are not in the 40 rows of 0000p000_ac51$"):
            check_rows(TILE, start, stop)


def fault_of(pixels: np.ndarray, start: int = 7) -> str:
    """Return the reason for which rows are refused, or ""."""
    try:
        check_pixels(TILE, "w1", start, pixels.astype(np.float32))
    except TileFault as fault:
        assert (fault.coadd_id, fault.band, fault.kind) == ("0000p000_ac51", "w1", "bad")
        return fault.reason
    return ""


def test_a_row_may_have_five_percent_of_zeros():
    """A row has 20 pixels: one zero is 5 %, two are 10 %."""
    pixels = np.ones((3, 20))
    pixels[:, 4] = 0
    assert fault_of(pixels) == "", "each row is judged alone"
    pixels[1, 5] = -0.0
    assert fault_of(pixels) == "zeroed pixels: 10% of row 8 are exactly 0, fetch it again"
    pixels[2, 5:15] = 0
    assert fault_of(pixels) == "zeroed pixels: 55% of row 9 are exactly 0, fetch it again", "the worst row"


def test_two_percent_of_the_pixels_must_be_finite():
    pixels = np.full((5, 20), np.nan)
    pixels[0, 0], pixels[4, 19] = 1, 1
    assert fault_of(pixels) == "", "2 of 100"
    pixels[4, 19] = np.inf
    assert fault_of(pixels) == "1.0% of rows 7 to 12 are finite pixels, fetch it again"


CONTENT = atlas_bytes()
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.mark.parametrize(
    ("sidecar", "fault"),
    [
        (MD5, ""),
        (f" \n{MD5.upper()}\tx.fits\n", ""),
        (MD5 + " " * (4096 - 32), ""),
        (
            MD5 + " " * (4097 - 32),
            "cannot be checked: memory:/x.fits.md5 cannot be read (it has more than 4,096 bytes)",
        ),
        (f"{MD5}0", "cannot be checked: memory:/x.fits.md5 holds no checksum; fetch that again, or remove it"),
        ("", "cannot be checked: memory:/x.fits.md5 holds no checksum; fetch that again, or remove it"),
        (f"md5 {MD5}", "cannot be checked: memory:/x.fits.md5 holds no checksum; fetch that again, or remove it"),
        ("0" * 32, f"has the MD5 {MD5}, and memory:/x.fits.md5 says {'0' * 32}"),
    ],
)
def test_the_checksum_is_the_first_word_of_a_small_file(sidecar, fault):
    source = MemorySource({NAME: CONTENT, f"{NAME}.md5": sidecar.encode()})
    image = describe(source, NAME)
    assert isinstance(image, AtlasImage) and checksum_fault(source, image) == fault
    assert checksum_fault(MemorySource({}), image) == "", "without a checksum nothing is read"


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        (f"{NAME}.md5", "cannot be checked: memory:/x.fits.md5 cannot be read (disk error)"),
        (NAME, "cannot be read (disk error)"),
    ],
)
def test_a_file_that_cannot_be_read_cannot_be_checked(name, fault):
    class Failing(MemorySource):
        def read(self, wanted: str, start: int, stop: int) -> Iterator[Piece]:
            if wanted == name:
                raise OSError("disk error")
            return super().read(wanted, start, stop)

    files = {NAME: CONTENT, f"{NAME}.md5": MD5.encode()}
    image = describe(MemorySource(files), NAME)
    assert isinstance(image, AtlasImage) and checksum_fault(Failing(files), image) == fault
