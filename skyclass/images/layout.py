"""The directory layout of the Atlas archive, in which the name of a tile gives its place on the sky and its files.

S3, IBE and local mirrors share one layout:

    [wise/allwise/images/p3am_cdd/]{coadd_id[:2]}/{coadd_id[:4]}/{coadd_id}/{coadd_id}-w{band}-int-3.fits
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from ..sky.healpix import healpix, pixel_centres, pixel_radius_deg, unit_vectors
from ..types import ATLAS_COADD_ID, BANDS, Float64

Positions = tuple[ArrayLike, ArrayLike]
"""Right ascensions and declinations, in degrees."""

LAYOUT_PREFIXES = ("", *("wise/allwise/images/p3am_cdd".split("/", n)[n] for n in (3, 2, 1, 0)))
"""Folders between a location that a user gives and the root of the layout."""

TILE_HALF_DIAGONAL_DEG = 1.11
"""Half of the 1.5644 degree side of an Atlas tile, times the square root of 2."""
NAME_ROUNDING_DEG = 0.15
"""The name of a tile has RA and Dec of its centre, each truncated to 0.1 degree."""
NEAR_ORDER = 6
"""HEALPix order to which positions are rounded before they are compared with the centres of tiles."""


def layout_path(coadd_id: str, band: str) -> str:
    """Return the path of an image below the root of the layout, or "" for a `coadd_id` or band not of the Atlas."""
    if not ATLAS_COADD_ID.fullmatch(coadd_id) or band not in BANDS:
        return ""
    return f"{coadd_id[:2]}/{coadd_id[:4]}/{coadd_id}/{coadd_id}-{band}-int-3.fits"


def layout_coadd_ids(names: Iterable[str]) -> list[str]:
    """Return the tiles of the images among names that end as the layout does: .../COADD_ID/FILE.fits."""
    folders = {name.split("/")[-2] for name in names if name.endswith(".fits") and "/" in name}
    return sorted(folder for folder in folders if ATLAS_COADD_ID.fullmatch(folder))


def layout_footprints(coadd_ids: Iterable[str], bands: Sequence[str]) -> Iterator[list[str]]:
    """Yield for each tile the paths of its images, `bands` first: the first good one shows the footprint."""
    for coadd_id in coadd_ids:
        yield [layout_path(coadd_id, band) for band in dict.fromkeys((*bands, *BANDS))]


def names_near(coadd_ids: Iterable[str], positions: Positions) -> list[str]:
    """Return those of Atlas tiles that may cover any of the positions, judged by the centre in the `coadd_id`."""
    names = list(coadd_ids)
    pixels = _pixels(positions)
    if not names or not len(pixels[0]):
        return []
    sources = unit_vectors(*pixels)
    matches = [cast(re.Match[str], ATLAS_COADD_ID.fullmatch(name)) for name in names]
    centre_ra = np.array([int(m[1]) / 10 + 0.05 for m in matches])
    centre_dec = np.array([int(m[3]) / 10 * (1 if m[2] == "p" else -1) for m in matches])
    min_cosine = np.cos(np.radians(_reach_deg()))
    centres = unit_vectors(centre_ra, centre_dec)
    return [name for name, centre in zip(names, centres, strict=True) if (sources @ centre).max() >= min_cosine]


def ra_folders_near(positions: Positions) -> set[str]:
    """Return the second-level folders (RA in 0.1 degree, four digits) of all tiles that `names_near` could return."""
    digits = np.arange(3600)
    is_near = np.zeros(3600, bool)
    for ra, dec in zip(*_pixels(positions), strict=True):
        sine = np.sin(np.radians(_reach_deg())) / np.cos(np.radians(dec))
        half_width_deg = np.degrees(np.arcsin(sine)) if sine < 1 else 180.0
        is_near |= np.abs((digits / 10 + 0.05 - ra + 180) % 360 - 180) <= half_width_deg
    return {f"{number:04d}" for number in digits[is_near]}


def _pixels(positions: Positions) -> tuple[Float64, Float64]:
    """Return RA and Dec (degrees) of the centres of the HEALPix pixels that hold any of the positions."""
    return pixel_centres(NEAR_ORDER, np.unique(healpix(NEAR_ORDER, *positions)))


def _reach_deg() -> float:
    """Return the largest distance of a pixel centre from the named centre of a tile that covers part of the pixel."""
    return TILE_HALF_DIAGONAL_DEG + NAME_ROUNDING_DEG + pixel_radius_deg(NEAR_ORDER)
