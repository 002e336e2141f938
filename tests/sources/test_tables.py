"""Users' tables of positions in every format: read with the right values, or refused with the reason."""

from __future__ import annotations

import gzip
import io
import os
import re
import warnings
import zlib
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from hypothesis import given, settings
from hypothesis import strategies as st

from skyclass.errors import CatalogError, TableWarning
from skyclass.schema import CHECKED, SOURCE_SCHEMA
from skyclass.sky.regions import Cone
from skyclass.sources import tablefile
from skyclass.sources.columns import Wanted
from skyclass.sources.opening import open_sources
from skyclass.sources.tables import read_table, standardise, standardise_table
from tests.support.paths import SHARED

ARCHIVE = SHARED / "data" / "archive"
EXACT = 1497001510135100001
"""An identifier of AllWISE: 19 digits, which no float holds."""


def user_table() -> Table:
    table = Table({"RA": [10.5, 359.25, 0.0], "Dec": [-3.5, 89.0, 90.0]})
    table["cc_flags"] = ["0000", "00dh", "0000"]
    table["w1mpro"] = MaskedColumn([15.5, 0.0, 14.0], mask=[False, True, False])
    table["ext_flg"] = MaskedColumn(np.array([5, 0, 1], ">i4"), mask=[False, True, False])
    table["other"] = ["x", "y", "z"]
    return table


def write_table(table: Table, path: Path) -> Path:
    if path.suffix == ".parquet":
        columns = {name: np.ma.asarray(table[name]) for name in table.colnames}
        native = {name: c.astype(c.dtype.newbyteorder("=")) for name, c in columns.items()}
        arrays = {name: pa.array(c.data, mask=np.ma.getmaskarray(c)) for name, c in native.items()}
        pq.write_table(pa.table(arrays), path)
        return path
    kinds = {".csv": "ascii.csv", ".tbl": "ascii.ipac", ".xml": "votable", ".ecsv": "ascii.ecsv"}
    table.write(path, format=kinds.get(path.suffix, "fits"))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tbl", ".xml", ".fits", ".ecsv", ".parquet"])
@pytest.mark.parametrize("zipped", [False, True])
def test_one_table_in_every_format(tmp_path: Path, suffix: str, zipped: bool) -> None:
    if zipped and suffix == ".parquet":
        return
    path = write_table(user_table(), tmp_path / f"t{suffix}")
    if zipped:
        path = Path(str(path) + ".gz")
        path.write_bytes(gzip.compress((tmp_path / f"t{suffix}").read_bytes()))
    table = standardise_table(str(path))
    assert table.schema == SOURCE_SCHEMA
    assert table.select(["source_id", "ra", "dec", "w1mpro", "cc_flags", "ext_flg"]).to_pydict() == {
        "source_id": ["row-000001", "row-000002", "row-000003"], "ra": [10.5, 359.25, 0.0],
        "dec": [-3.5, 89.0, 90.0], "w1mpro": [15.5, None, 14.0], "cc_flags": ["0000", "00dh", "0000"],
        "ext_flg": [5, None, 1],
    }  # fmt: skip
    assert table["coadd_id"].null_count == 3
    catalog = open_sources(str(path))
    assert (catalog.is_partitioned, len(catalog.partitions)) == (False, 1)
    assert open_sources(str(path), Cone(0, 89, 2)).read(0)["ra"].to_pylist() == [359.25, 0.0]


@pytest.mark.parametrize("name", ["gator_arp220_allsky.tbl", "gator_one_row_allwise.tbl"])
def test_real_irsa_tables(name: str) -> None:
    path = ARCHIVE / name
    if not path.exists():
        pytest.skip("the shared IRSA tables are not here")
    table = standardise_table(str(path))
    truth = Table.read(path, format="ascii.ipac")
    assert len(table) == len(truth) == {"gator_arp220_allsky.tbl": 319}.get(name, 1)
    np.testing.assert_array_equal(table["ra"].to_numpy(), truth["ra"])
    assert table["designation"][0].as_py().startswith("J") and len(table["cc_flags"][0].as_py()) == 4
    assert table["w1mpro"].null_count == np.ma.count_masked(np.ma.asarray(truth["w1mpro"]))


def csv_table(tmp_path: Path, text: str) -> str:
    path = tmp_path / "list.csv"
    path.write_bytes(text.encode())
    return str(path)


@pytest.mark.parametrize(
    "text",
    ["ra,dec\n1.5,-2\n3,4\n", "\ufeffRA , DEC\n 1.5 , -2 \n3,4", "# a comment\n#more\nra;dec\n1.5;-2\n3;4\n",
     "name\tra\tdec\na b\t1.5\t-2\nc\t3\t4\n", 'Ra,"x,y",Dec\n"1.5",1,-2\r\n3,,4\r\n'],
)  # fmt: skip
def test_csv_as_people_write_it(tmp_path: Path, text: str) -> None:
    table = standardise_table(csv_table(tmp_path, text))
    assert table.select(["ra", "dec"]).to_pydict() == {"ra": [1.5, 3], "dec": [-2, 4]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ra,dec\n", "no rows"),
        ("", "file is empty"),
        ("  \n\n", "file is empty"),
        ("RAJ2000,DEJ2000\n1,2\n", "no columns ra and dec; its columns are RAJ2000, DEJ2000"),
        ("ra,Ra,dec\n1,1,2\n", "columns ra, Ra all mean ra; keep one, or rename the others: case does not matter"),
        ("ra,dec,w1mpro,W1mpro\n1,2,3,4\n", "columns w1mpro, W1mpro all mean w1mpro; keep one, or rename"),
        ("Ra,RA,dec\n1,1,2\n", "columns Ra, RA all mean ra"),
        ("ra,dec\n10:12:13.4,+3:04:05\n", "sexagesimal .*10:12:13.4"),
        ("ra,dec\n10h12m13s,3\n", "sexagesimal"),
        ("ra,dec\n10 12 13,3\n", "sexagesimal"),
        ("ra,dec\n1,2,3\n", "not a regular CSV"),
        ("ra,dec\nvega,2\naltair,3\n", "column ra holds text such as .'vega'"),
        ('ra,dec\n"",2\n"",3\n', "2 of 2 rows have no position"),
        ("This is no table at all.\n", "none of FITS, Parquet"),
        ("source_id,ra,dec\na,1,1\nb,2,2\na,3,3\n", "source_id a occurs in more than one row"),
        ("source_id,ra,dec\na,1,1\n,2,2\n", "source_id is empty in 1 row;"),
        ("source_id,ra,dec\n,1,1\n,2,2\n", "source_id is empty in 2 rows;"),
        ("source_id,ra,dec\na,1,1\nb,2,2\na,3,3\nb,4,4\n", "source_id a, b occur in more than one row"),
        ("ra,dec\n400,2\n", "1 of 1 row has no position on the sky, such as row 1"),
        ("ra,wide\n1,2\n", "no column dec; its columns are ra, wide"),
        ("<html><body>503</body></html>", "its content is none of CSV"),
        ("\x89HDF\r\n\x1a\n\0\0", "its content is none of CSV"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    path = csv_table(tmp_path, text)
    with pytest.raises(CatalogError, match=words) as caught:
        standardise_table(path)
    assert "list.csv" in str(caught.value)


def test_bad_rows_come_in_one_message(tmp_path: Path) -> None:
    bad = ["nan,1", "1,nan", ",5", "361,5", "5,-90.1", "inf,1", "x,1"]
    with pytest.raises(CatalogError) as caught:
        standardise_table(csv_table(tmp_path, "ra,dec\n1,2\n" + "\n".join(bad) + "\n3,4\n"))
    message = str(caught.value)
    assert "7 of 9 rows" in message and "row 2 (ra is missing, dec 1.0), 3 (ra 1.0, dec is missing), 4 " in message
    assert "6 (ra 5.0, dec -90.1) and more" in message and "7 (" not in message


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (["1,2", "unknown,1.00708"], "row 2 (ra 'unknown', dec 1.00708); "),
        (["1,2", "7,12.5 deg"], "row 2 (ra 7.0, dec '12.5 deg'); "),
        (["1,2", ",1.00708"], "row 2 (ra is missing, dec 1.00708); "),
        (["1,2", "x\ty,null"], "row 2 (ra 'x\\ty', dec is missing); "),
        (["1,2", f"{'long' * 30},-91"], f"row 2 (ra '{'long' * 10}...', dec -91.0); "),
        (["?,2", "1,400", "3,4", "5,N"], "row 1 (ra '?', dec 2.0), 2 (ra 1.0, dec 400.0), 4 (ra 5.0, dec 'N'); "),
    ],
)
def test_text_of_a_position_is_shown_as_it_stands_in_the_table(tmp_path: Path, rows: list[str], words: str) -> None:
    with pytest.raises(CatalogError) as caught:
        standardise_table(csv_table(tmp_path, "ra,dec\n" + "\n".join(rows) + "\n"))
    remedy = "ra must be 0..360 and dec -90..90 degrees; correct or remove these rows"
    assert str(caught.value).endswith(words + remedy)


