"""Text tables: CSV, TSV (VizieR, TOPCAT's TST), whitespace-separated ASCII, numpy.savetxt, ECSV and IPAC.

All columns are read as text and converted later, so that one strange cell costs no table and no digit is lost.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv

from ..errors import CatalogError
from ..schema import TABLE_COLUMNS
from .columns import MASK, NUMBER, RawTable, Wanted, chunked, is_usable, unmasked, wanted_columns
from .tablefile import HEAD_BYTES, PIECE_BYTES, TableFile
from .units import degrees_per, is_unit

BLANK = " "
"""Delimiter of tables whose cells are separated by any number of blanks or tabs."""

HEADER_LINES = 2_000
"""Lines in which the column names of a text table are looked for."""


@dataclass(frozen=True)
class Layout:
    """How a text table is laid out: column names, their units, the delimiter, and the lines before the first row.

    `has_notes`: between and after the rows there may be comments, blank lines and an end mark.
    """

    names: tuple[str, ...]
    units: tuple[str, ...]
    delimiter: str
    first_row: int
    has_notes: bool = False


# --- reading ---------------------------------------------------------------------------------------


def read_text(file: TableFile, wanted: Wanted) -> RawTable:
    """Return the wanted columns of a delimited text table as text."""
    lines = _lines(file.head)
    return _read_layout(file, find_layout(lines, file.source, wanted), wanted)


def read_ecsv(file: TableFile, wanted: Wanted) -> RawTable:
    """Return the wanted columns of an ECSV table as text, with the units of its header."""
    from astropy.table.meta import YamlParseError, get_header_from_yaml

    lines = _lines(file.head)
    n_header = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    with file.translate_parser_errors(YamlParseError):
        header = get_header_from_yaml([line[2:] for line in lines[1:n_header]])
        units = {str(column["name"]): str(column.get("unit") or "") for column in header["datatype"]}
        delimiter = str(header.get("delimiter", " "))
        names = _cells(lines[n_header], delimiter)
    if names != list(units) or delimiter not in (" ", ","):
        raise CatalogError(f"{file.source}: the names in its ECSV header and in the line of columns differ")
    layout = Layout(tuple(names), tuple(units[name] for name in names), delimiter, n_header + 1)
    return _read_layout(file, layout, wanted)


def read_ipac(file: TableFile, wanted: Wanted) -> RawTable:
    """Return the wanted columns of an IPAC table as text, with the units of its header."""
    from astropy.io import ascii
    from astropy.utils.exceptions import AstropyWarning

    to_text, _ = ascii.convert_numpy(str)
    as_text = {"*": [(to_text, ascii.AllType)]}  # whatever type the header declares
    with file.translate_parser_errors(), file.open() as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # units and keywords that the standards do not know
        table = ascii.read(stream, format="ipac", guess=False, converters=as_text)
    indices = wanted_columns(table.colnames, file.source, wanted)
    units = {name: table.columns[indices[name]].unit for name in TABLE_COLUMNS if name in indices}
    factors = {name: degrees_per(str(unit or ""), name, file.source) for name, unit in units.items()}
    return RawTable({name: _text_column(table.columns[i]) for name, i in indices.items()}, factors)


def _text_column(column: Any) -> pa.ChunkedArray:
    return chunked(np.ma.getdata(column).astype(object), np.ma.getmaskarray(column))


def _read_layout(file: TableFile, layout: Layout, wanted: Wanted) -> RawTable:
    indices = wanted_columns(layout.names, file.source, wanted)
    units = layout.units if len(layout.units) == len(layout.names) else ("",) * len(layout.names)
    factors = {name: degrees_per(units[indices[name]], name, file.source) for name in TABLE_COLUMNS if name in indices}
    masks = {name: layout.names.index(layout.names[i] + MASK) for name, i in indices.items()
             if layout.names[i] + MASK in layout.names}  # fmt: skip
    table = _read_rows(file, layout, sorted({*indices.values(), *masks.values()}))
    columns = {name: table[str(i)] for name, i in indices.items()}
    columns |= {name: unmasked(columns[name], table[str(i)]) for name, i in masks.items()}
    return RawTable(columns, factors)


def _read_rows(file: TableFile, layout: Layout, indices: Sequence[int]) -> pa.Table:
    """Return columns of the rows by their indices (as names), all text; every line is one row."""
    wanted = [str(i) for i in indices]
    if layout.has_notes:
        file, layout = _without_notes(file, layout)
    if not file.head:
        return pa.table({name: pa.array([], pa.binary()) for name in wanted})
    try:
        with file.open() as stream:
            table = pa_csv.read_csv(
                stream,
                pa_csv.ReadOptions(skip_rows=layout.first_row, column_names=[str(i) for i in range(len(layout.names))]),
                pa_csv.ParseOptions(delimiter=layout.delimiter),
                pa_csv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(wanted, pa.binary())),
            )
    except pa.ArrowException as error:
        raise CatalogError(f"{file.source}: not a regular CSV ({error})") from error
    _check_lines(file, layout.first_row, len(table))
    return table


def _without_notes(file: TableFile, layout: Layout) -> tuple[TableFile, Layout]:
    """Return only the rows: no header, comments, blank lines and end mark; cells separated by one blank, if by any."""
    with file.open() as stream:
        content = stream.read()
    ends = islice(re.finditer(rb"\r\n|\r|\n", content), layout.first_row)
    rows = content[max((match.end() for match in ends), default=0) :]
    rows = re.sub(rb"(?m)^(?:#[^\r\n]*|\[EOD\]|[ \t]+)\r?$", b"", rows)
    rows = _single_blanks(rows) if layout.delimiter == BLANK else rows
    rows = b"" if not rows.strip() else rows
    return replace(file, content=rows, head=rows[:HEAD_BYTES]), replace(layout, first_row=0)


def _single_blanks(content: bytes) -> bytes:
    """Return text with single blanks between cells and none at the ends of lines; quoted cells as they are."""
    if b'"' in content:
        content = re.sub(rb'("[^"\r\n]*")|[ \t]+', lambda match: match[1] or b" ", content)
    else:
        content = re.sub(rb"[ \t]+", b" ", content)
    return re.sub(rb"(?m)^ | (?=\r?$)", b"", content)


def _check_lines(file: TableFile, first_row: int, n_rows: int) -> None:
    """Raise `CatalogError` where a quotation mark has swallowed lines: each line that is not empty is one row."""
    n_lines, previous = -sum(bool(line) for line in _lines(file.head)[:first_row]), ord("\n")
    with file.open() as stream:
        while piece := stream.read(PIECE_BYTES):
            codes = np.frombuffer(piece, np.uint8)
            is_end = (codes == ord("\n")) | (codes == ord("\r"))
            n_lines += int((~is_end & np.concatenate([[previous in b"\r\n"], is_end[:-1]])).sum())
            previous = piece[-1]
    if n_lines != n_rows:
        raise CatalogError(
            f"{file.source}: {n_lines:,} lines hold {n_rows:,} rows: a quotation mark is not closed, or a quoted value "
            "holds a line break; remove these"
        )


# --- the layout ------------------------------------------------------------------------------------


def find_layout(lines: Sequence[str], source: str, wanted: Wanted) -> Layout:
    """Return the layout of a text table by its first lines; `CatalogError` where no line names ra and dec.

    The names are in the first line that is no comment; or before a line of dashes, with a line of units between
    (VizieR) or without (TST, SkyCat); or in a comment before the rows (numpy.savetxt, TOPCAT's ASCII).
    """
    lines = lines[:HEADER_LINES]
    first = next((i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")), None)
    if first is None:
        raise CatalogError(f"{source}: it has no rows, only comments")
    ruled = [layout for i, line in enumerate(lines) if _RULE.fullmatch(line) for layout in _ruled(lines, i)]
    layouts = [*ruled, _headed(lines, first), *_commented(lines, first)]
    layout = next((layout for layout in layouts if is_usable(layout.names, wanted)), None)
    if layout:
        return layout
    first_names = layouts[0]
    if first_names.delimiter == BLANK or all(_NUMBER.fullmatch(name) for name in first_names.names):
        raise CatalogError(
            f"{source}: none of FITS, Parquet, VOTable, IPAC and ECSV, and no text table with a line of column names: "
            f"its first line, {lines[first][:60]!r}, does not name ra and dec"
        )
    wanted_columns(first_names.names, source, wanted)
    return first_names


_RULE = re.compile(r"\s*-+([\t;| ]+-+)+\s*")
_NUMBER = re.compile(NUMBER)
_UNITS_NOTE = "#column-units:"


def _headed(lines: Sequence[str], first: int) -> Layout:
    """Return the layout of a table whose first line names its columns; a second line may give their units."""
    delimiter = _delimiter(lines[first])
    names = _cells(lines[first], delimiter)
    second = _cells(lines[first + 1], delimiter) if first + 1 < len(lines) else []
    units_of_positions = [unit for name, unit in zip(names, second, strict=False) if name.lower() in TABLE_COLUMNS]
    if len(second) == len(names) and units_of_positions and all(map(is_unit, units_of_positions)):
        return Layout(tuple(names), tuple(second), delimiter, first + 2, delimiter == BLANK)
    return Layout(tuple(names), (), delimiter, first + 1, delimiter == BLANK)


def _commented(lines: Sequence[str], first: int) -> list[Layout]:
    """Return the layouts of a table whose columns are named in a comment, the last comment first."""
    delimiter = _delimiter(lines[first])
    n_cells = len(_cells(lines[first], delimiter))
    names = [tuple(re.split(r"[\s,;|]+", line.lstrip("#").strip())) for line in lines[:first][::-1]]
    return [Layout(cells, (), delimiter, first, delimiter == BLANK) for cells in names if len(cells) == n_cells]


def _ruled(lines: Sequence[str], rule: int) -> list[Layout]:
    """Return the layouts that a line of dashes allows: names two lines above, with units, or one line above.

    A row of dashes may stand for missing values: without units each cell must be as long as the name above it.
    """
    delimiter = _delimiter(lines[rule])
    dashes = _cells(lines[rule], delimiter)
    above = [_cells(line, delimiter) for line in lines[max(rule - 2, 0) : rule]]
    above = [cells for cells in above if len(cells) == len(dashes)]
    layouts = []
    if len(above) == 2 and not any(_NUMBER.fullmatch(cell) or set(cell) == {"-"} for cell in above[1]):
        layouts.append(Layout(tuple(above[0]), tuple(above[1]), delimiter, rule + 1, True))
    if above and all(len(dash) >= len(name) for dash, name in zip(dashes, above[-1], strict=True)):
        layouts.append(Layout(tuple(above[-1]), _units_note(lines[:rule], delimiter), delimiter, rule + 1, True))
    return layouts


def _units_note(lines: Sequence[str], delimiter: str) -> tuple[str, ...]:
    """Return the units in a comment of a TST, () without one."""
    notes = [line.removeprefix(_UNITS_NOTE).strip(" ") for line in lines if line.startswith(_UNITS_NOTE)]
    return tuple(_cells(notes[-1], delimiter)) if notes else ()


def _delimiter(line: str) -> str:
    best = max(",;\t|", key=line.count)
    return best if best in line else BLANK


def _cells(line: str, delimiter: str) -> list[str]:
    """Return the cells of a line, trimmed; quotation marks may enclose delimiters."""
    text = " ".join(line.split()) if delimiter == BLANK else line
    try:
        return [cell.strip() for cell in next(csv.reader([text], delimiter=delimiter), [])]
    except csv.Error:  # a cell of more than 128 kB, or a NUL: nothing that names columns
        return []


def _lines(head: bytes) -> list[str]:
    """Return the whole lines of a text's first bytes, whatever ends a line."""
    lines = re.split(r"\r\n|\r|\n", head.decode("utf-8-sig", errors="replace"))
    return lines[:-1] if len(head) == HEAD_BYTES else lines
