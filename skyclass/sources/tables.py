"""Users' tables of positions: CSV, IPAC, VOTable, FITS, ECSV or Parquet, in the schema of a source."""

from __future__ import annotations

import csv
import gzip
import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.dataset as ds

from ..errors import CatalogError
from ..schema import (
    INPUT_COLUMNS,
    SOURCE_SCHEMA,
    TABLE_COLUMNS,
    cast_column,
    conform_sources,
    sky_positions,
    without_dictionary,
)
from .layouts import local_path, parquet_dataset, parquet_schema
from .names import with_tile_names

SEXAGESIMAL = r"^\s*[-+]?\d+(:|h|d|\s)\s*\d+"


def standardise_table(location: str) -> pa.Table:
    """Return a table file in `SOURCE_SCHEMA`, in its order; `source_id` is row-000001... where it has none.

    Raises `CatalogError`, one message for all bad rows, as `read_table` and `standardise` do.
    """
    return standardise(read_table(location), f"table {local_path(str(location))}")


def read_table(location: str, extra: Sequence[str] = ()) -> pa.Table:
    """Return the columns of `SOURCE_SCHEMA`, and of `extra` (text), that a table file has, under our names.

    CSV, IPAC, VOTable, FITS, ECSV and Parquet are told apart by content, plain or gzipped. Column names may be in
    any case; ra and dec are needed, in decimal degrees or with a unit, and come in degrees (float64, null where they
    are no number). Raises `CatalogError`: no table file, no rows, a column missing or named twice, sexagesimal.
    """
    path = local_path(str(location))
    if path.is_dir():
        raise CatalogError(f"table {path}: this is a folder, give the table file")
    table = _read_table(path, extra)
    if not len(table):
        raise CatalogError(f"table {path}: it has no rows")
    for name in TABLE_COLUMNS:
        table = with_column(table, name, _degrees(table[name], name, path))
    return table


def standardise(table: pa.Table, source: str, unique: bool = True) -> pa.Table:
    """Return a table of `read_table` in `SOURCE_SCHEMA`, its further columns after it as text; empty text is null.

    Rows without `source_id` are numbered: row-000001... Raises one `CatalogError`, which begins with `source`, for
    all positions off the sky (ra 0..360, dec -90..90 degrees), identifiers missing and, where each source must be
    there once (`unique`), given twice.
    """
    if "source_id" not in table.column_names:
        ids = [f"row-{number:06d}" for number in range(1, len(table) + 1)]
        table = table.append_column("source_id", pa.array(ids, pa.string()))
    further = [pa.field(name, pa.string()) for name in table.column_names if name not in SOURCE_SCHEMA.names]
    whole = conform_sources(with_tile_names(table, source), source)
    for field in further:
        whole = whole.append_column(field, cast_column(table[field.name], field, source))
    if problems := _row_problems(whole, unique):
        raise CatalogError(f"{source}: " + "; ".join(problems))
    return whole.combine_chunks()


def _row_problems(table: pa.Table, unique: bool) -> list[str]:
    """Return what is wrong with the rows: positions off the sky, identifiers missing or given twice."""
    problems = []
    ra, dec, bad = sky_positions(table)
    if bad.any():
        rows = ", ".join(f"{i + 1} (ra {ra[i]}, dec {dec[i]})" for i in np.flatnonzero(bad)[:5])
        problems.append(
            f"{bad.sum():,} of {len(table):,} rows have no position on the sky, such as row {rows}"
            f"{' and more' if bad.sum() > 5 else ''}; ra must be 0..360 and dec -90..90 degrees, "
            "mend or remove these rows"
        )
    counts = pc.value_counts(table["source_id"].drop_null())
    many = counts.filter(pc.greater(counts.field("counts"), 1))
    if n_null := table["source_id"].null_count:
        problems.append(f"source_id is empty in {n_null:,} rows; fill it or drop the column")
    if unique and len(many):
        repeated = ", ".join(str(value) for value in many.field("values")[:5])
        problems.append(
            f"source_id {repeated} stands in more than one row; "
            "remove the repeated rows, or rename the column to have rows numbered"
        )
    return problems