def test_the_text_of_positions_is_in_no_table_that_is_read(tmp_path: Path) -> None:
    table = read_table(csv_table(tmp_path, "ra,dec\n1,2\nx,3\n4,y\n"))
    assert table["ra"].to_pylist() == [1, None, 4] and table["dec"].to_pylist() == [2, 3, None]
    good = standardise(table.slice(0, 1), "table")
    assert good.column_names == SOURCE_SCHEMA.names


SWAPPED = "ra and dec may be swapped: exchange the names of the two columns"
NEGATIVE = "add 360 to negative right ascensions"
CORRECT = "correct or remove these rows"


@pytest.mark.parametrize(
    ("rows", "remedy"),
    [
        (["1.03,121.6", "-28.7,195.4"], SWAPPED),
        (["1.03,121.6", "-28.7,12.4", "3,359", "x,5", "-90,360"], SWAPPED),
        (["1.03,121.6", "2,12", "3,12"], CORRECT),
        (["1.03,121.6", "91,195.4"], CORRECT),
        (["1.03,121.6", "9,361"], CORRECT),
        (["-0.5,1", "-180,90"], NEGATIVE),
        (["-0.5,1", "179,2"], NEGATIVE),
        (["-0.5,1", "179,2", "3,95", ",4"], f"{NEGATIVE}; correct or remove the other rows"),
        (["-180.5,1", "1,2"], CORRECT),
        (["-99,-99", "1,2"], CORRECT),
        (["1,-91"], CORRECT),
        (["nan,nan", ","], CORRECT),
    ],
)
def test_the_remedy_of_positions_off_the_sky_goes_by_their_values(tmp_path: Path, rows: list[str], remedy: str) -> None:
    with pytest.raises(CatalogError) as caught:
        standardise_table(csv_table(tmp_path, "ra,dec\n" + "\n".join(rows) + "\n"))
    assert str(caught.value).endswith(f"; ra must be 0..360 and dec -90..90 degrees; {remedy}")


def test_all_kinds_of_bad_rows_come_together(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="1 of 4 rows has no position.*empty in 1 row.*source_id a occurs in more"):
        standardise_table(csv_table(tmp_path, "source_id,ra,dec\na,1,1\na,2,2\n,3,3\nb,400,4\n"))


@pytest.mark.parametrize("suffix", [".csv", ".tbl", ".xml", ".fits", ".ecsv", ".parquet"])
def test_further_columns_are_read_as_text_and_a_source_may_stand_there_twice(tmp_path: Path, suffix: str) -> None:
    table = user_table()
    table["Class"], table["source_id"] = ["001", "star", "002"], ["a", "a", "b"]
    path = str(write_table(table, tmp_path / f"t{suffix}"))
    found = read_table(path, Wanted(text=("class", "absent")))
    assert (
        "other" not in found.column_names
        and "absent" not in found.column_names
        and "coadd_id" not in found.schema.names
    )
    assert found["ra"].to_pylist() == [10.5, 359.25, 0.0]
    whole = standardise(found, "labels", unique=False)
    assert whole.schema == SOURCE_SCHEMA.append(pa.field("class", pa.string()))
    assert whole["class"].to_pylist() == ["001", "star", "002"] and whole["source_id"].to_pylist() == ["a", "a", "b"]
    with pytest.raises(CatalogError, match="^labels: source_id a occurs in more than one row"):
        standardise(found, "labels")


@pytest.mark.parametrize("suffix", [".csv", ".tbl", ".xml", ".fits", ".ecsv", ".parquet"])
def test_further_numbers_are_read_and_limits_are_no_magnitudes(tmp_path: Path, suffix: str) -> None:
    table = Table({"RA": [1.0, 2.0, 3.0], "Dec": [0.0, 1.0, 2.0], "PMRA": [-12.5, 0.25, 99.0]})
    table["w1mpro"], table["w1lim"] = [5.0, 1.5, 12.0], [0.0, -1.0, 1.0]
    table["w2mpro"], table["w2snr"], table["w2lim"] = [5.0, 6.0, 7.0], [9.0, 9.0, 1.0], [0.0, 1.0, 1.0]
    table["w4mpro"], table["w4sigmpro"] = [4.0, 99.0, 8.0], np.array([0.1, 0.1, np.nan])
    path = str(write_table(table, tmp_path / f"t{suffix}"))
    wanted = Wanted(numbers=("pmra", "w4mpro", "h_m_2mass"))
    with pytest.warns(TableWarning, match="2 values of column w1mpro are limits and become null; 1 value of column w4"):
        whole = standardise(read_table(path, wanted), "labels")
    assert whole.schema.names[len(SOURCE_SCHEMA) :] == ["pmra", "w4mpro", "h_m_2mass"]
    assert whole["pmra"].to_pylist() == [-12.5, 0.25, 99.0] and whole["h_m_2mass"].null_count == 3
    assert whole["w1mpro"].to_pylist() == [5, None, None] and whole["w4mpro"].to_pylist() == [4, None, None]
    assert whole["w2mpro"].to_pylist() == [5, 6, 7]  # the S/N tells limits
    assert whole["bad_values"].to_pylist() == [0, 1 << CHECKED.index("w4mpro"), 0]


