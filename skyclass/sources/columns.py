"""Columns of users' tables: which of them are read, and their values in the types of `SOURCE_SCHEMA`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..errors import CatalogError, TableWarning
from ..schema import CHECKED, INPUT_COLUMNS, SOURCE_SCHEMA, TABLE_COLUMNS, is_text, without_dictionary
from ..sky.healpix import SEXAGESIMAL, sexagesimal_text
from ..text import counted, one_or_many
from ..types import BANDS
from .identifiers import IDENTIFIERS, identifiers, is_bytes, without_null_words

DECIMAL_COMMA = r"^[-+]?\d+,\d+$"
NUMBER = r"^[-+]?((\d+\.?\d*|\.\d+)([eEdD][-+]?\d+)?|(?i:inf(inity)?))$"
MASK = ".mask"
"""Ending of the columns in which astropy stores which values of another column are missing."""
TEXT = ".text"
"""Ending of the columns with the text of positions that are no numbers. Without such text they are absent."""

LIMIT_MARKS = tuple(f"{band}{mark}" for band in BANDS for mark in ("lim", "sigmpro"))
"""Columns that mark limits: `w1lim` is not 0 (1 an upper, -1 a lower limit), or `w1sigmpro` is null."""

EXAMPLES = 20


class RawTable(NamedTuple):
    """Wanted columns under our names, as the file has them, and the degrees in one unit of ra and dec."""

    columns: Mapping[str, pa.ChunkedArray]
    degrees_per_unit: Mapping[str, float]


class Wanted(NamedTuple):
    """What to read of a table besides the columns of a source: columns of text and of numbers.

    A table without ra and dec is refused if `needs_positions`.
    """

    text: tuple[str, ...] = ()
    numbers: tuple[str, ...] = ()
    needs_positions: bool = True

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that a table may have, with the columns that mark limits."""
        return tuple(dict.fromkeys((*INPUT_COLUMNS, *self.text, *self.numbers, *LIMIT_MARKS)))


SOURCES = Wanted()


class TypedColumn(NamedTuple):
    """A column in the type of its field, None where it is left out; a note on what of it is not used, or "".

    `lost` tells which values are there and are no numbers.
    """

    values: pa.ChunkedArray | None
    note: str = ""
    lost: pa.ChunkedArray | None = None


class TableChoice(NamedTuple):
    """One of the tables in a file."""

    label: str
    names: Sequence[str]
    n_rows: int


# --- which columns ---------------------------------------------------------------------------------


def wanted_columns(names: Sequence[str], source: str, wanted: Wanted) -> dict[str, int]:
    """Return our name -> the index of the column in the file, whatever the case; absent columns are left out.

    Raises `CatalogError` without the positions that are needed, without any column of a source, and where the names of
    two columns differ in nothing but case.
    """
    indices: dict[str, int] = {}
    for ours in wanted.names:
        matches = [i for i, name in enumerate(names) if name.strip().lower() == ours]
        if len(matches) > 1:
            columns = ", ".join(names[i] for i in matches)
            raise CatalogError(
                f"{source}: columns {columns} all mean {ours}; keep one, or rename the others: case does not matter"
            )
        if matches:
            indices[ours] = matches[0]
    if not indices and not wanted.needs_positions:
        raise CatalogError(f"{source}: no column of a source, such as w1mpro; its columns are {_listed(names)}")
    missing = [name for name in TABLE_COLUMNS if name not in indices]
    if missing and (wanted.needs_positions or len(missing) == 1):
        columns = one_or_many(len(missing), "column", "columns")
        raise CatalogError(
            f"{source}: no {columns} {' and '.join(missing)}; its columns are {_listed(names)}. "
            "Rename the columns with right ascension and declination in degrees to ra and dec"
        )
    return indices


def is_usable(names: Sequence[str], wanted: Wanted) -> bool:
    """Return whether the columns include ra and dec, in any case, or any column of a source if these are not needed."""
    lower = {name.strip().lower() for name in names}
    return lower >= set(TABLE_COLUMNS) or (not wanted.needs_positions and bool(lower & set(wanted.names)))