def _degrees(column: pa.ChunkedArray, name: str, path: Path) -> pa.ChunkedArray:
    """Return a coordinate as float64 degrees; text that is no number becomes null, sexagesimal is refused."""
    column = without_dictionary(column)
    if pa.types.is_temporal(column.type):  # the CSV reader takes 10:20:30 for a time of day
        column = column.cast(pa.string())
    if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
        try:
            return column.cast(pa.float64(), safe=False)
        except pa.ArrowException as error:
            raise CatalogError(f"table {path}: column {name} is {column.type}, not degrees: {error}") from error
    sexagesimal = pc.match_substring_regex(column, SEXAGESIMAL)
    if pc.any(sexagesimal).as_py():
        example = column.filter(sexagesimal)[0]
        raise CatalogError(
            f"table {path}: column {name} looks sexagesimal ('{example}'); give decimal degrees, for example "
            "from astropy.coordinates.SkyCoord(ra, dec, unit=('hourangle', 'deg')).ra.deg"
        )
    number = pc.match_substring_regex(column, r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$")
    if pc.any(number).as_py() is False:  # None when all are empty
        raise CatalogError(
            f"table {path}: column {name} holds text such as {column.drop_null()[:1].to_pylist()}, and no number; "
            "give decimal degrees"
        )
    return pc.utf8_trim_whitespace(pc.if_else(number, column, None)).cast(pa.float64())


def with_column(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)


def _wanted(names: Sequence[str], path: Path, extra: Sequence[str]) -> dict[str, str]:
    """Return our name -> the table's name for each column of ours, or `extra`, it has, whatever the case."""
    found: dict[str, str] = {}
    for ours in (*INPUT_COLUMNS, *extra):
        matches = [name for name in names if name.strip().lower() == ours]
        exact = [name for name in matches if name == ours]
        if len(matches) > 1 and len(exact) != 1:
            raise CatalogError(f"table {path}: columns {', '.join(matches)} all mean {ours}; keep one")
        if matches:
            found[ours] = (exact or matches)[0]
    missing = [name for name in TABLE_COLUMNS if name not in found]
    if missing:
        have = ", ".join(names[:20]) + (" ..." if len(names) > 20 else "")
        raise CatalogError(
            f"table {path}: no column {' and '.join(missing)}; its columns are {have or 'none'}. "
            "Rename the columns with right ascension and declination in degrees to ra and dec"
        )
    return found


def _head(path: Path, n_bytes: int = 4096) -> bytes:
    with open(path, "rb") as stream:
        return stream.read(n_bytes)


def _format_of(head: bytes) -> str:
    """Return which format some first bytes are of: "parquet", "fits", ..., or "" if no table."""
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    starts: Mapping[bytes, str] = {
        b"PAR1": "parquet", b"SIMPLE  =": "fits", b"\x1f\x8b": "gzip",
        b"# %ECSV": "ecsv", b"\\": "ipac", b"|": "ipac",
    }  # fmt: skip
    for start, name in starts.items():
        if text.startswith(start):
            return name
    if text.startswith(b"<"):
        return "votable" if b"VOTABLE" in text[:4096] else ""
    return "" if b"\0" in text else "csv"


def _read_table(path: Path, extra: Sequence[str]) -> pa.Table:
    """Return the columns of ours, and `extra`, that a table file has, under our names."""
    content_format = _format_of(_head(path))
    if content_format == "parquet":
        return _read_parquet(path, extra)
    content = path.read_bytes()
    if content_format == "gzip":
        content = _gunzip(content, path)
        content_format = _format_of(content[:4096])
    if not content.strip():
        raise CatalogError(f"table {path}: the file is empty")
    readers: Mapping[str, Callable[[bytes, Path, Sequence[str]], pa.Table]] = {
        "csv": _read_csv,
        **{name: partial(_read_astropy, name) for name in ("fits", "ecsv", "ipac", "votable")},
    }
    if content_format not in readers:
        raise CatalogError(f"table {path}: its content is none of CSV, IPAC, VOTable, FITS, ECSV or Parquet")
    return readers[content_format](content, path, extra)


def _gunzip(content: bytes, path: Path) -> bytes:
    try:
        return gzip.decompress(content)
    except (OSError, EOFError) as error:
        raise CatalogError(f"table {path}: damaged gzip ({error}); fetch it again") from error


def _read_parquet(path: Path, extra: Sequence[str]) -> pa.Table:
    names = _wanted(parquet_schema(str(path)).names, path, extra)
    try:
        return parquet_dataset(str(path)).to_table(columns={ours: ds.field(name) for ours, name in names.items()})
    except (OSError, pa.ArrowException) as error:
        raise CatalogError(f"table {path}: cannot be read ({error})") from error


def _read_csv(content: bytes, path: Path, extra: Sequence[str]) -> pa.Table:
    """Return the wanted columns of a CSV; comma, semicolon or tab; leading # lines are comments."""
    lines = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", errors="replace").splitlines()
    n_comments = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), 0)
    delimiter = max(",;\t", key=lines[n_comments].count)
    header = next(csv.reader([lines[n_comments]], delimiter=delimiter))
    if len(header) == 1 and len(header[0].split()) > 1:
        raise CatalogError(
            f"table {path}: none of FITS, Parquet, VOTable, IPAC and ECSV, and no CSV: no comma, semicolon or tab "
            f"parts its first line, {header[0][:60]!r}"
        )
    names = _wanted(header, path, extra)
    # The text columns must not be guessed: cc_flags 0000 would become the number 0.
    text = (*(field.name for field in SOURCE_SCHEMA if pa.types.is_string(field.type)), *extra)
    types = {names[name]: pa.string() for name in text if name in names}
    try:
        table = pa_csv.read_csv(
            io.BytesIO(content),
            pa_csv.ReadOptions(skip_rows=n_comments),
            pa_csv.ParseOptions(delimiter=delimiter),
            pa_csv.ConvertOptions(
                include_columns=list(names.values()), column_types=types, strings_can_be_null=True
            ),
        )  # fmt: skip
    except (pa.ArrowException, KeyError) as error:
        raise CatalogError(f"table {path}: not a regular CSV ({error})") from error
    return table.rename_columns(list(names))