@pytest.mark.parametrize("suffix", [".csv", ".tbl", ".xml", ".fits", ".ecsv", ".parquet"])
def test_a_table_without_positions_is_read_where_none_are_needed(tmp_path: Path, suffix: str) -> None:
    path = str(write_table(Table({"Key": ["x", "y"], "W1mpro": [14.5, 15.25]}), tmp_path / f"t{suffix}"))
    whole = standardise(read_table(path, Wanted(needs_positions=False)), "labels")
    assert whole["w1mpro"].to_pylist() == [14.5, 15.25] and whole["ra"].null_count == whole["dec"].null_count == 2
    assert whole["source_id"].to_pylist() == ["row-000001", "row-000002"]
    with pytest.raises(CatalogError, match="ra and dec"):
        read_table(path)
    half = str(write_table(Table({"ra": [1.0], "W1mpro": [14.5]}), tmp_path / f"half{suffix}"))
    with pytest.raises(CatalogError, match="no column dec"):
        read_table(half, Wanted(needs_positions=False))


def test_units_of_a_table_are_honoured(tmp_path: Path) -> None:
    table = Table({"ra": [1.0, 2.0] * u.hourangle, "dec": [0.5, -0.5] * u.rad})
    table.write(tmp_path / "t.ecsv")
    read = standardise_table(str(tmp_path / "t.ecsv"))
    np.testing.assert_allclose(read["ra"].to_numpy(), [15, 30])
    np.testing.assert_allclose(read["dec"].to_numpy(), np.degrees([0.5, -0.5]))
    Table({"ra": [1.0] * u.m, "dec": [0.5]}).write(tmp_path / "m.fits")
    with pytest.raises(CatalogError, match="column ra has the unit m, which is not known"):
        standardise_table(str(tmp_path / "m.fits"))


def test_a_fits_image_is_no_table(tmp_path: Path) -> None:
    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "image.fits")
    with pytest.raises(CatalogError, match="holds 1 image and no table"):
        standardise_table(str(tmp_path / "image.fits"))


