"""Sources to classify: the protocol of catalogues and tables, which are read by partition, in Python or with Dask."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

import pyarrow as pa

from ..errors import CatalogError, ConfigError
from ..schema import SOURCE_SCHEMA, listed_names, source_schema
from ..sky.regions import Region, region_text
from ..text import counted, html_table, named

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd


class Partition(NamedTuple):
    """A file and its NESTED pixel; order `ANYWHERE` where the file may hold rows of any part of the sky."""

    path: str
    order: int
    pixel: int


class SourceTable(Protocol):
    """Sources of a catalogue or of one table, in partitions; an object of this class holds no rows.

    `open_sources` makes such an object.
    """

    @property
    def location(self) -> str:
        """Folder of the catalogue, or path of the table."""
        ...

    @property
    def region(self) -> Region | None:
        """Part of the sky that the rows are limited to; None is the whole catalogue."""
        ...

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """Files that may hold rows of the region."""
        ...

    @property
    def further(self) -> tuple[str, ...]:
        """Numeric columns that are read besides those of `SOURCE_SCHEMA`."""
        ...

    @property
    def is_partitioned(self) -> bool:
        """Whether workers read the partitions; otherwise the driver reads the one table and assigns tiles."""
        ...

    @property
    def is_prepared(self) -> bool:
        """Whether a run wrote the partitions from a user's table: each source has its tile, absent columns are null."""
        ...

    def read(
        self, i: int, columns: Sequence[str] | None = None, coadd_id: str | None = None, check_types: bool = False
    ) -> pa.Table:
        """Return the sources of partition `i` in `source_schema(further)`; columns other than `columns` may be null.

        With `coadd_id`, at least the rows of that tile and those without a tile. `check_types` also reads columns
        whose type alone does not show that their values fit the schema. Raises `CatalogError`, naming the file, for a
        missing column, a value that does not fit its column, and a position that is not on the sky.
        """
        ...

    def whole_partitions(self) -> SourceTable:
        """Return the same partitions, with their rows outside the region too."""
        ...

    def absent_columns(self, names: Sequence[str]) -> list[str]:
        """Return those of the names that are no column of the catalogue.

        In a user's table, also when a run has prepared it, these are the columns without any value.
        """
        ...

    def missing_pixels(self) -> list[int]:
        """Return the HEALPix pixels that the region touches and a complete catalogue has, but this copy lacks."""
        ...

    def to_dask(self, columns: Sequence[str] | None = None) -> dd.DataFrame:
        """Return the sources as a Dask DataFrame with one partition for each file.

        Nothing is read before `compute`. Partitions outside the region are not in the graph. Of the others, only the
        requested columns that later steps use are read, and the positions where there is a region.

        Parameters
        ----------
        columns : sequence of str, optional
            Columns of a source, such as "source_id" and "w1mpro"; all by default.

        Returns
        -------
        dask.dataframe.DataFrame
            Sources with Arrow types: `ra`, `dec` in degrees (ICRS), magnitudes in the Vega system, missing values as
            null.

        Raises
        ------
        ConfigError
            A column is unknown, or `columns` is a text.
        CatalogError
            No partition touches the region; while computing, a partition cannot be read.

        Examples
        --------
        >>> import skyclass as sc
        >>> frame = sc.open_sources("sky/catalog").to_dask(columns=["ra", "dec", "w1mpro"])
        >>> len(frame)
        46
        """
        ...

    def _repr_html_(self) -> str: ...


def read_all(sources: SourceTable) -> pa.Table:
    """Return the sources of all partitions."""
    empty = source_schema(sources.further).empty_table()
    return pa.concat_tables([empty, *(sources.read(i) for i in range(len(sources.partitions)))])


def inside(table: pa.Table, region: Region | None) -> pa.Table:
    """Return the rows of a table whose positions lie in a region; all rows without a region."""
    if region is None:
        return table
    return table.filter(pa.array(region.contains(table["ra"].to_numpy(), table["dec"].to_numpy())))


def columns_without_values(table: pa.Table, names: Sequence[str]) -> list[str]:
    """Return those of the names whose columns hold nothing but null."""
    return [name for name in names if table[name].null_count == len(table)]


def dask_frame(sources: SourceTable, pieces: Sequence[SourceTable], columns: Sequence[str] | None) -> dd.DataFrame:
    """Return the sources as a Dask DataFrame with pandas partitions of Arrow types; the graph holds no rows.

    `pieces` are the sources once more, one object for each partition.
    """
    import dask.dataframe as dd

    names = listed_names(SOURCE_SCHEMA.names if columns is None else columns)
    if unknown := [name for name in names if name not in SOURCE_SCHEMA.names]:
        raise ConfigError(f"unknown {named('column', unknown)}: choose from {', '.join(SOURCE_SCHEMA.names)}")
    if not pieces:
        raise CatalogError(f"catalogue {sources.location}: no partition touches the {region_text(sources.region)}")
    from_map: Callable[..., dd.DataFrame] = dd.from_map
    meta = _to_pandas(SOURCE_SCHEMA.empty_table())
    return from_map(_read_frame, pieces, columns=names, meta=meta, label="sources")


def _read_frame(piece: SourceTable, columns: Sequence[str] | None = None) -> pd.DataFrame:
    """Return the one partition of a piece; Dask passes the columns that later steps of a graph use."""
    names = list(SOURCE_SCHEMA.names if columns is None else columns)
    needed = None if "bad_values" in names else names  # `bad_values` marks values of all columns
    return _to_pandas(piece.read(0, needed).select(names))


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    import pandas as pd

    return cast("pd.DataFrame", table.to_pandas(types_mapper=pd.ArrowDtype))


def short_text(sources: SourceTable, layout: str) -> str:
    """Return the `repr` of sources in one line."""
    parts = [
        layout,
        counted(len(sources.partitions), "partition"),
        *([region_text(sources.region)] if sources.region else []),
    ]
    return f"<{type(sources).__name__} {sources.location}: {', '.join(parts)}>"


def short_html(sources: SourceTable, layout: str) -> str:
    """Return sources as an HTML table for notebooks."""
    rows = {
        "location": sources.location,
        "layout": layout,
        "partitions": f"{len(sources.partitions):,}",
        "region": region_text(sources.region),
        "columns": ", ".join(SOURCE_SCHEMA.names),
    }
    return html_table(type(sources).__name__, rows)
