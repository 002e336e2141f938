"""The positions of the simulated sources, drawn by HEALPix cell, so that neighbouring tiles have the same sources.

Each cell has its own random stream, which depends on the seed and the number of the cell, so neither the order of tiles
nor threads change a source. The sky has these layers: candidates for the catalogue, faint sources below its limit
(confusion), very bright stars that saturate, optional outliers, and the diffuse light of nearby clusters of galaxies.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

import numpy as np
from astropy.coordinates import SkyCoord
from astropy_healpix import healpix_to_lonlat

from skyclass.types import DEFAULT_CLASSES, Bool, Float64, Int64, Tile

from ..sky.healpix import pixel_centres, separation_deg
from ..sky.regions import Cone
from ..sky.tile_wcs import edge_distance_px, tile_pixels
from .clusters import NEARBY_CLUSTERS, members
from .counts import Counts, balanced_counts, natural_counts, with_quasars
from .population import CLASS_OF_SUBTYPE, Draw, Mix, draw, draw_outliers

CELL_ORDER = 8
CELL_DEG2 = 41252.96125 / (12 * 4**CELL_ORDER)
SATURATED_W1 = (3.0, 8.0)
CANDIDATE_W1: dict[str, tuple[float, float]] = {"natural": (8.0, 17.7), "balanced": (10.0, 17.7)}
MAX_CANDIDATES_PER_DEG2 = 60_000.0
MAX_POINTS_PER_DEG2 = 150_000.0
"""In the Galactic plane a beam has several sources: the faint limits of candidates and of all sources are brighter."""
CLUSTERED_SHARE = 0.15
CLUSTER_SIGMA_DEG = 60 / 3600
GALAXIES_PER_CLUSTER = 60
"""One cluster for so many galaxies, of which `CLUSTERED_SHARE` are members (assumed)."""
ENVELOPE_FAINTER_MAG, ENVELOPE_RADIUS_ARCSEC = 1.0, 40.0
"""Light between the galaxies of a cluster: magnitudes fainter than its brightest galaxy, and half-light radius."""
DENSITY_AMPLITUDE = 0.05
CANDIDATE, FAINT, SATURATED, OUTLIER, DIFFUSE = range(5)
"""The layers of the sky. Their numbers are part of the seeds of their random streams."""
DRAWN_LAYERS = (CANDIDATE, FAINT, SATURATED, OUTLIER)
"""The layers that are drawn by cell."""


@dataclass(frozen=True)
class Sources(Draw):
    """N sources on the sky: `Draw` and their positions in degrees.

    `layer` (N,) is CANDIDATE (also for an outlier), FAINT, SATURATED or DIFFUSE. `rank` (N,) is uniform, for thinning.
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
    """The parameters of a sky.

    `density` multiplies the counts of the candidates, and `kept_share` of them is kept. `quasar_fraction` replaces the
    published share of quasars. `outliers_per_deg2` adds sources of the classes `OUTLIERS`.
    """

    seed: int
    mix: Mix
    density: float = 1.0
    kept_share: float = 1.0
    quasar_fraction: float | None = None
    outliers_per_deg2: float = 0.0

    def candidate_counts(self, l_deg: float, b_deg: float) -> Counts:
        """Return the counts of candidates in a galactic direction."""
        counts = balanced_counts() if self.mix == "balanced" else natural_counts(l_deg, b_deg)
        if self.quasar_fraction is None:
            return counts
        return with_quasars(counts, self.quasar_fraction, *CANDIDATE_W1[self.mix])

    def candidate_limits(self, l_deg: float, b_deg: float) -> tuple[float, float]:
        """Return the W1 limits of candidates in a galactic direction."""
        bright, faint = CANDIDATE_W1[self.mix]
        if self.mix == "balanced":
            return bright, faint
        return bright, min(faint, natural_counts(l_deg, b_deg).faintest(MAX_CANDIDATES_PER_DEG2))


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
    return cast(Float64, np.clip(np.exp(DENSITY_AMPLITUDE * np.cos(phase).sum(-1)), 0.5, 2.0))


def _scatter(rng: np.random.Generator, cell: int, n: int) -> tuple[Float64, Float64]:
    """Return n uniform positions in a cell: HEALPix cells have equal areas."""
    dx, dy = rng.random((2, n))
    lon, lat = healpix_to_lonlat(np.full(n, cell), 2**CELL_ORDER, dx, dy, order="nested")
    return np.degrees(np.asarray(lon.value)), np.degrees(np.asarray(lat.value))


def galactic(ra: float, dec: float) -> tuple[float, float]:
    """Return galactic longitude and latitude in degrees."""
    position = SkyCoord(ra, dec, unit="deg").galactic
    return float(position.l.deg), float(position.b.deg)