@pytest.mark.integration
@settings(max_examples=40, deadline=None)
@given(rows=st.lists(st.tuples(st.floats(0, 360), st.floats(-90, 90)), min_size=1, max_size=30))
def test_positions_come_through_csv_exactly(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[float, float]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "exact.csv"
    stream = io.StringIO()
    stream.write("ra,dec\n" + "".join(f"{ra!r},{dec!r}\n" for ra, dec in rows))
    path.write_text(stream.getvalue())
    table = standardise_table(str(path))
    assert list(zip(table["ra"].to_pylist(), table["dec"].to_pylist(), strict=True)) == rows


# --- several tables in one file, and the status of a query ------------------------------------------


def positions(path: Path | str, **options: bool) -> dict[str, list[Any]]:
    """Ra and dec of a table, rounded far below a milliarcsecond."""
    table = standardise_table(str(path), **options)
    return {name: np.round(table[name].to_numpy(), 10).tolist() for name in ("ra", "dec")}


def fits_table(name: str, ra: Sequence[float], dec_name: str = "dec") -> fits.BinTableHDU:
    columns = [fits.Column("ra", "D", array=np.array(ra)), fits.Column(dec_name, "D", array=np.array(ra) / 2)]
    return fits.BinTableHDU.from_columns(columns, name=name)


@pytest.mark.parametrize(
    "tables",
    [
        [("CATALOG", [10.0, 20.0], "dec")],
        [("INFO", [1.0], "y"), ("CATALOG", [10.0, 20.0], "dec")],
        [("CATALOG", [10.0, 20.0], "dec"), ("INFO", [1.0], "y")],
        [("EMPTY", [], "dec"), ("CATALOG", [10.0, 20.0], "dec")],
    ],
)
def test_the_one_fits_table_with_positions_is_read(tmp_path: Path, tables: list[tuple[str, list[float], str]]) -> None:
    image = fits.ImageHDU(np.zeros((3, 3)))
    hdus = [fits_table(name, ra, dec_name) for name, ra, dec_name in tables]
    fits.HDUList([fits.PrimaryHDU(np.zeros((2, 2))), image, *hdus]).writeto(tmp_path / "t.fits")
    assert positions(tmp_path / "t.fits") == {"ra": [10.0, 20.0], "dec": [5.0, 10.0]}


def test_several_fits_tables_with_positions_are_listed(tmp_path: Path) -> None:
    hdus = [fits.PrimaryHDU(), fits_table("QA", [1.0]), fits_table("CATALOG", [1.0, 2.0]), fits_table("X", [1], "y")]
    fits.HDUList(hdus).writeto(tmp_path / "t.fits")
    with pytest.raises(CatalogError, match=r"2 of its tables have ra and dec: HDU 1 QA \(1 row\), HDU 2 CATALOG \(2 r"):
        standardise_table(str(tmp_path / "t.fits"))
    fits.HDUList([fits.PrimaryHDU(), fits_table("A", [1], "x"), fits_table("B", [1], "y")]).writeto(tmp_path / "n.fits")
    with pytest.raises(CatalogError, match="none of its 2 tables .*: HDU 1 A has ra, x; HDU 2 B has ra, y"):
        standardise_table(str(tmp_path / "n.fits"))


def test_a_fits_file_with_foreign_bytes_at_its_end_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.fits"
    fits.HDUList([fits.PrimaryHDU(), fits_table("CATALOG", [10.0])]).writeto(path)
    with open(path, "ab") as stream:
        stream.truncate(path.stat().st_size + 3_000_000_000)  # zeros that take no place on the disk
    assert positions(path) == {"ra": [10.0], "dec": [5.0]}


def test_tables_larger_than_the_memory_are_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("ra,dec\n1,2\n" + "3,4\n" * 300_000)
    with open(tmp_path / "t.csv", "ab") as stream:
        stream.truncate(2 * psutil.virtual_memory().total)  # no place on the disk
    with pytest.raises(CatalogError, match="GB, more than the memory of this machine.*split it, or write it as Parq"):
        standardise_table(str(tmp_path / "t.csv"))


def votable(*tables: str, infos: str = "", after: str = "") -> str:
    body = "".join(f'<RESOURCE type="results">{infos}{table}{after}</RESOURCE>' for table in tables)
    return (
        f'<?xml version="1.0"?>\n<VOTABLE version="1.3" xmlns="http://www.ivoa.net/xml/VOTable/v1.3">{body}</VOTABLE>'
    )


def votable_table(fields: Sequence[str], rows: Sequence[Sequence[object]], name: str = "t") -> str:
    heads = "".join(f"<FIELD {field}/>" for field in fields)
    cells = "".join("<TR>" + "".join(f"<TD>{value}</TD>" for value in row) + "</TR>" for row in rows)
    return f'<TABLE name="{name}">{heads}<DATA><TABLEDATA>{cells}</TABLEDATA></DATA></TABLE>'


RA, DEC = 'name="ra" datatype="double" unit="deg"', 'name="dec" datatype="double" unit="deg"'


@pytest.mark.parametrize(
    ("fields", "row", "expected"),
    [
        ([f'ID="col_1" {RA}', f'ID="col_2" {DEC}'], [1.5, 2.5], (1.5, 2.5)),
        ([f'ID="dec" {RA}', f'ID="ra" {DEC}'], [1.5, 2.5], (1.5, 2.5)),
        (['ID="ra" name="x" datatype="double"', f'ID="c" {RA}', f'ID="d" {DEC}'], [9, 1.5, 2.5], (1.5, 2.5)),
        ([f'ID="ra" {RA}', f'ID="ra_2" {RA}', f'ID="d" {DEC}'], [1.5, 9, 2.5], (1.5, 2.5)),
        ([f'ID="ra_1" {RA}', f'ID="ra" {RA}', f'ID="d" {DEC}'], [9, 1.5, 2.5], (1.5, 2.5)),
        (['ID="x" name="RA" datatype="float"', 'ID="y" name="Dec" datatype="short"'], [1.5, 2], (1.5, 2.0)),
        (['name="ra" datatype="char" arraysize="*" unit="h"', f'ID="b" {DEC}'], ["0.1", 2.5], (1.5, 2.5)),
    ],
)
def test_votable_columns_go_by_name(
    tmp_path: Path, fields: list[str], row: list[Any], expected: tuple[float, float]
) -> None:
    (tmp_path / "t.xml").write_text(votable(votable_table(fields, [row])))
    assert positions(tmp_path / "t.xml") == {"ra": [expected[0]], "dec": [expected[1]]}


def test_a_table_without_identifiers_is_told_how_to_keep_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = csv_table(tmp_path, "name,RA,Dec\nvega,1,2\naltair,3,4\n")
    assert standardise_table(path)["source_id"].to_pylist() == ["row-000001", "row-000002"]
    assert [record.message for record in caplog.records] == [
        f"table {path}: it has no column source_id; the sources are called row-000001 and so on; to keep ids of your "
        "own, rename their column to source_id"
    ]
    csv_table(tmp_path, "Source_ID,RA,Dec\nvega,1,2\naltair,3,4\n")
    assert standardise_table(path)["source_id"].to_pylist() == ["vega", "altair"] and len(caplog.records) == 1


def test_votable_names_that_repeat_are_refused(tmp_path: Path) -> None:
    fields = [f'ID="a" {RA}', f'ID="b" {RA}', f'ID="c" {DEC}']
    (tmp_path / "t.xml").write_text(votable(votable_table(fields, [[1, 2, 3]])))
    with pytest.raises(CatalogError, match="columns ra, ra all mean ra; keep one"):
        standardise_table(str(tmp_path / "t.xml"))


def test_the_one_votable_table_with_positions_is_read(tmp_path: Path) -> None:
    other = votable_table(['name="x" datatype="double"'], [[1]], "other")
    empty = votable_table([RA, DEC], [], "empty")
    catalog = votable_table([RA, DEC], [[10, 1], [20, 2]], "catalog")
    (tmp_path / "t.xml").write_text(votable(other, catalog, empty))
    assert positions(tmp_path / "t.xml") == {"ra": [10.0, 20.0], "dec": [1.0, 2.0]}
    (tmp_path / "two.xml").write_text(votable(other, catalog, votable_table([RA, DEC], [[1, 1]], "second")))
    with pytest.raises(CatalogError, match=r"2 of its .*: table 2 catalog \(2 rows\), table 3 second \(1 row\)"):
        standardise_table(str(tmp_path / "two.xml"))
    (tmp_path / "none.xml").write_text(votable())
    with pytest.raises(CatalogError, match="holds no table"):
        standardise_table(str(tmp_path / "none.xml"))


@pytest.mark.parametrize("format", ["tabledata", "binary", "binary2"])
def test_votable_serialisations(tmp_path: Path, format: str) -> None:
    table = Table({"ra": [10.5], "dec": [-3.0], "source_id": [EXACT], "w1mpro": MaskedColumn([1.0], mask=[True])})
    table.write(tmp_path / "t.xml", format="votable", tabledata_format=format)
    read = standardise_table(str(tmp_path / "t.xml"))
    assert read.select(["source_id", "ra", "dec", "w1mpro"]).to_pylist() == [
        {"source_id": str(EXACT), "ra": 10.5, "dec": -3.0, "w1mpro": None}
    ]


@pytest.mark.parametrize("place", ["infos", "after"])
def test_the_status_of_a_query_counts(tmp_path: Path, place: str) -> None:
    table, path = votable_table([RA, DEC], [[1, 2]]), tmp_path / "t.xml"
    for value in ("OK", "other"):
        path.write_text(votable(table, **{place: f'<INFO name="QUERY_STATUS" value="{value}"/>'}))
        assert positions(path) == {"ra": [1.0], "dec": [2.0]}
    path.write_text(votable(table, **{place: '<INFO name="QUERY_STATUS" value="OVERFLOW"/>'}))
    with pytest.raises(CatalogError, match="QUERY_STATUS is OVERFLOW.*sources are missing.*--allow-truncated"):
        standardise_table(str(path))
    assert positions(path, allow_truncated=True) == {"ra": [1.0], "dec": [2.0]}
    path.write_text(votable(table, **{place: '<INFO name="QUERY_STATUS" value="ERROR">no such\n table</INFO>'}))
    with pytest.raises(CatalogError, match="the service answered with an error: no such table"):
        standardise_table(str(path), allow_truncated=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('<!DOCTYPE V [<!ENTITY a "b">]>\n<VOTABLE>&a;</VOTABLE>', "defines XML entities"),
        (
            votable(f"<TABLE><FIELD {RA}/><DATA><BINARY><STREAM href='file:///etc/passwd'/></BINARY></DATA></TABLE>"),
            "another file or address",
        ),
        (votable(votable_table([RA, DEC], [[1, 2]]))[:-60], "cannot be read as votable"),
        (
            votable(f"<TABLE><FIELD {RA}/><DATA><FITS><STREAM>x</STREAM></FITS></DATA></TABLE>"),
            "holds its rows as FITS",
        ),
        (
            votable(votable_table([RA, DEC], [[1, 2]]).replace("<TABLE", "<TABLE nrows='99999999'")),
            "declares nrows = 9",
        ),
        (votable(votable_table([RA, DEC, 'name="s" datatype="char" arraysize="99999999"'], [])), "declares arraysize"),
    ],
)
def test_votables_that_are_not_followed(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "t.xml").write_text(text)
    with pytest.raises(CatalogError, match=words):
        standardise_table(str(tmp_path / "t.xml"))


# --- units -----------------------------------------------------------------------------------------

HOURS, RADIANS = {"ra": [150.0, 15.0], "dec": [1.5, -2.0]}, {"ra": [90.0, 45.0], "dec": [1.5, -2.0]}