def choose_table(tables: Sequence[TableChoice], source: str, wanted: Wanted) -> int:
    """Return the index of the one usable table; tables without rows do not compete.

    Raises `CatalogError` where no table or several tables are usable, with their names and rows.
    """
    usable = [i for i, table in enumerate(tables) if is_usable(table.names, wanted)]
    usable = [i for i in usable if tables[i].n_rows] or usable[:1]
    if len(usable) > 1:
        listed = ", ".join(f"{tables[i].label} ({counted(tables[i].n_rows, 'row')})" for i in usable)
        what = "ra and dec" if wanted.needs_positions else "columns of a source"
        raise CatalogError(
            f"{source}: {len(usable)} of its tables have {what}: {listed}; write the one you mean to a file of its own"
        )
    if not tables:
        raise CatalogError(f"{source}: the file holds no table")
    if not usable and len(tables) > 1:
        listed = "; ".join(f"{table.label} has {_listed(table.names)}" for table in tables)
        raise CatalogError(
            f"{source}: none of its {len(tables)} tables has columns ra and dec: {listed}. "
            "Rename the columns with right ascension and declination in degrees to ra and dec"
        )
    return usable[0] if usable else 0


def _listed(names: Sequence[str]) -> str:
    return (", ".join(names[:EXAMPLES]) + (" ..." if len(names) > EXAMPLES else "")) or "none"


