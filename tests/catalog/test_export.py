"""Every value of every format, read back as other tools read it."""

from __future__ import annotations

import math
from datetime import UTC, date, datetime, time
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table

from skyclass.catalog.export import _unused, export_table
from skyclass.catalog.query import ClassCatalog, open_catalog
from skyclass.errors import ConfigError
from skyclass.run.finish import publish_run
from tests.support.class_rows import CLASS_COLUMNS, CLASS_SCHEMA, make_run

NUMBERS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "i8": (pa.int8(), [-128, 127, None, 0]),
    "u8": (pa.uint8(), [0, 255, None, 1]),
    "i16": (pa.int16(), [-(2**15), 2**15 - 1, None, 999]),
    "u16": (pa.uint16(), [0, 2**16 - 1, None, 1]),
    "i32": (pa.int32(), [-(2**31), 2**31 - 1, None, 999999]),
    "u32": (pa.uint32(), [0, 2**32 - 1, None, 999999]),
    "i64": (pa.int64(), [-(2**63), 2**63 - 1, None, 999999]),
    "u64": (pa.uint64(), [0, 2**63 - 1, None, 999999]),
    "no_null": (pa.int64(), [-(2**63), 2**63 - 1, 2**53 + 1, 999999]),
    "all_null": (pa.int32(), [None] * 4),
    "f32": (pa.float32(), [float("inf"), -float("inf"), None, 2.0**-140]),
    "f64": (pa.float64(), [1.7976931348623157e308, 5e-324, None, -0.1]),
    "nan": (pa.float64(), [float("nan"), 1.5, None, float("inf")]),
    "flag": (pa.bool_(), [True, False, None, True]),
    "flag_no_null": (pa.bool_(), [True, False, False, True]),
    "money": (pa.decimal128(10, 2), [Decimal("12.25"), Decimal("-0.10"), None, Decimal("99999999.99")]),
    "sum": (pa.decimal128(38, 0), [Decimal(-(2**63)), Decimal(2**63 - 1), None, Decimal(7)]),
}
BIG: dict[str, tuple[pa.DataType, list[Any]]] = {
    "u64_max": (pa.uint64(), [2**64 - 1, 0, 1, 2]),
    "u64_max_null": (pa.uint64(), [2**64 - 1, 0, None, 2]),
    "huge": (pa.decimal128(38, 0), [Decimal(10**37 + 1), Decimal(-(10**37)), None, Decimal(0)]),
    "long_fraction": (pa.decimal128(38, 20), [Decimal("0.12345678901234567891"), Decimal(1), None, Decimal(2)]),
}
TEXTS: dict[str, tuple[pa.DataType, list[Any]]] = {
    "ascii": (pa.string(), ["a", "with, comma", None, 'quote "q"']),
    "beyond": (pa.string(), ["é", "日本語", None, "🌌 galaxy"]),
    "empty": (pa.large_string(), ["", "x", None, ""]),
    "word": (pa.dictionary(pa.int8(), pa.string()), ["star", "quasar", None, "star"]),
    "nothing": (pa.null(), [None] * 4),
    "none_at_all": (pa.string(), [None] * 4),
}
OTHERS: dict[str, tuple[pa.DataType, list[Any], list[Any]]] = {
    "day": (pa.date32(), [date(2026, 1, 2), date(1, 1, 1), None, date(9999, 12, 31)],
            ["2026-01-02", "0001-01-01", None, "9999-12-31"]),
    "moment": (pa.timestamp("us"),
               [datetime(2026, 1, 2, 3, 4, 5, 678), datetime(1970, 1, 1), None, datetime(1900, 2, 3)],
               ["2026-01-02T03:04:05.000678", "1970-01-01T00:00:00.000000", None, "1900-02-03T00:00:00.000000"]),
    "moment_utc": (pa.timestamp("s", "UTC"), [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), None, None, None],
                   ["2026-01-02T03:04:05Z", None, None, None]),
    "hour": (pa.time64("us"), [time(3, 4, 5), None, None, time(0)], ["03:04:05.000000", None, None, "00:00:00.000000"]),
    "list": (pa.list_(pa.int64()), [[1, None], [], None, [2**62]], ["[1, null]", "[]", None, str([2**62])]),
    "words": (pa.list_(pa.string()), [["é"], ["a", "b"], None, []], ['["é"]', '["a", "b"]', None, "[]"]),
    "pair": (pa.struct([("a", pa.int64()), ("d", pa.date32())]), [{"a": 1, "d": date(2026, 1, 2)}, None, None, None],
             ['{"a": 1, "d": "2026-01-02"}', None, None, None]),
    "bytes": (pa.binary(), [b"\x00\xff", b"", None, b"a"], ["00ff", "", None, "61"]),
    "span": (pa.month_day_nano_interval(), [pa.MonthDayNano([1, 2, 3_500_000_000]), None, None, None],
             ["P1M2DT3.5S", None, None, None]),
    "length": (pa.duration("us"), [1_500_000, None, None, 0], ["PT1.5S", None, None, "PT0S"]),
}  # fmt: skip
"""Column -> Arrow type, values, and the text that formats without such values get."""


