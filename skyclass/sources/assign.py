"""Positions -> Atlas tiles, by the footprints of the images that are there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from ..errors import ArchiveError
from ..sky.healpix import separation_deg, unit_vectors
from ..sky.tile_wcs import edge_distance_px, tile_pixels, tile_wcs
from ..types import Float64, Int64, Tile
from .columns import with_column
from .names import name_problem, needs_tile_by_position


class TileList(Protocol):
    """An archive of images that can list its tiles."""

    def list_tiles(self, near: tuple[ArrayLike, ArrayLike] | None = None) -> list[Tile]:
        """Return the footprints of the tiles near some positions (ra, dec in degrees)."""
        ...


def with_tiles(table: pa.Table, archive: TileList) -> pa.Table:
    """Return the table with a tile of an archive for the sources without `coadd_id`, where one covers them."""
    without = needs_tile_by_position(table)
    if not pc.any(without).as_py():
        return table
    rows = table.filter(without)
    return assign_tiles(table, archive.list_tiles((rows["ra"].to_numpy(), rows["dec"].to_numpy())))


def assign_tiles(table: pa.Table, tiles: Sequence[Tile]) -> pa.Table:
    """Return the table with null `coadd_id` filled: the tile whose edge is farthest from the source.

    Null stays where no tile covers the position, and where the catalogue has a name that no tile can have; a `coadd_id`
    that is given is kept. This is the archive's own rule of ownership (AllWISE Explanatory Supplement, V.4), applied to
    the images that are there. Raises `ArchiveError` if the tile's own `coadd_id` is not a valid tile name.
    """
    rows = np.flatnonzero(needs_tile_by_position(table).to_numpy())
    owner = np.full(len(table), -1)
    owner[rows] = _owners(table["ra"].to_numpy()[rows], table["dec"].to_numpy()[rows], tiles)
    if problem := name_problem({tiles[number].coadd_id for number in np.unique(owner) if number >= 0}):
        raise ArchiveError(f"images: {problem}")
    coadd_ids = np.array([tile.coadd_id for tile in tiles] + [None], dtype=object)
    assigned = pa.chunked_array([pa.array(coadd_ids[owner], pa.string())])
    return with_column(table, "coadd_id", pc.coalesce(table["coadd_id"], assigned))


def _owners(ra: Float64, dec: Float64, tiles: Sequence[Tile]) -> Int64:
    """Return for each position the index of the tile whose edge is farthest, -1 where none covers it."""
    order = np.argsort(dec, kind="stable")
    vectors, sorted_dec = unit_vectors(ra[order], dec[order]), dec[order]
    best_px, owner = np.zeros(len(ra)), np.full(len(ra), -1)
    for number, tile in enumerate(tiles):
        centre_ra, centre_dec, radius_deg = _footprint(tile)
        low, high = np.searchsorted(sorted_dec, [centre_dec - radius_deg, centre_dec + radius_deg])
        near = vectors[low:high] @ unit_vectors(centre_ra, centre_dec) >= np.cos(np.radians(radius_deg))
        rows = order[low:high][near]
        inside_px = edge_distance_px(tile, *tile_pixels(tile, ra[rows], dec[rows]))
        wins = (inside_px > best_px[rows]) | ((inside_px == 0) & (owner[rows] < 0))
        best_px[rows[wins]], owner[rows[wins]] = inside_px[wins], number
    return owner


def _footprint(tile: Tile) -> tuple[float, float, float]:
    """Return (ra, dec, radius) in degrees of a circle around a tile's image."""
    rows, columns = tile.shape
    x = np.array([(columns + 1) / 2, 0.5, columns + 0.5, 0.5, columns + 0.5])
    y = np.array([(rows + 1) / 2, 0.5, 0.5, rows + 0.5, rows + 0.5])
    ra, dec = tile_wcs(tile).wcs_pix2world(x, y, 1)
    radius_deg = separation_deg(ra[0], dec[0], ra[1:], dec[1:]).max()
    return float(ra[0]), float(dec[0]), float(radius_deg) * 1.01