def unmasked(column: pa.ChunkedArray, mask: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column with null where its mask column is true (booleans, or text True and False)."""
    mask = pc.equal(pc.utf8_lower(mask.cast(pa.string())), "true")
    return pc.if_else(pc.fill_null(mask, False), pa.scalar(None, column.type), column)


# --- values ----------------------------------------------------------------------------------------


def typed_table(raw: RawTable, source: str, wanted: Wanted) -> pa.Table:
    """Return identifiers, text and numbers (float64) as `SOURCE_SCHEMA` needs them, ra and dec in degrees.

    Words for a missing value are null. Values of another type in columns that skyclass can do without are null too, and
    so are limits; one `TableWarning` counts and names them. Where measurements are no numbers, the table has a column
    `bad_values`. Where positions are no numbers, it has a column "ra.text" or "dec.text" with their text. Raises
    `CatalogError` for positions and identifiers.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    notes: list[str] = []
    n_rows = len(next(iter(raw.columns.values())))
    bits = np.zeros(n_rows, np.int32)
    for name, column in raw.columns.items():
        if name in TABLE_COLUMNS:
            plain = _plain(column, name, source)
            columns[name] = _degrees(plain, name, raw.degrees_per_unit[name], source)
            if is_text(plain.type) and columns[name].null_count > plain.null_count:
                is_lost = pc.is_null(columns[name])
                columns[name + TEXT] = pc.if_else(is_lost, plain, pa.scalar(None, plain.type))
            continue
        kind = pa.string() if name in wanted.text else pa.float64()
        field = SOURCE_SCHEMA.field(name) if name in SOURCE_SCHEMA.names else pa.field(name, kind)
        typed = _typed(column, field, source)
        notes += [typed.note] if typed.note else []
        columns[name] = pa.chunked_array([pa.nulls(len(column), field.type)]) if typed.values is None else typed.values
        if typed.lost is not None and name in CHECKED:
            bits |= typed.lost.to_numpy().astype(np.int32) << CHECKED.index(name)
    notes += without_limits(columns)
    missing = pa.chunked_array([pa.nulls(n_rows, pa.float64())])
    numbers = {name: columns.pop(name, missing) for name in wanted.numbers}
    columns = {name: column for name, column in columns.items() if name not in LIMIT_MARKS} | numbers
    if bits.any():
        columns["bad_values"] = pa.chunked_array([pa.array(bits)])
    if notes:
        warnings.warn(f"{source}: {'; '.join(notes)}", TableWarning, stacklevel=3)
    return pa.table(columns)


def without_limits(columns: dict[str, pa.ChunkedArray]) -> list[str]:
    """Set the magnitudes that are marked as limits to null, and return a note on each band that has some.

    A table with S/N is left as it is: there a limit is a magnitude with an S/N below 2.
    """
    notes = []
    for band in BANDS:
        name = f"{band}mpro"
        if name not in columns or f"{band}snr" in columns:
            continue
        is_limit = pc.and_(pc.is_valid(columns[name]), _limit_marks(columns, band))
        if n := int(pc.sum(is_limit).as_py() or 0):
            columns[name] = pc.if_else(is_limit, pa.scalar(None, columns[name].type), columns[name])
            become = one_or_many(n, "is a limit and becomes", "are limits and become")
            notes.append(f"{counted(n, 'value')} of column {name} {become} null")
    return notes


def _limit_marks(columns: Mapping[str, pa.ChunkedArray], band: str) -> Any:
    """Return where a band has a mark of a limit; a column of errors without any error marks nothing."""
    if (marks := columns.get(f"{band}lim")) is not None:
        return pc.fill_null(pc.not_equal(marks, 0.0), False)
    errors = columns.get(f"{band}sigmpro")
    has_errors = errors is not None and errors.null_count < len(errors)
    return pc.is_null(errors) if has_errors else pa.scalar(False)


def _plain(column: pa.ChunkedArray, name: str, source: str) -> pa.ChunkedArray:
    """Return a column without dictionaries and bytes: text, numbers or another type; text is trimmed, with nulls."""
    try:
        column = without_dictionary(column)
        return without_null_words(column) if is_text(column.type) or is_bytes(column.type) else column
    except pa.ArrowException as error:
        raise CatalogError(
            f"{source}: column {name} holds text that is not UTF-8 ({error}): save it as UTF-8"
        ) from error


def _typed(column: pa.ChunkedArray, field: pa.Field, source: str) -> TypedColumn:
    """Return a column as text, integers or float64."""
    try:
        column = _plain(column, field.name, source)
    except CatalogError as error:
        if field.name == "source_id":
            raise
        return TypedColumn(None, f"{str(error).removeprefix(source + ': ')}; it is left out")
    if field.name in IDENTIFIERS and _is_number_or_text(column.type):
        column = identifiers(column, field.name, source)
    if pa.types.is_string(field.type):
        return _as_text(column, field, source)
    numbers = as_numbers(column)
    if numbers is None:
        return TypedColumn(None, f"column {field.name} is left out: it is {column.type}, not {field.type}")
    if field.name == "cntr":
        return _as_counter(column, field)
    usable = _whole(numbers) if pa.types.is_integer(field.type) else numbers
    present = pc.invert(pc.is_null(column, nan_is_null=True))
    lost = pc.and_(present, pc.is_null(usable))
    return TypedColumn(usable, _unused(column, lost, int(pc.sum(present).as_py() or 0), field), lost)


def _is_number_or_text(kind: pa.DataType) -> bool:
    types = pa.types
    number = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind)
    return bool(number or types.is_null(kind) or is_text(kind))


def _as_text(column: pa.ChunkedArray, field: pa.Field, source: str) -> TypedColumn:
    if not pa.types.is_nested(column.type):
        return TypedColumn(column.cast(pa.string()))
    if field.name == "source_id":
        raise CatalogError(f"{source}: column source_id is {column.type}; give text or integers")
    return TypedColumn(None, f"column {field.name} is left out: it is {column.type}, not text")


def _as_counter(column: pa.ChunkedArray, field: pa.Field) -> TypedColumn:
    """Return exact integers; a column with anything else means something else and is left out."""
    try:
        return TypedColumn(column.cast(field.type))
    except pa.ArrowException:
        strange = [value for value in column.cast(pa.string()).drop_null().to_pylist() if not _is_int64(value)]
        example = f", such as {strange[0]!r}" if strange else ""
        are_none = one_or_many(len(strange), "is no integer", "are no integers")
        n_strange = f"{len(strange):,} of {counted(len(column), 'value')}"
        return TypedColumn(None, f"column {field.name} is left out: {n_strange} {are_none} of 64 bits{example}")


