"""Catalogues of partitions: Parquet files of parts of the sky, read one at a time and only the columns in use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from ..errors import CatalogError
from ..schema import (
    CATALOG_COLUMNS,
    TABLE_COLUMNS,
    check_positions,
    conform_sources,
    listed_names,
    source_schema,
    without_dictionary,
)
from ..sky.regions import Region
from ..text import named
from .columns import with_column
from .identifiers import IDENTIFIERS, identifiers
from .layouts import Layout
from .names import rows_of_tile, with_tile_names
from .parquet import parquet_dataset, parquet_schema, remedy
from .source_table import Partition, columns_without_values, dask_frame, inside, short_html, short_text
from .units import parquet_factor

if TYPE_CHECKING:
    import dask.dataframe as dd


@dataclass(frozen=True, repr=False)
class PartitionedSources:
    """Sources in partitions on disk; `open_sources` makes it.

    Parameters
    ----------
    layout : Layout
        Layout of the folders.
    location : str
        Folder of the catalogue.
    partitions : tuple of Partition
        Files with their HEALPix pixels, in order.
    region : Cone, Box, Polygon, Pixels or Moc, optional
        Part of the sky that the rows are limited to.
    renamed : tuple of (str, str), optional
        Names of `SOURCE_SCHEMA` and, for each, its name in the files where that differs.
    further : tuple of str, default ()
        Numeric columns to read besides those of `SOURCE_SCHEMA`.
    """

    layout: Layout
    location: str
    partitions: tuple[Partition, ...]
    region: Region | None = None
    renamed: tuple[tuple[str, str], ...] = ()
    further: tuple[str, ...] = ()

    is_partitioned = True

    @property
    def is_prepared(self) -> bool:
        return self.layout.is_prepared

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that a file may have."""
        return (*self.layout.columns, *self.further)

    def read(
        self, i: int, columns: Sequence[str] | None = None, coadd_id: str | None = None, check_types: bool = False
    ) -> pa.Table:
        """Return the rows of a partition in the region, with clean values, in `source_schema(further)`."""
        path, names = self.partitions[i].path, set(self.columns if columns is None else listed_names(columns))
        names |= set(TABLE_COLUMNS) if self.region else set()
        names |= {"coadd_id"} if coadd_id is not None else set()
        names |= {"bad_values"} if self.is_prepared else set()
        table = _scan(self, path, names, coadd_id, check_types)
        table = conform_sources(table if self.is_prepared else _cleaned(table, path), path, self.further)
        if names >= set(TABLE_COLUMNS):
            check_positions(table, path)
        return inside(table, self.region)

    def whole_partitions(self) -> PartitionedSources:
        return replace(self, region=None)

    def absent_columns(self, names: Sequence[str]) -> list[str]:
        if self.is_prepared:
            return columns_without_values(self.whole_partitions().read(0, names), names)
        present = source_columns(self, self.partitions[0].path)
        return [name for name in names if name not in present]

    def missing_pixels(self) -> list[int]:
        order = self.layout.complete_order
        if order is None or self.region is None:
            return []
        present = {partition.pixel for partition in self.partitions}
        return [pixel for pixel in self.region.cover(order).tolist() if pixel not in present]

    def to_dask(self, columns: Sequence[str] | None = None) -> dd.DataFrame:
        return dask_frame(self, [replace(self, partitions=(part,)) for part in self.partitions], columns)

    def __repr__(self) -> str:
        return short_text(self, self.layout.name)

    def _repr_html_(self) -> str:
        return short_html(self, self.layout.name)


def source_columns(sources: PartitionedSources, path: str) -> dict[str, str]:
    """Return name in `SOURCE_SCHEMA` -> name in the file for its columns; `CatalogError` without a required one."""
    renamed, present = dict(sources.renamed), set(parquet_schema(path).names)
    names = {name: renamed.get(name, name) for name in sources.columns}
    missing = [names[name] for name in CATALOG_COLUMNS if names[name] not in present]
    if missing:
        raise CatalogError(
            f"{path}: no {named('column', missing)}; a catalogue needs {', '.join(CATALOG_COLUMNS)}. "
            "A plain list of positions can be given as one table file with ra and dec"
        )
    return {name: in_file for name, in_file in names.items() if in_file in present}


def _scan(
    sources: PartitionedSources, path: str, columns: Iterable[str], coadd_id: str | None, check_types: bool
) -> pa.Table:
    """Return those of the columns that a partition has, with ra and dec in degrees; rows are filtered while reading."""
    names, dataset = source_columns(sources, path), parquet_dataset(path)
    wanted_type, stored = source_schema(sources.further), dataset.schema
    doubtful = [
        n for n, in_file in names.items() if _is_doubtful(wanted_type.field(n).type, stored.field(in_file).type)
    ]
    chosen = {*columns, *(doubtful if check_types else ())}
    wanted = {name: ds.field(in_file) for name, in_file in names.items() if name in chosen}
    rows = rows_of_tile(wanted["coadd_id"], coadd_id) if coadd_id is not None and "coadd_id" in wanted else None
    try:
        table = dataset.to_table(columns=wanted, filter=rows)
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: cannot be read ({error}); {remedy(error)}") from error
    for name in (name for name in TABLE_COLUMNS if name in wanted):
        if (factor := parquet_factor(dataset.schema, names[name], path)) != 1.0:
            table = with_column(table, name, _scaled(table[name], factor, name, path))
    return table


def _is_doubtful(wanted: pa.DataType, stored: pa.DataType) -> bool:
    """Return whether a column must be read to know that its values fit the type that is wanted."""
    types = pa.types
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
    """Return the table with exact identifiers, and with the names of tiles in their canonical form."""
    for name in IDENTIFIERS:
        if name in table.column_names:
            table = with_column(table, name, identifiers(table[name], name, path))
    return with_tile_names(table, path)
