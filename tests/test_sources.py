"""Catalogues in their real layouts, users' tables in every format, and tiles for positions."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from skyclass.errors import CatalogError
from skyclass.schema import SOURCE_SCHEMA
from skyclass.sky import Box, Cone, Pixels, healpix, separation_deg
from skyclass.sources.assign import assign_tiles
from skyclass.sources.layouts import Catalog, gaps, open_catalog, select
from skyclass.sources.partitions import COUNT_SCHEMA, count_tiles, read_partition, to_dask
from skyclass.sources.tables import read_table, standardise, standardise_table
from skyclass.types import Tile

SHARED = Path(__file__).parents[2] / "shared" / "data" / "archive"
CDELT_DEG = 0.0003819444391411


def simulated_sources(n: int = 3000, seed: int = 2) -> pa.Table:
    """Simulated sources around RA 0 with the archive's types, nulls and a column nobody asked for."""
    rng = np.random.default_rng(seed)
    ra, dec = rng.uniform(-6, 6, n) % 360, rng.uniform(-6, 6, n)
    coadd_id = np.where(ra > 180, "3594p000_ac51", "0000p000_ac51")
    return pa.table({
        "designation": [f"J{i:08d}" for i in range(n)], "ra": ra, "dec": dec,
        "cntr": np.arange(n, dtype=np.int64),
        "source_id": [f"{c}-{i:06d}" for i, c in enumerate(coadd_id)],
        "coadd_id": pa.array(coadd_id).dictionary_encode(),
        "w1mpro": pa.array(rng.normal(15, 1, n), mask=rng.random(n) < 0.1),
        "w2mpro": np.where(rng.random(n) < 0.1, np.nan, rng.normal(15, 1, n)),
        "w1snr": pc.cast(pa.array(rng.uniform(3, 90, n).round(1)), pa.decimal128(9, 1), safe=False),
        "cc_flags": ["00dH"] * n, "ext_flg": pa.array(rng.integers(0, 5, n), mask=rng.random(n) < 0.1),
        "tmass_key": np.arange(n),
    })  # fmt: skip


def write_hive(root: Path, table: pa.Table) -> Path:
    pixels = healpix(5, table["ra"].to_numpy(), table["dec"].to_numpy())
    for pixel in np.unique(pixels):
        folder = root / f"healpix_k0={pixel // 1024}" / f"healpix_k5={pixel}"
        folder.mkdir(parents=True)
        rows = table.filter(pa.array(pixels == pixel))
        pq.write_table(rows, folder / "part0.snappy.parquet", row_group_size=200)
    for sidecar in ("_metadata", "_common_metadata"):
        (root / sidecar).write_bytes(b"never opened")
    return root


def write_hats(root: Path, table: pa.Table, order: int = 3, folders: bool = False, names: bool = True) -> Path:
    pixels = healpix(order, table["ra"].to_numpy(), table["dec"].to_numpy())
    for pixel in np.unique(pixels):
        base = root / "dataset" / f"Norder={order}" / f"Dir={pixel // 10_000 * 10_000}"
        path = base / (f"Npix={pixel}/part0.parquet" if folders else f"Npix={pixel}.parquet")
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(pa.array(pixels == pixel)), path)
    columns = "hats_col_ra=raj\nhats_col_dec=dec\n" if names else ""
    (root / "hats.properties").write_text(f"# HATS\ndataproduct_type = object\n{columns}")
    rows = "".join(f"{order},{pixel}\n" for pixel in np.unique(pixels))
    (root / "partition_info.csv").write_text("Norder,Npix\n" + rows)
    return root


def rows_of(catalog: Catalog, **cut: Any) -> pa.Table:
    return pa.concat_tables([read_partition(catalog, i, **cut) for i in range(len(catalog.partitions))])


@pytest.fixture(scope="module")
def sources() -> pa.Table:
    return simulated_sources()