def _is_int64(text: str) -> bool:
    return len(text) < 21 and text.removeprefix("-").isdecimal() and -(2**63) <= int(text) < 2**63


def _whole(numbers: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return only the integers among numbers, the others null."""
    return pc.if_else(pc.equal(numbers, pc.round(numbers)), numbers, pa.scalar(None, pa.float64()))


def _unused(column: pa.ChunkedArray, lost: pa.ChunkedArray, n_present: int, field: pa.Field) -> str:
    """Return a sentence on the values that are there and not usable, "" where there are none."""
    n_lost = int(pc.sum(lost).as_py() or 0)
    if not n_lost:
        return ""
    noun = "whole number" if pa.types.is_integer(field.type) else "number"
    example = f"{one_or_many(n_lost, '', 'such as ')}{column.filter(lost)[0].as_py()!r}"
    values, are_none = counted(n_lost, "value"), one_or_many(n_lost, f"is no {noun}", f"are no {noun}s")
    if n_lost == n_present:
        return f"column {field.name} is left out: its {values}, {example}, {are_none} (flag 256)"
    become = one_or_many(n_lost, "becomes", "become")
    return f"{values} of column {field.name}, {example}, {are_none} and {become} null (flag 256)"


def as_numbers(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """Return a column as float64, null where it holds no number; None for a type that is not numeric."""
    if not _is_number_or_text(column.type):
        return None
    if is_text(column.type):
        column = pc.if_else(pc.match_substring_regex(column, NUMBER), column, pa.scalar(None, pa.string()))
        column = pc.replace_substring_regex(column, "[dD]", "e")
    numbers = column.cast(pa.float64(), safe=False)
    return pc.if_else(pc.is_nan(numbers), pa.scalar(None, pa.float64()), numbers)


def _degrees(column: pa.ChunkedArray, name: str, degrees_per_unit: float, source: str) -> pa.ChunkedArray:
    """Return a coordinate as float64 degrees; text that is no number becomes null, sexagesimal is refused."""
    if is_text(column.type):
        _check_text_of_numbers(column, name, source)
    numbers = as_numbers(column)
    if numbers is None:
        raise CatalogError(f"{source}: column {name} is {column.type}; give one number a row, in degrees")
    if degrees_per_unit == 1.0:
        return numbers
    return pc.multiply(numbers, pa.scalar(degrees_per_unit, pa.float64()))


def _check_text_of_numbers(column: pa.ChunkedArray, name: str, source: str) -> None:
    """Raise `CatalogError` for text that is written otherwise than in decimal numbers."""
    sexagesimal = pc.match_substring_regex(column, SEXAGESIMAL)
    if pc.any(sexagesimal).as_py():
        raise CatalogError(sexagesimal_text(f"{source}: column {name}", column.filter(sexagesimal)[0]))
    comma = pc.match_substring_regex(column, DECIMAL_COMMA)
    if pc.any(comma).as_py():
        raise CatalogError(
            f"{source}: column {name} has decimal commas ('{column.filter(comma)[0]}'); write decimal points"
        )
    if pc.any(pc.match_substring_regex(column, NUMBER)).as_py() is False:  # None when all are empty
        raise CatalogError(
            f"{source}: column {name} holds text such as {column.drop_null()[:1].to_pylist()}, and no number; "
            "give decimal degrees"
        )


def chunked(values: np.ndarray, mask: np.ndarray | None = None) -> pa.ChunkedArray:
    """Return a numpy column (N,), of any byte order, as an Arrow column, null where `mask` is true."""
    native = values.astype(values.dtype.newbyteorder("="))
    return pa.chunked_array([pa.array(native, mask=None if mask is None else np.ascontiguousarray(mask))])


def with_column(table: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, column)