@pytest.mark.parametrize("suffix", ["fits", "xml", "ecsv", "tbl", "parquet", "voparquet", "csv", "tsv"])
@pytest.mark.parametrize(("unit", "truth"), [("h", HOURS), ("rad", RADIANS)])
def test_mixed_units_in_every_format(tmp_path: Path, suffix: str, unit: str, truth: dict[str, list[float]]) -> None:
    ra = np.array(truth["ra"]) / {"h": 15.0, "rad": 180 / np.pi}[unit]
    dec = np.array(truth["dec"]) * 60
    path = tmp_path / f"t.{suffix}"
    if suffix in ("csv", "tsv"):
        mark = {"csv": ",", "tsv": "\t"}[suffix]
        rows = [("ra", "dec"), (unit, "arcmin" if suffix == "tsv" else "deg"), ("---", "---")][: 3 - (suffix == "csv")]
        rows += list(
            zip(map(repr, ra.tolist()), map(repr, (dec if suffix == "tsv" else dec / 60).tolist()), strict=True)
        )
        path.write_text("".join(f"{mark.join(row)}\n" for row in rows))
    else:
        units = {"h": u.hourangle if suffix in ("ecsv", "parquet", "voparquet") else u.h, "rad": u.rad}
        table = Table({"ra": ra * units[unit], "dec": dec * u.arcmin})
        kinds = {"xml": "votable", "tbl": "ascii.ipac", "voparquet": "parquet.votable", "ecsv": "ascii.ecsv"}
        options: dict[str, Any] = {"metadata": {"ra": {"unit": unit}}} if suffix == "voparquet" else {}
        (QTable if suffix == "parquet" else Table)(table).write(path, format=kinds.get(suffix, suffix), **options)
    assert positions(path) == truth


def test_the_shared_cases_of_units(tmp_path: Path) -> None:
    for unit in ("DEGREE", "degrees", "[deg]", "deg."):
        columns = [fits.Column(name, "D", unit=unit, array=np.array([1.5])) for name in ("RA", "DEC")]
        fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "t.fits", overwrite=True)
        assert positions(tmp_path / "t.fits") == {"ra": [1.5], "dec": [1.5]}
    for unit in ("degrees", "--", "", "deg"):
        head = f"|ra        |dec       |\n|double    |double    |\n|{unit:10}|{unit:10}|\n"
        (tmp_path / "t.tbl").write_text(f"\\fixlen = T\n{head} 121.6004   1.0361    \n")
        assert positions(tmp_path / "t.tbl") == {"ra": [121.6004], "dec": [1.0361]}


@pytest.mark.parametrize("suffix", [".fits", ".xml", ".ecsv", ".tbl"])
def test_an_unknown_unit_is_refused_in_every_format(tmp_path: Path, suffix: str) -> None:
    path = write_table(Table({"ra": [1.0] * u.m, "dec": [0.5]}), tmp_path / f"t{suffix}")
    with pytest.raises(CatalogError, match="column ra has the unit m, which is not known: give degrees"):
        standardise_table(str(path))


# --- identifiers -----------------------------------------------------------------------------------


def test_identifiers_of_csv_are_exact(tmp_path: Path) -> None:
    text = f"source_id,ra,dec,cntr\n{EXACT},1,2,{EXACT}\n{EXACT + 1},1,3,\n{EXACT + 2}, 1,4,{EXACT + 2}.0\n"
    table = standardise_table(csv_table(tmp_path, text))
    assert table["source_id"].to_pylist() == [str(EXACT + i) for i in range(3)]
    assert table["cntr"].to_pylist() == [EXACT, None, EXACT + 2]


@pytest.mark.parametrize("name", ["source_id", "cntr"])
@pytest.mark.parametrize("suffix", [".fits", ".xml", ".parquet", ".csv"])
def test_identifiers_that_were_floats_are_refused(tmp_path: Path, suffix: str, name: str) -> None:
    table = Table({"ra": [1.0, 2.0], "dec": [0.5, 1.0], name: [float(EXACT), 5.0]})
    path = write_table(table, tmp_path / f"t{suffix}")
    with pytest.raises(CatalogError, match=rf"column {name} (is double|holds)"):
        standardise_table(str(path))


@pytest.mark.parametrize("suffix", [".fits", ".xml", ".parquet", ".csv", ".ecsv", ".tbl"])
def test_small_identifiers_that_were_floats_are_integers(tmp_path: Path, suffix: str) -> None:
    table = Table({"ra": [1.0, 2.0], "dec": [0.5, 1.0], "source_id": [12345.0, 2.0**53], "cntr": [7.0, np.nan]})
    table["cntr"] = MaskedColumn([7.0, 1.0], mask=[False, True])
    read = standardise_table(str(write_table(table, tmp_path / f"t{suffix}")))
    assert read["source_id"].to_pylist() == ["12345", str(2**53)] and read["cntr"].to_pylist() == [7, None]


@pytest.mark.parametrize("suffix", [".fits", ".xml", ".parquet", ".csv", ".ecsv", ".tbl"])
def test_integer_identifiers_keep_every_digit(tmp_path: Path, suffix: str) -> None:
    table = Table({"ra": [1.0, 2.0], "dec": [0.5, 1.0], "cntr": [EXACT, EXACT + 2], "source_id": [EXACT, EXACT + 1]})
    read = standardise_table(str(write_table(table, tmp_path / f"t{suffix}")))
    assert read["cntr"].to_pylist() == [EXACT, EXACT + 2]
    assert read["source_id"].to_pylist() == [str(EXACT), str(EXACT + 1)]


# --- null words and columns of another type ---------------------------------------------------------

NULLS = ["-", "--", "null", "NULL", "<NA>", "N/A", "NA", "nan", "NaN", "None", "", "n/a", "..."]


def test_words_for_null_are_null(tmp_path: Path) -> None:
    rows = "".join(f"{i},1,{word},{word},{word},{word},{word}\n" for i, word in enumerate(NULLS))
    table = standardise_table(
        csv_table(tmp_path, f"ra,dec,w1mpro,cntr,ext_flg,designation,other\n{rows}9,2,1,2,3,a,b\n")
    )
    last = table.slice(len(NULLS))
    for name, value in (("w1mpro", 1.0), ("cntr", 2), ("ext_flg", 3), ("designation", "a")):
        assert table[name].null_count == len(NULLS) and last[name].to_pylist() == [value]


@pytest.mark.parametrize("word", [word for word in NULLS if word])
def test_words_for_null_in_needed_columns_are_missing_positions(tmp_path: Path, word: str) -> None:
    with pytest.raises(CatalogError, match="1 of 2 rows has no position on the sky, such as row 1"):
        standardise_table(csv_table(tmp_path, f"ra,dec\n{word},1\n2,3\n"))
    with pytest.raises(CatalogError, match="source_id is empty in 1 row"):
        standardise_table(csv_table(tmp_path, f"source_id,ra,dec\n{word},1,1\na,2,3\n"))


