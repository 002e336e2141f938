"""Identifier columns (`source_id`, `cntr`): every digit as the catalogue has it, or a refusal.

A column of 19-digit integers becomes floating point where one value is missing (pandas, FITS `D`, a CSV written from
either). Floats hold integers only up to 2**53, so the last digits then belong to another source.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from ..errors import CatalogError
from ..schema import is_text, without_dictionary

IDENTIFIERS = ("source_id", "cntr")

MANTISSA_BITS = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}
"""Integers up to 2**bits are exact in each floating-point type."""

NULL_WORDS = (
    "", "-", "--", "---", "...", "null", "(null)", "none", "nan", "+nan", "-nan", "na", "n/a", "<na>", "#n/a", "#na",
    "#n/a n/a", "nat", "nil", "\\n", "masked", "-1.#ind", "-1.#qnan", "1.#ind", "1.#qnan",
)  # fmt: skip
"""Texts, in lower case, that programs write for a missing value."""

REMEDY = "write the column as int64 or as text where the table is made (pandas: dtype Int64 or str)"
_SCIENTIFIC = r"^[-+]?\d+(\.\d*[eE][-+]?|[eE]\+)\d+$"
_WHOLE = r"^[-+]?\d+(\.0*)?$"


def identifiers(column: pa.ChunkedArray, name: str, source: str) -> pa.ChunkedArray:
    """Return an identifier column as integers or text with every digit exact; NaN and words for null are null.

    Integral floats become int64, and text such as "12.0" becomes "12" where the whole column is written so. Raises
    `CatalogError`, which begins with `source`, for floats beyond their exact range and for scientific notation.
    """
    column = without_dictionary(column)
    try:
        if pa.types.is_floating(column.type):
            return _from_floats(column, name, source)
        if pa.types.is_decimal(column.type):
            return _without_point(column.cast(pa.string()))
        if is_text(column.type) or is_bytes(column.type):
            return _from_text(without_null_words(column), name, source)
    except pa.ArrowException as error:
        raise CatalogError(f"{source}: column {name} is damaged ({error})") from error
    return column


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether a type holds bytes, as text is stored by some writers of Parquet."""
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def without_null_words(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a text column as trimmed strings, the words for a missing value null."""
    text = pc.utf8_trim_whitespace(column.cast(pa.string()))
    return pc.if_else(pc.is_in(pc.utf8_lower(text), pa.array(NULL_WORDS)), pa.scalar(None, pa.string()), text)


def _from_floats(column: pa.ChunkedArray, name: str, source: str) -> pa.ChunkedArray:
    bits, kind = MANTISSA_BITS[column.type], column.type
    column = column.cast(pa.float64())
    column = pc.if_else(pc.is_nan(column), None, column)
    lossy = pc.greater(pc.abs(column), 2.0**bits)
    if pc.any(lossy).as_py():
        raise CatalogError(
            f"{source}: column {name} is {kind} with values such as {column.filter(lossy)[0]}, above 2**{bits}: "
            f"{kind} cannot hold every digit of such identifiers; {REMEDY}"
        )
    if pc.all(pc.equal(column, pc.round(column))).as_py() is False:
        return column.cast(pa.string())
    return column.cast(pa.int64())


def _from_text(column: pa.ChunkedArray, name: str, source: str) -> pa.ChunkedArray:
    scientific = pc.match_substring_regex(column, _SCIENTIFIC)
    if pc.any(scientific).as_py():
        raise CatalogError(
            f"{source}: column {name} holds {column.filter(scientific)[0]}, scientific notation: digits of the "
            f"identifier may be lost; {REMEDY}"
        )
    short = _without_point(column)
    if short is not column and _passed_through_floats(short):
        example = column.filter(pc.greater(pc.utf8_length(short), 15))[0]
        raise CatalogError(
            f"{source}: column {name} holds values such as {example}, which were written from floating-point numbers: "
            f"these cannot hold every digit of identifiers above 2**53; {REMEDY}"
        )
    return short


def _without_point(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return "12.0" as "12" where every value is a whole number; any other column as it is."""
    if pc.all(pc.match_substring_regex(column, _WHOLE)).as_py() and pc.any(pc.match_substring(column, ".")).as_py():
        return pc.replace_substring_regex(column, r"\.0*$", "")
    return column


def _passed_through_floats(column: pa.ChunkedArray) -> bool:
    """Return whether all integers above 2**53 are values of a double: one in 256 is at 19 digits by chance."""
    large = [int(text) for text in column.drop_null().to_pylist() if 15 < len(text) < 40 and abs(int(text)) > 2**53]
    return bool(large) and all(int(float(number)) == number for number in large)
