"""A selection of a published class catalogue: the rows in all its regions for which all its conditions hold."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from ..schema import SORT_KEYS
from ..sky.regions import Region
from ..types import Int64
from .duckdb import connect, parquet_scan
from .manifest import CATALOG_ORDER, Manifest, PixelRecord
from .row_groups import open_file, read_footer, spans_of
from .sql import has_subquery, translate_duckdb_errors

if TYPE_CHECKING:
    import duckdb

FINE_ORDERS = ((4, 11), (64, 8))
"""Regions of at most so many order-5 pixels choose row groups by a cover of this order (1.7, 14 arcmin).

A row group spans about half a degree; the fine cover of a larger region would cost more than it saves.
"""

FILES_AT_ONCE = 32
"""Files read before rows are filtered: about two million rows, so memory follows the answer, not the sky."""

ROWS_AT_ONCE = 500_000
"""Rows in one piece of an answer of DuckDB."""


@dataclass(frozen=True)
class Selection:
    """Rows of a publication; `columns` None means all. An object of this class has read nothing."""

    root: Path
    manifest: Manifest
    regions: tuple[Region, ...] = ()
    predicates: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None

    @property
    def is_everything(self) -> bool:
        """Whether the selection has every row of the catalogue."""
        return not self.regions and not self.predicates

    @property
    def schema(self) -> pa.Schema:
        """Schema of the selected columns."""
        schema = self.manifest.schema
        return pa.schema([schema.field(name) for name in self.columns or schema.names])

    def _needed(self) -> list[str]:
        """Return the columns to read: the selected ones, those of the conditions, and positions for regions."""
        words = {word.lower() for text in self.predicates for word in re.findall(r"\w+", text)}
        words |= {"ra", "dec"} if self.regions else set()
        words |= set(self.schema.names)
        return [name for name in self.manifest.schema.names if name in words]

    def _plan(self) -> tuple[tuple[PixelRecord, ...], list[Int64]]:
        """Return the files that the regions touch and the spans for their row groups; opens nothing."""
        files, spans = self.manifest.files, []
        for region in self.regions:
            cover = region.cover(CATALOG_ORDER)
            order = next((order for most, order in FINE_ORDERS if len(cover) <= most), CATALOG_ORDER)
            if order > CATALOG_ORDER:
                fine = region.cover(order)
                spans.append(spans_of(fine, order))
                cover = fine >> 2 * (order - CATALOG_ORDER)  # a smaller superset than the coarse cover
            pixels = set(cover.tolist())
            files = tuple(file for file in files if file.pixel in pixels)
        return files, spans

    def to_arrow(self) -> pa.Table:
        """Return the selected rows, sorted by (`_healpix_29`, `source_id`)."""
        return pa.concat_tables([self.schema.empty_table(), *self.pieces()])

    def pieces(self) -> Iterator[pa.Table]:
        """Yield the selection piece by piece, in order."""
        for rows in self._answers() if self._asks_all_rows else self._filtered_files():
            yield rows.select(self.schema.names).cast(self.schema)

    def _filtered_files(self) -> Iterator[pa.Table]:
        """Yield the selected rows of some files at a time; the conditions need no other rows."""
        files, spans = self._plan()
        needed = self._needed()
        for start in range(0, len(files), FILES_AT_ONCE):
            some = files[start : start + FILES_AT_ONCE]
            yield self._filtered(pa.concat_tables([self._read(file, spans, needed) for file in some]))

    def _answers(self) -> Iterator[pa.Table]:
        """Yield the selected rows as one query gives them, whose sub-queries see all rows of the catalogue."""
        files, _ = self._plan()
        if not files:
            return
        query = f"{self._selection(files, self._needed())} ORDER BY {', '.join(SORT_KEYS)}"
        with (
            translate_duckdb_errors(self._condition, self.manifest.schema, self.root),
            connect(self.root) as connection,
        ):
            for batch in connection.sql(query).to_arrow_reader(ROWS_AT_ONCE):
                yield self._inside(pa.Table.from_batches([batch]))

    def _read(self, file: PixelRecord, spans: Sequence[Int64], columns: list[str]) -> pa.Table:
        """Return the rows of a file inside every region, no condition applied yet."""
        footer = read_footer(self.root, file.path, file.nbytes, file.sha256)
        with open_file(self.root, file.path, file.nbytes, footer.metadata) as parquet:
            return self._inside(parquet.read_row_groups(footer.touched(spans), columns=columns))

    def _inside(self, table: pa.Table) -> pa.Table:
        """Return the rows inside every region."""
        for region in self.regions if len(table) else ():
            table = table.filter(pa.array(region.contains(table["ra"].to_numpy(), table["dec"].to_numpy())))
        return table

    def _filtered(self, rows: pa.Table) -> pa.Table:
        if not self.predicates or not len(rows):
            return rows
        with translate_duckdb_errors(self._condition, self.manifest.schema), connect(None) as connection:
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

    def make_view(self, connection: duckdb.DuckDBPyConnection) -> None:
        """Define `classes`: straight on the files where no region needs exact distances."""
        if self.regions or not self.manifest.files:
            connection.register("classes", self.to_arrow())
        else:
            connection.execute(f"CREATE TEMP VIEW classes AS {self._selection(self.manifest.files, self.schema.names)}")