def test_words_for_null_in_ipac_and_votable(tmp_path: Path) -> None:
    head = "|ra        |dec       |w3sigmpro|w1mpro |\n|double    |double    |double   |double |\n"
    (tmp_path / "t.tbl").write_text("\\x=1\n" + head + " 121.6004   1.0361     -         null   \n 1.5 2.5 0.1 12.5\n")
    (tmp_path / "t.tbl").write_text(
        "\\x=1\n" + head + " 121.6004   1.0361     -         null   \n 1.5        2.5        0.1       12.5   \n"
    )
    table = standardise_table(str(tmp_path / "t.tbl"))
    assert table["ra"].to_pylist() == [121.6004, 1.5] and table["w1mpro"].to_pylist() == [None, 12.5]
    fields = [RA, DEC, 'name="w1mpro" datatype="float"', 'name="x" datatype="int"']
    (tmp_path / "t.xml").write_text(votable(votable_table(fields, [[1, 2, "NULL", "-"], [3, 4, 12.5, 7]])))
    assert standardise_table(str(tmp_path / "t.xml"))["w1mpro"].to_pylist() == [None, 12.5]


@pytest.mark.parametrize(
    ("column", "words", "expected"),
    [
        (
            "cntr\nA12\nA13",
            "column cntr is left out: 2 of 2 values are no integers of 64 bits, such as 'A12'",
            [None] * 2,
        ),
        ("cntr\n5\n1.5", "column cntr is left out: 1 of 2 values is no integer of 64 bits, such as '1.5'", [None] * 2),
        ("ext_flg\nN\nY", "column ext_flg is left out: its 2 values, such as 'N', are no whole numbers", [None] * 2),
        (
            "ext_flg\n1.5\n3",
            "1 value of column ext_flg, '1.5', is no whole number and becomes null",
            [None, 3],
        ),
        ("w1mpro\n<15.2\n12.5", "1 value of column w1mpro, '<15.2', is no number and bec", [None, 12.5]),
        ("w2snr\nbright\n", "column w2snr is left out: its 1 value, 'bright', is no number .flag 256.$", [None] * 2),
    ],
)
def test_columns_of_another_type_are_left_out(tmp_path: Path, column: str, words: str, expected: list[Any]) -> None:
    name, *values = column.split("\n")
    path = csv_table(tmp_path, f"ra,dec,{name}\n" + "".join(f"{i},2,{value}\n" for i, value in enumerate(values)))
    with pytest.warns(TableWarning, match=words) as caught:
        table = standardise_table(path)
    assert len(caught) == 1 and table[name].to_pylist() == expected and table["ra"].to_pylist() == [0, 1]


def test_several_values_that_are_no_numbers_are_told_in_the_plural(tmp_path: Path) -> None:
    path = csv_table(tmp_path, "ra,dec,w2snr\n1,2,<1\n1,3,<2\n1,4,3\n")
    with pytest.warns(
        TableWarning, match=": 2 values of column w2snr, such as '<1', are no numbers and become null .flag 256.$"
    ):
        assert standardise_table(path)["w2snr"].to_pylist() == [None, None, 3]


def test_one_warning_counts_all_columns(tmp_path: Path) -> None:
    with pytest.warns(
        TableWarning, match="column cntr is left out.*; 1 value of column w1mpro.*; column ext_flg"
    ) as caught:
        standardise_table(csv_table(tmp_path, "ra,dec,cntr,ext_flg,w1mpro\n1,2,a,b,c\n1,3,a,b,4\n"))
    assert len(caught) == 1


# --- Parquet types ---------------------------------------------------------------------------------


def test_parquet_types_of_all_kinds(tmp_path: Path) -> None:
    table = pa.table({
        "RA": pa.array([Decimal("10.5000000"), Decimal("20.2500000")], pa.decimal128(10, 7)),
        "DEC": pa.array([1, 2], pa.int16()),
        "Source_ID": pa.array([f"{EXACT}", "b"], pa.large_string()),
        "cntr": pa.array([5, EXACT], pa.uint64()),
        "coadd_id": pa.array(["0000p000_ac51", None]).dictionary_encode(),
        "designation": pa.array(["x", ""], pa.string_view()),
        "cc_flags": pa.array([b"0000", None], pa.binary()),
        "ext_flg": pa.array([5.0, float("nan")], pa.float32()),
        "w1mpro": pa.array(["12.5", "--"]),
        "w2mpro": pa.nulls(2),
        "nested": pa.array([[1], [2]]),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    read = standardise_table(str(tmp_path / "t.parquet")).select(["ra", "dec", "source_id", "cntr", "coadd_id",
        "designation", "cc_flags", "ext_flg", "w1mpro", "w2mpro"])  # fmt: skip
    assert read.to_pydict() == {
        "ra": [10.5, 20.25], "dec": [1.0, 2.0], "source_id": [str(EXACT), "b"], "cntr": [5, EXACT],
        "coadd_id": ["0000p000_ac51", None], "designation": ["x", None], "cc_flags": ["0000", None],
        "ext_flg": [5, None], "w1mpro": [12.5, None], "w2mpro": [None, None],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "column", "words"),
    [
        ("ra", pa.array([True]), "column ra is bool; give one number a row"),
        ("ra", pa.array([[1.0]]), "column ra is list"),
        ("dec", pa.array([0], pa.timestamp("s")), "column dec is timestamp"),
        ("ra", pa.array([b"\xff\xfe"]), "column ra holds text that is not UTF-8"),
        ("source_id", pa.array([{"a": 1}]), "column source_id is struct"),
        ("source_id", pa.array([b"\xff\xfe"]), "column source_id holds text that is not UTF-8"),
    ],
)
def test_needed_columns_of_another_type_are_refused(tmp_path: Path, name: str, column: pa.Array, words: str) -> None:
    pq.write_table(pa.table({"ra": [1.0], "dec": [2.0]} | {name: column}), tmp_path / "t.parquet")
    with pytest.raises(CatalogError, match=words):
        standardise_table(str(tmp_path / "t.parquet"))


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("cntr", pa.array([True])),
        ("cntr", pa.array([2**64 - 1], pa.uint64())),
        ("ext_flg", pa.array([[1]])),
        ("w1mpro", pa.array([0], pa.timestamp("s"))),
        ("designation", pa.array([b"\xff\xfe"])),
        ("coadd_id", pa.array([{"a": 1}])),
    ],
)
def test_other_columns_of_another_type_are_left_out(tmp_path: Path, name: str, column: pa.Array) -> None:
    pq.write_table(pa.table({"ra": [1.0], "dec": [2.0], name: column}), tmp_path / "t.parquet")
    with pytest.warns(TableWarning, match=f"column {name} .*left out"):
        table = standardise_table(str(tmp_path / "t.parquet"))
    assert table["ra"].to_pylist() == [1.0] and table[name].to_pylist() == [None]


@pytest.mark.parametrize("suffix", ["parquet", "ecsv"])
def test_masks_of_astropy_are_nulls(tmp_path: Path, suffix: str) -> None:
    table = QTable({
        "ra": [1.5, 2.5] * u.deg, "dec": [3.0, 4.0] * u.deg,
        "w1mpro": MaskedColumn([12.5, 99.0], mask=[False, True]), "ext_flg": MaskedColumn([5, 999], mask=[False, True]),
        "designation": MaskedColumn(["a", "b"], mask=[False, True]),
    })  # fmt: skip
    options = {"serialize_method": "data_mask"} if suffix == "ecsv" else {}
    table.write(tmp_path / f"t.{suffix}", **options)
    read = standardise_table(str(tmp_path / f"t.{suffix}"))
    assert read["ra"].to_pylist() == [1.5, 2.5] and read["w1mpro"].to_pylist() == [12.5, None]
    assert read["ext_flg"].to_pylist() == [5, None] and read["designation"].to_pylist() == ["a", None]


