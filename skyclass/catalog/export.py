"""Tables of rows -> Parquet, CSV, FITS or VOTable, by the ending of the name.

Each format gets every value exactly, or as text where it has no such value: FITS and VOTable have no dates, lists,
binary values or integers beyond 64 bits. Missing values stay missing, with the limits of the formats: FITS has one
code for NaN and a missing number, and FITS, VOTable and CSV have one for empty and missing text.
"""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from ..errors import ConfigError
from ..files import replacing
from ..schema import is_text, without_dictionary
from ..types import Json
from .hats import file_metadata, text_sizes
from .versions import enclosing_publication

Write = Callable[[Path, pa.Schema, Iterator[pa.Table], Json], None]


def refuse_existing(path: Path, overwrite: bool) -> None:
    """Raise `ConfigError` where `path` is a folder, an existing file without `overwrite`, or inside a publication."""
    if root := enclosing_publication(path):
        raise ConfigError(f"{path} is inside the class catalogue {root}, whose files never change: give another path")
    if path.is_dir():
        raise ConfigError(f"{path} is a folder: give the name of a file")
    if path.exists() and not overwrite:
        raise ConfigError(f"{path} exists: give another name, or --overwrite to replace it")


def export_table(table: pa.Table, path: str | Path, overwrite: bool = False) -> Path:
    """Write any table and return the path; see `export_pieces`."""
    return export_pieces(table.schema, iter([table]), path, {}, overwrite)


def export_pieces(
    schema: pa.Schema, pieces: Iterator[pa.Table], path: str | Path, provenance: Json, overwrite: bool
) -> Path:
    """Write a table that comes in pieces and return the path; the ending says how: .parquet, .csv, .fits, .vot, .xml.

    Whole or not at all. Parquet and CSV are streamed, FITS and VOTable are made in memory. Raises `ConfigError` on
    another ending, names of columns that the format cannot hold, and an existing file without `overwrite`;
    `StoreError` where writing fails.
    """
    target = Path(path)
    write = check_target(target, overwrite)
    _check_names(schema.names, is_fits=write is _write_fits)
    _check_types(schema)
    with replacing(target) as temp:
        write(temp, schema, pieces, provenance)
    return target


def check_target(path: Path, overwrite: bool) -> Write:
    """Return the writer for a path; raise `ConfigError` on an unknown ending and on a path that is taken."""
    write = _WRITERS.get(path.suffix.lower())
    if write is None:
        raise ConfigError(f"cannot tell the format of {path.name!r}: end it in one of {', '.join(_WRITERS)}")
    refuse_existing(path, overwrite)
    return write


def _check_names(names: list[str], is_fits: bool) -> None:
    counts = Counter(name.lower() if is_fits else name for name in names)
    if repeated := [name for name, n in counts.items() if n > 1]:
        case = " (FITS does not tell cases apart)" if is_fits else ""
        raise ConfigError(f"columns {', '.join(repeated)} are repeated{case}: give each its own name with AS")
    strange = [name for name in names if not name.isprintable() or (is_fits and not name.isascii())]
    if strange:
        raise ConfigError(f"columns {strange} have names that this format cannot hold: give them others with AS")


def _check_types(schema: pa.Schema) -> None:
    if unions := [field.name for field in schema if pa.types.is_union(field.type)]:
        raise ConfigError(f"columns {', '.join(unions)} have values of several types: CAST them to VARCHAR")


# --- values ----------------------------------------------------------------------------------------


