"""Questions to a published catalogue give what brute force gives, and read only what they must."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import astropy.units as u
import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.table import Table

from skyclass.catalog import duckdb as duckdb_module
from skyclass.catalog import row_groups, selection
from skyclass.catalog.export import export_table
from skyclass.catalog.manifest import label_of
from skyclass.catalog.query import ClassCatalog, open_catalog
from skyclass.errors import ConfigError, StoreError
from skyclass.run.finish import publish_run
from skyclass.schema import class_counts
from skyclass.sky.moc import read_moc
from skyclass.sky.regions import Box, Cone, Pixels, Polygon, Region
from skyclass.types import DEFAULT_CLASSES
from tests.support.class_rows import CLASS_SCHEMA, TILES, make_run


@pytest.fixture(scope="module")
def rows_and_catalog(tmp_path_factory: pytest.TempPathFactory) -> tuple[pa.Table, ClassCatalog]:
    folder, rows = make_run(tmp_path_factory.mktemp("run"))
    publish_run(folder)
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


@pytest.mark.integration
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


@pytest.mark.integration
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
def test_regions_and_conditions_together(rows: pa.Table, catalog: ClassCatalog, region: Region) -> None:
    found = catalog.region(region).where("p_quasar > 0.5").where("flags = 0 -- clean")
    inside = region.contains(rows["ra"].to_numpy(), rows["dec"].to_numpy())
    expected = rows.filter(pa.array(inside)).filter(pc.field("p_quasar") > 0.5)
    assert ids(found.to_arrow()) == ids(expected)
    assert found.count() == len(expected) and found.class_counts() == class_counts(expected, DEFAULT_CLASSES)
    small = catalog.region(region).cone(150, 2, 1.0)
    both = inside & Cone(150, 2, 1.0).contains(rows["ra"].to_numpy(), rows["dec"].to_numpy())
    assert ids(small.to_arrow()) == ids(rows.filter(pa.array(both)))


def test_a_moc_file_selects_the_sources_in_its_cells(rows: pa.Table, catalog: ClassCatalog, tmp_path: Path) -> None:
    cells = Cone(150, 2, "20arcmin").cover(9)
    (tmp_path / "field.moc").write_text("9/" + " ".join(map(str, cells)))
    selected = catalog.region(read_moc(tmp_path / "field.moc")).to_arrow()
    assert 0 < len(selected) < len(rows)
    assert ids(selected) == ids(catalog.region(Pixels(9, tuple(map(int, cells)))).to_arrow())


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
    footer = row_groups.Footer(pq.read_metadata(path), np.array([0, 10, 20]), np.array([9, 19, 29]))
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
    assert counts["n"].tolist() == list(class_counts(rows, DEFAULT_CLASSES).values())
    assert catalog.class_counts() == class_counts(rows, DEFAULT_CLASSES) and catalog.count() == len(rows)
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


@pytest.mark.integration
def test_sub_queries_see_every_row_of_the_catalogue(
    rows: pa.Table, catalog: ClassCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean is that of all files, however few are read at once, in the rows as in counts and in SQL."""
    monkeypatch.setattr(selection, "FILES_AT_ONCE", 1)
    frame = rows.to_pandas()
    brighter = frame["w1mpro"] < frame["w1mpro"].astype(float).mean()
    deepest = frame.groupby("coadd_id")["w1mpro"].transform("max") == frame["w1mpro"]
    cases = {
        "w1mpro < (SELECT avg(w1mpro) FROM classes)": brighter,
        "w1mpro >= (SELECT max(c.w1mpro) FROM classes AS c WHERE c.coadd_id = classes.coadd_id)": deepest,
        "source_id IN (SELECT max(source_id) FROM classes GROUP BY coadd_id)": frame["source_id"].isin(
            frame.groupby("coadd_id")["source_id"].max()
        ),
    }
    cone = Cone(150.0, 1.5, "40arcmin")
    near = cone.contains(frame["ra"].to_numpy(), frame["dec"].to_numpy())
    for condition, expected in cases.items():
        whole = catalog.where(condition)
        table = whole.to_arrow()
        assert ids(table) == sorted(frame["source_id"][expected]) and table.schema.equals(CLASS_SCHEMA)
        assert (np.diff(table["_healpix_29"].to_numpy()) >= 0).all()
        assert whole.count() == len(table) == whole.sql("SELECT count(*) AS n FROM classes")["n"][0]
        expected_near = sorted(frame["source_id"][expected & near & (frame["flags"] == 0)])
        for chosen in (
            catalog.region(cone).where(condition).where("flags = 0"),
            catalog.where("flags = 0").where(condition).region(cone),
        ):
            assert ids(chosen.to_arrow()) == expected_near and chosen.count() == len(expected_near)
        assert whole.cone(10, 80, 1).count() == 0
        assert whole.select(["source_id"]).to_arrow().column_names == ["source_id"]