def test_masked_positions_of_astropy_are_missing(tmp_path: Path) -> None:
    table = QTable({"ra": Masked([1.5, 2.5] * u.deg, mask=[False, True]), "dec": [3.0, 4.0] * u.deg})
    for suffix in ("parquet", "ecsv"):
        table.write(tmp_path / f"t.{suffix}")
        with pytest.raises(CatalogError, match="1 of 2 rows has no position on the sky, such as row 2"):
            standardise_table(str(tmp_path / f"t.{suffix}"))


# --- FITS types ------------------------------------------------------------------------------------


def test_fits_types_of_all_kinds(tmp_path: Path) -> None:
    columns = [
        fits.Column("RA", "E", array=np.array([10.5, 20.25], "f4")),
        fits.Column("Dec", "J", array=np.array([3, 4])),
        fits.Column("source_id", "K", bzero=2**63, array=np.array([2**64 - 1, 2**63 + 1], np.uint64)),
        fits.Column("cntr", "K", null=-99, array=np.array([EXACT, -99])),
        fits.Column("cc_flags", "6A", array=np.array(["0000", ""])),
        fits.Column("ext_flg", "I", null=999, array=np.array([999, 3])),
        fits.Column("other", "3D", array=np.zeros((2, 3))),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "t.fits")
    fits.setval(tmp_path / "t.fits", "TSCAL2", value=0.5, ext=1)
    read = standardise_table(str(tmp_path / "t.fits"))
    assert read.select(["ra", "dec", "source_id", "cntr", "cc_flags", "ext_flg"]).to_pydict() == {
        "ra": [10.5, 20.25], "dec": [1.5, 2.0], "source_id": [str(2**64 - 1), str(2**63 + 1)], "cntr": [EXACT, None],
        "cc_flags": ["0000", None], "ext_flg": [None, 3],
    }  # fmt: skip


def test_fits_ascii_tables_keep_their_blanks(tmp_path: Path) -> None:
    columns = [
        fits.Column("ra", "D25.17", array=np.array([10.5, 20.25])),
        fits.Column("dec", "F10.4", array=np.array([1.5, 2.0])),
        fits.Column("cntr", "A20", array=np.array([str(EXACT), ""])),
        fits.Column("w1mpro", "F8.3", null="-9.000", array=np.array([12.5, -9.0])),
    ]
    fits.TableHDU.from_columns(columns).writeto(tmp_path / "t.fits")
    read = standardise_table(str(tmp_path / "t.fits"))
    assert read.select(["ra", "dec", "cntr", "w1mpro"]).to_pydict() == {
        "ra": [10.5, 20.25], "dec": [1.5, 2.0], "cntr": [EXACT, None], "w1mpro": [12.5, None],
    }  # fmt: skip
    content = (tmp_path / "t.fits").read_bytes()
    blank = re.sub(rb"2\.0250*D\+01", lambda match: b" " * len(match[0]), content)
    assert blank != content
    (tmp_path / "t.fits").write_bytes(blank)
    with pytest.raises(CatalogError, match="1 of 2 rows has no position"):
        standardise_table(str(tmp_path / "t.fits"))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_column_oriented_fits_of_topcat(tmp_path: Path, n: int) -> None:
    ra, names = np.arange(n) + 0.5, np.array([f"id{i:03d}" for i in range(n)])
    columns = [
        fits.Column("ra", f"{n}D", dim=f"({n})", array=ra[None]),
        fits.Column("dec", f"{n}E", dim=f"({n})", array=ra[None].astype("f4")),
        fits.Column("source_id", f"{5 * n}A", dim=f"(5,{n})", array=names[None]),
        fits.Column("ext_flg", f"{n}J", dim=f"({n})", null=-1, array=np.where(np.arange(n) == 1, -1, 3)[None]),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "t.colfits")
    read = standardise_table(str(tmp_path / "t.colfits"))
    assert read.select(["source_id", "ra", "dec", "ext_flg"]).to_pydict() == {
        "source_id": names.tolist(), "ra": ra.tolist(), "dec": ra.tolist(),
        "ext_flg": [None if i == 1 else 3 for i in range(n)],
    }  # fmt: skip


def test_fits_arrays_in_positions_are_refused(tmp_path: Path) -> None:
    columns = [fits.Column(name, "3D", array=np.zeros((2, 3))) for name in ("ra", "dec")]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "t.fits")
    with pytest.raises(CatalogError, match="column ra is list.*give one number a row"):
        standardise_table(str(tmp_path / "t.fits"))


# --- text ------------------------------------------------------------------------------------------

