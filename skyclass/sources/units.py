"""Units of right ascension and declination, in the spellings of all formats and archives."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree

import pyarrow as pa

from ..errors import CatalogError

DEGREES_PER_RADIAN = 57.29577951308232
DEGREES_PER_HOUR = 15.0

_SPELLINGS = {
    1.0: (
        "", "deg", "degs", "degree", "degrees", "decimal deg", "decimal degree", "decimal degrees", "decdeg", "ddeg",
        "deg decimal", "degrees decimal", "dec deg", "arcdeg", "arc deg", "angular degree", "angular degrees",
        "degree east", "degrees east", "degree north", "degrees north", "deg j2000", "deg icrs", "degrees j2000",
        "degrees icrs", "°", "none", "null", "unitless", "n/a", "nan", "dms", "d:m:s", "dd:mm:ss", "dd mm ss",
        "dd:mm:ss s", "d m s",
    ),
    DEGREES_PER_RADIAN: ("rad", "rads", "radian", "radians"),
    DEGREES_PER_HOUR: (
        "h", "hr", "hrs", "hour", "hours", "hourangle", "hourangles", "hour angle", "hour angles", "decimal hour",
        "decimal hours", "hms", "h:m:s", "hh:mm:ss", "hh mm ss", "hh:mm:ss s", "h m s",
    ),
}  # fmt: skip
_FACTORS = {spelling: factor for factor, spellings in _SPELLINGS.items() for spelling in spellings}

VOPARQUET_KEY = b"IVOA.VOTable-Parquet.content"
ASTROPY_KEY = b"table_meta_yaml"
PANDAS_KEYS = (b"PANDAS_ATTRS", b"pandas")


def degrees_per(unit: str | None, name: str, source: str) -> float:
    """Return the degrees in one unit of column `name`; no unit is degrees.

    Usual spellings of degrees, radians and hours of angle are known in any case and any brackets, and whatever astropy
    can convert to degrees. Raises `CatalogError`, which begins with `source`, for another unit.
    """
    factor = _FACTORS.get(_plain(unit or ""))
    if factor is None:
        factor = _astropy_factor(unit or "")
    if factor is None:
        raise CatalogError(
            f"{source}: column {name} has the unit {unit}, which is not known: give degrees, radians or hours of angle"
        )
    return factor


def is_unit(text: str) -> bool:
    """Return whether a cell spells degrees, radians or hours, so that the line of the cell gives units, not values."""
    plain = _plain(text)
    return plain in _FACTORS and plain not in ("", "none", "null", "unitless", "n/a", "nan")


def _plain(unit: str) -> str:
    """Return a unit in lower case without brackets, quotes, full stops and runs of blanks: "[Deg.]" is "deg"."""
    words = re.sub(r"[\[\](){}<>'\"`,]|\.(?!\d)", " ", unit.lower())
    return " ".join(re.sub(r"[-_]+", " ", words).split())


def _astropy_factor(unit: str) -> float | None:
    from astropy import units as u

    try:
        return float(u.Unit(unit.strip()).to(u.deg))
    except (ValueError, TypeError):  # not a unit, or not of an angle
        return None


def parquet_factor(schema: pa.Schema, name: str, source: str) -> float:
    """Return the degrees in one unit of a Parquet column by all metadata; `CatalogError` for units that disagree.

    Units are in the field's own metadata, in the header of astropy, in a VOTable (VOParquet: TOPCAT, astropy) or in
    the attributes of pandas.
    """
    units = list(dict.fromkeys(_parquet_units(schema, name, source)))
    factors = {degrees_per(unit, name, source) for unit in units if unit.strip()}
    if len(factors) > 1:
        raise CatalogError(
            f"{source}: column {name} has the units {' and '.join(units)} in different metadata of the file; "
            "give one unit"
        )
    return factors.pop() if factors else 1.0


def _parquet_units(schema: pa.Schema, name: str, source: str) -> Iterable[str]:
    field = schema.field(schema.names.index(name)).metadata or {}
    yield from (_text(value) for key, value in field.items() if key.lower() in (b"unit", b"units"))
    metadata: Mapping[bytes, bytes] = schema.metadata or {}
    if ASTROPY_KEY in metadata:
        yield from _named_unit(_yaml_columns(metadata[ASTROPY_KEY], source), name)
    if VOPARQUET_KEY in metadata:
        yield from _named_unit(_votable_fields(metadata[VOPARQUET_KEY], source), name)
    for key in PANDAS_KEYS:
        if key in metadata:
            yield from _pandas_unit(metadata[key], name, source)


def _named_unit(columns: Iterable[Mapping[str, Any]], name: str) -> Iterable[str]:
    yield from (str(column["unit"]) for column in columns if column.get("name") == name and column.get("unit"))


def _yaml_columns(header: bytes, source: str) -> list[Mapping[str, Any]]:
    """Return the descriptions of columns (name, unit, ...) in the YAML header that astropy writes."""
    from astropy.table.meta import YamlParseError, get_header_from_yaml

    try:
        columns = get_header_from_yaml(_text(header).splitlines())["datatype"]
    except (YamlParseError, TypeError, KeyError) as error:
        raise _damaged(source, "astropy", error) from error
    return [column for column in columns if isinstance(column, Mapping)]


def _votable_fields(header: bytes, source: str) -> list[Mapping[str, Any]]:
    """Return the descriptions of columns (name, unit, ...) in a VOTable: the attributes of its FIELD elements."""
    try:
        root = ElementTree.fromstring(header)
    except ElementTree.ParseError as error:
        raise _damaged(source, "VOTable", error) from error
    return [element.attrib for element in root.iter() if element.tag.rpartition("}")[2] == "FIELD"]


def _pandas_unit(header: bytes, name: str, source: str) -> Iterable[str]:
    try:
        document = json.loads(header)
    except ValueError as error:
        raise _damaged(source, "pandas", error) from error
    attributes = document.get("attributes", document) if isinstance(document, dict) else {}
    for key in ("unit", "units"):
        units = attributes.get(key) if isinstance(attributes, dict) else None
        if isinstance(units, dict) and isinstance(units.get(name), str):
            yield units[name]


def _damaged(source: str, kind: str, error: Exception) -> CatalogError:
    return CatalogError(f"{source}: the {kind} header, which holds the units, is damaged ({error}); write it again")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
