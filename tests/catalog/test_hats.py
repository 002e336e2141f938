"""The files beside the rows, and the header and footer of a file, by hand."""

from __future__ import annotations

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io.votable import parse

from skyclass.catalog.hats import file_metadata, sidecar_files, text_sizes, votable_header
from skyclass.catalog.manifest import PixelRecord
from tests.support.class_rows import CLASS_SCHEMA
from tests.support.small_catalog import PROVENANCE

LABEL = "trained on simulated data: 4 mock tiles"
RECORDS = (
    PixelRecord(7, "a.parquet", 3, "aa", 1024, {"galaxy": 2, "quasar": 0, "star": 0, "unclassified": 1}, 1, 10, 20),
    PixelRecord(12_000, "b.parquet", 1500, "bb", 2048, {"galaxy": 1500}, 0, 30, 40),
)


def test_the_size_of_text_is_that_of_the_longest_in_bytes() -> None:
    columns = {
        "plain": pa.array(["a", "é", None]),
        "large": pa.array(["abc", None, ""], pa.large_string()),
        "missing": pa.array([None] * 3, pa.string()),
        "number": pa.array([1, 2, 3]),
        "bytes": pa.array([b"abcd", b"", None]),
    }
    table = pa.table(columns)
    assert text_sizes(table) == {"plain": 2, "large": 3, "missing": 0}
    assert text_sizes(table.slice(0, 0)) == {"plain": 0, "large": 0, "missing": 0}


def test_a_footer_holds_provenance_header_and_the_sizes_of_text() -> None:
    schema = pa.schema([("name", pa.string()), ("n", pa.int64())])
    footer = file_metadata(schema, {"b": 1, "a": 2}, {"name": 70, "other": 0})
    assert footer.keys() == {
        b"table::len::name",
        b"table::len::other",
        b"skyclass",
        b"IVOA.VOTable-Parquet.version",
        b"IVOA.VOTable-Parquet.content",
    }
    assert footer[b"table::len::name"] == b"70" and footer[b"table::len::other"] == b"1"
    assert footer[b"skyclass"] == b'{"a": 2, "b": 1}' and footer[b"IVOA.VOTable-Parquet.version"] == b"1.0"
    assert b'arraysize="70"' in footer[b"IVOA.VOTable-Parquet.content"]
    assert b"training of the model not recorded" in footer[b"IVOA.VOTable-Parquet.content"]
    plain = file_metadata(schema, {"a": 2})
    assert set(plain) == set(footer) - {b"table::len::name", b"table::len::other"}
    assert b'arraysize="64"' in plain[b"IVOA.VOTable-Parquet.content"]


def test_a_header_describes_each_column_and_says_that_positions_are_icrs() -> None:
    document = parse(io.BytesIO(votable_header(CLASS_SCHEMA, "my label", {"source_id": 65})), verify="exception")
    (resource,) = document.resources
    (system,) = resource.coordinate_systems
    assert (system.ID, system.system) == ("ICRS", "ICRS")
    (table,) = resource.tables
    assert table.name == "classes" and table.description == "skyclass class catalogue. my label"
    fields = {field.name: field for field in table.fields}
    assert list(fields) == CLASS_SCHEMA.names
    assert {name for name, field in fields.items() if field.ref == "ICRS"} == {"ra", "dec"}
    assert (fields["ra"].datatype, str(fields["ra"].unit), fields["ra"].ucd) == ("double", "deg", "pos.eq.ra;meta.main")
    assert fields["ra"].description == "Right ascension, ICRS" and fields["ra"].arraysize is None
    assert (fields["flags"].datatype, fields["flags"].unit) == ("int", None)
    assert (fields["source_id"].datatype, fields["source_id"].arraysize) == ("char", "65")
    assert fields["class"].arraysize == "64"


