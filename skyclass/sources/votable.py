"""Tables in VOTable files: columns by name, the one table with positions, and the status of the query."""

from __future__ import annotations

import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from ..errors import CatalogError
from ..schema import TABLE_COLUMNS
from .columns import RawTable, TableChoice, Wanted, choose_table, chunked, wanted_columns
from .tablefile import PIECE_BYTES, TableFile
from .units import degrees_per

_REFUSED = {
    re.compile(rb"<!ENTITY", re.IGNORECASE): "the VOTable defines XML entities, which are not expanded; remove them",
    re.compile(rb"<(?:[\w.-]+:)?STREAM[^>]*\shref\s*="): (
        "the VOTable has its rows in another file or address (STREAM href), which is not opened; write the rows into "
        "the file, for example with TOPCAT"
    ),
    re.compile(rb"<(?:[\w.-]+:)?FITS[\s>]"): (
        "the VOTable holds its rows as FITS, which is not read; write it with TABLEDATA or BINARY2, for example with "
        "TOPCAT"
    ),
}
_DECLARED = re.compile(rb"\s(nrows|arraysize)\s*=\s*[\"'](\d+)")
MIN_DECLARED = 10_000
"""Rows of a table, or elements of a cell, that any file may declare: the parser allocates what is declared."""


def read_votable(file: TableFile, wanted: Wanted, allow_truncated: bool) -> RawTable:
    """Return the wanted columns of the one table with ra and dec in a VOTable.

    `QUERY_STATUS` ERROR is a `CatalogError` with the service's text; OVERFLOW, an answer that a service cut at its
    limit, is one unless `allow_truncated`.
    """
    from astropy.io import votable
    from astropy.io.votable.exceptions import VOWarning
    from astropy.utils.exceptions import AstropyWarning

    _check_markup(file)
    with file.translate_parser_errors(VOWarning), file.open() as stream, warnings.catch_warnings():
        warnings.simplefilter("ignore", AstropyWarning)  # units and attributes that the standard does not know
        document = votable.parse(stream, invalid="mask", verify="ignore")
        _check_status(document, file.source, allow_truncated)
        tables = list(document.iter_tables())
        choices = [TableChoice(_label(i, t), _names(t.fields), len(t.array)) for i, t in enumerate(tables, 1)]
        chosen = choose_table(choices, file.source, wanted)
        return _read_table(tables[chosen], choices[chosen].names, file.source, wanted)


def _check_markup(file: TableFile) -> None:
    """Raise `CatalogError` for XML that refers to other files, defines entities or declares more than it can hold."""
    previous, n_bytes = b"", file.n_bytes
    with file.open() as stream:
        while piece := stream.read(PIECE_BYTES):
            text, previous = previous + piece, piece[-4096:]
            for pattern, reason in _REFUSED.items():
                if pattern.search(text):
                    raise CatalogError(f"{file.source}: {reason}")
            for match in _DECLARED.finditer(text):
                if int(match[2]) > max(n_bytes, MIN_DECLARED):
                    declared = f"{match[1].decode()} = {match[2].decode()}"
                    raise CatalogError(
                        f"{file.source}: it declares {declared}, more than a file of {n_bytes:,} bytes can hold; the "
                        "file is damaged or cut short"
                    )


def _check_status(document: Any, source: str, allow_truncated: bool) -> None:
    for info in _infos(document):
        status = str(info.value).strip().upper()
        if str(info.name).strip().upper() != "QUERY_STATUS":
            continue
        if status == "ERROR":
            reason = " ".join(str(info.content or "no reason is given").split())
            raise CatalogError(f"{source}: the service answered with an error: {reason}")
        if status == "OVERFLOW" and not allow_truncated:
            raise CatalogError(
                f"{source}: QUERY_STATUS is OVERFLOW: the service cut its answer at a limit, and sources are missing; "
                "ask again with a higher limit (MAXREC), or accept it with allow_truncated = true (--allow-truncated)"
            )


def _infos(element: Any) -> Iterator[Any]:
    """Return all INFO elements, before and after the tables, at any depth."""
    yield from element.infos
    for resource in element.resources:
        yield from _infos(resource)
        for table in resource.tables:
            yield from table.infos


def _label(i: int, table: Any) -> str:
    return f"table {i} {table.name or table.ID or ''}".rstrip()


def _names(fields: Sequence[Any]) -> list[str]:
    """Return the names of columns; the IDs where a name repeats and one of its IDs is that name."""
    names = [str(field.name or field.ID or "") for field in fields]
    counts = Counter(name.lower() for name in names)
    ids = {str(field.ID).lower() for field in fields}
    return [
        str(field.ID) if counts[name.lower()] > 1 and name.lower() in ids else name
        for name, field in zip(names, fields, strict=True)
    ]


def _read_table(table: Any, names: Sequence[str], source: str, wanted: Wanted) -> RawTable:
    indices = wanted_columns(names, source, wanted)
    units = {name: table.fields[indices[name]].unit for name in TABLE_COLUMNS if name in indices}
    factors = {name: degrees_per(None if unit is None else str(unit), name, source) for name, unit in units.items()}
    columns = {name: table.array[table.array.dtype.names[i]] for name, i in indices.items()}
    return RawTable({name: _column(values) for name, values in columns.items()}, factors)


def _column(values: Any) -> pa.ChunkedArray:
    data, mask = np.ma.getdata(values), np.ma.getmaskarray(values)
    if data.ndim > 1:
        return pa.chunked_array([pa.array(data.reshape(len(data), -1).tolist())])
    if data.dtype.kind in "SUO":
        text = [v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in data.tolist()]
        return pa.chunked_array([pa.array(text, mask=np.ascontiguousarray(mask))])
    return chunked(data, mask)
