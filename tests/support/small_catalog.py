"""Class catalogues of a few rows, published without a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from skyclass.catalog.publish import CatalogRows, publish_catalog
from skyclass.catalog.query import ClassCatalog, open_catalog
from skyclass.files import parquet_bytes
from skyclass.sky.healpix import healpix29
from skyclass.types import DEFAULT_CLASSES
from tests.support.class_rows import CLASS_SCHEMA

PROVENANCE: dict[str, Any] = {
    "run_id": "r1",
    "info": {"model": {"classes": list(DEFAULT_CLASSES), "training": {"simulated": True, "label": "4 mock tiles"}}},
}


PIXEL = 1 << 48
"""HEALPix indices of order 29 in a pixel of order 5."""


def catalogue_table(*sources: dict[str, Any]) -> pa.Table:
    """Return rows of the class catalogue: at (0, 0), without flags, null where a source names no value.

    A source without `_healpix_29` has the index of its position.
    """
    empty = dict.fromkeys(CLASS_SCHEMA.names) | {"ra": 0.0, "dec": 0.0, "flags": 0, "run_id": "r1"}
    table = pa.Table.from_pylist([empty | source for source in sources], schema=CLASS_SCHEMA)
    index = pa.array(healpix29(table["ra"].to_numpy(), table["dec"].to_numpy()))
    return with_column(table, "_healpix_29", pc.coalesce(table["_healpix_29"], index))


def with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """Return the table with other values in a column."""
    return table.set_column(table.schema.get_field_index(name), CLASS_SCHEMA.field(name), values)


def catalog_rows_of(folder: Path, *tables: pa.Table, **changes: Any) -> CatalogRows:
    """Return the rows of tables, each in a file of its own, before their publication in `folder`."""
    files = tuple(folder / f"part{i}.parquet" for i in range(len(tables)))
    for path, table in zip(files, tables, strict=True):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(parquet_bytes(table))
    values = {
        "folder": folder,
        "tmp": folder,
        "files": files,
        "nbytes": sum(path.stat().st_size for path in files),
        "n_rows": sum(map(len, tables)),
        "digest": "tiles1",
        "provenance": PROVENANCE,
        "created": "2026-01-02T03:04:05Z",
    }
    return CatalogRows(**values | changes)


def small_catalog(folder: Path, *tables: pa.Table) -> ClassCatalog:
    """Publish the rows of tables, and open the catalogue."""
    publish_catalog(catalog_rows_of(folder, *tables))
    return open_catalog(folder)
