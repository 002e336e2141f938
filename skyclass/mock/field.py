"""The positions of the simulated sources, drawn by HEALPix cell, so that neighbouring tiles have the same sources.

Each cell has its own random stream, which depends on the seed and the number of the cell, so neither the order of tiles
nor threads change a source. The sky has three layers: candidates for the catalogue, faint sources below its limit
(confusion), and very bright stars that saturate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import cast

import numpy as np
from astropy_healpix import healpix_to_lonlat
from scipy.spatial import cKDTree

from skyclass.types import BANDS, PIXEL_SCALE_ARCSEC, Bool, Float64, Int64, Tile

from ..sky.healpix import pixel_centres, separation_deg
from ..sky.regions import Cone
from ..sky.tile_wcs import edge_distance_px, tile_pixels
from .conditions import expected_flux_sigma
from .grid import ZERO_POINT_MAG
from .population import BALANCED_SLOPE, COUNT_SLOPE, Draw, Mix, counts_per_deg2, draw

CELL_ORDER = 8
CELL_DEG2 = 41252.96125 / (12 * 4**CELL_ORDER)
SATURATED_W1 = (3.0, 8.0)
CANDIDATE_W1: dict[str, tuple[float, float]] = {"natural": (8.0, 17.7), "balanced": (10.0, 16.8)}
FAINTEST_W1 = 20.0
CLUSTERED_SHARE = 0.15
CLUSTER_SIGMA_DEG = 60 / 3600
SELECTION_SNR = 5.0
MERGE_PX = 6.0 / PIXEL_SCALE_ARCSEC
"""Of two candidates closer than 6 arcsec, well inside one beam, the extractor lists only the brighter one."""
BORDER_PX = 50.0 / PIXEL_SCALE_ARCSEC
"""A catalogue source lies more than 50 arcsec from its tile's border (AllWISE Explanatory Supplement V.4)."""


@dataclass(frozen=True)
class Sources(Draw):
    """N sources on the sky: `Draw` and their positions in degrees.

    `layer` (N,) is 0 for a candidate, 1 for a faint and 2 for a saturated source. `rank` (N,) is uniform, for thinning.
    `jitter` (N, 2) has normal deviates for the position errors of the catalogue.
    """

    ra: Float64
    dec: Float64
    layer: np.ndarray
    rank: Float64
    jitter: Float64

    def __len__(self) -> int:
        return len(self.ra)

    def take(self, rows: Int64 | Bool) -> Sources:
        """Return some of the rows."""
        return Sources(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})


@dataclass(frozen=True)
class SkyModel:
    """The parameters of a sky: seed, mix, candidates drawn per square degree, and the share of them that is kept."""

    seed: int
    mix: Mix
    drawn_per_deg2: float
    kept_share: float = 1.0


def concatenate(parts: Sequence[Sources]) -> Sources:
    """Return several sets of sources as one."""
    return Sources(**{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Sources)})