def as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return any column as text: dates and times in ISO 8601, lists and structures as JSON, bytes in hex."""
    if pa.types.is_temporal(column.type) and not _is_duration(column.type):
        text = column.cast(pa.string())
        return pc.replace_substring(text, " ", "T") if pa.types.is_timestamp(column.type) else text
    values = [None if value is None else _text(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(values, pa.string())])


def _text(value: Any) -> str:
    if isinstance(value, dict | list | tuple) and not isinstance(value, pa.MonthDayNano):
        return json.dumps(value, default=_text, ensure_ascii=False)
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, pa.MonthDayNano):
        months, days, nanoseconds = value
        return f"P{months}M{days}DT{Decimal(nanoseconds).scaleb(-9).normalize():f}S"
    if isinstance(value, timedelta):
        return f"PT{Decimal(value // timedelta(microseconds=1)).scaleb(-6).normalize():f}S"
    return str(value)


def _is_duration(kind: pa.DataType) -> bool:
    return bool(pa.types.is_duration(kind) or pa.types.is_interval(kind))


def _is_plain(kind: pa.DataType) -> bool:
    numbers = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    return bool(numbers or pa.types.is_boolean(kind) or is_text(kind))


def _plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of numbers, truth values or text; every other type becomes text."""
    column = without_dictionary(column)
    return column if _is_plain(column.type) else as_text(column)


def plain_table(table: pa.Table) -> pa.Table:
    """Return a table of numbers, truth values and text, to show."""
    _check_types(table.schema)
    return pa.table([_plain(column) for column in table.columns], names=table.column_names)