@pytest.fixture(scope="module")
def hive(tmp_path_factory: pytest.TempPathFactory, sources: pa.Table) -> Path:
    return write_hive(tmp_path_factory.mktemp("irsa") / "wise-allwise.parquet", sources)


def test_hive_gives_every_row_once_in_the_schema(hive: Path, sources: pa.Table) -> None:
    catalog = open_catalog(str(hive))
    assert catalog == open_catalog(str(hive.parent)) and catalog.kind == "hive"
    assert all(p.order == 5 and f"healpix_k5={p.pixel}/" in p.path for p in catalog.partitions)
    table = rows_of(catalog).sort_by("cntr")
    assert table.schema == SOURCE_SCHEMA
    for name in ("source_id", "ra", "dec", "designation", "cc_flags"):
        assert table[name].to_pylist() == sources[name].to_pylist()
    assert table["coadd_id"].to_pylist() == sources["coadd_id"].to_pylist()
    assert table["ext_flg"].to_pylist() == sources["ext_flg"].to_pylist()
    assert table["w2mpro"].null_count == int(np.isnan(sources["w2mpro"].to_numpy()).sum()) > 0
    w1snr = sources["w1snr"].cast(pa.float64()).to_numpy().astype("f4")
    np.testing.assert_array_equal(table["w1snr"].to_numpy(), w1snr)
    assert table["w3mpro"].null_count == len(table)


@pytest.mark.parametrize("folders", [False, True])
def test_hats_with_its_own_column_names(tmp_path: Path, sources: pa.Table, folders: bool) -> None:
    renamed = sources.rename_columns(["raj" if name == "ra" else name for name in sources.column_names])
    write_hats(tmp_path / "c", renamed.append_column("ra", sources["ra"]), folders=folders)
    catalog = open_catalog(str(tmp_path / "c"))
    assert catalog.kind == "hats" and {p.order for p in catalog.partitions} == {3}
    np.testing.assert_array_equal(rows_of(catalog).sort_by("cntr")["ra"].to_numpy(), sources["ra"].to_numpy())
    (tmp_path / "collection.properties").write_text("hats_primary_table_url=c\n")
    assert open_catalog(str(tmp_path)) == catalog
    (tmp_path / "c" / "partition_info.csv").unlink()
    assert open_catalog(str(tmp_path)).partitions == catalog.partitions


def test_hats_written_by_hats_opens(tmp_path: Path, sources: pa.Table) -> None:
    lsdb = pytest.importorskip("lsdb")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        frame = sources.drop_columns(["w1snr"]).to_pandas()
        frame["coadd_id"] = frame["coadd_id"].astype(str)
        lsdb.from_dataframe(frame, ra_column="ra", dec_column="dec", lowest_order=3, highest_order=5).to_hats(
            tmp_path / "out", catalog_name="simulated"
        )
    catalog = open_catalog(str(tmp_path / "out"))
    assert catalog.kind == "hats"
    assert sorted(rows_of(catalog)["source_id"].to_pylist()) == sorted(sources["source_id"].to_pylist())


REGIONS = [
    Cone(0.5, 0.5, "90arcmin"),
    Cone(359.9, -3, 2),
    Box(359, 1, -1, 1),
    Pixels(4, (1108, 2399)),
    Cone(90, 60, 1),
]


@pytest.mark.parametrize("region", REGIONS, ids=str)
def test_a_region_loses_and_adds_no_row(hive: Path, tmp_path: Path, sources: pa.Table, region: Any) -> None:
    inside = region.contains(sources["ra"].to_numpy(), sources["dec"].to_numpy())
    expected = sorted(sources.filter(pa.array(inside))["source_id"].to_pylist())
    hats = open_catalog(str(write_hats(tmp_path / "h", sources, order=6, names=False)))
    for catalog in (open_catalog(str(hive)), hats):
        picked = select(catalog, region)
        assert set(picked.partitions) < set(catalog.partitions)
        parts = [read_partition(picked, i, region) for i in range(len(picked.partitions))]
        assert sorted(x for part in parts for x in part["source_id"].to_pylist()) == expected


