"""Small simulated Atlas images, written as the archive serves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from skyclass.errors import TileFault

COADD_ID = "0098p408_ac51"
CDELT_DEG = 0.0003819444391411
ROWS, COLUMNS = 40, 37


def atlas_header(coadd_id: str = COADD_ID, band: int = 1, **changes: object) -> fits.Header:
    """Return the cards that a real Atlas header has, of a simulated image; None takes a card out."""
    cards: dict[str, object] = {
        "BUNIT": "DN", "CRVAL1": 9.890156, "CRVAL2": 40.89, "EQUINOX": 2000.0,
        "CTYPE1": "RA---SIN", "CTYPE2": "DEC--SIN", "CRPIX1": 20.0, "CRPIX2": 18.0,
        "CDELT1": -CDELT_DEG, "CDELT2": CDELT_DEG, "CROTA2": 0.0, "FILETYPE": "intensity image",
        "BAND": band, "COADDID": coadd_id, "MAGZP": {1: 20.5, 2: 19.5, 3: 18.0, 4: 13.0}.get(band, 20.5),
    }  # fmt: skip
    return fits.Header({k: v for k, v in (cards | changes).items() if v is not None})


def pixels_of(band: int, seed: int = 0) -> np.ndarray:
    """Return the pixels of a simulated image."""
    return np.random.default_rng(seed + band).normal(5, 1, (ROWS, COLUMNS)).astype(np.float32)


def atlas_bytes(band: int = 1, **changes: object) -> bytes:
    """Return a whole file: a header of one block, the pixels, and a block of zeros."""
    header = fits.PrimaryHDU(pixels_of(band), atlas_header(band=band, **changes)).header
    return header.tostring().encode("ascii") + pixels_of(band).astype(">f4").tobytes() + bytes(2880)


def fault_of(function: Callable[..., object], *arguments: object) -> TileFault:
    """Return the fault that a call raises."""
    with pytest.raises(TileFault) as caught:
        function(*arguments)
    return caught.value


def write_image(path: Path, header: fits.Header, pixels: np.ndarray) -> Path:
    """Write an image, in folders that need not exist."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.PrimaryHDU(pixels, header).writeto(path, overwrite=True)
    return path


def write_layout(root: Path, coadd_id: str = COADD_ID, bands: tuple[int, ...] = (1, 2, 3)) -> Path:
    """Write the images of a tile in the layout of the archive; return their folder."""
    folder = root / coadd_id[:2] / coadd_id[:4] / coadd_id
    for band in bands:
        write_image(folder / f"{coadd_id}-w{band}-int-3.fits", atlas_header(coadd_id, band), pixels_of(band))
    return folder