def _basic(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of booleans, int16 to int64, uint64, float32, float64 or text with the same values."""
    column = _plain(column)
    kind = column.type
    if pa.types.is_decimal(kind):
        return _decimal(column)
    if kind == pa.uint64() and (pc.max(column).as_py() or 0) < 2**63:
        return column.cast(pa.int64())
    wider = {pa.int8(): pa.int16(), pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}
    return column.cast(
        wider.get(kind, pa.float32() if kind == pa.float16() else pa.string() if is_text(kind) else kind)
    )


def _decimal(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return decimals as int64 or float64 if these hold every value exactly, else as text."""
    values = column.drop_null().to_pylist()
    if all(value == value.to_integral_value() and -(2**63) <= value < 2**63 for value in values):
        return column.cast(pa.decimal256(76, max(column.type.scale, 0))).cast(pa.int64())
    if all(Decimal(repr(float(value))) == value for value in values):
        return column.cast(pa.float64())
    return as_text(column)


# --- Parquet and CSV -------------------------------------------------------------------------------


def _write_parquet(path: Path, schema: pa.Schema, pieces: Iterator[pa.Table], provenance: Json) -> None:
    def storable(table: pa.Table) -> pa.Table:
        for i, field in enumerate(table.schema):
            if _is_duration(field.type):
                table = table.set_column(i, field.name, as_text(table[field.name]))
        return table

    schema = storable(schema.empty_table()).schema
    longest: Counter[str] = Counter()
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:
        for piece in map(storable, pieces):
            writer.write_table(piece)
            longest |= Counter(text_sizes(piece))  # the larger size of each
        sizes = {name: longest[name] for name in text_sizes(schema.empty_table())}
        writer.add_key_value_metadata(file_metadata(schema, provenance, sizes))


def _write_csv(path: Path, schema: pa.Schema, pieces: Iterator[pa.Table], provenance: Json) -> None:
    with pa.csv.CSVWriter(path, plain_table(schema.empty_table()).schema) as writer:
        for piece in pieces:
            writer.write_table(plain_table(piece))


# --- FITS and VOTable ------------------------------------------------------------------------------


def _columns(schema: pa.Schema, pieces: Iterator[pa.Table]) -> dict[str, pa.ChunkedArray]:
    rows = pa.concat_tables([schema.empty_table(), *pieces])
    return {name: _basic(rows[name]) for name in schema.names}


def _metadata(field: pa.Field, key: str) -> str | None:
    return (field.metadata or {}).get(key.encode(), b"").decode() or None


def _write_fits(path: Path, schema: pa.Schema, pieces: Iterator[pa.Table], provenance: Json) -> None:
    from astropy.io import fits

    columns = [_fits_column(schema.field(name), column) for name, column in _columns(schema, pieces).items()]
    hdu = fits.BinTableHDU.from_columns(columns)
    for i, field in enumerate(schema, start=1):
        for key, name in (("TUCD", "ucd"), ("TCOMM", "description")):  # as TOPCAT reads and writes them
            if text := _metadata(field, name):
                hdu.header[f"{key}{i}"] = text
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(path)


def _fits_column(field: pa.Field, column: pa.ChunkedArray) -> Any:
    """Return a column of a FITS table: text in UTF-8, a missing integer as a number that no row has."""
    from astropy.io import fits

    options: dict[str, Any] = {"unit": _metadata(field, "unit")}
    if column.null_count and column.type in (pa.bool_(), pa.uint64()):
        # FITS readers give a missing truth value as False, and cannot mark a missing unsigned number
        column = column.cast(pa.int16()) if column.type == pa.bool_() else as_text(column)
    if pa.types.is_string(column.type):
        values = np.array([text.encode() for text in column.fill_null("").to_pylist()] or [b""])[: len(column)]
        return fits.Column(field.name, f"{max(values.dtype.itemsize, 1)}A", array=values, **options)
    if column.null_count and pa.types.is_integer(column.type):
        column = column.cast(pa.int32()) if column.type == pa.int16() else column  # int16 may have no number left
        options["null"] = unused = _unused(column)
        column = column.fill_null(pa.scalar(unused, column.type))
    if column.type == pa.uint64():
        options["bzero"] = 2**63
    if pa.types.is_floating(column.type):
        column = column.fill_null(float("nan"))
    return fits.Column(field.name, _FITS_TYPES[column.type], array=column.to_numpy(), **options)


_FITS_TYPES = {
    pa.bool_(): "L", pa.int16(): "I", pa.int32(): "J", pa.int64(): "K", pa.uint64(): "K",
    pa.float32(): "E", pa.float64(): "D",
}  # fmt: skip


def _unused(column: pa.ChunkedArray) -> int:
    """Return an integer of the column's type that no row holds, the least one."""
    least = -(2 ** (column.type.bit_width - 1))
    values = np.unique(column.drop_null().to_numpy())
    gaps = np.flatnonzero(values != np.arange(least, least + len(values)))
    return int(least + (gaps[0] if len(gaps) else len(values)))


def _write_votable(path: Path, schema: pa.Schema, pieces: Iterator[pa.Table], provenance: Json) -> None:
    from astropy.io.votable import from_table
    from astropy.io.votable.exceptions import W03
    from astropy.table import Column, MaskedColumn, Table

    made = Table()
    for name, column in _columns(schema, pieces).items():
        if column.type == pa.uint64():
            column = as_text(column)
        field, has_text = schema.field(name), pa.types.is_string(column.type)
        fill = "" if has_text else False if column.type == pa.bool_() else 0
        values = column.fill_null(fill).to_numpy()
        if has_text:  # of free size, which astropy takes from objects; it has no masks for text
            column_of, options = Column, {"data": values.astype(object if len(values) else str)}
        else:
            column_of, options = MaskedColumn, {"data": values, "mask": column.is_null().to_numpy()}
        made[name] = column_of(unit=_metadata(field, "unit"), description=_metadata(field, "description"), **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", W03)  # a name that is no ID gets one
        document = from_table(made)
    for field in document.get_first_table().fields:
        field.ucd = _metadata(schema.field(field.name), "ucd")
    document.to_xml(str(path), tabledata_format="binary2")


_WRITERS: dict[str, Write] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".fits": _write_fits,
    ".vot": _write_votable,
    ".xml": _write_votable,
}


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """Return a DataFrame: columns of floats are those of NumPy, with NaN where a value is missing; others are Arrow's.

    Integers, such as `source_id`, keep every digit beside missing values, which a column of NumPy would not.
    """
    return cast(pd.DataFrame, table.to_pandas(types_mapper=_pandas_type))


def _pandas_type(kind: pa.DataType) -> pd.ArrowDtype | None:
    return None if pa.types.is_floating(kind) else pd.ArrowDtype(kind)