def test_partitions_that_a_copy_lacks_are_named(tmp_path: Path, sources: pa.Table) -> None:
    root = write_hive(tmp_path / "copy", sources)
    region = Cone(0.0, 0.0, "3deg")
    assert gaps(open_catalog(str(root)), region) == []
    lost = next(root.rglob("healpix_k5=*"))
    shutil.rmtree(lost)
    pixel = int(lost.name.split("=")[1])
    assert gaps(open_catalog(str(root)), Pixels(5, (pixel,))) == [pixel]


def test_the_cut_to_a_tile_and_the_counts_agree(hive: Path) -> None:
    catalog, region = open_catalog(str(hive)), Box(358, 2, -2, 2)
    picked = select(catalog, region)
    for i in range(len(picked.partitions)):
        counts = count_tiles(picked, i, region)
        assert counts.schema == COUNT_SCHEMA
        for row in counts.to_pylist():
            rows = read_partition(picked, i, region, row["coadd_id"])
            assert row["partition"] == i and len(rows) == row["n"]
            assert set(rows["coadd_id"].to_pylist()) == {row["coadd_id"]}
        assert pc.sum(counts["n"]).as_py() in (len(read_partition(picked, i, region)), None)
    assert sum(pc.sum(count_tiles(catalog, i)["n"]).as_py() for i in range(len(catalog.partitions))) == 3000


def test_the_dask_frame_is_the_same_rows(hive: Path) -> None:
    catalog, region = open_catalog(str(hive)), Cone(0, 0, 2)
    frame = to_dask(select(catalog, region), region)
    assert len(pickle.dumps(frame)) < 100_000
    rows = frame.compute(scheduler="sync")
    assert frame.dtypes.equals(rows.dtypes)
    assert pa.Table.from_pandas(rows, SOURCE_SCHEMA, preserve_index=False) == rows_of(
        select(catalog, region), region=region
    )
    with pytest.raises(CatalogError, match="no partition"):
        to_dask(select(catalog, Cone(90, 60, 1)))


def test_an_empty_region_gives_no_partition(hive: Path) -> None:
    assert select(open_catalog(str(hive)), Cone(90, 60, 1)).partitions == ()


@pytest.mark.parametrize(
    ("name", "value"), [("ra", np.nan), ("dec", -90.5), ("ra", 360.5), ("dec", np.inf), ("ra", None)]
)
@pytest.mark.fault(18)
def test_a_position_that_is_none_is_named(tmp_path: Path, sources: pa.Table, name: str, value: float | None) -> None:
    table = sources.slice(0, 50)
    column = table[name].to_pylist()
    column[7] = value
    folder = tmp_path / "healpix_k0=0" / "healpix_k5=1"
    folder.mkdir(parents=True)
    table = table.set_column(table.column_names.index(name), name, pa.array(column))
    pq.write_table(table, folder / "part0.parquet")
    catalog = open_catalog(str(tmp_path))
    for read in (lambda: read_partition(catalog, 0), lambda: count_tiles(catalog, 0)):
        with pytest.raises(CatalogError, match=f"part0.parquet: 1 of 50 .*{sources['source_id'][7]}"):
            read()


