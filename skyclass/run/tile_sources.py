"""The sources of a tile, read from their partitions and ordered by pixel row."""

from __future__ import annotations

from functools import lru_cache, partial

import numpy as np
import pyarrow as pa

from ..errors import InputChanged
from ..sky.tile_wcs import tile_pixels
from ..sources.by_tile import sources_of_tile
from ..sources.footers import unchanged
from ..text import counted
from ..types import Tile, TilePlan
from .context import RunContext, tiles_near


@lru_cache(maxsize=8)
def tile_sources(context: RunContext, tile: TilePlan, opened: Tile | None = None) -> pa.Table:
    """Return the sources of a tile, ordered by pixel row on its image, so that a strip is one range of rows.

    Without an opened tile they are in the order of `source_id`. The order depends on the catalogue and on the header of
    the opened tile only, so that each worker has the same order.
    """
    sources = planned_sources(context, tile)
    if opened is None:
        return sources
    _, y = tile_pixels(opened, sources["ra"].to_numpy(), sources["dec"].to_numpy())
    return sources.take(pa.array(np.argsort(y, kind="stable"))).combine_chunks()


@lru_cache(maxsize=8)
def planned_sources(context: RunContext, tile: TilePlan) -> pa.Table:
    """Return the sources of a tile in the order of `source_id`. All strips of the tile use the cached table."""
    keys = tile.keys or ("",) * len(tile.partitions)
    tables = [read_unchanged(context, i, key, tile.coadd_id) for i, key in zip(tile.partitions, keys, strict=True)]
    sources = pa.concat_tables(tables)
    source_id = sources["source_id"].to_numpy(zero_copy_only=False).astype(str)
    return sources.take(pa.array(np.argsort(source_id, kind="stable"))).combine_chunks()


def read_unchanged(context: RunContext, partition: int, key: str, coadd_id: str) -> pa.Table:
    """Return the sources of a tile in a partition; raise `InputChanged` unless the partition is the planned one."""
    partitions = context.sources.partitions
    if partition >= len(partitions):
        raise InputChanged(
            f"{context.catalog} has {counted(len(partitions), 'partition')}, fewer than when the run was planned: "
            "restore them, and run the same command again"
        )
    with unchanged(partitions[partition].path, key):
        return sources_of_tile(context.sources, partition, coadd_id, partial(tiles_near, context, partition))


def ids_of(sources: pa.Table) -> pa.Array:
    """Return the source ids of a table as one array."""
    return sources["source_id"].combine_chunks()
