"""Sources by Atlas tile: counted for the plan, and read for one tile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import CatalogError
from ..schema import CATALOG_COLUMNS
from ..text import counted, one_or_many
from ..types import NO_TILE, Float64, Tile
from .assign import assign_tiles
from .names import needs_tile_by_position
from .source_table import SourceTable

TILE_COUNTS = pa.schema([("coadd_id", pa.string()), ("partition", pa.int64()), ("n", pa.int64())])
"""Schema of the number of sources in a partition by tile; `coadd_id` is null for sources without a tile."""

PLAN_COLUMNS = (*CATALOG_COLUMNS, "coadd_id")
"""Columns that a plan is made of."""

Tiles = Callable[[], Sequence[Tile]]
"""Returns the footprints of the tiles near the sources without `coadd_id`; called only if there are such sources."""


def no_tiles() -> Sequence[Tile]:
    """Return no tile: sources without `coadd_id` then belong to no tile."""
    return ()


def sources_of_tile(sources: SourceTable, i: int, coadd_id: str, tiles: Tiles = no_tiles) -> pa.Table:
    """Return the sources of partition `i` on a tile, in `SOURCE_SCHEMA`.

    Sources without `coadd_id` belong to the one of `tiles` that covers their position. Pass `NO_TILE` to get the
    sources without a tile. `read` may return more rows; they are filtered here.
    """
    table = _with_tiles(sources.read(i, coadd_id=coadd_id), tiles)
    coadd_ids = table["coadd_id"]
    return table.filter(coadd_ids.is_null() if coadd_id == NO_TILE else pc.equal(coadd_ids, coadd_id))


def count_tiles(sources: SourceTable, i: int, tiles: Tiles = no_tiles) -> pa.Table:
    """Return the number of sources of partition `i` by tile (`TILE_COUNTS`), sorted by `coadd_id`.

    Raises `CatalogError` as `SourceTable.read` does, and for a `source_id` that is missing or repeated.
    """
    table = sources.read(i, PLAN_COLUMNS, check_types=True)
    _check_ids(table, sources.partitions[i].path)
    counts = _with_tiles(table, tiles).group_by("coadd_id").aggregate([([], "count_all")]).sort_by("coadd_id")
    columns = {
        "coadd_id": counts["coadd_id"],
        "partition": pa.array(np.full(len(counts), i, np.int64)),
        "n": counts["count_all"],
    }
    return pa.table(columns, schema=TILE_COUNTS)


def positions_without_tile(sources: SourceTable, i: int) -> tuple[Float64, Float64]:
    """Return ra, dec in degrees of the sources of partition `i` that need a tile by their position."""
    table = sources.read(i, PLAN_COLUMNS, NO_TILE)
    table = table.filter(needs_tile_by_position(table))
    return table["ra"].to_numpy(), table["dec"].to_numpy()


def _with_tiles(table: pa.Table, tiles: Tiles) -> pa.Table:
    """Return the table with a tile for the sources without `coadd_id`, where one covers them."""
    return assign_tiles(table, tiles()) if pc.any(needs_tile_by_position(table)).as_py() else table


def _check_ids(table: pa.Table, path: str) -> None:
    """Raise `CatalogError` where a `source_id` is missing or occurs twice: no row could identify the source."""
    ids = table["source_id"]
    if ids.null_count:
        row = pc.index(ids.is_null(), True).as_py()
        ra, dec = table["ra"][row], table["dec"][row]
        raise CatalogError(
            f"{path}: source_id is empty in {ids.null_count:,} of {counted(len(table), 'row')}, the first at "
            f"ra {ra}, dec {dec}; give every source its own source_id, or remove these rows"
        )
    if pc.count_distinct(ids).as_py() < len(ids):
        counts = pc.value_counts(ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))
        occur = one_or_many(len(repeated), "occurs", "occur")
        raise CatalogError(
            f"{path}: {counted(len(repeated), 'source_id')} {occur} in more than one row, such as "
            f"{repeated.field('values')[0]} in {repeated.field('counts')[0]} rows; remove the repeated rows, or give "
            "every source its own source_id"
        )
