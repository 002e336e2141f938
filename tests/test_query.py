"""Questions to a published catalogue give what brute force gives, and read only what they must."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import astropy.units as u
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table
from class_rows import make_run

from skyclass import query
from skyclass.errors import ConfigError, StoreError
from skyclass.publish import publish
from skyclass.query import ClassCatalog, export_table, open_catalog
from skyclass.schema import CLASS_SCHEMA, class_counts
from skyclass.sky import Box, Cone, Pixels, Polygon


@pytest.fixture(scope="module")
def rows_and_catalog(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, ClassCatalog]:
    folder, rows = make_run(tmp_path_factory.mktemp("run"))
    publish(folder)
    return rows, open_catalog(folder.path)


@pytest.fixture(scope="module")
def rows(rows_and_catalog: tuple[pa.Table, ClassCatalog]) -> pa.Table:
    return rows_and_catalog[0]


@pytest.fixture(scope="module")
def catalog(rows_and_catalog: tuple[pa.Table, ClassCatalog]) -> ClassCatalog:
    return rows_and_catalog[1]


def ids(table: pa.Table) -> list[str]:
    return sorted(table["source_id"].to_pylist())


CONES = [(150.0, 1.5, 30.0), (150.3, 2.25, 1.0), (149.2, 3.9, 5.0), (0.0, -1.5, 40.0), (151.0, 2.0, 600.0)]


@pytest.mark.parametrize(("ra", "dec", "radius_arcmin"), CONES)
def test_a_cone_is_what_brute_force_finds(
    rows: pa.Table, catalog: ClassCatalog, ra: float, dec: float, radius_arcmin: float
) -> None:
    places = SkyCoord(rows["ra"].to_numpy(), rows["dec"].to_numpy(), unit="deg")
    near = places.separation(SkyCoord(ra, dec, unit="deg")) <= radius_arcmin * u.arcmin
    found = catalog.cone(ra, dec, f"{radius_arcmin}arcmin")
    table = found.to_arrow()
    assert ids(table) == ids(rows.filter(pa.array(near)))
    assert table.schema.equals(CLASS_SCHEMA)
    assert found.count() == near.sum() and sum(found.class_counts().values()) == near.sum()
    assert (np.diff(table["_healpix_29"].to_numpy()) >= 0).all()


@pytest.mark.parametrize(
    "region",
    [
        Box(359.5, 0.5, -2, -1),
        Box(0, 360, -90, 90),
        Polygon(((149, 1), (151, 1), (150, 3))),
        Pixels(7, (0, *map(int, Cone(150, 2, "20arcmin").cover(7)))),
        Cone(10, 80, 1),
    ],
    ids=["box through RA 0", "whole sky", "polygon", "pixels", "empty"],
)
def test_regions_and_conditions_together(rows: pa.Table, catalog: ClassCatalog, region: query.Region) -> None:
    found = catalog.region(region).where("p_quasar > 0.5").where("flags = 0 -- clean")
    inside = region.contains(rows["ra"].to_numpy(), rows["dec"].to_numpy())
    expected = rows.filter(pa.array(inside)).filter(pc.field("p_quasar") > 0.5)
    assert ids(found.to_arrow()) == ids(expected)
    assert found.count() == len(expected) and found.class_counts() == class_counts(expected)
    small = catalog.region(region).cone(150, 2, 1.0)
    both = inside & Cone(150, 2, 1.0).contains(rows["ra"].to_numpy(), rows["dec"].to_numpy())
    assert ids(small.to_arrow()) == ids(rows.filter(pa.array(both)))


def test_only_the_files_and_row_groups_of_the_cover_are_read(
    catalog: ClassCatalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With every other file gone the cone still answers, and no folder is listed."""
    copy = tmp_path / "catalog"
    shutil.copytree(catalog.root, copy)
    cone = Cone(150.0, 3.0, "2arcmin")
    pixels = set(cone.cover(5).tolist())
    for record in catalog.manifest.files:
        if record.pixel not in pixels:
            (copy / record.path).unlink()
    for name in ("iterdir", "glob", "rglob"):
        monkeypatch.delattr(Path, name)
    assert open_catalog(copy).region(cone).count() == catalog.region(cone).count() > 0
    with pytest.raises(StoreError, match="skyclass verify"):
        open_catalog(copy).cone(0, -1.5, "20arcmin").to_arrow()


def test_row_groups_are_chosen_by_their_range(catalog: ClassCatalog) -> None:
    path = catalog.root / catalog.manifest.files[0].path
    footer = query._Footer(pq.read_metadata(path), np.array([0, 10, 20]), np.array([9, 19, 29]))
    assert footer.touched([]) == [0, 1, 2]
    assert footer.touched([np.array([[9, 9], [21, 40]])]) == [0, 2]
    assert footer.touched([np.array([[9, 9], [21, 40]]), np.array([[15, 50]])]) == [2]
    assert footer.touched([np.empty((0, 2), np.int64)]) == []


