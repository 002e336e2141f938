"""Where a source falls on a tile. Pure, batched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
from astropy.wcs import WCS
from numpy.typing import ArrayLike

from ..types import Float64, Tile
from .healpix import separation_deg


def tile_wcs(tile: Tile) -> WCS:
    """Return the astropy WCS of a tile, built from its numbers: SIN, north up, no distortion."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---SIN", "DEC--SIN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.crval = tile.crval_deg
    wcs.wcs.crpix = tile.crpix
    wcs.wcs.cdelt = tile.cdelt_deg
    return wcs


def tile_pixels(tile: Tile, ra: ArrayLike, dec: ArrayLike) -> tuple[Float64, Float64]:
    """Return 1-based FITS pixels (x, y) of positions on a tile: the catalogue's `wx`, `wy`.

    NaN where the position is not finite or lies on the far side of the sky, which SIN cannot show.
    """
    ra, dec = np.atleast_1d(np.asarray(ra, np.float64)), np.atleast_1d(np.asarray(dec, np.float64))
    pixels = np.full((len(ra), 2), np.nan)
    near = separation_deg(*tile.crval_deg, ra, dec) < 89.0
    if near.any():
        pixels[near] = tile_wcs(tile).wcs_world2pix(np.column_stack([ra[near], dec[near]]), 1)
    return pixels[:, 0], pixels[:, 1]


def edge_distance_px(tile: Tile, x: ArrayLike, y: ArrayLike) -> Float64:
    """Return the distance in pixels to the closest tile edge: negative outside, -inf where x or y is NaN.

    The edge is the outer border of the outermost pixels, 0.5 and N + 0.5 in FITS pixels. A source
    belongs to the tile where this is largest (AllWISE Explanatory Supplement, V.4).
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    rows, columns = tile.shape
    margins: Sequence[Float64] = (x - 0.5, columns + 0.5 - x, y - 0.5, rows + 0.5 - y)
    inside = np.minimum(np.minimum(margins[0], margins[1]), np.minimum(margins[2], margins[3]))
    return cast(Float64, np.where(np.isnan(inside), -np.inf, inside))
