"""Types at the limits of the formats, and what stands in a file beside the values."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.io.votable import parse_single_table
from astropy.table import Table

from skyclass.catalog.export import check_target, export_pieces, export_table, plain_table, refuse_existing
from skyclass.errors import ConfigError

UNION = pa.table({"n": [1, 2], "u": pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2])] * 2)})


def test_numbers_truth_values_and_text_are_shown_as_they_are() -> None:
    kinds = [
        pa.int8(), pa.uint64(), pa.float16(), pa.float64(), pa.decimal128(4, 1), pa.bool_(),
        pa.string(), pa.large_string(), pa.string_view(),
    ]  # fmt: skip
    table = pa.table({str(kind): pa.array([None], kind) for kind in kinds})
    assert plain_table(table).schema.types == kinds
    others = {
        "word": pa.array(["a", None]).dictionary_encode(),
        "day": pa.array([0, None], pa.date32()),
        "moment": pa.array([0, None], pa.timestamp("s", "Europe/Berlin")),
        "span": pa.array([90_500, None], pa.duration("ms")),
        "list": pa.array([[1, 2], None]),
    }
    shown = plain_table(pa.table(others))
    assert set(shown.schema.types) == {pa.string()}
    first = ["a", "1970-01-01", "1970-01-01T01:00:00+0100", "PT90.5S", "[1, 2]"]
    assert list(shown.to_pylist()[0].values()) == first and set(shown.to_pylist()[1].values()) == {None}


def test_values_of_several_types_are_refused(tmp_path: Path) -> None:
    for act in (plain_table, lambda table: export_table(table, tmp_path / "t.parquet")):
        with pytest.raises(ConfigError) as caught:
            act(UNION)
        assert str(caught.value) == "columns u have values of several types: CAST them to VARCHAR"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", ["fits", "vot"])
def test_decimals_are_integers_or_floats_where_these_are_exact(tmp_path: Path, ending: str) -> None:
    whole, cents = pa.decimal128(38, 0), pa.decimal128(30, 2)
    columns = {
        "most": ("i", pa.array([2**63 - 1, -(2**63)], whole)),
        "large": ("f", pa.array([10**19, 0], whole)),
        "beyond": ("S", pa.array([2**63, 0], whole)),
        "below": ("S", pa.array([-(2**63) - 1, 0], whole)),
        "halves": ("f", pa.array([Decimal("0.50"), Decimal("3.00")], cents)),
        "cents": ("i", pa.array([Decimal("7.00"), Decimal("3.00")], cents)),
        "wide": ("i", pa.array([Decimal("7.00"), Decimal("3.00")], pa.decimal256(60, 2))),
    }
    table = pa.table({name: values for name, (_, values) in columns.items()})
    back = Table.read(export_table(table, tmp_path / f"t.{ending}"), format={"vot": "votable"}.get(ending, ending))
    for name, (kind, values) in columns.items():
        assert back[name].dtype.kind in {"S": "SUO"}.get(kind, kind), name
        assert [Decimal(str(value)) for value in back[name]] == values.to_pylist(), name


@pytest.mark.parametrize("ending", ["fits", "vot"])
def test_short_floats_and_unsigned_numbers_below_2_to_the_63_stay_numbers(tmp_path: Path, ending: str) -> None:
    table = pa.table(
        {
            "half": pa.array(np.array([0.5, -1.5], np.float16)),
            "large": pa.array([2**63 - 1, 0], pa.uint64()),
            "none": pa.array([None, None], pa.uint64()),
            "view": pa.array(["a", "é"], pa.string_view()),
        }
    )
    back = Table.read(export_table(table, tmp_path / f"t.{ending}"), format={"vot": "votable"}.get(ending, ending))
    assert back["half"].dtype.kind == "f" and back["half"].dtype.itemsize == 4 and back["half"].tolist() == [0.5, -1.5]
    assert back["large"].dtype.kind == "i" and back["large"].tolist() == [2**63 - 1, 0]
    assert back["none"].dtype.kind == "i" and np.ma.count_masked(back["none"]) == 2
    assert back["view"].tolist() == ["a", "é"]


FIELDS = pa.schema(
    [
        pa.field("n 1", pa.int16(), metadata={"unit": "mag", "ucd": "phot.mag", "description": "A number"}),
        pa.field("name", pa.string(), metadata={"unit": ""}),
        pa.field("x", pa.float32()),
    ]
)
PIECES = (
    pa.table([[3, None], ["b", None], [0.5, None]], schema=FIELDS),
    pa.table([[4], ["abc"], [1.5]], schema=FIELDS),
    pa.table([[5], ["é"], [2.5]], schema=FIELDS),
)


def test_parquet_gets_the_sizes_of_text_over_all_pieces_and_no_schema_of_arrow(tmp_path: Path) -> None:
    provenance = {"b": 1, "a": 2}
    path = export_pieces(FIELDS, iter(PIECES), tmp_path / "t.parquet", provenance, False)
    footer = pq.read_metadata(path).metadata
    words = ["table::len::name", "skyclass", "IVOA.VOTable-Parquet.version", "IVOA.VOTable-Parquet.content"]
    assert sorted(footer) == sorted(word.encode() for word in words)
    assert footer[b"table::len::name"] == b"3" and footer[b"skyclass"] == b'{"a": 2, "b": 1}'
    assert pq.read_table(path).column("n 1").to_pylist() == [3, None, 4, 5]
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    empty = export_pieces(FIELDS, iter(()), tmp_path / "empty.parquet", {}, False)
    assert pq.read_metadata(empty).metadata[b"table::len::name"] == b"1" and len(pq.read_table(empty)) == 0


def test_fits_gets_units_ucds_and_descriptions_in_the_place_of_their_column(tmp_path: Path) -> None:
    path = export_pieces(FIELDS, iter(PIECES), tmp_path / "t.fits", {}, False)
    header = fits.getheader(path, 1)
    found = {key: header[key] for key in header if key[:4] in ("TUNI", "TUCD", "TCOM", "TNUL", "TFOR", "TTYP")}
    assert found == {
        "TTYPE1": "n 1", "TFORM1": "J", "TNULL1": -(2**31), "TUNIT1": "mag", "TUCD1": "phot.mag", "TCOMM1": "A number",
        "TTYPE2": "name", "TFORM2": "3A", "TTYPE3": "x", "TFORM3": "E",
    }  # fmt: skip
    rows = fits.getdata(path)
    assert rows["n 1"].tolist() == [3, -(2**31), 4, 5] and rows["name"].tolist() == [b"b", b"", b"abc", "é".encode()]
    assert rows["x"][[0, 2]].tolist() == [0.5, 1.5] and np.isnan(rows["x"][1])


def test_a_votable_gets_units_ucds_and_descriptions_and_any_name_without_a_warning(tmp_path: Path) -> None:
    path = export_pieces(FIELDS, iter(PIECES), tmp_path / "t.xml", {}, False)
    assert b"<BINARY2>" in path.read_bytes()
    table = parse_single_table(path)
    found = [(f.name, str(f.unit or ""), f.ucd, f.description) for f in table.fields]
    assert found == [("n 1", "mag", "phot.mag", "A number"), ("name", "", None, None), ("x", "", None, None)]
    rows = table.to_table(use_names_over_ids=True)
    assert rows["n 1"].tolist() == [3, None, 4, 5] and rows["name"].tolist() == ["b", "", "abc", "é"]
    assert rows["x"].tolist() == [0.5, None, 1.5, 2.5]


def test_csv_is_written_piece_by_piece(tmp_path: Path) -> None:
    path = export_pieces(FIELDS, iter(PIECES), tmp_path / "t.CSV", {}, False)
    assert path.read_text("utf-8") == '"n 1","name","x"\n3,"b",0.5\n,,\n4,"abc",1.5\n5,"é",2.5\n'


@pytest.mark.parametrize("act", [refuse_existing, check_target, lambda p, o: export_table(PIECES[0], p, o)])
def test_targets_that_are_taken_or_unknown_are_refused_before_writing(tmp_path: Path, act: Callable[..., Any]) -> None:
    (tmp_path / "d.csv").mkdir()
    with pytest.raises(ConfigError) as caught:
        act(tmp_path / "d.csv", True)
    assert str(caught.value) == f"{tmp_path}/d.csv is a folder: give the name of a file"
    (tmp_path / "t.csv").write_text("mine")
    with pytest.raises(ConfigError) as caught:
        act(tmp_path / "t.csv", False)
    assert str(caught.value) == f"{tmp_path}/t.csv exists: give another name, or --overwrite to replace it"
    act(tmp_path / "t.csv", True)
    act(tmp_path / "new.csv", False)
    if act is not refuse_existing:
        with pytest.raises(ConfigError) as caught:
            act(tmp_path / "t.xlsx", True)
        endings = ".parquet, .csv, .fits, .vot, .xml"
        assert str(caught.value) == f"cannot tell the format of 't.xlsx': end it in one of {endings}"
