"""Identifiers keep every digit or are refused; units of positions in every spelling."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from skyclass.errors import CatalogError
from skyclass.sources.identifiers import identifiers
from skyclass.sources.units import degrees_per, parquet_factor

EXACT = 1497001510135100001


def column(values: list[Any], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([12345.0, None, float("nan"), 2.0**53], pa.float64(), [12345, None, None, 2**53]),
        ([1.0, 2.0**24], pa.float32(), [1, 2**24]),
        ([EXACT, None], pa.int64(), [EXACT, None]),
        ([2**64 - 1], pa.uint64(), [2**64 - 1]),
        ([str(EXACT), "", "-", "--", "null", "<NA>", "NaN", "None"], pa.string(), [str(EXACT), *[None] * 7]),
        ([f"{EXACT}.0", f"{EXACT + 1}.0"], pa.string(), [str(EXACT), str(EXACT + 1)]),
        (["12.0", "13", None], pa.string_view(), ["12", "13", None]),
        (["12.0", "1.5"], pa.large_string(), ["12.0", "1.5"]),
        ([b" 1210p015_ac51-000001 "], pa.binary(), ["1210p015_ac51-000001"]),
        (["5e10", "1E 0657-56"], pa.string(), ["5e10", "1E 0657-56"]),
        ([1.5, 2.0], pa.float64(), ["1.5", "2"]),
    ],
)
def test_identifiers_keep_every_digit(values: list[Any], kind: pa.DataType, expected: list[Any]) -> None:
    assert identifiers(column(values, kind), "source_id", "t").to_pylist() == expected


def test_decimals_and_dictionaries_are_exact() -> None:
    from decimal import Decimal

    whole = column([Decimal(EXACT), None], pa.decimal128(20, 0))
    assert identifiers(whole, "cntr", "t").to_pylist() == [str(EXACT), None]
    scaled = column([Decimal(f"{EXACT}.00")], pa.decimal128(30, 2))
    assert identifiers(scaled, "cntr", "t").to_pylist() == [str(EXACT)]
    assert identifiers(column(["a", "b", "a"]).dictionary_encode(), "source_id", "t").to_pylist() == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("values", "kind", "words"),
    [
        (
            [1.0, float(EXACT)],
            pa.float64(),
            r"column cntr is double .*1\.4970015101351e\+18, above 2\*\*53.*int64 or as",
        ),
        ([-float(EXACT)], pa.float64(), "above"),
        ([float("inf")], pa.float64(), "above"),
        ([2.0**24 + 2], pa.float32(), r"column cntr is float .*above 2\*\*24"),
        (["1", "1.4970015101351e+18"], pa.string(), r"column cntr holds 1\.4970015101351e\+18, scientific.*int64 or"),
        (["1.49701E+12"], pa.string(), "scientific notation"),
        (["1E+18"], pa.large_string(), "scientific notation"),
        (["1497001510135099904.0", "1497001510135100160.0"], pa.string(), "written from floating-point numbers"),
        ([b"\xff\xfe"], pa.binary(), "column cntr is damaged"),
    ],
)
def test_identifiers_that_lost_digits_are_refused(values: list[Any], kind: pa.DataType, words: str) -> None:
    with pytest.raises(CatalogError, match=f"^table x: .*{words}"):
        identifiers(column(values, kind), "cntr", "table x")


@pytest.mark.parametrize(
    ("factor", "spellings"),
    [
        (1.0, [None, "", "  ", "--", "-", "deg", "DEG", "Deg.", "degree", "DEGREES", "[deg]", "(deg)", "'deg'",
               "decimal degrees", "decimal_degrees", "degrees_east", "deg (J2000)", "°", "null", "d:m:s"]),
        (180 / np.pi, ["rad", "RADIANS", "radian", "[rad]", "Rad."]),
        (15.0, ["h", "H", "hr", "hour", "HOURS", "hourangle", "hour_angle", "hms", "h:m:s", "[h]", "15deg",
                "hh:mm:ss.s"]),
        (1 / 60, ["arcmin"]),
        (1 / 3600, ["arcsec"]),
        (1e-3, ["mdeg"]),
    ],
)  # fmt: skip
def test_units_in_every_spelling(factor: float, spellings: list[str | None]) -> None:
    for unit in spellings:
        assert degrees_per(unit, "ra", "t") == pytest.approx(factor, rel=1e-14), unit


@pytest.mark.parametrize("unit", ["m", "furlong", "mag", "d", "pix", "deg/h", "degK"])
def test_an_unknown_unit_is_refused(unit: str) -> None:
    with pytest.raises(
        CatalogError, match=f"^table x: column ra has the unit {unit}, which is not known: give degrees"
    ):
        degrees_per(unit, "ra", "table x")


ASTROPY = b"datatype:\n- {name: ra, unit: hourangle, datatype: float64}\n- {name: dec, unit: deg, datatype: float64}"
VOTABLE = (
    b'<VOTABLE xmlns="http://www.ivoa.net/xml/VOTable/v1.3"><RESOURCE><TABLE>'
    b'<FIELD name="ra" datatype="double" unit="h"/><FIELD name="dec" datatype="double"/></TABLE></RESOURCE></VOTABLE>'
)


@pytest.mark.parametrize(
    ("field", "table"),
    [
        ({"unit": "h"}, {}),
        ({"Units": "hourangle"}, {}),
        ({}, {b"table_meta_yaml": ASTROPY}),
        ({}, {b"IVOA.VOTable-Parquet.content": VOTABLE}),
        ({}, {b"PANDAS_ATTRS": json.dumps({"units": {"ra": "hour"}}).encode()}),
        ({}, {b"pandas": json.dumps({"columns": [], "attributes": {"unit": {"ra": "h"}}}).encode()}),
        ({"unit": "h"}, {b"table_meta_yaml": ASTROPY, b"IVOA.VOTable-Parquet.content": VOTABLE}),
    ],
)
def test_units_in_every_metadata_of_parquet(field: dict[str, str], table: dict[bytes, bytes]) -> None:
    schema = pa.schema([pa.field("ra", pa.float64(), metadata=field), ("dec", pa.float64())], metadata=table)
    assert parquet_factor(schema, "ra", "t") == 15.0
    assert parquet_factor(schema, "dec", "t") == 1.0


def test_units_that_disagree_or_cannot_be_read_are_refused() -> None:
    field = pa.field("ra", pa.float64(), metadata={"unit": "rad"})
    with pytest.raises(CatalogError, match="^t: column ra has the units rad and hourangle in different metadata"):
        parquet_factor(pa.schema([field], metadata={b"table_meta_yaml": ASTROPY}), "ra", "t")
    for key in (b"table_meta_yaml", b"IVOA.VOTable-Parquet.content", b"pandas"):
        with pytest.raises(CatalogError, match="^t: the .* header, which holds the units, is damaged"):
            parquet_factor(pa.schema([("ra", pa.float64())], metadata={key: b"{ <a"}), "ra", "t")
    assert parquet_factor(pa.schema([("ra", pa.float64())], metadata={b"pandas": b"[1]"}), "ra", "t") == 1.0