def _clustered(rng: np.random.Generator, drawn: Draw, ra: Float64, dec: Float64) -> tuple[Float64, Float64, Int64]:
    """Move some galaxies next to the brightest ones, and return all positions and the centres of the clusters."""
    galaxies = np.flatnonzero(CLASS_OF_SUBTYPE[drawn.subtype] == DEFAULT_CLASSES.index("galaxy"))
    order = np.argsort(drawn.mags[galaxies, 0], kind="stable")
    centres = galaxies[order[: len(galaxies) // GALAXIES_PER_CLUSTER]]
    members = galaxies[order[len(centres) :]]
    members = members[rng.random(len(members)) < CLUSTERED_SHARE]
    if not len(centres):
        return ra, dec, centres
    centre = centres[rng.integers(0, len(centres), len(members))]
    east, north = rng.normal(0, CLUSTER_SIGMA_DEG, (2, len(members)))
    ra, dec = ra.copy(), dec.copy()
    ra[members] = (ra[centre] + east / np.cos(np.radians(dec[centre]))) % 360
    dec[members] = np.clip(dec[centre] + north, -90, 90)
    return ra, dec, centres


def _envelopes(sources: Sources, centres: Int64) -> Sources:
    """Return the light between the galaxies of clusters, as faint sources that no catalogue lists."""
    light = sources.take(centres)
    n = len(light)
    return replace(
        light, mags=light.mags + ENVELOPE_FAINTER_MAG, layer=np.full(n, FAINT), sersic_index=np.ones(n),
        radius_arcsec=np.full(n, ENVELOPE_RADIUS_ARCSEC),
    )  # fmt: skip


def _drawn(sky: SkyModel, cell: int, layer: int, rng: np.random.Generator) -> Draw:
    """Return the sources of one layer in one cell, without positions."""
    ra0, dec0 = pixel_centres(CELL_ORDER, [cell])
    direction = galactic(float(ra0[0]), float(dec0[0]))
    natural = natural_counts(*direction)
    bright, faint = sky.candidate_limits(*direction)
    if layer == OUTLIER:
        return draw_outliers(rng, int(sky.outliers_per_deg2 * CELL_DEG2 + rng.random()))
    counts, bright, faint, density = (
        (sky.candidate_counts(*direction), bright, faint, sky.density),
        (natural, faint, max(faint, natural.faintest(MAX_POINTS_PER_DEG2)), 1.0),
        (natural, *SATURATED_W1, 1.0),
    )[layer]
    density *= float(relative_density(sky.seed, ra0, dec0)[0])
    # Random rounding instead of a Poisson number: the mock must have about as many sources as requested.
    n = int(counts.between(bright, faint) * density * CELL_DEG2 + rng.random())
    return draw(rng, n, counts, bright, faint)


def _draw_layer(sky: SkyModel, cell: int, layer: int) -> Sources:
    """Return the sources of one layer in one cell; outliers are candidates too."""
    rng = np.random.default_rng([sky.seed, 200 + layer, cell])
    drawn = _drawn(sky, cell, layer, rng)
    n = len(drawn.subtype)
    ra, dec = _scatter(rng, cell, n)
    centres = np.zeros(0, np.int64)
    if layer == CANDIDATE:
        ra, dec, centres = _clustered(rng, drawn, ra, dec)
    # Only candidates are thinned: rank 0 is always kept.
    rank = rng.random(n) if layer == CANDIDATE else np.zeros(n)
    columns = {f.name: getattr(drawn, f.name) for f in fields(Draw)}
    layers = np.full(n, CANDIDATE if layer == OUTLIER else layer)
    sources = Sources(**columns, ra=ra, dec=dec, layer=layers, rank=rank, jitter=rng.standard_normal((n, 2)))
    return concatenate([sources, _envelopes(sources, centres)]) if len(centres) else sources


def _cluster_sources(sky: SkyModel, tile: Tile, margin_deg: float) -> list[Sources]:
    """Return the members and the light of the nearby clusters that a tile may touch."""
    reach = 0.5 * np.hypot(*tile.shape) * abs(tile.cdelt_deg[1]) + margin_deg
    parts = []
    for index, cluster in enumerate(NEARBY_CLUSTERS):
        if separation_deg(*tile.crval_deg, cluster.ra, cluster.dec) > reach + cluster.radius_deg:
            continue
        rng = np.random.default_rng([sky.seed, 400, index])
        drawn = members(cluster, rng)
        n = len(drawn.ra)
        layer = np.full(n, CANDIDATE)
        layer[-1] = DIFFUSE
        columns = {f.name: getattr(drawn.galaxies, f.name) for f in fields(Draw)}
        jitter = rng.standard_normal((n, 2))
        parts.append(Sources(**columns, ra=drawn.ra, dec=drawn.dec, layer=layer, rank=np.zeros(n), jitter=jitter))
    return parts


def cells_near(tile: Tile, margin_deg: float) -> Int64:
    """Return all cells whose sources may touch a tile, and perhaps some more."""
    reach = 0.5 * np.hypot(*tile.shape) * abs(tile.cdelt_deg[1]) + margin_deg
    return Cone(*tile.crval_deg, float(reach)).cover(CELL_ORDER)


def sources_near(sky: SkyModel, tile: Tile, margin_px: float, layers: Sequence[int] = DRAWN_LAYERS) -> Sources:
    """Return the sources of the layers within a tile or `margin_px` outside it, in the order of their cells.

    Diffuse light is returned wherever its centre lies.
    """
    margin_deg = margin_px * abs(tile.cdelt_deg[1]) + 3 * CLUSTER_SIGMA_DEG
    parts = [_draw_layer(sky, int(c), layer) for c in cells_near(tile, margin_deg) for layer in layers]
    if sky.mix == "natural" and CANDIDATE in layers:
        parts += _cluster_sources(sky, tile, margin_deg)
    sources = concatenate(parts)
    kept = sources.rank < sky.kept_share
    x, y = tile_pixels(tile, sources.ra, sources.dec)
    near = (edge_distance_px(tile, x, y) > -margin_px) | (sources.layer == DIFFUSE)
    return sources.take(kept & near)