VIZIER = """#
#   VizieR Astronomical Server
#RESOURCE=yCat_2328
#Column\tra\t(F11.7)\tRight ascension
source_id\tra\tdec\tw1mpro
\t"deg"\tdeg\tmag
----------\t-----------\t-----------\t------
a\t 10.5000000\t -2.0000000\t12.500
b\t 20.2500000\t  3.0000000\t      

"""
TST = """Simple TST example; stellar photometry catalogue.

A.C. Somebody.

# Start of parameter definitions.
EQUINOX: J2000.0

id_col: -1
# End of parameter definitions.
source_id\tra\tdec\tw1mpro
---------\t--\t---\t------
a\t10.5\t-2\t12.5
b\t20.25\t3\t
[EOD]
"""
TEXTS = {
    "vizier": VIZIER,
    "vizier without notes": VIZIER[VIZIER.index("source_id") :],
    "vizier with semicolons": VIZIER.replace("\t", ";"),
    "tst": TST,
    "tst with units": TST.replace("# End", "#column-units: \tHOURS\tDEGREES\tMAG\n# End")
    .replace("10.5", "0.7")
    .replace("20.25", "1.35"),
    "savetxt": "# source_id ra dec w1mpro\na 1.050000000000000000e+01 -2.0e+00 12.5\nb 2.025e+01 3.0e+00 nan\n",
    "savetxt with commas": "# notes\n# source_id, ra, dec, w1mpro\na,1.05e+01,-2,12.5\nb,20.25,3,nan\n",
    "ascii": "source_id   ra     dec  w1mpro\na          10.5   -2    12.5  \n  b   20.25 \t 3 --\n\n",
    "ascii with quotes": '"source_id" ra dec w1mpro\n"a" 10.5 -2 12.5\n"b" 20.25 3 ""\n',
    "ascii of topcat": '# source_id     ra    dec  w1mpro\n  a 10.5 -2 12.5\n  b 20.25 3 ""\n',
    "ruled": "source_id ra    dec w1mpro\n--------- ----- --- ------\na         10.5  -2  12.5\n  b 20.25 3   null\n",
    "pipes": "source_id|ra|dec|w1mpro\na|10.5|-2|12.5\nb|20.25|3|\n",
    "windows lines": "source_id,ra,dec,w1mpro\r\na,10.5,-2,12.5\r\n\r\nb,20.25,3,\r\n",
    "mac lines": "source_id,ra,dec,w1mpro\ra,10.5,-2,12.5\rb,20.25,3,\r",
    "fortran": "source_id,ra,dec,w1mpro\na,1.05D+01,-2.D0,12.5\nb,20.25d0,3,\n",
    "units line": "source_id,ra,dec,w1mpro\n,deg,deg,mag\na,10.5,-2,12.5\nb,20.25,3,\n",
    "repeated names": "x,source_id,ra,dec,w1mpro,x\n1,a,10.5,-2,12.5,2\n1,b,20.25,3,,2\n",
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_tables_of_all_kinds(tmp_path: Path, name: str) -> None:
    table = standardise_table(csv_table(tmp_path, TEXTS[name]))
    assert table["source_id"].to_pylist() == ["a", "b"] and table["w1mpro"].to_pylist() == [12.5, None]
    np.testing.assert_allclose(table["ra"].to_numpy(), [10.5, 20.25], rtol=1e-15)
    assert table["dec"].to_pylist() == [-2.0, 3.0]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_text_in_other_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("source_id,ra,dec\nβ,1.5,2\n".encode(encoding))
    assert standardise_table(str(path))["source_id"].to_pylist() == ["β"]
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert standardise_table(str(path))["source_id"].to_pylist() == ["β"]


def test_latin_text_counts_only_where_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes("ra,dec,name\n1.5,2,é\n".encode("latin-1"))
    assert positions(path) == {"ra": [1.5], "dec": [2.0]}
    path.write_bytes("ra,dec,designation\n1.5,2,é\n".encode("latin-1"))
    with pytest.warns(TableWarning, match="column designation holds text that is not UTF-8.*left out"):
        assert positions(path) == {"ra": [1.5], "dec": [2.0]}
    path.write_bytes("ra,dec,source_id\n1.5,2,é\n".encode("latin-1"))
    with pytest.raises(CatalogError, match="column source_id holds text that is not UTF-8.*save it as UTF-8"):
        standardise_table(str(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ra dec w1mpro w2mpro\n1 2 15.5\n", "not a regular CSV"),
        ('name,ra,dec\na,1,2\n"b,3,4\nc,5,6\nd",7,8\n', "4 lines hold 2 rows: a quotation mark is not closed"),
        ('name,ra,dec\na,1,2\n"b,3,4\nc,5,6\n', "not a regular CSV"),
        ("121.5 1.5\n122.5 2.5\n", "its first line, '121.5 1.5', does not name ra and dec"),
        ("121.5,1.5\n122.5,2.5\n", "its first line, '121.5,1.5', does not name ra and dec"),
        ("# only a comment\n", "no rows, only comments"),
        ("ra;dec\n121,5;1,5\n", "column ra has decimal commas .'121,5'.; write decimal points"),
        (VIZIER + VIZIER, "3 of 7 rows have no position on the sky, such as row 3"),
        (
            TST.replace("\tra\t", "\tRAJ2000\t").replace("\t--\t", "\t-------\t"),
            "no column ra; its columns are source_id, RAJ2000, dec, w1mpro",
        ),
        ("ra,dec\n--,--\n1,2\n", "1 of 2 rows has no position"),
        ("ra\tdec\n--\t--\n1\t2\n", "1 of 2 rows has no position"),
        ("ra\tdec\n1\t2\n---\t---\n", "1 of 2 rows has no position"),
        ("ra,dec\nfurlong,deg\n1,2\n", "1 of 2 rows has no position"),
    ],
)
@pytest.mark.filterwarnings("ignore::skyclass.errors.TableWarning")
def test_text_tables_that_cannot_be_used(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CatalogError, match=words):
        standardise_table(csv_table(tmp_path, text))


# --- files that are no table -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "absent", "loop"])
def test_only_regular_files_are_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "t.csv"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path)
    words = {"fifo": "FIFO, device", "device": "FIFO, device", "folder": "this is a folder"}.get(kind, "no such file")
    with pytest.raises(CatalogError, match=words):
        standardise_table(str(path))
    with pytest.raises(CatalogError):
        open_sources(str(path))


@pytest.mark.integration
def test_gzip_files_are_decompressed_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"ra,dec\n" + b"1,2\n" * 1_000_000))
    monkeypatch.setattr(tablefile, "MAX_GUNZIPPED_BYTES", 3_000_000)
    with pytest.raises(
        CatalogError, match="decompresses to more than 0.003 GB, the limit .*gunzip, or write it as Par"
    ):
        standardise_table(str(path))
    monkeypatch.setattr(tablefile, "MAX_GUNZIPPED_BYTES", 5_000_000)
    assert len(standardise_table(str(path))) == 1_000_000


@pytest.mark.parametrize("damage", ["cut", "checksum", "deflate", "header"])
def test_damaged_gzip_files_are_refused(tmp_path: Path, damage: str) -> None:
    content = bytearray(gzip.compress(b"ra,dec\n" + b"".join(b"%d,2\n" % i for i in range(300))))
    if damage == "cut":
        del content[-20:]
    elif damage == "checksum":
        content[-6] ^= 0xFF
    elif damage == "deflate":
        content[12:40] = b"\xff" * 28
    else:
        content[2] = 99
    (tmp_path / "t.csv.gz").write_bytes(bytes(content))
    with pytest.raises(CatalogError, match="damaged gzip"):
        standardise_table(str(tmp_path / "t.csv.gz"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04....", "zip archive"),
        (b"BZh91AY", "bzip2"),
        (b"\x89HDF\r\n\x1a\n\0\0", "HDF5"),
        (b"PARE0000", "encrypted Parquet"),
        (b"\x00" * 5000, "none of CSV|empty"),
        (gzip.compress(gzip.compress(b"ra,dec\n1,2\n", mtime=0), mtime=0), "none of CSV"),
        (b"ra,dec\n1,2\n" + b"\0" * 100, "not a regular CSV|none of CSV"),
        (b"\xff\xfer\x00a", "no column|UTF-16|first line"),
    ],
)
def test_other_files_are_named(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(CatalogError, match=words):
        standardise_table(str(tmp_path / "t.csv"))


@pytest.mark.integration
@pytest.mark.parametrize("suffix", [".csv", ".tbl", ".xml", ".fits", ".ecsv", ".parquet"])
def test_damaged_tables_give_one_error_or_a_table(tmp_path: Path, suffix: str) -> None:
    whole = write_table(user_table(), tmp_path / f"t{suffix}").read_bytes()
    rng = np.random.default_rng(zlib.crc32(suffix.encode()))
    path = tmp_path / f"damaged{suffix}"
    for i in range(60):
        content = bytearray(whole)
        if i % 3 == 0:
            content = content[: int(rng.integers(1, len(content)))]
        for place in rng.integers(0, len(content), 1 + i % 7):
            content[place] = int(rng.integers(0, 256))
        path.write_bytes(bytes(content))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TableWarning)
                table = standardise_table(str(path))
        except CatalogError as error:
            assert str(path) in str(error)
        else:
            assert table.schema == SOURCE_SCHEMA and 0 < len(table) <= 4
