"""Ask a published class catalogue: cone, region, where, select, sql, export.

A `ClassCatalog` is lazy: each verb gives a narrower one and reads nothing. Files are chosen from the
manifest by the region's HEALPix cover before any is opened, row groups by their range of `_healpix_29`,
rows by exact distance: a cone of 1 arcmin reads under half a megabyte, however large the catalogue is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from ..errors import ConfigError, StoreError
from ..schema import CLASS_SCHEMA, SORT_KEYS, UNCLASSIFIED
from ..sky.healpix import MAX_ORDER
from ..sky.regions import Cone, Region
from ..types import Bool, Int64
from .duckdb import connect, parquet_scan
from .export import export_pieces
from .manifest import CATALOG_ORDER, Manifest, PixelRecord, read_manifest
from .sql import answering, check_condition, check_query, column_list, has_subquery, unreadable
from .versions import find_catalog

if TYPE_CHECKING:
    import duckdb

_FINE_ORDERS = ((4, 11), (64, 8))
"""Regions of at most so many order-5 pixels choose row groups by a cover of this order (1.7, 14 arcmin).

A row group spans about half a degree; the fine cover of a larger region would cost more than it saves.
"""

_FILES_AT_ONCE = 32
"""Files read before rows are filtered: about two million rows, so memory follows the answer, not the sky."""

_ROWS_AT_ONCE = 500_000
"""Rows in one piece of an answer of DuckDB."""


@dataclass(frozen=True)
class ClassCatalog:
    """A published class catalogue, or the part of it that the verbs so far have left.

    `regions` and `predicates` all hold for a row of the selection; `columns` None means all.
    """

    root: Path
    manifest: Manifest
    regions: tuple[Region, ...] = ()
    predicates: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None

    # --- verbs that narrow ---

    def cone(self, ra: float, dec: float, radius: str | float) -> ClassCatalog:
        """Return the sources within `radius` (degrees, or "30arcmin") of a position in degrees."""
        return self.region(Cone(ra, dec, radius))

    def region(self, region: Region) -> ClassCatalog:
        """Return the sources inside a `Cone`, `Box`, `Polygon` or `Pixels`; a second region intersects."""
        return replace(self, regions=(*self.regions, region))

    def where(self, expression: str) -> ClassCatalog:
        """Return the sources for which a SQL condition is true, such as "p_quasar > 0.9 AND flags = 0".

        A sub-query sees every row of the catalogue as `classes`, whatever the regions and other conditions are.
        Raises `ConfigError` where it is not a condition on the columns of the catalogue, or names a class that the
        catalogue does not have.
        """
        check_condition(expression, self.manifest.classes)
        return replace(self, predicates=(*self.predicates, expression))

    def select(self, columns: Sequence[str]) -> ClassCatalog:
        """Return the selection with these columns only, in this order; `ConfigError` on unknown ones."""
        names = (columns,) if isinstance(columns, str) else tuple(columns)
        unknown = [name for name in names if name not in CLASS_SCHEMA.names]
        if unknown or not names or len(set(names)) < len(names):
            what = f"unknown columns {unknown}" if unknown else f"columns {list(names)} are none or repeated"
            raise ConfigError(f"{what}: choose from {column_list()}")
        return replace(self, columns=names)

    # --- verbs that answer ---

    def to_arrow(self) -> pa.Table:
        """Return the selection as an Arrow table, sorted by (`_healpix_29`, `source_id`)."""
        return pa.concat_tables([self._schema.empty_table(), *self._pieces()])

    def to_pandas(self) -> pd.DataFrame:
        """Return the selection as a DataFrame with Arrow-backed columns: missing values stay missing."""
        return to_pandas(self.to_arrow())

    def count(self) -> int:
        """Return the number of sources in the selection; from the manifest where nothing was narrowed."""
        if not self.regions and not self.predicates:
            return self.manifest.rows
        answer = self.select(["_healpix_29"]).sql_arrow("SELECT count(*) FROM classes")
        return int(answer.column(0)[0].as_py())

    def class_counts(self) -> dict[str, int]:
        """Return sources by class: galaxy, quasar, star, unclassified; from the manifest where possible."""
        if not self.regions and not self.predicates:
            return dict(self.manifest.classes)
        query = "SELECT class, count(*) FROM classes GROUP BY class"
        names, rows = self.select(["class"]).sql_arrow(query).columns
        found = dict(zip(names.fill_null(UNCLASSIFIED).to_pylist(), rows.to_pylist(), strict=True))
        return {name: found.get(name, 0) for name in self.manifest.classes}

    def sql(self, query: str) -> pd.DataFrame:
        """Return the answer to a SQL query on the view `classes`, which holds the selection (DuckDB's SQL).

        Raises `ConfigError` where the query cannot be answered; it lists the columns.
        """
        return to_pandas(self.sql_arrow(query))

    def sql_arrow(self, query: str) -> pa.Table:
        """Return the answer of `sql` as an Arrow table."""
        check_query(query, self.manifest.classes)
        with answering(query, self.root), connect(self.root) as connection:
            self._make_view(connection)
            return connection.sql(query).to_arrow_table()

    def export(self, path: str | Path, overwrite: bool = False) -> Path:
        """Write the selection and return the path; the ending says how: .parquet, .csv, .fits, .vot, .xml.

        Whole or not at all. Parquet and CSV are streamed, FITS and VOTable are made in memory. Raises `ConfigError` on
        another ending, and on an existing file without `overwrite`; `StoreError` where writing fails.
        """
        return export_pieces(self._schema, self._pieces(), path, self.manifest.provenance, overwrite)

    # --- how ---

    @property
    def _schema(self) -> pa.Schema:
        names = self.columns or CLASS_SCHEMA.names
        return pa.schema([CLASS_SCHEMA.field(name) for name in names])

    def _needed(self) -> list[str]:
        """Columns to read: those asked for, those the conditions name, and positions for regions."""
        words = {word.lower() for text in self.predicates for word in re.findall(r"\w+", text)}
        words |= {"ra", "dec"} if self.regions else set()
        words |= set(self._schema.names)
        return [name for name in CLASS_SCHEMA.names if name in words]

    def _plan(self) -> tuple[tuple[PixelRecord, ...], list[Int64]]:
        """Return the files that the regions touch and the spans for their row groups; opens nothing."""
        files, spans = self.manifest.files, []
        for region in self.regions:
            cover = region.cover(CATALOG_ORDER)
            order = next((order for most, order in _FINE_ORDERS if len(cover) <= most), CATALOG_ORDER)
            if order > CATALOG_ORDER:
                fine = region.cover(order)
                spans.append(_spans(fine, order))
                cover = fine >> 2 * (order - CATALOG_ORDER)  # a smaller superset than the coarse cover
            pixels = set(cover.tolist())
            files = tuple(file for file in files if file.pixel in pixels)
        return files, spans

    def _pieces(self) -> Iterator[pa.Table]:
        """Yield the selection piece by piece, in order."""
        for rows in self._answers() if self._asks_all_rows else self._filtered_files():
            answer = rows.select(self._schema.names).replace_schema_metadata()
            yield answer.cast(self._schema) if self.predicates else answer

    def _filtered_files(self) -> Iterator[pa.Table]:
        """Yield the selected rows of some files at a time; the conditions need no other rows."""
        files, spans = self._plan()
        needed = self._needed()
        for start in range(0, len(files), _FILES_AT_ONCE):
            some = files[start : start + _FILES_AT_ONCE]
            yield self._filtered(pa.concat_tables([self._read(file, spans, needed) for file in some]))

    def _answers(self) -> Iterator[pa.Table]:
        """Yield the selected rows as one query gives them, whose sub-queries see all rows of the catalogue."""
        files, _ = self._plan()
        if not files:
            return
        query = f"{self._selection(files, self._needed())} ORDER BY {', '.join(SORT_KEYS)}"
        with answering(self._condition, self.root), connect(self.root) as connection:
            for batch in connection.sql(query).to_arrow_reader(_ROWS_AT_ONCE):
                yield self._inside(pa.Table.from_batches([batch]))

    def _read(self, file: PixelRecord, spans: Sequence[Int64], columns: list[str]) -> pa.Table:
        """Return the rows of a file inside every region, no condition applied yet."""
        footer = _footer(self.root, file.path, file.nbytes, file.sha256)
        with _open(self.root, file.path, file.nbytes, footer.metadata) as parquet:
            return self._inside(parquet.read_row_groups(footer.touched(spans), columns=columns))

    def _inside(self, table: pa.Table) -> pa.Table:
        """Return the rows inside every region."""
        for region in self.regions if len(table) else ():
            table = table.filter(pa.array(region.contains(table["ra"].to_numpy(), table["dec"].to_numpy())))
        return table

    def _filtered(self, rows: pa.Table) -> pa.Table:
        if not self.predicates or not len(rows):
            return rows
        with answering(self._condition), connect(None) as connection:
            connection.register("classes", rows)
            query = f"SELECT * FROM classes WHERE {self._condition}"
            return connection.sql(query).to_arrow_table()

    @property
    def _condition(self) -> str:
        return " AND ".join(f"({text}\n)" for text in self.predicates)  # a comment must not eat the bracket

    @property
    def _asks_all_rows(self) -> bool:
        return any(map(has_subquery, self.predicates))

    def _selection(self, files: Sequence[PixelRecord], columns: Sequence[str]) -> str:
        """Return the SQL of the rows of some files for which the conditions hold; regions are not applied."""
        names = ", ".join(f'"{name}"' for name in columns)
        query = f"SELECT {names} FROM {self._scan(files)} AS classes"
        if not self.predicates:
            return query
        everything = f"WITH classes AS NOT MATERIALIZED (SELECT * FROM {self._scan(self.manifest.files)}) "
        return f"{everything if self._asks_all_rows else ''}{query} WHERE {self._condition}"

    def _scan(self, files: Sequence[PixelRecord]) -> str:
        return parquet_scan([str(self.root / file.path) for file in files])

    def _make_view(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Define `classes`: straight on the files where no region needs exact distances."""
        if self.regions or not self.manifest.files:
            connection.register("classes", self.to_arrow())
        else:
            connection.execute(
                f"CREATE TEMP VIEW classes AS {self._selection(self.manifest.files, self._schema.names)}"
            )


def open_catalog(path: str | Path) -> ClassCatalog:
    """Return a published class catalogue, given its folder or its run folder; reads the manifest only.

    Raises `StoreError` where there is none.
    """
    root = find_catalog(path)
    return ClassCatalog(root, read_manifest(root))


# --- files and row groups --------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Footer:
    """Footer of a file with the range of `_healpix_29` of each row group."""

    metadata: pq.FileMetaData
    low: Int64
    high: Int64

    def touched(self, spans: Sequence[Int64]) -> list[int]:
        """Return the row groups that overlap one interval, at least, of every region's spans (n, 2)."""
        hit: Bool = np.ones(len(self.low), bool)
        for span in spans:
            # the first interval that ends at or after a group's low must begin before the group's high
            first = np.searchsorted(span[:, 1], self.low)
            begins = np.append(span[:, 0], np.iinfo(np.int64).max)[first]
            hit &= begins <= self.high
        return np.flatnonzero(hit).tolist()


@lru_cache(maxsize=256)
def _footer(root: Path, path: str, nbytes: int, sha256: str) -> _Footer:
    """Return a file's footer, kept for the next question; the digest tells a catalogue published anew."""
    with _open(root, path, nbytes) as file:
        metadata = file.metadata
        column = metadata.schema.to_arrow_schema().get_field_index("_healpix_29")
        groups = [metadata.row_group(i).column(column).statistics for i in range(metadata.num_row_groups)]
    low, high = ([getattr(group, end) for group in groups] for end in ("min", "max"))
    return _Footer(metadata, np.asarray(low, np.int64), np.asarray(high, np.int64))


@contextmanager
def _open(root: Path, path: str, nbytes: int, metadata: pq.FileMetaData | None = None) -> Iterator[pq.ParquetFile]:
    """Give a published file; raise `StoreError` where it is gone, damaged, or of another size than published."""
    try:
        if (size := os.stat(root / path).st_size) != nbytes:
            raise StoreError(
                f"{root / path} has {size:,} bytes and was published with {nbytes:,}: run 'skyclass verify', "
                "then publish the run again"
            )
        with pq.ParquetFile(root / path, metadata=metadata) as file:
            yield file
    except (OSError, pa.ArrowException) as error:
        raise unreadable(root, f"{root / path} cannot be read: {error}") from error


def _spans(pixels: Int64, order: int) -> Int64:
    """Return sorted disjoint intervals (n, 2) of `_healpix_29`, ends included, for sorted NESTED pixels."""
    breaks = np.flatnonzero(np.diff(pixels) > 1) + 1
    runs = [run for run in np.split(pixels, breaks) if len(run)]
    shift = 2 * (MAX_ORDER - order)
    ends = [(int(run[0]) << shift, (int(run[-1]) + 1 << shift) - 1) for run in runs]
    return np.asarray(ends, np.int64).reshape(-1, 2)


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Return a DataFrame with Arrow-backed columns: missing values stay missing."""
    return cast(pd.DataFrame, table.to_pandas(types_mapper=pd.ArrowDtype))
