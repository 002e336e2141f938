"""Partitions of a catalogue: read, counted by tile, or given as a Dask dataframe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from ..errors import CatalogError
from ..schema import (
    CATALOG_COLUMNS,
    INPUT_COLUMNS,
    SOURCE_SCHEMA,
    TABLE_COLUMNS,
    check_positions,
    conform_sources,
    without_dictionary,
)
from ..sky.regions import Region
from ..types import NO_TILE, Float64, Tile
from .assign import assign_tiles
from .identifiers import IDENTIFIERS, identifiers
from .layouts import Catalog, parquet_dataset, remedy, source_columns
from .names import nameless, rows_of_tile, with_tile_names
from .tables import standardise_table, with_column
from .units import parquet_factor

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd

COUNT_SCHEMA = pa.schema([("coadd_id", pa.string()), ("partition", pa.int64()), ("n", pa.int64())])

PLAN_COLUMNS = (*CATALOG_COLUMNS, "coadd_id")
"""Columns that a plan is made of."""

Tiles = Callable[[], Sequence[Tile]]
"""Gives the footprints of the tiles near the sources that have no `coadd_id`; called only if there are such sources."""


def no_tiles() -> Sequence[Tile]:
    """Return no tile: sources without `coadd_id` then stay without."""
    return ()


def read_partition(
    catalog: Catalog, i: int, region: Region | None = None, coadd_id: str | None = None, tiles: Tiles = no_tiles
) -> pa.Table:
    """Return the sources of partition `i` in `SOURCE_SCHEMA`, only those in the region and of the tile.

    With a tile, sources without `coadd_id` belong to the one of `tiles` that their position is on; `NO_TILE` means
    those that are on none. Raises `CatalogError`, naming the file, for a missing column, a value that does not fit its
    column, and a position that is not finite or not on the sky.
    """
    table = _inside(_read(catalog, i, INPUT_COLUMNS, coadd_id), region)
    return table if coadd_id is None else _of_tile(table, coadd_id, tiles)


def count_tiles(catalog: Catalog, i: int, region: Region | None = None, tiles: Tiles = no_tiles) -> pa.Table:
    """Return (coadd_id, partition, n): the sources of partition `i` in the region, by tile, sorted; null for no tile.

    Reads `PLAN_COLUMNS`, and columns whose type does not say that they can be read. Raises `CatalogError` as
    `read_partition` does, and for a `source_id` that is missing or repeated.
    """
    table = _inside(_read(catalog, i, PLAN_COLUMNS, None), region)
    _check_ids(table, catalog.partitions[i].path)
    table = _with_tiles(table, tiles)
    counts = table.group_by("coadd_id").aggregate([([], "count_all")]).sort_by("coadd_id")
    columns = {
        "coadd_id": counts["coadd_id"],
        "partition": pa.array(np.full(len(counts), i, np.int64)),
        "n": counts["count_all"],
    }
    return pa.table(columns, schema=COUNT_SCHEMA)


def nameless_positions(catalog: Catalog, i: int, region: Region | None = None) -> tuple[Float64, Float64]:
    """Return ra, dec in degrees of the sources of partition `i` that need a tile by their position."""
    table = _inside(_read(catalog, i, PLAN_COLUMNS, NO_TILE), region)
    table = table.filter(nameless(table))
    return table["ra"].to_numpy(), table["dec"].to_numpy()


def to_dask(catalog: Catalog, region: Region | None = None) -> dd.DataFrame:
    """Return a Dask dataframe of the sources, one partition a file, pandas with pyarrow dtypes.

    The graph holds paths and the region, never rows.
    """
    import dask.dataframe as dd

    if not catalog.partitions:
        raise CatalogError(f"catalogue {catalog.root}: no partition touches the region")
    pieces = [replace(catalog, partitions=(part,)) for part in catalog.partitions]
    meta = _to_pandas(SOURCE_SCHEMA.empty_table())
    from_map: Callable[..., dd.DataFrame] = dd.from_map
    return from_map(partial(_read_frame, region=region), pieces, meta=meta, label="sources")


def _read_frame(piece: Catalog, region: Region | None) -> pd.DataFrame:
    return _to_pandas(read_partition(piece, 0, region))


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    import pandas as pd

    return cast("pd.DataFrame", table.to_pandas(types_mapper=pd.ArrowDtype))


def _inside(table: pa.Table, region: Region | None) -> pa.Table:
    if region is None:
        return table
    return table.filter(pa.array(region.contains(table["ra"].to_numpy(), table["dec"].to_numpy())))


# --- tiles -----------------------------------------------------------------------------------------


def _with_tiles(table: pa.Table, tiles: Tiles) -> pa.Table:
    """Return the table with a tile for the sources without `coadd_id`, where one is there."""
    return assign_tiles(table, tiles()) if pc.any(nameless(table)).as_py() else table


def _of_tile(table: pa.Table, coadd_id: str, tiles: Tiles) -> pa.Table:
    """Return the sources of a tile."""
    table = _with_tiles(table, tiles)
    names = table["coadd_id"]
    return table.filter(names.is_null() if coadd_id == NO_TILE else pc.equal(names, coadd_id))


def _check_ids(table: pa.Table, path: str) -> None:
    """Raise `CatalogError` for sources that no row of a class catalogue could name."""
    ids = table["source_id"]
    if ids.null_count:
        row = pc.index(ids.is_null(), True).as_py()
        ra, dec = table["ra"][row], table["dec"][row]
        raise CatalogError(
            f"{path}: source_id is empty in {ids.null_count:,} of {len(table):,} rows, the first at ra {ra}, dec "
            f"{dec}; give every source its own source_id, or remove these rows"
        )
    if pc.count_distinct(ids).as_py() < len(ids):
        counts = pc.value_counts(ids)
        repeated = counts.filter(pc.greater(counts.field("counts"), 1))
        raise CatalogError(
            f"{path}: {len(repeated):,} source_id stand in more than one row, such as {repeated.field('values')[0]} "
            f"in {repeated.field('counts')[0]} rows; remove the repeated rows, or give every source its own source_id"
        )


# --- one file --------------------------------------------------------------------------------------


def _read(catalog: Catalog, i: int, columns: Iterable[str], coadd_id: str | None) -> pa.Table:
    """Return columns of a partition in `SOURCE_SCHEMA`, at least the rows of a tile and those without `coadd_id`."""
    path = catalog.partitions[i].path
    if catalog.kind == "table":
        return standardise_table(path, catalog.allow_truncated)
    if catalog.kind == "prepared":
        table = conform_sources(_scan(catalog, path, SOURCE_SCHEMA.names, coadd_id), path)
    else:
        table = conform_sources(_cleaned(_scan(catalog, path, columns, coadd_id), path), path)
    check_positions(table, path)
    return table


def _scan(catalog: Catalog, path: str, columns: Iterable[str], coadd_id: str | None) -> pa.Table:
    """Return those of the columns that a partition has, under our names, filtered while reading; ra, dec in degrees."""
    names, dataset = source_columns(catalog, path), parquet_dataset(path)
    doubtful = [ours for ours, theirs in names.items() if _is_doubtful(ours, dataset.schema.field(theirs).type)]
    wanted = {ours: ds.field(names[ours]) for ours in dict.fromkeys([*columns, *doubtful]) if ours in names}
    keep = rows_of_tile(wanted["coadd_id"], coadd_id) if coadd_id is not None and "coadd_id" in wanted else None
    try:
        table = dataset.to_table(columns=wanted, filter=keep)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: cannot be read ({error}); {remedy(error)}") from error
    for name in TABLE_COLUMNS if catalog.kind != "prepared" else ():
        if (factor := parquet_factor(dataset.schema, names[name], path)) != 1.0:
            table = with_column(table, name, _scaled(table[name], factor, name, path))
    return table


def _is_doubtful(name: str, stored: pa.DataType) -> bool:
    """Return whether only its values tell whether a column fits its type: a plan reads them before work starts."""
    wanted, types = SOURCE_SCHEMA.field(name).type, pa.types
    stored = stored.value_type if types.is_dictionary(stored) else stored
    if types.is_integer(wanted):
        return not types.is_integer(stored)
    return bool(types.is_floating(wanted) and not (types.is_floating(stored) or types.is_integer(stored)))


def _scaled(column: pa.ChunkedArray, factor: float, name: str, path: str) -> pa.ChunkedArray:
    try:
        return pc.multiply(without_dictionary(column).cast(pa.float64()), factor)
    except pa.ArrowException as error:
        raise CatalogError(f"{path}: column {name} is {column.type}, not an angle ({error})") from error


def _cleaned(table: pa.Table, path: str) -> pa.Table:
    """Return the table with exact identifiers, and with names of tiles as they are meant."""
    for name in IDENTIFIERS:
        if name in table.column_names:
            table = with_column(table, name, identifiers(table[name], name, path))
    return with_tile_names(table, path)
