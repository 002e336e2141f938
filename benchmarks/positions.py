"""Positions on a SIMULATED sky for the test of outliers: catalogue sources, empty sky, halos of bright stars."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skyclass.images.archive import open_archive
from skyclass.images.cutouts import cut
from skyclass.mock.artifacts import PARENT_MAG, parents
from skyclass.mock.field import CANDIDATE, SATURATED, SkyModel, sources_near
from skyclass.mock.render import PAD_PX
from skyclass.sky.tile_wcs import tile_pixels
from skyclass.types import DEFAULT_CLASSES, Tile

from .field import BANDS, SIZE_PX

Float = NDArray[np.float64]
BLANK, HALO = "blank position", "halo of a bright star"
SPARE_PX = 25
"""Positions keep this distance from the border of a tile."""
BLANK_PX, HALO_PX = 9.0, 7.5
"""Distance of a blank position from every simulated source, and of a position in a halo from every listed one."""
N_BLANK, N_HALO = 700, 40
"""Blank positions of a tile, and trials of a position in the halo of each saturated star."""
SATURATED_MAG, CORE_PX = 8.0, 10.0
ISOLATED_PX, ISOLATED_MAG = 20.0, 2.0
"""A source is isolated if all neighbours so near are fainter by so much."""


@dataclass(frozen=True)
class Positions:
    """N positions: `pixels` (N, 3, 37, 37) DN, `kind` (N,), `w1` (N,) of the catalogue or NaN, `is_isolated` (N,)."""

    pixels: NDArray[np.float32]
    kind: NDArray[np.str_]
    w1: Float
    is_isolated: NDArray[np.bool_]

    def where(self, rows: NDArray[np.bool_]) -> Positions:
        """Return some of the positions."""
        return Positions(*(getattr(self, f.name)[rows] for f in fields(self)))

    @property
    def is_ordinary(self) -> NDArray[np.bool_]:
        """Which positions are sources of the classes of the models."""
        return np.isin(self.kind, DEFAULT_CLASSES)


def joined(parts: Sequence[Positions]) -> Positions:
    """Return several sets of positions as one."""
    return Positions(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Positions)))


def positions_of(sky: Path, seed: int = 5) -> Positions:
    """Return the positions of a natural simulated sky, those whose cutout has all pixels."""
    note = json.loads((sky / "mock.json").read_text())
    arguments, archive = note["arguments"], open_archive(str(sky / "images"), BANDS)
    model = SkyModel(arguments["seed"], arguments["mix"], outliers_per_deg2=arguments["outliers_per_deg2"])
    rng = np.random.default_rng(seed)
    parts = [_on_tile(sky, model, archive, archive.tile(name, BANDS), rng) for name in note["tiles"]]
    both = joined(parts)
    return both.where(np.isfinite(both.pixels).all((1, 2, 3)))


def _on_tile(sky: Path, model: SkyModel, archive: object, tile: Tile, rng: np.random.Generator) -> Positions:
    columns = ["source_id", "ra", "dec", "w1mpro"]
    files = sorted((sky / "catalog").rglob("part0.snappy.parquet"))
    rows = [pq.read_table(file, columns=[*columns, "coadd_id"], partitioning=None).to_pandas() for file in files]
    listed = [table[table["coadd_id"] == tile.coadd_id] for table in rows]
    truth = pq.read_table(sky / "truth.parquet").to_pandas().set_index("source_id")
    x, y = (np.concatenate(part) for part in zip(*(tile_pixels(tile, t["ra"], t["dec"]) for t in listed), strict=True))
    names = np.concatenate([table["source_id"] for table in listed])
    w1 = np.concatenate([table["w1mpro"] for table in listed])
    known = sources_near(model, tile, PAD_PX)
    known = known.take((known.layer == CANDIDATE) | (known.layer == SATURATED))
    at = np.column_stack(tile_pixels(tile, known.ra, known.dec))
    mag = known.mags[:, 0]
    blank, halo = (
        _blank(tile, at, mag, np.column_stack([x, y]), rng),
        _halo(tile, at, mag, np.column_stack([x, y]), rng),
    )
    isolated = _is_isolated(np.column_stack([x, y]), truth.loc[names, "true_w1_mag"].to_numpy(float), at, mag)
    kind = np.concatenate([truth.loc[names, "class"].to_numpy(str), np.repeat([BLANK, HALO], [len(blank), len(halo)])])
    n_more = len(blank) + len(halo)
    px, py = np.concatenate([np.column_stack([x, y]), blank, halo]).T
    order = np.argsort(py, kind="stable")
    pixels = cut(archive, tile, px[order], py[order], SIZE_PX).pixels  # type: ignore[arg-type]
    isolated = np.concatenate([isolated, np.zeros(n_more, bool)])
    return Positions(pixels, kind[order], np.concatenate([w1, np.full(n_more, np.nan)])[order], isolated[order])


def _is_isolated(at: Float, true_mag: Float, all_at: Float, all_mag: Float) -> NDArray[np.bool_]:
    """Return which sources have no neighbour of a comparable magnitude."""
    near = cKDTree(all_at).query_ball_point(at, ISOLATED_PX)
    # One of the sources near is the source itself.
    return np.array([np.sum(all_mag[i] < mag + ISOLATED_MAG) <= 1 for i, mag in zip(near, true_mag, strict=True)])


def _blank(tile: Tile, at: Float, mag: Float, listed: Float, rng: np.random.Generator) -> Float:
    """Return random positions far from all sources, and outside of twice the halo of bright stars."""
    trial = _inside(tile, rng.uniform(0, tile.shape[0], (20 * N_BLANK, 2)))
    free = (cKDTree(at).query(trial)[0] > BLANK_PX) & (cKDTree(listed).query(trial)[0] > BLANK_PX)
    stars = parents("w1", 0.0, *at.T, mag)
    for x, y, radius in zip(stars.x, stars.y, stars.halo_radius_px(), strict=True):
        free &= np.hypot(*(trial - (x, y)).T) > 2 * radius + SPARE_PX
    return trial[free][:N_BLANK]


def _halo(tile: Tile, at: Float, mag: Float, listed: Float, rng: np.random.Generator) -> Float:
    """Return random positions in the halos of saturated stars, outside of their cores and far from listed sources."""
    stars = parents("w1", 0.0, *at.T, np.where(mag < SATURATED_MAG, mag, PARENT_MAG["w1"]))
    outer = np.maximum(stars.halo_radius_px(), CORE_PX)
    radius = np.sqrt(rng.uniform(CORE_PX**2, outer[:, None] ** 2, (len(outer), N_HALO)))
    angle = rng.uniform(0, 2 * np.pi, radius.shape)
    trial = np.stack([stars.x[:, None] + radius * np.cos(angle), stars.y[:, None] + radius * np.sin(angle)], axis=-1)
    trial = _inside(tile, trial.reshape(-1, 2))
    return trial[cKDTree(listed).query(trial)[0] > HALO_PX]


def _inside(tile: Tile, trial: Float) -> Float:
    return trial[(np.abs(trial - tile.shape[0] / 2) < tile.shape[0] / 2 - SPARE_PX).all(1)]