def test_a_header_of_other_types_leaves_out_what_votable_lacks() -> None:
    """A name that is no ID makes no warning, and no FIELD has an ID: astropy would take it for the name."""
    kinds = {
        "a b": pa.int64(), "u32": pa.uint32(), "i32": pa.int32(), "u8": pa.uint8(), "i16": pa.int16(),
        "f64": pa.float64(), "f32": pa.float32(), "f16": pa.float16(), "truth": pa.bool_(),
        "text": pa.string(), "large": pa.large_string(), "u64": pa.uint64(), "day": pa.date32(),
        "list": pa.list_(pa.int64()),
    }  # fmt: skip
    header = votable_header(pa.schema(list(kinds.items())), "", {})
    fields = parse(io.BytesIO(header)).get_first_table().fields
    assert {field.name: field.datatype for field in fields} == {
        "a b": "long", "u32": "long", "i32": "int", "u8": "int", "i16": "int",
        "f64": "double", "f32": "float", "f16": "float", "truth": "boolean",
        "text": "char", "large": "char",
    }  # fmt: skip
    assert b"FIELD ID" not in header and b"unit=" not in header and b"ucd=" not in header
    assert header.count(b"arraysize=") == 2


def test_the_files_beside_the_rows_count_them() -> None:
    files = sidecar_files(RECORDS, PROVENANCE, "2026-01-02T03:04:05Z")
    assert list(files) == [
        "hats.properties",
        "properties",
        "partition_info.csv",
        "dataset/_common_metadata",
        "README.txt",
    ]
    assert files["partition_info.csv"] == b"Norder,Npix\n5,7\n5,12000\n"
    heading, *lines = files["hats.properties"].decode().splitlines()
    assert heading == "#HATS catalog" and files["properties"] == files["hats.properties"]
    assert dict(line.split("=", 1) for line in lines) == {
        "obs_collection": "skyclass_r1",
        "obs_title": "skyclass class catalogue",
        "obs_description": LABEL,
        "dataproduct_type": "object",
        "hats_nrows": "1503",
        "hats_col_ra": "ra",
        "hats_col_dec": "dec",
        "hats_col_healpix": "_healpix_29",
        "hats_col_healpix_order": "29",
        "hats_npix_suffix": ".parquet",
        "hats_order": "5",
        "hats_max_rows": "1500",
        "hats_estsize": "3",  # kilobytes
        "hats_builder": "skyclass",
        "hats_creation_date": "2026-01-02T03:04:05Z",
        "moc_sky_fraction": "0.0001628",  # 2 of 12,288 pixels
    }
    readme = files["README.txt"].decode().splitlines()
    assert readme[:2] == ["skyclass class catalogue, run r1", f"The model: {LABEL}"]
    assert "1,503 sources in 2 files, 1 of them with a flag." in readme
    for line in ("  galaxy                 1,502", "  unclassified               1"):
        assert line in readme
    assert "  ra            deg   pos.eq.ra;meta.main         Right ascension, ICRS" in readme
    assert any(line.startswith("     4  CENTRE_MISSING  the central pixel") for line in readme)


def test_the_schema_file_has_no_rows_and_the_footer_of_the_rows() -> None:
    data = sidecar_files(RECORDS, PROVENANCE, "")["dataset/_common_metadata"]
    file = pq.ParquetFile(pa.BufferReader(data))
    assert file.metadata.num_rows == 0 and file.schema_arrow.names == CLASS_SCHEMA.names
    assert b"ARROW:schema" not in file.metadata.metadata
    assert json.loads(file.metadata.metadata[b"skyclass"]) == PROVENANCE


@pytest.mark.parametrize("key", ["hats_nrows=0", "hats_max_rows=0", "hats_estsize=0", "moc_sky_fraction=0.0000000"])
def test_a_catalogue_without_rows_has_zeros(key: str) -> None:
    files = sidecar_files([], PROVENANCE, "")
    assert key in files["hats.properties"].decode().splitlines()
    assert files["partition_info.csv"] == b"Norder,Npix\n"