def test_select_keeps_the_order_and_only_those_columns(catalog: ClassCatalog) -> None:
    chosen = catalog.where("w1mpro < 15").cone(150, 2, 1.0).select(["p_star", "source_id"])
    table = chosen.to_arrow()
    assert table.column_names == ["p_star", "source_id"] and len(table) == chosen.count() > 0
    frame = chosen.to_pandas()
    assert isinstance(frame, pd.DataFrame) and frame["p_star"].isna().sum() == table["p_star"].null_count > 0
    for wrong in (["nope"], [], ["ra", "ra"]):
        with pytest.raises(ConfigError, match="choose from _healpix_29, source_id"):
            catalog.select(wrong)


def test_sql_sees_the_selection(rows: pa.Table, catalog: ClassCatalog) -> None:
    query = "SELECT class, count(*) AS n FROM classes GROUP BY class ORDER BY class NULLS LAST"
    counts = catalog.sql(query)
    assert counts["class"].tolist()[:3] == ["galaxy", "quasar", "star"]
    assert counts["n"].tolist() == list(class_counts(rows).values())
    assert catalog.class_counts() == class_counts(rows) and catalog.count() == len(rows)
    assert catalog.where("p_quasar > 0.9").sql("SELECT min(p_quasar) > 0.9 AS good FROM classes")["good"][0]
    cone = catalog.cone(150, 2, "30arcmin")
    assert cone.sql("SELECT count(*) AS n FROM classes")["n"][0] == cone.count()


@pytest.mark.parametrize(
    "wrong", ["p_nova > 0.5", "p_star", "p_star >", "count(*) > 1", "1 = 1; SELECT 2", "1=1); SELECT (1"]
)
def test_a_condition_that_is_none_is_refused_before_reading(catalog: ClassCatalog, wrong: str) -> None:
    with pytest.raises(ConfigError):
        catalog.where(wrong)
    with pytest.raises(ConfigError, match="p_nova.*Columns: _healpix_29, source_id"):
        catalog.where("p_nova > 0.5")


@pytest.mark.parametrize("wrong", ["SELECT nope FROM classes", "COPY classes TO 'x.csv'", "SELECT 1; SELECT 2", ""])
def test_sql_takes_one_select(catalog: ClassCatalog, wrong: str) -> None:
    with pytest.raises(ConfigError):
        catalog.sql(wrong)


@pytest.mark.parametrize("ending", ["parquet", "csv", "fits", "vot", "xml"])
def test_export_reads_back_in_other_tools(catalog: ClassCatalog, tmp_path: Path, ending: str) -> None:
    chosen = catalog.cone(150, 2, "30arcmin")
    table = chosen.to_arrow()
    path = chosen.export(tmp_path / f"out.{ending}")
    assert [found.name for found in tmp_path.iterdir()] == [path.name]
    if ending == "parquet":
        assert pq.read_table(path).equals(table)
        assert b"IVOA.VOTable-Parquet.content" in pq.read_metadata(path).metadata
        return
    kind = {"vot": "votable", "xml": "votable"}.get(ending, ending)
    back = Table.read(path, format=kind)
    assert back.colnames == table.column_names and list(back["source_id"]) == table["source_id"].to_pylist()
    np.testing.assert_array_equal(np.ma.filled(back["ra"], -1), table["ra"].to_numpy())
    p_star = np.ma.filled(np.ma.masked_invalid(back["p_star"]), -1)
    np.testing.assert_allclose(p_star, table["p_star"].fill_null(-1).to_numpy(), rtol=1e-6)
    assert np.ma.count_masked(back["ext_flg"]) == table["ext_flg"].null_count > 0
    if ending == "fits":
        header = fits.getheader(path, 1)
        assert header["TUCD5"] == "pos.eq.ra;meta.main" and header["TCOMM5"] == "Right ascension, ICRS"
    if ending != "csv":
        assert back["ra"].unit == u.deg


def test_export_says_which_endings_there_are_and_empty_selections_work(catalog: ClassCatalog, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="out.xlsx.*.parquet, .csv, .fits"):
        catalog.export(tmp_path / "out.xlsx")
    empty = catalog.cone(10, 80, 1)
    for ending in ("parquet", "csv", "fits", "vot"):
        assert empty.export(tmp_path / f"empty.{ending}").exists()
    answer = catalog.sql_arrow("SELECT class, sum(flags) AS s, count(*) > 5 AS b FROM classes GROUP BY class")
    for ending in ("parquet", "csv", "fits", "vot"):
        assert export_table(answer, tmp_path / f"answer.{ending}").exists()


def test_opening_something_else_is_told(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="skyclass publish"):
        open_catalog(tmp_path)


@pytest.mark.filterwarnings("ignore")
def test_lsdb_finds_the_same_cone(catalog: ClassCatalog) -> None:
    lsdb = pytest.importorskip("lsdb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lsdb.open_catalog(catalog.root)
        frame = theirs.cone_search(150, 2, 1800).compute()
    assert sorted(frame["source_id"]) == ids(catalog.cone(150, 2, "30arcmin").to_arrow())
    assert theirs.hc_structure.catalog_info.total_rows == catalog.count()