@pytest.mark.fault(18)
def test_what_is_no_catalogue_says_what_it_is(tmp_path: Path, sources: pa.Table) -> None:
    with pytest.raises(CatalogError, match="no such file"):
        open_catalog(str(tmp_path / "nowhere"))
    with pytest.raises(CatalogError, match="holds nothing"):
        open_catalog(str(tmp_path))
    with pytest.raises(CatalogError, match="local files only"):
        open_catalog("s3://nasa-irsa-wise/wise")
    write_hive(tmp_path / "a", sources.drop_columns(["source_id"]))
    with pytest.raises(CatalogError, match="part0.snappy.parquet: no column source_id; a cat"):
        open_catalog(str(tmp_path / "a"))
    wrong = sources.drop_columns(["cntr"]).append_column("cntr", pa.array(["x"] * len(sources)))
    write_hive(tmp_path / "b", wrong)
    with pytest.raises(CatalogError, match="column cntr is not int64"):
        read_partition(open_catalog(str(tmp_path / "b")), 0)
    root = write_hats(tmp_path / "m", sources, names=False)
    next((root / "dataset").rglob("Npix=*.parquet")).unlink()
    with pytest.raises(CatalogError, match="is missing, though partition_info.csv names it"):
        open_catalog(str(root))
    (root / "hats.properties").write_text("dataproduct_type=margin\n")
    with pytest.raises(CatalogError, match="margin"):
        open_catalog(str(root))
    damaged = Path(open_catalog(str(tmp_path / "b")).partitions[0].path)
    damaged.write_bytes(damaged.read_bytes()[:500])
    with pytest.raises(CatalogError, match="cannot be read as Parquet"):
        open_catalog(str(tmp_path / "b"))


def test_a_prepared_folder_is_read_as_it_is(tmp_path: Path) -> None:
    table = pa.table({"source_id": ["a", "b", "c"], "ra": [1.0, 2, 3], "dec": [0.0, 0, 0],
                      "coadd_id": ["0000p000_ac51", None, None]})  # fmt: skip
    columns = [table[f.name] if f.name in table.column_names else pa.nulls(3, f.type) for f in SOURCE_SCHEMA]
    columns[-1] = pa.array([0, 1, 0], pa.int32())
    full = pa.table(columns, schema=SOURCE_SCHEMA)
    pq.write_table(full, tmp_path / "part0.parquet")
    catalog = open_catalog(str(tmp_path))
    assert catalog.kind == "prepared" and select(catalog, Cone(90, 60, 1)) == catalog
    assert read_partition(catalog, 0) == full
    assert read_partition(catalog, 0, coadd_id="0000p000_ac51")["source_id"].to_pylist() == ["a"]
    assert count_tiles(catalog, 0).to_pylist() == [
        {"coadd_id": "0000p000_ac51", "partition": 0, "n": 1}, {"coadd_id": None, "partition": 0, "n": 2},
    ]  # fmt: skip


# --- tables ----------------------------------------------------------------------------------------


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
    catalog = open_catalog(str(path))
    assert (catalog.kind, len(catalog.partitions)) == ("table", 1)
    assert read_partition(catalog, 0, Cone(0, 89, 2))["ra"].to_pylist() == [359.25, 0.0]


@pytest.mark.parametrize("name", ["gator_arp220_allsky.tbl", "gator_one_row_allwise.tbl"])
def test_real_irsa_tables(name: str) -> None:
    path = SHARED / name
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
        ("RAJ2000,DEJ2000\n1,2\n", "no column ra and dec; its columns are RAJ2000, DEJ2000"),
        ("ra,RA,dec\n1,1,2\n", None),
        ("Ra,RA,dec\n1,1,2\n", "columns Ra, RA all mean ra"),
        ("ra,dec\n10:12:13.4,+3:04:05\n", "sexagesimal .*10:12:13.4"),
        ("ra,dec\n10h12m13s,3\n", "sexagesimal"),
        ("ra,dec\n10 12 13,3\n", "sexagesimal"),
        ("ra,dec\n1,2,3\n", "not a regular CSV"),
        ("ra,dec\nvega,2\naltair,3\n", "column ra holds text such as .'vega'"),
        ("ra dec\n1 2\n", "no comma, semicolon or tab"),
        ('ra,dec\n"",2\n"",3\n', "2 of 2 rows have no position"),
        ("This is no table at all.\n", "none of FITS, Parquet"),
        ("source_id,ra,dec\na,1,1\nb,2,2\na,3,3\n", "source_id a stands in more than one row"),
        ("source_id,ra,dec\na,1,1\n,2,2\n", "source_id is empty in 1 rows"),
        ("ra,dec,ext_flg\n1,2,1.5\n", "column ext_flg is not int32"),
        ("ra,dec,w1mpro\n1,2,bright\n", "column w1mpro is not float"),
        ("<html><body>503</body></html>", "its content is none of CSV"),
        ("\x89HDF\r\n\x1a\n\0\0", "its content is none of CSV"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, words: str | None) -> None:
    path = csv_table(tmp_path, text)
    if words is None:
        assert standardise_table(path)["ra"].to_pylist() == [1]
        return
    with pytest.raises(CatalogError, match=words) as caught:
        standardise_table(path)
    assert "list.csv" in str(caught.value)