def table_of(columns: dict[str, Any]) -> pa.Table:
    return pa.table({name: pa.array(parts[1], parts[0]) for name, parts in columns.items()})


def values_of(column: Any) -> list[Any]:
    """Return the values of an astropy column, None where one is masked."""
    return [None if np.ma.is_masked(value) else value for value in column]


def same(value: Any, expected: Any) -> bool:
    """Equal in value; a masked value is null, and NaN where the format cannot tell them apart."""
    if expected is None or (isinstance(expected, float) and math.isnan(expected)):
        return value is None or bool(isinstance(value, float | np.floating) and np.isnan(value))
    if isinstance(value, np.float32):
        expected = np.float32(expected)
    return bool(value is not None and value == expected)


@pytest.mark.parametrize("ending", ["fits", "vot"])
def test_numbers_come_back_as_numbers(tmp_path: Path, ending: str) -> None:
    back = Table.read(export_table(table_of(NUMBERS), tmp_path / f"t.{ending}"), format=FORMATS[ending])
    for name, (_, expected) in NUMBERS.items():
        found = values_of(back[name])
        for value, wanted in zip(found, expected, strict=True):
            wanted = float(wanted) if name == "money" and wanted is not None else wanted
            assert same(value, wanted), (name, found)
        assert back[name].dtype.kind in "iufb"


FORMATS = {"fits": "fits", "vot": "votable", "xml": "votable", "csv": "csv"}


@pytest.mark.parametrize("ending", ["fits", "vot", "csv"])
def test_integers_beyond_64_bits_and_long_fractions_keep_every_digit(tmp_path: Path, ending: str) -> None:
    path = export_table(table_of(BIG), tmp_path / f"t.{ending}")
    options = {"converters": {"*": str}, "fill_values": [("", "0")]} if ending == "csv" else {}
    back = Table.read(path, format=FORMATS[ending], **options)
    for name, (_, expected) in BIG.items():
        found = [Decimal(str(value)) if value not in (None, "") else None for value in values_of(back[name])]
        assert found == [None if value is None else Decimal(value) for value in expected], name
    if ending == "fits":
        assert back["u64_max"].dtype.kind == "u" and int(back["u64_max"][0]) == 2**64 - 1


@pytest.mark.parametrize("ending", ["fits", "vot", "csv"])
def test_text_and_all_other_types_come_back_as_text(tmp_path: Path, ending: str) -> None:
    table = table_of(TEXTS | {name: parts[:2] for name, parts in OTHERS.items()})
    path = export_table(table, tmp_path / f"t.{ending}")
    back = Table.read(path, format=FORMATS[ending], **({"converters": {"*": str}} if ending == "csv" else {}))
    expected = {name: values for name, (_, values) in TEXTS.items()} | {n: texts for n, (_, _, texts) in OTHERS.items()}
    assert back.colnames == list(expected)
    for name, texts in expected.items():
        assert [value or None for value in values_of(back[name])] == [text or None for text in texts], name


def test_csv_keeps_numbers_and_tells_empty_text_from_missing(tmp_path: Path) -> None:
    path = export_table(table_of(NUMBERS | TEXTS), tmp_path / "t.csv")
    frame = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[])
    for name, (_, expected) in NUMBERS.items():
        for text, wanted in zip(frame[name], expected, strict=True):
            if wanted is None:
                assert text == ""
            elif isinstance(wanted, bool):
                assert text == str(wanted).lower()
            elif isinstance(wanted, float):
                assert same(np.float32(text) if name == "f32" else float(text), wanted), name
            else:
                assert Decimal(text) == wanted, name
    rows = path.read_text().splitlines()
    position = list(frame).index("empty")
    assert rows[1].split(",")[position + 1 :][0] == '""' or '"",' in rows[1]


