"""Names of tiles (`coadd_id`) as catalogues write them, parsed in the same way for the plan and for the run."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from ..errors import CatalogError
from ..schema import BAD_NAME, bad_bits, without_dictionary
from ..types import ATLAS_COADD_ID, FILE_SAFE_NAME, NO_TILE, Bool
from .identifiers import NULL_WORDS

PADDING = " \t\r\n\v\f\0\u00a0"


def tile_name(text: str) -> str | None:
    """Return the `coadd_id` of a trimmed name, None for a word that means null; "" where no tile can have it.

    Case is ignored in names of the Atlas, and kept in any other.
    """
    lower = text.lower()
    if lower in NULL_WORDS:
        return None
    if ATLAS_COADD_ID.fullmatch(lower):
        return lower
    return text if FILE_SAFE_NAME.fullmatch(text) else ""


def with_tile_names(table: pa.Table, source: str) -> pa.Table:
    """Return the table with `coadd_id` as `tile_name` parses it; a name that no tile can have is null, and marked bad.

    A table without the column stays as it is.
    """
    if "coadd_id" not in table.column_names:
        return table
    names, bad = _tile_names(table["coadd_id"], source)
    table = table.set_column(table.column_names.index("coadd_id"), "coadd_id", names)
    bits = bad_bits(table) | np.where(bad, BAD_NAME, 0).astype(np.int32)
    rest = table.drop_columns("bad_values") if "bad_values" in table.column_names else table
    return rest.append_column("bad_values", pa.array(bits))


def _tile_names(column: pa.ChunkedArray, source: str) -> tuple[pa.Array, Bool]:
    """Return the names of tiles in a column, each distinct text parsed once, and which rows have an impossible one."""
    try:
        text = pc.utf8_trim(without_dictionary(column).cast(pa.string()), characters=PADDING).combine_chunks()
    except pa.ArrowException as error:
        raise CatalogError(f"{source}: column coadd_id is not text ({error})") from error
    distinct = text.dictionary_encode()
    names = [None if raw is None else tile_name(raw) for raw in distinct.dictionary.to_pylist()]
    is_bad = pa.array([name == "" for name in names], pa.bool_()).take(distinct.indices)
    coadd_id = pa.array([name or None for name in names], pa.string()).take(distinct.indices)
    return coadd_id, np.asarray(pc.fill_null(is_bad, False).to_numpy(zero_copy_only=False), bool)


def rows_of_tile(field: ds.Expression, coadd_id: str) -> ds.Expression:
    """Return a filter for a Parquet scan that keeps at least the rows of a tile and those without `coadd_id`.

    Rows without `coadd_id` may belong to any tile, by their position. For `NO_TILE` it keeps impossible names, too.
    """
    text = pc.utf8_trim(field.cast(pa.string()), characters=PADDING)
    lower = pc.utf8_lower(text)
    is_missing = field.is_null() | lower.isin(list(NULL_WORDS))
    if coadd_id == NO_TILE:
        return is_missing | ~pc.match_substring_regex(text, f"^{FILE_SAFE_NAME.pattern}$")
    return is_missing | (lower == coadd_id.lower())


def needs_tile_by_position(table: pa.Table) -> pa.ChunkedArray:
    """Return which sources need a tile by their position: those without `coadd_id`, unless it was a bad name."""
    impossible = pa.array((bad_bits(table) & BAD_NAME) != 0)
    return pc.and_not(table["coadd_id"].is_null(), impossible)


def name_problem(names: Iterable[str]) -> str:
    """Return why some names cannot be those of tiles, or ""."""
    bad = sorted(name for name in names if not FILE_SAFE_NAME.fullmatch(name))
    return f"COADDID {bad[0]!r} cannot name a tile: use up to 100 letters, digits, '.', '_', '-'" if bad else ""
