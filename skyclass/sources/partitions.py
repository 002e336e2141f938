"""Partitions of a catalogue: read, counted by tile, or given as a Dask dataframe."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from ..errors import CatalogError
from ..sky import Region

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd
from ..schema import CATALOG_COLUMNS, SOURCE_SCHEMA, check_positions, conform_sources
from .layouts import Catalog, parquet_dataset, source_columns
from .tables import standardise_table

COUNT_SCHEMA = pa.schema([("coadd_id", pa.string()), ("partition", pa.int64()), ("n", pa.int64())])


def read_partition(catalog: Catalog, i: int, region: Region | None = None, coadd_id: str | None = None) -> pa.Table:
    """Return the sources of partition `i` in `SOURCE_SCHEMA`, only those in the region and of the tile.

    Raises `CatalogError`, naming the file, for a missing column, a value that does not fit its column,
    and a position that is not finite or not on the sky.
    """
    part = catalog.partitions[i]
    if catalog.kind == "table":
        table = standardise_table(part.path)
        table = table.filter(pc.field("coadd_id") == coadd_id) if coadd_id else table
    else:
        table = conform_sources(_read_columns(catalog, part.path, SOURCE_SCHEMA.names, coadd_id), part.path)
        check_positions(table, part.path)
    return _inside(table, region)


def count_tiles(catalog: Catalog, i: int, region: Region | None = None) -> pa.Table:
    """Return (coadd_id, partition, n): the sources of partition `i` in the region, by tile, sorted.

    Reads positions and `coadd_id` only. Null positions are `CatalogError`, a null coadd_id is counted.
    """
    if catalog.kind == "table":
        table = read_partition(catalog, i, region)
    else:
        path = catalog.partitions[i].path
        table = conform_sources(_read_columns(catalog, path, CATALOG_COLUMNS, None), path)
        check_positions(table, path)
        table = _inside(table, region)
    counts = table.group_by("coadd_id").aggregate([([], "count_all")]).sort_by("coadd_id")
    columns = {
        "coadd_id": counts["coadd_id"],
        "partition": pa.array(np.full(len(counts), i, np.int64)),
        "n": counts["count_all"],
    }
    return pa.table(columns, schema=COUNT_SCHEMA)


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


def _read_columns(catalog: Catalog, path: str, columns: Iterable[str], coadd_id: str | None) -> pa.Table:
    """Return those of the columns that a partition has, under our names, filtered while reading."""
    names = source_columns(catalog, path)
    wanted = {ours: ds.field(names[ours]) for ours in columns if ours in names}
    keep = None if coadd_id is None else ds.field(names["coadd_id"]) == coadd_id
    try:
        return parquet_dataset(path).to_table(columns=wanted, filter=keep)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: cannot be read ({error}); fetch it again") from error