def test_bad_rows_come_in_one_message(tmp_path: Path) -> None:
    bad = ["nan,1", "1,nan", ",5", "361,5", "5,-90.1", "inf,1", "x,1"]
    with pytest.raises(CatalogError) as caught:
        standardise_table(csv_table(tmp_path, "ra,dec\n1,2\n" + "\n".join(bad) + "\n3,4\n"))
    message = str(caught.value)
    assert "7 of 9 rows" in message and "row 2 (ra nan, dec 1.0), 3 (ra 1.0, dec nan), 4 " in message
    assert "6 (ra 5.0, dec -90.1) and more" in message and "7 (" not in message


def test_all_kinds_of_bad_rows_come_together(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="1 of 4 rows have no position.*empty in 1 rows.*source_id a stands in more"):
        standardise_table(csv_table(tmp_path, "source_id,ra,dec\na,1,1\na,2,2\n,3,3\nb,400,4\n"))


@pytest.mark.parametrize("suffix", [".csv", ".tbl", ".xml", ".fits", ".ecsv", ".parquet"])
def test_further_columns_are_read_as_text_and_a_source_may_stand_there_twice(tmp_path: Path, suffix: str) -> None:
    table = user_table()
    table["Class"], table["source_id"] = ["001", "star", "002"], ["a", "a", "b"]
    path = str(write_table(table, tmp_path / f"t{suffix}"))
    found = read_table(path, extra=("class", "absent"))
    assert (
        "other" not in found.column_names
        and "absent" not in found.column_names
        and "coadd_id" not in found.schema.names
    )
    assert found["ra"].to_pylist() == [10.5, 359.25, 0.0]
    whole = standardise(found, "labels", unique=False)
    assert whole.schema == SOURCE_SCHEMA.append(pa.field("class", pa.string()))
    assert whole["class"].to_pylist() == ["001", "star", "002"] and whole["source_id"].to_pylist() == ["a", "a", "b"]
    with pytest.raises(CatalogError, match="^labels: source_id a stands in more than one row"):
        standardise(found, "labels")


def test_units_of_a_table_are_honoured(tmp_path: Path) -> None:
    table = Table({"ra": [1.0, 2.0] * u.hourangle, "dec": [0.5, -0.5] * u.rad})
    table.write(tmp_path / "t.ecsv")
    read = standardise_table(str(tmp_path / "t.ecsv"))
    np.testing.assert_allclose(read["ra"].to_numpy(), [15, 30])
    np.testing.assert_allclose(read["dec"].to_numpy(), np.degrees([0.5, -0.5]))
    Table({"ra": [1.0] * u.m, "dec": [0.5]}).write(tmp_path / "m.fits")
    with pytest.raises(CatalogError, match="column ra is in m"):
        standardise_table(str(tmp_path / "m.fits"))


def test_a_fits_image_is_no_table(tmp_path: Path) -> None:
    from astropy.io import fits

    fits.PrimaryHDU(np.zeros((4, 4))).writeto(tmp_path / "image.fits")
    with pytest.raises(CatalogError, match="cannot be read as fits"):
        standardise_table(str(tmp_path / "image.fits"))


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


# --- tiles -----------------------------------------------------------------------------------------