def test_parquet_keeps_every_type(tmp_path: Path) -> None:
    columns = NUMBERS | BIG | TEXTS | {name: parts[:2] for name, parts in OTHERS.items()}
    table = table_of(columns)
    back = pq.read_table(export_table(table, tmp_path / "t.parquet"))
    for name in table.column_names:
        if name in ("span", "length"):
            assert back[name].to_pylist() == OTHERS[name][2]
        elif name == "nan":
            assert math.isnan(back[name][0].as_py()) and back[name][2].as_py() is None
        else:
            assert back[name].to_pylist() == table[name].to_pylist(), name


@pytest.mark.parametrize("ending", ["parquet", "csv", "fits", "vot", "xml"])
def test_names_that_a_format_cannot_hold_are_told(tmp_path: Path, ending: str) -> None:
    ones = pa.array([1])
    with pytest.raises(ConfigError, match="columns a are repeated.*AS"):
        export_table(pa.table([ones, ones], names=["a", "a"]), tmp_path / f"t.{ending}")
    with pytest.raises(ConfigError, match="names that this format cannot hold"):
        export_table(pa.table([ones], names=["a\nb"]), tmp_path / f"t.{ending}")
    cases = pa.table([ones, ones, ones], names=["p", "P", "größe"])
    if ending == "fits":
        with pytest.raises(ConfigError, match="does not tell cases apart"):
            export_table(cases, tmp_path / "t.fits")
        with pytest.raises(ConfigError, match="größe"):
            export_table(cases.select(["größe"]), tmp_path / "t.fits")
    else:
        assert export_table(cases, tmp_path / f"t.{ending}").exists()
        (tmp_path / f"t.{ending}").unlink()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ending", ["parquet", "csv", "fits", "vot", "xml"])
def test_no_rows_are_a_table_too(tmp_path: Path, ending: str) -> None:
    table = table_of(NUMBERS | BIG | TEXTS | {name: parts[:2] for name, parts in OTHERS.items()}).slice(0, 0)
    path = export_table(table, tmp_path / f"t.{ending}")
    names = (
        pq.read_table(path).column_names if ending == "parquet" else Table.read(path, format=FORMATS[ending]).colnames
    )
    assert names == table.column_names


