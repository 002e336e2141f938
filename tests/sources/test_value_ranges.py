"""Sentinels: numbers outside the physical range of their column are null, counted and flagged, in every verb."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from click.testing import CliRunner

from skyclass.cli.main import cli
from skyclass.errors import TableWarning
from skyclass.run import pipeline
from skyclass.schema import PHYSICAL_RANGES, SOURCE_SCHEMA, bad_value_counts, conform_sources, without_bad_values
from skyclass.sources.tables import standardise_table
from skyclass.training.data.build import build_dataset
from skyclass.training.data.config import DatasetConfig
from skyclass.training.data.dataset import summary
from skyclass.training.data.label_table import clean_spectra
from skyclass.training.data.sdss import SPECTRUM_SCHEMA
from skyclass.types import Flag
from tests.support.paths import SHARED
from tests.support.runs import rows_of

DATA = SHARED / "data"
SENTINELS = [-9999.0, -999.0, -99.0, -99.99, 999.0, 9999.0, 9.99e8, -9.99e8, 1e20, 1e30, np.inf, -np.inf]
MAGNITUDE_SENTINELS = [*SENTINELS, -9.99, -9.0, 30.0, 33.0, 50.0, 99.0, 99.9, 99.99, 99.999]
NUMBERS = tuple(PHYSICAL_RANGES)


def sources_with(name: str, values: list[float | int | None], kind: pa.DataType) -> pa.Table:
    n = len(values)
    columns = {"source_id": pa.array([f"s{i}" for i in range(n)]), "ra": pa.array(np.full(n, 10.0)),
               "dec": pa.array(np.zeros(n)), name: pa.array(values, kind)}  # fmt: skip
    return pa.table(columns)


@pytest.mark.parametrize("kind", [pa.float32(), pa.float64()], ids=str)
@pytest.mark.parametrize("name", ["w1mpro", "w2mpro", "w3mpro", "w1snr", "w2snr", "w3snr"])
def test_sentinels_become_null_and_are_counted(name: str, kind: pa.DataType) -> None:
    bad = MAGNITUDE_SENTINELS if name.endswith("mpro") else SENTINELS
    good = [-7.9, -1.8, 0.0, 12.5, 22.0] if name.endswith("mpro") else [-8.9, 0.0, 2.5, 73.0, 99.0, 155.0]
    table = conform_sources(sources_with(name, [*good, None, np.nan, *bad], kind), "test")
    assert table[name].to_pylist() == pytest.approx([*good, None, None, *[None] * len(bad)], nan_ok=True)
    bits = table["bad_values"].to_numpy()
    assert (bits[: len(good) + 2] == 0).all() and (bits[len(good) + 2 :] == 1 << NUMBERS.index(name)).all()
    assert bad_value_counts(bits) == {name: len(bad)}


@pytest.mark.parametrize("kind", [pa.int16(), pa.int32(), pa.int64(), pa.float64()], ids=str)
def test_sentinels_of_whole_numbers(kind: pa.DataType) -> None:
    values = [0, 1, 5, None, -9999, -99, -1, 6, 99, 32767]
    table = conform_sources(sources_with("ext_flg", values, kind), "test")
    assert table["ext_flg"].to_pylist() == [0, 1, 5, *[None] * 7]
    assert bad_value_counts(table["bad_values"].to_numpy()) == {"ext_flg": 6}


def test_a_sentinel_that_does_not_fit_its_column_is_no_error() -> None:
    wide = conform_sources(sources_with("ext_flg", [2, -(2**63), 2**40], pa.int64()), "test")
    assert wide["ext_flg"].to_pylist() == [2, None, None]
    ids = [3_331_005_401_351_000_001, 0, -9999, -1, 2**63 - 1]
    table = conform_sources(sources_with("cntr", ids, pa.int64()), "test")
    assert table["cntr"].to_pylist() == [3_331_005_401_351_000_001, 0, None, None, None]
    unsigned = conform_sources(sources_with("cntr", [7, 2**64 - 1], pa.uint64()), "test")
    assert unsigned["cntr"].to_pylist() == [7, None]


def test_an_snr_that_repeats_the_sentinel_of_its_magnitude_is_bad() -> None:
    table = sources_with("w3mpro", [99.0, 99.99, 11.0, -99.0, None], pa.float32())
    table = table.append_column("w3snr", pa.array([99.0, 99.99, 99.0, 3.0, 99.0], pa.float32()))
    conformed = conform_sources(table, "test")
    assert conformed["w3snr"].to_pylist() == [None, None, 99.0, 3.0, 99.0]
    assert bad_value_counts(conformed["bad_values"].to_numpy()) == {"w3mpro": 3, "w3snr": 2}


def test_a_second_reading_keeps_the_marks() -> None:
    once = conform_sources(sources_with("w1mpro", [15.0, -9999.0], pa.float64()), "test")
    assert conform_sources(once, "again").equals(once)


def test_a_column_of_the_user_with_the_name_of_the_marks_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("ra,dec,w1mpro,bad_values\n1,2,15,7\n3,4,-9999,7\n")
    assert standardise_table(str(path))["bad_values"].to_pylist() == [0, 1]


@pytest.mark.parametrize("suffix", [".csv", ".tbl", ".xml", ".fits", ".ecsv", ".parquet"])
def test_every_format_of_table(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    table = Table({"ra": [1.0, 2.0, 3.0], "dec": [0.0, 0.0, 0.0], "w1mpro": [15.25, -9999.0, 99.999],
                   "ext_flg": np.array([5, -99, 0], np.int32)})  # fmt: skip
    kinds = {".csv": "ascii.csv", ".tbl": "ascii.ipac", ".xml": "votable", ".ecsv": "ascii.ecsv", ".fits": "fits"}
    if suffix == ".parquet":
        pq.write_table(pa.table({name: np.asarray(table[name]) for name in table.colnames}), path)
    else:
        table.write(path, format=kinds[suffix])
    read = standardise_table(str(path))
    assert read["w1mpro"].to_pylist() == [15.25, None, None] and read["ext_flg"].to_pylist() == [5, None, 0]
    assert bad_value_counts(read["bad_values"].to_numpy()) == {"w1mpro": 2, "ext_flg": 1}


@pytest.mark.parametrize("suffix", [".csv", ".tbl", ".xml", ".ecsv", ".parquet"])
def test_text_that_is_no_word_for_a_missing_value_is_bad(tmp_path: Path, suffix: str) -> None:
    """The words for a missing value are null, as in `identifiers.NULL_WORDS`, and carry no flag."""
    path = tmp_path / f"t{suffix}"
    words = ["n/a", "-", "--", "NaN", "null", "None", "N/A"]
    magnitudes = ["15.25", ">15", *words, "15,3", "-9999", "12.5+-0.1"]
    n = len(magnitudes)
    columns = {
        "ra": np.arange(n) + 1.0,
        "dec": np.zeros(n),
        "W1MPRO": magnitudes,
        "w2snr": ["faint"] * n,
        "ext_flg": ["2", "1.5", *words, "0", "-9", "Y"],
        "cntr": ["7", "A12", *words, "9", "10", "11"],
    }
    kinds = {".csv": "ascii.csv", ".tbl": "ascii.ipac", ".xml": "votable", ".ecsv": "ascii.ecsv"}
    if suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    else:
        Table(columns).write(path, format=kinds[suffix])
    with pytest.warns(TableWarning, match="column cntr is left out"):
        read = standardise_table(str(path))
    assert read["w1mpro"].to_pylist() == [15.25, *[None] * 11] and read["w2snr"].null_count == n
    assert read["ext_flg"].to_pylist() == [2, *[None] * 8, 0, None, None] and read["cntr"].null_count == n
    w1, w2, ext = (1 << NUMBERS.index(name) for name in ("w1mpro", "w2snr", "ext_flg"))
    assert read["bad_values"].to_pylist() == [w2, w1 | w2 | ext, *[w2] * 7, w1 | w2, w1 | w2 | ext, w1 | w2 | ext]


REAL_TABLES = ("tables/exoplanet_host_stars.parquet", "tables/desi_quasars.parquet", "tables/sdss_galaxies.parquet")


@pytest.mark.parametrize("name", REAL_TABLES)
def test_real_photometry_is_not_bad(name: str) -> None:
    if not (DATA / name).exists():
        pytest.skip("the shared tables are not here")
    table = pq.read_table(DATA / name)
    _, bits = without_bad_values(table)
    assert len(table) > 1000 and {"w1mpro", "w2mpro", "w3mpro"} <= set(table.column_names) and not bits.any()


def test_real_rows_of_the_archive_are_not_bad() -> None:
    path = DATA / "archive" / "gator_arp220_allsky.tbl"
    if not path.exists():
        pytest.skip("the shared archive tables are not here")
    table = standardise_table(str(path))
    assert len(table) == 319 and pc.min(table["w1snr"]).as_py() == pytest.approx(-3.7)
    assert not table["bad_values"].to_numpy().any()


# --- the verbs -------------------------------------------------------------------------------------


def spoilt(rows: pa.Table, value: float | None) -> pa.Table:
    """Return catalogue rows in which every third W3 magnitude and S/N, and one W1 magnitude, is `value`."""
    third = np.arange(len(rows)) % 3 == 0
    for name, where in (("w3mpro", third), ("w3snr", third), ("w1mpro", np.arange(len(rows)) == 1)):
        values = pc.if_else(pa.array(where), pa.scalar(value, rows[name].type), rows[name])
        rows = rows.set_column(rows.column_names.index(name), rows.schema.field(name), values)
    return rows


@pytest.fixture(scope="module")
def rows(sky) -> pa.Table:
    return pq.read_table(sky.catalog, partitioning=None).sort_by("source_id")


def hive_of(table: pa.Table, sky, folder: Path) -> Path:
    for path in sky.catalog.rglob("part0.snappy.parquet"):
        target = folder / path.relative_to(sky.catalog)
        target.parent.mkdir(parents=True)
        names = pq.read_table(path, columns=["source_id"], partitioning=None)["source_id"]
        pq.write_table(table.filter(pc.is_in(table["source_id"], names.combine_chunks())), target)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "value"), [("table", -9999.0), ("table", 9.99e8), ("hive", 99.99)])
def test_classes_with_sentinels_are_those_with_nulls(run, sky, rows, tmp_path: Path, value: float, kind: str) -> None:
    """The fusion network takes the photometry, so that a sentinel would change its classes."""
    n_third, found, reports = len(range(0, len(rows), 3)), {}, {}
    for name, fill in (("null", None), ("bad", value)):
        catalog = hive_of(spoilt(rows, fill), sky, tmp_path / name) if kind == "hive" else tmp_path / f"{name}.parquet"
        if kind == "table":
            pq.write_table(spoilt(rows, fill), catalog)
        this = replace(run, catalog=str(catalog), model="fusion-mock", out=str(tmp_path / f"out-{name}"))
        reports[name], found[name] = pipeline.classify(this), rows_of(this).sort_by("source_id")
    assert found["bad"].drop(["flags", "run_id"]).equals(found["null"].drop(["flags", "run_id"]))
    flags, plain = (found[name]["flags"].to_numpy() for name in ("bad", "null"))
    marked = (np.arange(len(rows)) % 3 == 0) | (np.arange(len(rows)) == 1)
    np.testing.assert_array_equal(flags, plain | np.where(marked, int(Flag.BAD_VALUE), 0))
    assert reports["null"].bad_values == {} and not (plain & int(Flag.BAD_VALUE)).any()
    assert reports["bad"].bad_values == {"w1mpro": 1, "w3mpro": n_third, "w3snr": n_third}
    assert json.loads((tmp_path / "out-bad" / "report.json").read_text())["bad_values"] == reports["bad"].bad_values


@pytest.mark.integration
def test_a_resumed_run_counts_the_bad_values_of_committed_tiles(run, rows, tmp_path: Path) -> None:
    pq.write_table(spoilt(rows, -99.0), tmp_path / "t.parquet")
    this = replace(run, catalog=str(tmp_path / "t.parquet"))
    first = pipeline.classify(this)
    (Path(run.out) / "journal.jsonl").unlink()
    assert first.bad_values["w3mpro"] > 0 and pipeline.classify(this).bad_values == first.bad_values


@pytest.mark.integration
def test_the_printed_report_names_column_count_and_range(run, rows, tmp_path: Path) -> None:
    pq.write_table(spoilt(rows, -99.0), tmp_path / "t.parquet")
    command = ["classify", "--catalog", str(tmp_path / "t.parquet"), "--images", run.images, "--model", run.model]
    done = CliRunner().invoke(cli, [*command, "--out", run.out, "--cluster", "none", "--device", "cpu"])
    n = len(range(0, len(rows), 3))
    magnitude, snr = "(no number from -8.5 to 29.5)", "(no number from -90 to 900)"
    words = f"w1mpro 1 {magnitude}, w3mpro {n} {magnitude}, w3snr {n} {snr}"
    assert done.exit_code == 0 and f"values read as missing (flag 256): {words}" in done.output, done.output


@pytest.mark.integration
@pytest.mark.parametrize("in_catalog", [False, True])
def test_a_dataset_holds_nulls_and_says_how_many(sky, rows, tmp_path: Path, in_catalog: bool) -> None:
    truth = pq.read_table(sky.truth).select(["source_id", "class"])
    labels = (rows if in_catalog else spoilt(rows, -9999.0)).join(truth, "source_id")
    pq.write_table(labels, tmp_path / "labels.parquet")
    catalog = str(hive_of(spoilt(rows, -9999.0), sky, tmp_path / "catalog")) if in_catalog else None
    folders = {"labels": str(tmp_path / "labels.parquet"), "images": str(sky.images), "out": str(tmp_path / "set")}
    config = DatasetConfig(**folders, catalog=catalog, bands=("w1", "w2", "w3"), simulated=True)
    made = build_dataset(config)
    flagged = made.rows["flags"].to_numpy() & int(Flag.BAD_VALUE) != 0
    assert set(SOURCE_SCHEMA.names) < set(made.rows.column_names)
    assert pc.min(made.rows["w3mpro"]).as_py() > 0 and flagged.sum() >= len(made) / 3 - 1
    counts = made.provenance["bad_values"]
    assert counts["w3mpro"] == counts["w3snr"] == made.rows["w3mpro"].null_count > 0 and counts["w1mpro"] == 1
    assert "values read as missing: w1mpro 1 (no number from -8.5 to 29.5)" in summary(made)


def test_labels_count_what_they_read_as_missing() -> None:
    n = 3
    values = {"specobjid": [1, 2, 3], "class": ["STAR"] * n, "subclass": [""] * n, "z": [0.0] * n,
              "match_dist": [0.1] * n, "cntr": [11, 12, 13], "ra": [1.0, 2, 3], "dec": [0.0] * n,
              "w1mpro": [14.0] * n, "w2mpro": [14.0] * n, "w3mpro": [9999.0, 12.0, -9.99], "w1snr": [20.0] * n,
              "w2snr": [20.0] * n, "w3snr": [9999.0, 3.0, -9999.0]}  # fmt: skip
    cleaned, counts = clean_spectra(pa.table(values, schema=SPECTRUM_SCHEMA))
    assert cleaned["w3mpro"].to_pylist() == [None, 12.0, None] and cleaned["w3snr"].to_pylist() == [None, 3.0, None]
    assert counts["bad_w3mpro_in_sdss"] == 2 and counts["bad_w3snr_in_sdss"] == 2