def atlas_tile(name: str, ra: float, dec: float, shape: tuple[int, int] = (4095, 4095), shift: float = 0.0) -> Tile:
    crpix = (2048.0 + shift, 2048.0)
    return Tile(name, ("w1",), shape, (ra, dec), crpix, (-CDELT_DEG, CDELT_DEG), (20.5,))


def position_table(ra: np.ndarray, dec: np.ndarray) -> pa.Table:
    given = {"ra": pa.array(ra), "dec": pa.array(dec)}
    columns = [given.get(f.name, pa.nulls(len(ra), f.type)) for f in SOURCE_SCHEMA]
    return pa.table(columns, schema=SOURCE_SCHEMA)


def test_tiles_are_assigned_farthest_from_the_edge_or_not_at_all() -> None:
    tiles = [atlas_tile("a", 0.0, 0.0), atlas_tile("b", 1.5126, 0.0), atlas_tile("c", 0.0, 1.5144)]
    rng = np.random.default_rng(5)
    ra, dec = rng.uniform(-1, 2.6, 4000) % 360, rng.uniform(-1, 2.6, 4000)
    table = assign_tiles(position_table(ra, dec), tiles)
    assert table.schema == SOURCE_SCHEMA
    best, owner = np.full(4000, -np.inf), np.full(4000, None, dtype=object)
    half_deg = 4095 / 2 * CDELT_DEG
    for tile in tiles:  # the small-angle truth, apart from the seams
        dx = np.degrees(np.sin(np.radians(ra - tile.crval_deg[0]))) * np.cos(np.radians(dec))
        margin = half_deg - np.maximum(np.abs(dx), np.abs(dec - tile.crval_deg[1]))
        better = margin > np.maximum(best, 0)
        owner[better], best = tile.coadd_id, np.maximum(best, margin)
    same = np.array(table["coadd_id"].to_pylist(), dtype=object) == owner
    assert same.mean() > 0.998 and {"a", "b", "c", None} <= set(owner)


def test_tiles_at_the_pole_and_cutouts_of_a_tile() -> None:
    pole, cut = atlas_tile("pole", 10.0, -89.35), atlas_tile("cut", 100.0, 40.0, (150, 200), -2000.0)
    ra = np.array([190.0, 10, 100.0, 100.0, 99.95])
    dec = np.array([-89.9, -90, 40, 39.25, 39.25])
    names = assign_tiles(position_table(ra, dec), [pole, cut])["coadd_id"].to_pylist()
    assert names == ["pole", "pole", None, "cut", "cut"]
    assert assign_tiles(position_table(ra, dec), [])["coadd_id"].null_count == 5


def test_real_positions_get_their_own_tile() -> None:
    table, tiles = SHARED / "ngc3532_allwise_wx_wy.csv", SHARED / "wise-tiles.fits"
    if not table.exists() or not tiles.exists():
        pytest.skip("the shared archive tables are not here")
    truth = Table.read(table, format="ascii.csv")
    truth = truth[~np.ma.getmaskarray(np.ma.asarray(truth["ID_allwise"]))]
    ra, dec = np.asarray(truth["RAJ2000_allwise"]), np.asarray(truth["DEJ2000_allwise"])
    grid = Table.read(tiles)
    near = grid[separation_deg(grid["ra"], grid["dec"], ra.mean(), dec.mean()) < 3]
    names = [str(name).strip() for name in near["coadd_id"]]
    all_tiles = [atlas_tile(n, r, d) for n, r, d in zip(names, near["ra"], near["dec"], strict=True)]
    assigned = assign_tiles(position_table(ra, dec), all_tiles)["coadd_id"].to_pylist()
    assert None not in assigned
    # cntr names the tile: RRRR, sign (1 = p), DDD; the first eight digits survive the table's float
    digits = [f"{value:.0f}" for value in truth["ID_allwise"]]
    own = [f"{d[:4]}{'p' if d[4] == '1' else 'm'}{d[5:8]}" for d in digits]
    assert np.mean([a[:8] == o for a, o in zip(assigned, own, strict=True)]) > 0.97
