"""Which sources the simulated catalogue lists, and the density of a sky that lists a wanted number of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from scipy.spatial import cKDTree

from skyclass.types import BANDS, PIXEL_SCALE_ARCSEC, Bool, Float64, Tile

from ..sky.healpix import separation_deg
from ..sky.tile_wcs import edge_distance_px, tile_pixels
from .conditions import expected_flux_sigma
from .field import CANDIDATE, OUTLIER, SkyModel, galactic, sources_near
from .grid import ZERO_POINT_MAG
from .population import Mix

SELECTION_SNR, DETECTION_SNR = 5.0, 2.5
"""The stated S/N of a catalogue row, and the S/N of the detection on the image with its confusion. AllWISE detects
sources from S/N 2.4 (Explanatory Supplement V.4)."""
MERGE_PX = 6.0 / PIXEL_SCALE_ARCSEC
"""Of two candidates closer than 6 arcsec, well inside one beam, the extractor lists only the brighter one."""
BORDER_PX = 50.0 / PIXEL_SCALE_ARCSEC
"""A catalogue source lies more than 50 arcsec from its tile's border (AllWISE Explanatory Supplement V.4)."""


def owned(tile: Tile, neighbours: Sequence[Tile], ra: Float64, dec: Float64) -> Bool:
    """Return the mask of sources that are farthest from the edge in this tile (in the first tile on a tie)."""
    distance = edge_distance_px(tile, *tile_pixels(tile, ra, dec))
    best, earlier = np.asarray(distance > -np.inf), True
    for other in neighbours:
        if other.coadd_id == tile.coadd_id:
            earlier = False
        elif separation_deg(*tile.crval_deg, *other.crval_deg) < 4.0:
            other_distance = edge_distance_px(other, *tile_pixels(other, ra, dec))
            best &= (distance > other_distance) if earlier else (distance >= other_distance)
    return best


def listable(x: Float64, y: Float64, w1_mag: Float64) -> Bool:
    """Return the mask of candidates that an extractor would list: those without a brighter one within 6 arcsec."""
    keep = np.ones(len(x), np.bool_)
    if len(x):
        pairs = cKDTree(np.column_stack([x, y])).query_pairs(MERGE_PX, output_type="ndarray")
        keep[np.where(w1_mag[pairs[:, 0]] > w1_mag[pairs[:, 1]], pairs[:, 0], pairs[:, 1])] = False
    return keep


def selected(mix: Mix, snr: Float64, detection_snr: Float64) -> Bool:
    """Return which sources the catalogue lists, from stated and detection S/N (3, N) in W1, W2 and W3.

    A source needs both in one band. The balanced mix asks it of W1, or red sources would be over-represented where W1
    is faint.
    """
    detected = (np.nan_to_num(snr) >= SELECTION_SNR) & (np.nan_to_num(detection_snr) >= DETECTION_SNR)
    return cast(Bool, detected[0] if mix == "balanced" else detected.any(axis=0))


def _expected_rows(sky: SkyModel, tiles: Sequence[Tile]) -> Float64:
    """Return the sorted ranks of all sources that the tiles' catalogues should list."""
    ranks = []
    zero = np.array([ZERO_POINT_MAG[b] for b in BANDS[:3]])
    for tile in tiles:
        sources = sources_near(sky, tile, 8.0, (CANDIDATE, OUTLIER))
        sources = sources.take(sources.layer == CANDIDATE)
        x, y = tile_pixels(tile, sources.ra, sources.dec)
        sigma = np.array([expected_flux_sigma(sky.seed, tile, b) for b in BANDS[:3]])
        flux = 10 ** (0.4 * (zero - sources.mags[:, :3]))
        good = selected(sky.mix, (flux / sigma[:, 0]).T, (flux / sigma[:, 1]).T)
        good &= listable(x, y, sources.mags[:, 0]) & (edge_distance_px(tile, x, y) > BORDER_PX)
        good &= owned(tile, tiles, sources.ra, sources.dec)
        ranks.append(sources.rank[good])
    return np.sort(np.concatenate(ranks))


def listed_deg2(size_px: int) -> float:
    """Return the area (square degrees) of the part of a tile whose sources a catalogue may list."""
    return float(((size_px - 2 * BORDER_PX) * PIXEL_SCALE_ARCSEC / 3600) ** 2)


def plan_sky(sky: SkyModel, tiles: Sequence[Tile], n_rows: int) -> SkyModel:
    """Return the sky whose tiles list about `n_rows` sources: a denser sky is drawn and thinned."""
    direction = galactic(*tiles[0].crval_deg)
    available = sky.candidate_counts(*direction).between(*sky.candidate_limits(*direction))
    sky = replace(sky, density=2.0 * n_rows / (len(tiles) * listed_deg2(tiles[0].shape[0])) / available)
    for _ in range(6):
        n = len(_expected_rows(sky, tiles))
        if n > 1.05 * n_rows:
            break
        sky = replace(sky, density=sky.density * min(3.0, 1.25 * n_rows / max(n, 1)))
    for _ in range(4):
        ranks = _expected_rows(sky, tiles)
        if len(ranks) <= n_rows:
            break
        # Thinning also removes brighter neighbours, so that more sources are listed: it takes a few rounds.
        sky = replace(sky, kept_share=float(ranks[n_rows - 1]) + 1e-12)
    return sky