@pytest.mark.parametrize("ending", ["parquet", "csv", "fits", "vot", "xml"])
def test_a_file_is_replaced_only_on_request(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"t.{ending}"
    path.write_text("precious")
    table = pa.table({"a": [1]})
    with pytest.raises(ConfigError, match=rf"t.{ending} exists: .*--overwrite"):
        export_table(table, path)
    assert path.read_text() == "precious"
    export_table(table, path, overwrite=True)
    assert path.read_bytes() != b"precious" and [p.name for p in tmp_path.iterdir()] == [path.name]
    (tmp_path / f"d.{ending}").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        export_table(table, tmp_path / f"d.{ending}", overwrite=True)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> ClassCatalog:
    folder, _ = make_run(tmp_path_factory.mktemp("run"))
    publish_run(folder)
    return open_catalog(folder.path)


@pytest.mark.integration
def test_an_export_never_changes_a_publication(catalog: ClassCatalog, tmp_path: Path) -> None:
    file = catalog.root / catalog.manifest.files[0].path
    before, link = file.read_bytes(), tmp_path / "link"
    link.symlink_to(catalog.root.parent.parent / "catalog")
    for path in (file, link / catalog.manifest.files[0].path, catalog.root / "new.parquet"):
        with pytest.raises(ConfigError, match="is inside the class catalogue .*/catalogs/000001, whose files never"):
            catalog.export(path, overwrite=True)
    assert file.read_bytes() == before and not (catalog.root / "new.parquet").exists()
    outside = catalog.root.parent / "beside.parquet"
    assert catalog.export(outside).is_file()
    outside.unlink()


@pytest.mark.integration
@pytest.mark.parametrize("ending", ["parquet", "csv", "fits", "vot", "xml"])
def test_every_value_of_a_class_catalogue_comes_back(catalog: ClassCatalog, tmp_path: Path, ending: str) -> None:
    table = catalog.cone(150, 2, "30arcmin").to_arrow()
    path = catalog.cone(150, 2, "30arcmin").export(tmp_path / f"t.{ending}")
    if ending == "parquet":
        assert pq.read_table(path).equals(table)
        return
    back = Table.read(path, format=FORMATS[ending])
    assert back.colnames == table.column_names
    for field in CLASS_SCHEMA:
        expected = table[field.name].to_pylist()
        if field.name == "cc_flags" and ending == "csv":
            expected = [int(value) for value in expected]
        if ending == "csv" and pa.types.is_float32(field.type):  # the shortest text of a float32
            expected = [None if value is None else float(str(np.float32(value))) for value in expected]
        found = [None if value == "" else value for value in values_of(back[field.name])]
        wrong = [pair for pair in zip(found, expected, strict=True) if not same(*pair)]
        assert not wrong, (field.name, wrong[:3])
        if ending != "csv":
            assert str(back[field.name].unit or "") == CLASS_COLUMNS[field.name][0]


@pytest.mark.integration
def test_astropy_reads_published_files_with_their_header(catalog: ClassCatalog, tmp_path: Path) -> None:
    """`parquet.votable` joins the header and the rows by the names of columns."""
    exported = catalog.cone(150, 2, "30arcmin").export(tmp_path / "t.parquet")
    biggest = max(catalog.manifest.files, key=lambda record: record.rows)
    for path in (catalog.root / biggest.path, exported):
        rows = pq.ParquetFile(path).read()
        back = Table.read(path, format="parquet.votable")
        assert back.colnames == list(CLASS_COLUMNS)
        for name, (unit, ucd, description) in CLASS_COLUMNS.items():
            assert str(back[name].unit or "") == unit, name
            assert back[name].meta.get("ucd", "") == ucd and " ".join(back[name].description.split()) == description
        filled = {field.name for field in CLASS_SCHEMA if not rows[field.name].null_count}
        for name in sorted(filled):
            assert [str(v) for v in back[name]] == [str(v) for v in rows[name].to_numpy()], name
        for name in ("p_star", "ext_flg"):
            present = rows[name].is_valid().to_numpy()
            values = np.asarray(np.ma.filled(back[name].astype(float), np.nan))
            np.testing.assert_array_equal(values[present], rows[name].drop_null().to_numpy())
            assert np.isnan(values[~present]).all() and (~present).any()


def test_long_and_foreign_ids_fit_the_header(tmp_path: Path) -> None:
    table = pa.table({"source_id": ["é" * 100, "short", None], "n": [1, 2, 3]})
    back = Table.read(export_table(table, tmp_path / "t.parquet"), format="parquet.votable")
    assert values_of(back["source_id"])[:2] == ["é" * 100, "short"] and list(back["n"]) == [1, 2, 3]
    content = pq.read_metadata(tmp_path / "t.parquet").metadata[b"IVOA.VOTable-Parquet.content"].decode()
    assert 'arraysize="200"' in content and "FIELD ID" not in content


def test_fits_says_which_integer_is_missing_and_what_columns_mean(catalog: ClassCatalog, tmp_path: Path) -> None:
    header = fits.getheader(catalog.cone(150, 2, "10arcmin").export(tmp_path / "t.fits"), 1)
    names = {header[f"TTYPE{i}"]: i for i in range(1, header["TFIELDS"] + 1)}
    assert header[f"TNULL{names['ext_flg']}"] == -(2**31) and f"TNULL{names['cntr']}" not in header
    assert header[f"TUCD{names['ra']}"] == "pos.eq.ra;meta.main"
    assert pc.min(catalog.to_arrow()["ext_flg"]).as_py() == 0


@pytest.mark.parametrize(
    ("values", "unused"),
    [([5, None], -32768), ([-32768], -32767), ([-32768, -32766], -32767), ([-32768, -32767, 0], -32766)],
)
def test_a_missing_integer_is_the_least_one_that_no_row_holds(values, unused):
    assert _unused(pa.chunked_array([pa.array(values, pa.int16())])) == unused


def test_names_that_a_format_cannot_hold_are_refused(tmp_path):
    twice = pa.table([[1], [2]], names=["n", "n"])
    cases = pa.table([[1], [2]], names=["n", "N"])
    for ending in ("csv", "fits", "vot", "parquet"):
        with pytest.raises(
            ConfigError, match="columns n are repeated: give each its own name with AS|columns n are repeated .FITS"
        ):
            export_table(twice, tmp_path / f"twice.{ending}")
    with pytest.raises(ConfigError, match="columns n are repeated .FITS does not tell cases apart."):
        export_table(cases, tmp_path / "cases.fits")
    assert export_table(cases, tmp_path / "cases.csv").read_text().startswith('"n","N"')
    with pytest.raises(ConfigError, match="have names that this format cannot hold"):
        export_table(pa.table([[1]], names=["größe"]), tmp_path / "a.fits")
    with pytest.raises(ConfigError, match="have names that this format cannot hold"):
        export_table(pa.table([[1]], names=["a\nb"]), tmp_path / "a.csv")