def _read_astropy(name: str, content: bytes, path: Path, extra: Sequence[str]) -> pa.Table:
    """Return the wanted columns of a FITS, ECSV, IPAC or VOTable, coordinates in degrees by their units."""
    from astropy.table import Table
    from astropy.utils.exceptions import AstropyWarning

    known = {"ecsv": "ascii.ecsv", "ipac": "ascii.ipac"}
    try:
        with warnings.catch_warnings():
            # Archives write units and cards that the standards do not know: no concern of ours.
            warnings.simplefilter("ignore", AstropyWarning)
            table = Table.read(io.BytesIO(content), format=known.get(name, name))
    except (OSError, ValueError, TypeError, KeyError, IndexError) as error:
        raise CatalogError(f"table {path}: cannot be read as {name} ({error})") from error
    names = _wanted(table.colnames, path, extra)
    return pa.table({ours: _from_astropy(table[theirs], ours, path) for ours, theirs in names.items()})


def _from_astropy(column: Any, name: str, path: Path) -> pa.Array:
    """Return an astropy column as an Arrow array, masked values null."""
    from astropy import units as u

    values = np.ma.filled(column, None) if column.dtype.kind == "O" else np.ma.getdata(np.asarray(column))
    mask = np.broadcast_to(np.ma.getmaskarray(np.ma.asarray(column)), values.shape)
    if values.ndim != 1:
        raise CatalogError(f"table {path}: column {name} holds arrays; give one number a row")
    if values.dtype.kind in "SUO":
        text = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in values.tolist()]
        text = [None if hidden or v is None else str(v) for v, hidden in zip(text, mask, strict=True)]
        return pa.array(text, pa.string())
    if name in TABLE_COLUMNS and column.unit is not None and column.unit != u.deg:
        try:
            values = column.unit.to(u.deg, values)
        except (u.UnitConversionError, TypeError, ValueError) as error:
            raise CatalogError(f"table {path}: column {name} is in {column.unit}; give degrees") from error
    return pa.array(values.astype(values.dtype.newbyteorder("=")), mask=np.ascontiguousarray(mask))