def relative_density(seed: int, ra: Float64, dec: Float64) -> Float64:
    """Return the smooth density of sources, with a mean of about 1: waves of half a degree to eight degrees."""
    rng = np.random.default_rng([seed, 101])
    lon, lat = np.radians(ra), np.radians(dec)
    unit_vector = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
    direction = rng.standard_normal((8, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wavelength_rad = np.radians(np.geomspace(0.5, 8.0, 8))
    phase = unit_vector @ (2 * np.pi * direction / wavelength_rad[:, None]).T + rng.uniform(0, 2 * np.pi, 8)
    return cast(Float64, np.clip(np.exp(0.16 * np.cos(phase).sum(-1)), 0.5, 2.0))


def _scatter(rng: np.random.Generator, cell: int, n: int) -> tuple[Float64, Float64]:
    """Return n positions in a cell: most are uniform (HEALPix cells have equal areas), some are clustered."""
    dx, dy = rng.random((2, n))
    lon, lat = healpix_to_lonlat(np.full(n, cell), 2**CELL_ORDER, dx, dy, order="nested")
    ra, dec = np.degrees(np.asarray(lon.value)), np.degrees(np.asarray(lat.value))
    clustered = np.flatnonzero(rng.random(n) < CLUSTERED_SHARE)
    parent = rng.integers(0, max(1, n // 60), len(clustered))
    east, north = rng.normal(0, CLUSTER_SIGMA_DEG, (2, len(clustered)))
    if n:
        dec[clustered] = np.clip(dec[parent] + north, -90, 90)
        ra[clustered] = (ra[parent] + east / np.cos(np.radians(dec[parent]))) % 360
    return ra, dec


def _draw_layer(sky: SkyModel, cell: int, layer: int) -> Sources:
    """Return the sources of one layer in one cell."""
    rng = np.random.default_rng([sky.seed, 200 + layer, cell])
    low, high = CANDIDATE_W1[sky.mix]
    bright, faint, per_deg2 = (
        (low, high, sky.drawn_per_deg2),
        (high, FAINTEST_W1, counts_per_deg2(high, FAINTEST_W1)),
        (*SATURATED_W1, counts_per_deg2(*SATURATED_W1)),
    )[layer]
    ra0, dec0 = pixel_centres(CELL_ORDER, [cell])
    # Random rounding instead of a Poisson number: the mock must have about as many sources as requested.
    n = int(per_deg2 * CELL_DEG2 * float(relative_density(sky.seed, ra0, dec0)[0]) + rng.random())
    kind = (sky.mix, "natural", "stars")[layer]
    slope = BALANCED_SLOPE if kind == "balanced" else COUNT_SLOPE
    sources = draw(rng, n, kind, bright, faint, slope)  # type: ignore[arg-type]
    ra, dec = _scatter(rng, cell, n)
    drawn = {f.name: getattr(sources, f.name) for f in fields(Draw)}
    rank, jitter = rng.random(n), rng.standard_normal((n, 2))
    return Sources(**drawn, ra=ra, dec=dec, layer=np.full(n, layer), rank=rank, jitter=jitter)


def cells_near(tile: Tile, margin_deg: float) -> Int64:
    """Return all cells whose sources may touch a tile, and perhaps some more."""
    reach = 0.5 * np.hypot(*tile.shape) * abs(tile.cdelt_deg[1]) + margin_deg
    return Cone(*tile.crval_deg, float(reach)).cover(CELL_ORDER)


def sources_near(sky: SkyModel, tile: Tile, margin_px: float, layers: Sequence[int] = (0, 1, 2)) -> Sources:
    """Return the sources of the layers within a tile or `margin_px` outside it, in the order of their cells."""
    margin_deg = margin_px * abs(tile.cdelt_deg[1]) + 3 * CLUSTER_SIGMA_DEG
    parts = [_draw_layer(sky, int(c), layer) for c in cells_near(tile, margin_deg) for layer in layers]
    sources = concatenate(parts)
    kept = (sources.layer != 0) | (sources.rank < sky.kept_share)
    x, y = tile_pixels(tile, sources.ra, sources.dec)
    return sources.take(kept & (edge_distance_px(tile, x, y) > -margin_px))


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


def selected(mix: Mix, snr: Float64) -> Bool:
    """Return which sources the catalogue lists, from S/N (3, N) in W1, W2, W3: 5 in one band.

    The balanced mix asks it of W1, or red sources would be over-represented where W1 is faint.
    """
    detected = np.nan_to_num(snr) >= SELECTION_SNR
    return cast(Bool, detected[0] if mix == "balanced" else detected.any(axis=0))


def _expected_rows(sky: SkyModel, tiles: Sequence[Tile], rows_per_deg2: float) -> Float64:
    """Return the sorted ranks of all sources that the tiles' catalogues should list."""
    ranks = []
    zero = np.array([ZERO_POINT_MAG[b] for b in BANDS[:3]])
    # The balanced sky is brighter, source by source, and leaves more behind.
    crowd_per_deg2 = rows_per_deg2 * (2 if sky.mix == "balanced" else 1)
    for tile in tiles:
        sources = sources_near(sky, tile, 8.0, (0,))
        x, y = tile_pixels(tile, sources.ra, sources.dec)
        sigma = [expected_flux_sigma(sky.seed, tile, b, crowd_per_deg2) for b in BANDS[:3]]
        good = selected(sky.mix, (10 ** (0.4 * (zero - sources.mags[:, :3])) / sigma).T)
        good &= listable(x, y, sources.mags[:, 0]) & (edge_distance_px(tile, x, y) > BORDER_PX)
        good &= owned(tile, tiles, sources.ra, sources.dec)
        ranks.append(sources.rank[good])
    return np.sort(np.concatenate(ranks))


def listed_deg2(size_px: int) -> float:
    """Return the area (square degrees) of the part of a tile whose sources a catalogue may list."""
    return float(((size_px - 2 * BORDER_PX) * PIXEL_SCALE_ARCSEC / 3600) ** 2)


def plan_sky(seed: int, mix: Mix, tiles: Sequence[Tile], n_rows: int) -> SkyModel:
    """Return the sky whose tiles list about `n_rows` sources: a denser sky is drawn and thinned."""
    rows_per_deg2 = n_rows / (len(tiles) * listed_deg2(tiles[0].shape[0]))
    sky = SkyModel(seed, mix, 2.0 * rows_per_deg2)
    for _ in range(6):
        n = len(_expected_rows(sky, tiles, rows_per_deg2))
        if n > 1.05 * n_rows:
            break
        sky = SkyModel(seed, mix, sky.drawn_per_deg2 * min(3.0, 1.25 * n_rows / max(n, 1)))
    for _ in range(4):
        ranks = _expected_rows(sky, tiles, rows_per_deg2)
        if len(ranks) <= n_rows:
            break
        # Thinning also removes brighter neighbours, so that more sources are listed: it takes a few rounds.
        sky = SkyModel(seed, mix, sky.drawn_per_deg2, float(ranks[n_rows - 1]) + 1e-12)
    return sky
