"""Users' tables of positions: CSV, IPAC, VOTable, FITS, ECSV or Parquet, in the schema of a source."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from ..errors import CatalogError
from ..schema import SOURCE_SCHEMA, TABLE_COLUMNS, cast_column, conform_sources, sky_positions
from ..sky.regions import Region
from ..text import counted, one_or_many
from ..types import Bool, Float64
from .columns import MASK, SOURCES, TEXT, RawTable, Wanted, typed_table, unmasked, wanted_columns
from .delimited import read_ecsv, read_ipac, read_text
from .fits_table import read_fits
from .listing import ANYWHERE, local_path
from .names import with_tile_names
from .parquet import parquet_dataset
from .source_table import Partition, columns_without_values, dask_frame, inside, short_html, short_text
from .tablefile import TableFile, open_table_file
from .units import parquet_factor
from .votable import read_votable

if TYPE_CHECKING:
    import dask.dataframe as dd

log = logging.getLogger(__name__)

MAX_ROWS = 5
"""Rows that a message on positions shows."""
MAX_TEXT = 40
"""Characters of the text of a position that a message shows."""


@dataclass(frozen=True, repr=False)
class UserTable:
    """A table of positions in one file; `open_sources` makes it.

    Parameters
    ----------
    location : str
        Path of the file.
    region : Cone, Box, Polygon, Pixels or Moc, optional
        Part of the sky that the rows are limited to.
    allow_truncated : bool, default False
        Accept a VOTable that a service cut at its row limit.
    further : tuple of str, default ()
        Numeric columns to read besides those of `SOURCE_SCHEMA`.
    """

    location: str
    region: Region | None = None
    allow_truncated: bool = False
    further: tuple[str, ...] = ()

    is_partitioned, is_prepared = False, False

    @property
    def partitions(self) -> tuple[Partition, ...]:
        """The one file, which may hold any part of the sky."""
        return (Partition(self.location, ANYWHERE, 0),)

    def read(
        self, i: int, columns: Sequence[str] | None = None, coadd_id: str | None = None, check_types: bool = False
    ) -> pa.Table:
        return inside(standardise_table(self.location, self.allow_truncated, self.further), self.region)

    def whole_partitions(self) -> UserTable:
        return replace(self, region=None)

    def absent_columns(self, names: Sequence[str]) -> list[str]:
        return columns_without_values(self.whole_partitions().read(0), names)

    def missing_pixels(self) -> list[int]:
        return []

    def to_dask(self, columns: Sequence[str] | None = None) -> dd.DataFrame:
        return dask_frame(self, [self], columns)

    def __repr__(self) -> str:
        return short_text(self, "table")

    def _repr_html_(self) -> str:
        return short_html(self, "table")


def standardise_table(location: str, allow_truncated: bool = False, further: tuple[str, ...] = ()) -> pa.Table:
    """Return a table file in `source_schema(further)`, in its order; `source_id` is row-000001... if it has none.

    Raises `CatalogError`, one message for all bad rows, as `read_table` and `standardise` do.
    """
    table, source = read_table(location, Wanted(numbers=further), allow_truncated), f"table {local_path(location)}"
    if "source_id" not in table.column_names:
        log.warning(
            "%s: it has no column source_id; the sources are called row-000001 and so on; to keep ids of your own, "
            "rename their column to source_id",
            source,
        )
    return standardise(table, source)


def read_table(location: str, wanted: Wanted = SOURCES, allow_truncated: bool = False) -> pa.Table:
    """Return the columns of a table file under the names of `SOURCE_SCHEMA`, and the further columns `wanted`.

    The format is recognised by the content, plain or gzipped: CSV and other delimited text, IPAC, VOTable, FITS, ECSV,
    Parquet. Column names may be in any case; ra and dec are in decimal degrees or with a unit, and come in degrees
    (float64, null where they are no number; their text is then in "ra.text" and "dec.text"). Wanted columns of numbers
    that the file lacks are null. `allow_truncated` accepts a VOTable that a service cut at its limit. Raises
    `CatalogError`: no table file, no rows, a column missing or named twice, sexagesimal positions, identifiers that
    lost digits. Values of other columns that cannot be used, and magnitudes that are marked as limits, are null, with a
    `TableWarning`.
    """
    file = open_table_file(local_path(str(location)))
    table = typed_table(_read(file, wanted, allow_truncated), file.source, wanted)
    if not len(table):
        raise CatalogError(f"{file.source}: it has no rows")
    return table


def _read(file: TableFile, wanted: Wanted, allow_truncated: bool) -> RawTable:
    match file.format:
        case "parquet":
            return _read_parquet(file, wanted)
        case "fits":
            return read_fits(file, wanted)
        case "votable":
            return read_votable(file, wanted, allow_truncated)
        case "ecsv":
            return read_ecsv(file, wanted)
        case "ipac":
            return read_ipac(file, wanted)
        case _:
            return read_text(file, wanted)


def _read_parquet(file: TableFile, wanted: Wanted) -> RawTable:
    if file.content is not None:
        raise CatalogError(f"{file.source}: gzipped Parquet is not read; decompress it with gunzip")
    dataset = parquet_dataset(str(file.path))
    names = dataset.schema.names
    chosen = {ours: names[i] for ours, i in wanted_columns(names, file.source, wanted).items()}
    masks = {ours: name + MASK for ours, name in chosen.items() if name + MASK in names}
    positions = [name for name in TABLE_COLUMNS if name in chosen]
    factors = {name: parquet_factor(dataset.schema, chosen[name], file.source) for name in positions}
    with file.translate_parser_errors():
        table = dataset.to_table(columns={name: ds.field(name) for name in {*chosen.values(), *masks.values()}})
        table.validate(full=True)
    columns = {ours: table[name] for ours, name in chosen.items()}
    columns |= {ours: unmasked(columns[ours], table[name]) for ours, name in masks.items()}
    return RawTable(columns, factors)


def standardise(table: pa.Table, source: str, unique: bool = True) -> pa.Table:
    """Return a table of `read_table` in `SOURCE_SCHEMA`, its further columns after it; empty text is null.

    Rows without `source_id` are numbered: row-000001... The positions of a table without ra and dec are null. Raises
    one `CatalogError`, which begins with `source`, for all positions off the sky (ra 0..360, dec -90..90 degrees),
    identifiers missing and, where each source must be there once (`unique`), given twice.
    """
    if "source_id" not in table.column_names:
        ids = [f"row-{number:06d}" for number in range(1, len(table) + 1)]
        table = table.append_column("source_id", pa.array(ids, pa.string()))
    texts = {name: table[name + TEXT] for name in TABLE_COLUMNS if name + TEXT in table.column_names}
    table = table.drop_columns([name + TEXT for name in texts])
    further = [field for field in table.schema if field.name not in SOURCE_SCHEMA.names]
    numbers = [field.name for field in further if pa.types.is_floating(field.type)]
    whole = conform_sources(with_tile_names(table, source), source, numbers)
    for field in further:
        if field.name not in numbers:
            whole = whole.append_column(field, cast_column(table[field.name], field, source))
    if problems := _row_problems(whole, texts, unique, set(TABLE_COLUMNS) <= set(table.column_names)):
        raise CatalogError(f"{source}: " + "; ".join(problems))
    return whole.combine_chunks()


def _row_problems(
    table: pa.Table, texts: Mapping[str, pa.ChunkedArray], unique: bool, has_positions: bool
) -> list[str]:
    """Return the faults of the rows: positions off the sky, missing or repeated identifiers.

    `texts` holds the text of positions that are no numbers.
    """
    ra, dec, bad = sky_positions(table)
    problems = [_position_problem(ra, dec, bad, texts)] if bad.any() and has_positions else []
    counts = pc.value_counts(table["source_id"].drop_null())
    many = counts.filter(pc.greater(counts.field("counts"), 1))
    if n_null := table["source_id"].null_count:
        problems.append(f"source_id is empty in {counted(n_null, 'row')}; fill it or drop the column")
    if unique and len(many):
        repeated = ", ".join(str(value) for value in many.field("values")[:5])
        problems.append(
            f"source_id {repeated} {one_or_many(len(many), 'occurs', 'occur')} in more than one row; "
            "remove the repeated rows, or rename the column to have rows numbered"
        )
    return problems


def _position_problem(ra: Float64, dec: Float64, bad: Bool, texts: Mapping[str, pa.ChunkedArray]) -> str:
    """Return which rows have no position on the sky, and the remedy; at least one of them is `bad`."""
    n_bad = int(bad.sum())
    rows = ", ".join(
        f"{i + 1} ({_coordinate('ra', ra[i], texts, i)}, {_coordinate('dec', dec[i], texts, i)})"
        for i in np.flatnonzero(bad)[:MAX_ROWS]
    )
    return (
        f"{n_bad:,} of {counted(len(bad), 'row')} {one_or_many(n_bad, 'has', 'have')} no position on the sky, such as "
        f"row {rows}{' and more' if n_bad > MAX_ROWS else ''}; ra must be 0..360 and dec -90..90 degrees; "
        f"{_remedy_of_positions(ra, dec, bad)}"
    )


def _coordinate(name: str, value: float, texts: Mapping[str, pa.ChunkedArray], row: int) -> str:
    """Return text about a coordinate of a row: its value, its text where it is no number, or that it is missing."""
    text = texts[name][row].as_py() if name in texts else None
    if text is not None:
        return f"{name} {(text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + '...')!r}"
    return f"{name} is missing" if np.isnan(value) else f"{name} {value}"


def _remedy_of_positions(ra: Float64, dec: Float64, bad: Bool) -> str:
    """Return the remedy for rows that are `bad`: columns may be swapped, or RA may be from -180 to 180."""
    known = ~(np.isnan(ra) | np.isnan(dec))
    fit_if_swapped = (np.abs(ra[known]) <= 90) & (dec[known] >= 0) & (dec[known] <= 360)
    if known.any() and fit_if_swapped.all() and (dec[known] > 90).mean() > 0.5:
        return "ra and dec may be swapped: exchange the names of the two columns"
    negative = (ra >= -180) & (ra < 0) & (np.abs(dec) <= 90)
    if negative.any():
        others = "" if negative.sum() == bad.sum() else "; correct or remove the other rows"
        return f"add 360 to negative right ascensions{others}"
    return "correct or remove these rows"