@pytest.mark.parametrize("wrong", ["SELECT nope FROM classes", "COPY classes TO 'x.csv'", "SELECT 1; SELECT 2", ""])
def test_sql_takes_one_select(catalog: ClassCatalog, wrong: str) -> None:
    with pytest.raises(ConfigError):
        catalog.sql(wrong)


def test_several_statements_are_counted_in_the_message(catalog: ClassCatalog) -> None:
    with pytest.raises(ConfigError, match="sql takes one SELECT, and 'SELECT 1; SELECT 2' holds 2 statements"):
        catalog.sql("SELECT 1; SELECT 2")
    with pytest.raises(ConfigError, match="sql takes one SELECT, and '' holds 0 statements"):
        catalog.sql("")
    with pytest.raises(ConfigError, match="where takes one condition, and 'flags = 0; SELECT 2' holds 2 statements"):
        catalog.where("flags = 0; SELECT 2")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A file beside the catalogue that no question may show."""
    path = tmp_path / "secret.csv"
    path.write_text("word\nhush\n")
    return path


SOURCES = [
    "read_text('{secret}')",
    "read_blob('{secret}')",
    "read_csv('{secret}')",
    "read_csv_auto('{secret}')",
    "sniff_csv('{secret}')",
    "read_json('{secret}')",
    "read_parquet('{secret}')",
    "parquet_schema('{secret}')",
    "parquet_metadata('{secret}')",
    "glob('{secret}')",
    "glob('{secret.parent}/*')",
    "'{secret}'",
    "read_text('{root}/../../../../../../../../../..{secret}')",
    "glob('{root}/../*')",
    "read_text('file://{secret}')",
    "read_text('https://example.com/')",
    "query('SELECT * FROM read_text(''{secret}'')')",
    "query_table('{secret}')",
    "duckdb_secrets()",
    "sqlite_scan('{secret}', 't')",
]


@pytest.mark.integration
@pytest.mark.parametrize("source", SOURCES)
def test_a_question_reads_nothing_but_the_catalogue(catalog: ClassCatalog, secret: Path, source: str) -> None:
    source = source.format(secret=secret, root=catalog.root)
    for asked in (catalog, catalog.cone(150, 2, 1), catalog.where("flags = 0"), catalog.cone(10, 80, 1)):
        with pytest.raises(ConfigError, match="cannot answer"):
            asked.sql(f"SELECT * FROM {source}")
    with pytest.raises(ConfigError, match="cannot answer"):
        catalog.where(f"EXISTS (SELECT * FROM {source})")


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO '{secret}'",
        "COPY classes TO '{root}/stray.parquet'",
        "ATTACH '{secret.parent}/new.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "PRAGMA database_list",
        "SET enable_external_access = true",
        "EXPORT DATABASE '{secret.parent}/all'",
        "CREATE TABLE t AS SELECT 1",
        "SELECT getenv('HOME')",
        "WITH t AS (COPY (SELECT 1) TO '{secret}') SELECT 1",
        "SELECT * FROM secret",
    ],
)
def test_a_question_changes_nothing(catalog: ClassCatalog, secret: Path, statement: str) -> None:
    before = {path: path.read_bytes() for path in catalog.root.rglob("*") if path.is_file()}
    for asked in (catalog, catalog.cone(150, 2, 1)):
        with pytest.raises(ConfigError):
            asked.sql(statement.format(secret=secret, root=catalog.root))
    assert secret.read_text() == "word\nhush\n" and list(secret.parent.iterdir()) == [secret]
    assert {path: path.read_bytes() for path in catalog.root.rglob("*") if path.is_file()} == before


def test_the_connection_is_locked_and_bounded(tmp_path: Path) -> None:
    with duckdb_module.connect(tmp_path) as connection:
        closed = ("enable_external_access", "python_enable_replacements", "allow_community_extensions",
                  "autoload_known_extensions", "autoinstall_known_extensions")  # fmt: skip
        names = ("memory_limit", "temp_directory", "lock_configuration", *closed)
        values = {name: connection.execute(f"SELECT current_setting('{name}')").fetchone()[0] for name in names}
        spill = Path(values.pop("temp_directory"))
        assert spill.is_dir() and spill.stat().st_mode & 0o077 == 0
        assert values.pop("memory_limit").endswith(("GiB", "MiB"))
        assert values.pop("lock_configuration") is True and not any(values.values())
        for change in ("SET memory_limit = '1TB'", "RESET temp_directory", "SET enable_external_access = true"):
            with pytest.raises(duckdb.Error, match="locked"):
                connection.execute(change)
    assert not spill.exists()


@pytest.mark.integration
@pytest.mark.parametrize("name", ["run [1]", "it's", "a*b?", "ünï"])
def test_any_name_of_a_folder_can_be_queried(tmp_path: Path, name: str) -> None:
    folder, rows = make_run(tmp_path / name, TILES[3:])
    publish_run(folder)
    classes = open_catalog(folder.path)
    assert classes.sql("SELECT count(*) AS n FROM classes")["n"][0] == len(rows)
    assert classes.where("w1mpro < (SELECT 99 FROM classes LIMIT 1)").count() == len(rows)


@pytest.mark.parametrize(
    "condition",
    [
        "class = 'qso'",
        "flags = 0 AND \"CLASS\" != 'QUASAR'",
        "classes.class IN ('star', 'Quasar')",
        "class NOT IN ('qso')",
        "class IN ['qso']",
        "'QSO' = class",
        "CASE class WHEN 'qso' THEN true ELSE false END",
        "class IS DISTINCT FROM 'qso'",
        "class = 'qso'::VARCHAR",
        "EXISTS (FROM classes AS c WHERE c.class = 'qso')",
    ],
)
def test_a_class_that_the_catalogue_does_not_have_is_told(catalog: ClassCatalog, condition: str) -> None:
    for ask in (lambda: catalog.where(condition), lambda: catalog.sql(f"SELECT * FROM classes WHERE {condition}")):
        with pytest.raises(
            ConfigError, match=r"no source has class '(qso|QSO|QUASAR|Quasar)': .* galaxy, quasar, star"
        ):
            ask()


@pytest.mark.integration
def test_conditions_on_classes_that_exist_are_answered(rows: pa.Table, catalog: ClassCatalog) -> None:
    counts = class_counts(rows, DEFAULT_CLASSES)
    n_quasars = counts["quasar"]
    for condition in ("class = 'quasar'", "class LIKE 'q%'", "upper(class) = 'QUASAR'", "class IN ('quasar')"):
        assert catalog.where(condition).count() == n_quasars > 0
    with pytest.raises(ConfigError, match="no source has class 'unclassified'.*class IS NULL"):
        catalog.where("class = 'unclassified'")
    assert catalog.where("class IS NULL").count() == counts["unclassified"]
    named = (
        "SELECT count(*) AS n FROM (SELECT coalesce(class, 'none') AS class FROM classes) AS t WHERE t.class = 'none'"
    )
    assert catalog.sql(named)["n"][0] == counts["unclassified"]
    assert catalog.where("designation = 'qso'").count() == 0


@pytest.mark.integration
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


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore")
def test_lsdb_finds_the_same_cone(catalog: ClassCatalog) -> None:
    lsdb = pytest.importorskip("lsdb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lsdb.open_catalog(catalog.root)
        frame = theirs.cone_search(150, 2, 1800).compute()
    assert sorted(frame["source_id"]) == ids(catalog.cone(150, 2, "30arcmin").to_arrow())
    assert theirs.hc_structure.catalog_info.total_rows == catalog.count()


@pytest.mark.integration
def test_a_damaged_file_of_the_catalogue_is_told_as_such(tmp_path: Path) -> None:
    folder, _ = make_run(tmp_path / "run")
    publish_run(folder)
    classes = open_catalog(folder.path)
    path = classes.root / classes.manifest.files[0].path
    path.write_bytes(path.read_bytes()[:3000])
    for question in ("SELECT * FROM classes", "SELECT count(*) FROM classes WHERE p_star > 0.5"):
        with pytest.raises(StoreError, match=rf"damaged .*{path.name}.*run 'skyclass verify', then publish the run"):
            classes.sql(question)


@pytest.mark.parametrize(
    ("columns", "problem"),
    [
        (["source_id", "colour"], "unknown column ['colour']: choose from _healpix_29, source_id"),
        ([], "columns [] are none or repeated: choose from"),
        (["ra", "ra"], "columns ['ra', 'ra'] are none or repeated: choose from"),
    ],
)
def test_columns_that_cannot_be_selected_are_named(catalog, columns, problem):
    with pytest.raises(ConfigError) as caught:
        catalog.select(columns)
    assert str(caught.value).startswith(problem)


@pytest.mark.parametrize(
    ("training", "label"),
    [
        ({"simulated": True, "label": "4 mock\n tiles"}, "trained on simulated data: 4 mock tiles"),
        ({"simulated": True, "label": "a Simulated sky"}, "a Simulated sky"),
        ({"simulated": False, "label": "SDSS"}, "SDSS"),
        ({"simulated": True}, "trained on simulated data: training of the model not recorded"),
        ({}, "training of the model not recorded"),
    ],
)
def test_the_label_says_simulated_where_the_training_was(training, label):
    assert label_of({"info": {"model": {"training": training}}}) == label


def test_neighbouring_pixels_are_one_interval_of_the_index() -> None:
    pixels = np.array([0, 1, 2, 4, 7, 8], np.int64)
    assert row_groups.spans_of(pixels, 29).tolist() == [[0, 2], [4, 4], [7, 8]]
    assert row_groups.spans_of(pixels[:4], 28).tolist() == [[0, 11], [16, 19]]
    assert row_groups.spans_of(pixels[:0], 5).shape == (0, 2)
