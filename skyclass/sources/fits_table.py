"""Tables in FITS files: the one with positions, column by column; TOPCAT's column-oriented files too."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from ..errors import CatalogError
from ..schema import TABLE_COLUMNS
from .columns import MASK, RawTable, TableChoice, Wanted, choose_table, chunked, unmasked, wanted_columns
from .tablefile import TableFile
from .units import degrees_per

MAX_HEADER_BYTES = 5_760_000
"""Longest header of an HDU that is read: 72,000 cards."""


def read_fits(file: TableFile, wanted: Wanted) -> RawTable:
    """Return the wanted columns of the one table with ra and dec in a FITS file."""
    from astropy.io import fits
    from astropy.io.fits.verify import VerifyError
    from astropy.utils.exceptions import AstropyWarning

    with file.translate_parser_errors(VerifyError), file.open() as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # cards and units that the standard does not know
        with fits.open(stream, lazy_load_hdus=True, memmap=False) as opened:
            hdus = list(_hdus(opened, file))
            tables = [(i, hdu) for i, hdu in enumerate(hdus) if isinstance(hdu, fits.BinTableHDU | fits.TableHDU)]
            if not tables:
                raise CatalogError(f"{file.source}: the FITS file holds {_kinds(hdus)} and no table")
            choices = [TableChoice(_label(i, hdu), list(hdu.columns.names), _n_rows(hdu)) for i, hdu in tables]
            return _read_hdu(tables[choose_table(choices, file.source, wanted)][1], file.source, wanted)


def _hdus(opened: Any, file: TableFile) -> Iterator[Any]:
    """Return the HDUs one by one, up to the first place where no whole header begins.

    The parser would search the rest of the file for the end of a header: for hours where a file ends in zeros.
    """
    start, i = 0, 0
    with file.open() as stream:
        while _begins_header(stream, start):
            yield (hdu := opened[i])
            where = hdu.fileinfo()
            start, i = where["datLoc"] + where["datSpan"], i + 1


def _begins_header(stream: BinaryIO, start: int) -> bool:
    stream.seek(start)
    text = stream.read(MAX_HEADER_BYTES)
    return text.startswith((b"SIMPLE  =", b"XTENSION=")) and b"END" + b" " * 77 in text


def _kinds(hdus: Sequence[Any]) -> str:
    n_images = sum(hdu.is_image and bool(hdu.shape) for hdu in hdus)
    return f"{n_images} image{'s' if n_images > 1 else ''}" if n_images else "no whole header of a table"


def _label(i: int, hdu: Any) -> str:
    return f"HDU {i} {hdu.name}".rstrip()


def _n_rows(hdu: Any) -> int:
    """Return the rows of a table; a column-oriented table has one row of arrays."""
    n_rows = int(hdu.header["NAXIS2"])
    lengths = [int(np.prod(column.dtype.shape)) for column in hdu.columns] if n_rows == 1 else []
    return max(lengths, default=1) if n_rows == 1 else n_rows


def _read_hdu(hdu: Any, source: str, wanted: Wanted) -> RawTable:
    names = list(hdu.columns.names)
    indices = wanted_columns(names, source, wanted)
    factors = {
        name: degrees_per(hdu.columns[indices[name]].unit, name, source) for name in TABLE_COLUMNS if name in indices
    }
    columns = {name: _column(hdu, i, source) for name, i in indices.items()}
    first = next(iter(columns))
    for name, column in columns.items():
        if len(column) != len(columns[first]):
            raise CatalogError(
                f"{source}: column {name} has {len(column):,} values, {first} has {len(columns[first]):,}"
            )
        if names[indices[name]] + MASK in names:
            mask = _column(hdu, names.index(names[indices[name]] + MASK), source)
            columns[name] = unmasked(column, mask)
    return RawTable(columns, factors)


def _column(hdu: Any, i: int, source: str) -> pa.ChunkedArray:
    """Return a column of a table (N,), or the array in the one row of a column-oriented table."""
    values, mask = _values(hdu, i, source)
    if values.ndim == 2 and len(values) == 1:
        values, mask = values[0], mask[0]
    if values.ndim > 1:
        return pa.chunked_array([pa.array(values.reshape(len(values), -1).tolist())])
    return chunked(values, mask)


def _values(hdu: Any, i: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a column's scaled values and which are null by TNULL; the cells of an ASCII table as text."""
    column, stored = hdu.columns[i], hdu.data.view(np.ndarray)[hdu.data.dtype.names[i]]
    if stored.dtype.kind == "S":
        if column.bscale not in (None, "", 1) or column.bzero not in (None, "", 0):
            raise CatalogError(f"{source}: column {column.name} is scaled text, which is not supported; write numbers")
        text = np.char.strip(np.char.decode(stored, "utf-8", "replace").astype(str))
        null = str(column.null).strip() if column.null not in (None, "") else ""
        return text.astype(object), text == null
    values = np.asarray(hdu.data.field(i))
    is_null = stored == column.null if column.null not in (None, "") else np.zeros(stored.shape, bool)
    if values.dtype.kind == "c":
        return values.astype(str).astype(object), np.zeros(values.shape, bool)
    return values, np.broadcast_to(is_null, values.shape)
