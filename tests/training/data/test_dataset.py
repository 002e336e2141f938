"""The training set: who is in it, cut like the engine cuts, split so that no sky is shared, refused in one message."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from distributed import Client, LocalCluster
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from skyclass.engine.window import map_unordered
from skyclass.errors import ArchiveError, CatalogError, ConfigError, SkyclassError
from skyclass.files import sha256_of
from skyclass.images.archive import open_archive
from skyclass.images.composite import ATLAS_ZERO_POINT_MAG, atlas_settings, composite
from skyclass.images.cutouts import cut
from skyclass.mock import write_mock
from skyclass.model.bundle import Cut
from skyclass.schema import SOURCE_SCHEMA
from skyclass.sky.healpix import healpix, separation_deg
from skyclass.sky.tile_wcs import tile_pixels
from skyclass.training.data import composites as composites_module
from skyclass.training.data import config as config_module
from skyclass.training.data import cutting, splits
from skyclass.training.data import dataset as dataset_module
from skyclass.training.data.build import build_dataset
from skyclass.training.data.catalog_match import match_catalog, one_to_one
from skyclass.training.data.composites import composites
from skyclass.training.data.config import DatasetConfig, dataset_config
from skyclass.training.data.dataset import Dataset, load_dataset, save_dataset, summary
from skyclass.training.data.examples import Labels
from skyclass.training.data.select import select_sources
from skyclass.types import BANDS, DEFAULT_CLASSES, Flag, Tile

SIZE = 13


@pytest.fixture(scope="module")
def sky4(tmp_path_factory):
    """Two small simulated tiles in all four bands, a third of each class."""
    folder = tmp_path_factory.mktemp("sky4")
    return write_mock(folder, n_tiles=2, seed=3, sources_per_tile=300, size_px=700, mix="balanced", bands=BANDS)


@pytest.fixture
def run(sky4, tmp_path) -> DatasetConfig:
    """A training set of all labelled sources of the small sky."""
    return DatasetConfig(
        str(tmp_path / "set"), str(sky4.truth), str(sky4.images), catalog=str(sky4.catalog), size=f"{SIZE}px"
    )


def truth(sky4) -> pd.DataFrame:
    return pq.read_table(sky4.truth).to_pandas()[["source_id", "coadd_id", "ra", "dec", "class"]]


def labelled(run: DatasetConfig, table: pd.DataFrame, name: str = "labels.csv", **changes) -> DatasetConfig:
    """The same run with other labels, in CSV: whether they are simulated must then be said."""
    path = Path(run.out).parent / name
    table.to_csv(path, index=False)
    return replace(run, labels=str(path), **({"simulated": True} | changes))


def files(folder: str | Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(Path(folder).iterdir()) if not p.name.startswith(".")}


# --- cutting ---------------------------------------------------------------------------------------


@pytest.mark.integration
def test_pixels_are_the_engines_cutouts_and_rows_belong_to_them(run, sky4):
    told = []
    data = build_dataset(run, progress=told.append)
    assert data.pixels.shape == (len(data), 4, SIZE, SIZE) and data.pixels.dtype == np.float32
    assert data.zero_point_mag == tuple(ATLAS_ZERO_POINT_MAG.values()) and data.cut == Cut(SIZE, BANDS)
    assert told[-1]["done"] == told[-1]["total"] and told[-1]["kept"] == len(data)
    assert len(data) + sum(data.provenance["dropped"].values()) == sky4.n_sources
    rows = data.rows.to_pandas().merge(truth(sky4)[["source_id", "class"]], on="source_id", how="left")
    assert rows["class"].tolist() == [DEFAULT_CLASSES[k] for k in data.labels]
    assert set(SOURCE_SCHEMA.names) | {"split", "flags"} == set(data.rows.column_names)
    assert rows["w1mpro"].notna().all()
    archive = open_archive(str(sky4.images), BANDS)
    for name in sky4.coadd_ids:
        here = np.flatnonzero(rows["coadd_id"] == name)
        tile = archive.tile(name, BANDS)
        x, y = tile_pixels(tile, rows["ra"].to_numpy()[here], rows["dec"].to_numpy()[here])
        np.testing.assert_array_equal(data.pixels[here], cut(archive, tile, x, y, SIZE).pixels)
    assert data.provenance["simulated"] is True
    assert b"simulated" in pq.read_schema(Path(run.out) / "rows.parquet").metadata


@pytest.mark.integration
def test_workers_and_this_process_give_the_same_bytes(run, monkeypatch):
    monkeypatch.setattr(cutting, "TASK_TILES", 1)
    build_dataset(run)
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0") as pool:
        with Client(pool) as client:
            build_dataset(replace(run, out=run.out + "-dask"), client)
            pairs = [(i, 3) for i in range(50)]
            assert sorted(map_unordered(client, divmod, pairs)) == [divmod(i, 3) for i in range(50)]
            items = iter(pairs)
            next(map_unordered(client, divmod, items))
            assert len(list(items)) == 50 - 2 * 2 - 1  # two in flight for each thread, and one more for the one done
            with pytest.raises(ZeroDivisionError):
                list(map_unordered(client, divmod, [(1, 0)] * 9))
    here, there = files(run.out), files(run.out + "-dask")
    assert here == there and set(here) == {"pixels.npy", "rows.parquet", "dataset.json"}
    assert [p.name for p in Path(run.out).parent.iterdir() if p.name.startswith(".")] == []


@pytest.mark.integration
def test_shards_that_come_back_in_any_order_give_the_same_bytes(run, monkeypatch):
    monkeypatch.setattr(cutting, "TASK_TILES", 1)
    build_dataset(run)
    monkeypatch.setattr(cutting, "starmap", lambda work, items: [work(*item) for item in reversed(list(items))])
    build_dataset(replace(run, out=run.out + "-2"))
    assert files(run.out) == files(run.out + "-2")


def test_a_folder_that_workers_do_not_share_is_told(run, monkeypatch):
    def elsewhere(work, items):
        for job, number, tiles in items:
            shard = work(job, number, tiles)
            Path(job.scratch, f"shard-{number:06d}.f32").unlink()
            yield shard

    monkeypatch.setattr(cutting, "starmap", elsewhere)
    with pytest.raises(SkyclassError, match="disk that all workers share"):
        build_dataset(run)
    assert list(Path(run.out).parent.iterdir()) == []


def test_tasks_are_whole_tiles_and_cover_every_row_once():
    names = ["a"] * 3 + ["b"] * 5000 + [f"c{i:03d}" for i in range(200)]
    tasks = cutting.plan_tasks(names)
    flat = [tile_rows for task in tasks for tile_rows in task]
    assert [f for _, f, _ in flat] == [0, *(last for _, _, last in flat[:-1])] and flat[-1][2] == len(names)
    assert all(names[f:last] == [name] * (last - f) for name, f, last in flat)
    assert all(len(task) <= cutting.TASK_TILES for task in tasks) and len(tasks) == 6


def test_a_tile_with_another_zero_point_is_brought_to_the_sets():
    tile = Tile("0000p000_ac51", ("w1", "w2"), (9, 9), (0, 0), (5, 5), (-1, 1), (23.0, 19.5))
    pixels = np.ones((1, 2, 1, 1), np.float32)
    np.testing.assert_allclose(cutting.at_atlas_zero_point(pixels, tile).ravel(), [0.1, 1.0], rtol=1e-6)
    assert cutting.at_atlas_zero_point(pixels, replace(tile, zero_point_mag=(20.5, 19.5))) is pixels


# --- dropped and counted ---------------------------------------------------------------------------


def test_sources_that_cannot_be_cut_are_dropped_by_reason(run, sky4, tmp_path):
    images = tmp_path / "images"
    shutil.copytree(sky4.images, images)
    broken = next(images.rglob(f"{sky4.coadd_ids[0]}-w4-int-3.fits"))
    broken.write_bytes(broken.read_bytes()[:100_000])
    table = truth(sky4)
    n_broken = int((table["coadd_id"] == sky4.coadd_ids[0]).sum())
    table.loc[table.index[-1], "coadd_id"] = "0000p000_ac51"
    extra = [table.iloc[[-2]], pd.DataFrame({"source_id": ["far"], "ra": [10.0], "dec": [-60.0], "class": ["star"]})]
    good = table.iloc[-3]
    aside = good.copy()
    aside["source_id"], aside["dec"] = "beside", good["dec"] + 1.0  # on no pixel of the tile that it names
    table = pd.concat([table, *extra, aside.to_frame().T])
    data = build_dataset(replace(labelled(run, table), catalog=None, images=str(images)))
    dropped = {k: n for k, n in data.provenance["dropped"].items() if n}
    assert dropped == {"duplicate": 1, "outside_archive": 2, "no_pixels": 1, "tile_bad": n_broken}
    assert len(data) == len(table) - sum(dropped.values())
    assert data.provenance["n_faults"] == 1 and "w4" in data.provenance["faults"][0]
    assert "1 duplicate" in summary(data) and "SIMULATED" in summary(data)


def test_labels_without_names_are_matched_by_position_one_to_one(run, sky4, tmp_path):
    table = truth(sky4)[["ra", "dec", "class"]]
    shifted = table.assign(dec=table["dec"] + 0.8 / 3600)
    lost = pd.DataFrame({"ra": table["ra"][:1], "dec": table["dec"][:1] + 0.05, "class": "star"})
    rival = table.iloc[:1].assign(dec=table["dec"].iloc[0] - 1.5 / 3600)  # 2.3 arcsec from its better
    data = build_dataset(labelled(run, pd.concat([shifted, lost, rival])))
    rows = data.rows.to_pandas().merge(truth(sky4), on="source_id", suffixes=("", "_true"))
    assert len(rows) == len(data) == len(table) and (rows["ra"] == rows["ra_true"]).all()
    assert rows["class"].tolist() == [DEFAULT_CLASSES[k] for k in data.labels]
    assert data.provenance["dropped"] == {"duplicate": 0, "not_in_catalog": 1, "source_of_a_nearer_label": 1}
    with pytest.raises(CatalogError, match=r"none of \d+ labelled sources is in it by position within 0.1 arcsec"):
        build_dataset(labelled(replace(run, out=run.out + "2"), shifted, match_radius_arcsec=0.1))


def test_labels_of_different_classes_that_meet_on_one_source_are_refused(run, sky4):
    table = truth(sky4)[["ra", "dec", "class"]]
    shifted = table.assign(dec=table["dec"] + 0.8 / 3600)
    ours, rivals = table["class"].iloc[0], table.iloc[:1].assign(dec=table["dec"].iloc[0] - 1.5 / 3600)
    strange = rivals.assign(**{"class": other(ours)})
    with pytest.raises(CatalogError, match=r"on 1 of \d+ sources labels of different classes meet") as caught:
        build_dataset(labelled(run, pd.concat([shifted, strange])))
    assert f" {ours} and row-000" in str(caught.value) and f" {other(ours)}; decide" in str(caught.value)
    assert "\n" not in str(caught.value) and not Path(run.out).exists()
    chosen = select_sources(labelled(run, pd.concat([shifted, rivals])))  # an equal label: the nearer serves for both
    assert chosen.dropped["source_of_a_nearer_label"] == 1 and len(chosen.table) == len(table)


def test_neighbours_of_different_classes_keep_their_own_sources(tmp_path):
    """Each label has the other's source within reach too, but a nearer one of its own."""
    table = pa.table({"source_id": ["a", "b"], "ra": [10.0, 10.0], "dec": [0.0, 1.6 / 3600]})
    rows = [table[f.name].cast(f.type) if f.name in table.column_names else pa.nulls(2, f.type) for f in SOURCE_SCHEMA]
    (tmp_path / "catalog").mkdir()
    pq.write_table(pa.table(rows, schema=SOURCE_SCHEMA), tmp_path / "catalog" / "part0.parquet")
    at = table.set_column(0, "source_id", pa.array(["x", "y"])).append_column("label", pa.array([0, 2]))
    found = match_catalog(Labels(at, False, DEFAULT_CLASSES), str(tmp_path / "catalog"), 2.0)
    assert dict(zip(found.table["source_id"].to_pylist(), found.table["label"].to_pylist(), strict=True)) == {
        "a": 0, "b": 2,
    }  # fmt: skip
    nearer = at.set_column(2, "dec", pa.array([0.0, 0.7 / 3600]))
    with pytest.raises(CatalogError, match=r"on 1 of 2 sources .*x at 10.00000 \+0.00000 galaxy and y at .* star"):
        match_catalog(Labels(nearer, False, DEFAULT_CLASSES), str(tmp_path / "catalog"), 2.0)


def test_a_name_whose_source_lies_elsewhere_is_refused(run, sky4):
    table = truth(sky4)
    wrong = table.copy()
    wrong.loc[3, "dec"] += 2.5 / 3600
    wrong.loc[[5, 6], "source_id"] = table.loc[[6, 5], "source_id"].to_numpy()  # two names changed about
    with pytest.raises(CatalogError, match=rf"3 of {len(table)} labels lie farther than 2 arcsec") as caught:
        build_dataset(labelled(run, wrong))
    message = str(caught.value)
    assert f"{table['source_id'][3]} at " in message and "is 2.5 arcsec from its source" in message
    assert "drop the column source_id" in message and "match_radius_arcsec" in message and "\n" not in message
    near = table.assign(dec=table["dec"] + 1.9 / 3600)
    assert len(select_sources(labelled(run, near)).table) == len(table)


def test_the_closest_pair_is_taken_first_and_nobody_twice():
    owners, sources = np.array([0, 0, 1, 1]), np.array([5, 6, 5, 7])
    assert one_to_one(owners, sources, np.array([0.3, 0.9, 0.1, 0.2])).tolist() == [2, 1]


def test_a_table_of_any_format_gives_the_same_set(run, sky4, tmp_path):
    table = truth(sky4)
    first = build_dataset(replace(labelled(run, table), catalog=None))
    shouted = Table.from_pandas(
        table.rename(columns={"ra": "RA", "class": "Class"}).assign(Class=table["class"].str.upper())
    )
    for name, form in (("t.fits", "fits"), ("t.vot", "votable"), ("t.tbl", "ascii.ipac"), ("t.ecsv", "ascii.ecsv")):
        shouted.write(tmp_path / name, format=form)
        chosen = select_sources(replace(run, labels=str(tmp_path / name), catalog=None, simulated=True))
        assert chosen.table["source_id"].to_pylist() == first.rows["source_id"].to_pylist(), name
        assert chosen.table["split"].to_pylist() == first.rows["split"].to_pylist(), name


def test_photometry_of_the_labels_serves_where_there_is_no_catalogue(run, sky4):
    table = truth(sky4).assign(w1mpro=15.5, w1snr=np.where(truth(sky4).index % 2, 4.0, 9.0))
    table.loc[0, "w1snr"] = np.nan
    data = build_dataset(replace(labelled(run, table), catalog=None, min_w1snr=5.0))
    assert set(data.rows["w1mpro"].to_pylist()) == {15.5} and data.rows["w2mpro"].null_count == len(data)
    assert table["source_id"][0] in data.rows["source_id"].to_pylist()  # not known: kept
    assert data.provenance["dropped"]["low_w1snr"] == (table["w1snr"] <= 5).sum()


# --- the draw --------------------------------------------------------------------------------------


def test_a_draw_goes_by_seed_and_not_by_order(run, sky4):
    counts = {"galaxy": 30, "quasar": 20}
    table = truth(sky4)
    first = select_sources(replace(labelled(run, table), catalog=None, counts=counts))
    again = select_sources(replace(labelled(run, table.sample(frac=1, random_state=1)), catalog=None, counts=counts))
    other = select_sources(replace(labelled(run, table), catalog=None, counts=counts, seed=1))
    assert first.table.equals(again.table) and not first.table["source_id"].equals(other.table["source_id"])
    label = first.table["label"].to_numpy()
    assert np.bincount(label).tolist() == [30, 20, (table["class"] == "star").sum()]


def test_the_papers_preset_asks_for_the_papers_numbers_above_its_snr(run, monkeypatch):
    with pytest.raises(CatalogError, match="needs 7,298 galaxy, 7,215 quasar, 7,223 star; there are"):
        build_dataset(replace(run, preset="paper"))
    monkeypatch.setitem(config_module.PRESETS["paper"], "counts", {"galaxy": 40, "quasar": 40, "star": 40})
    data = build_dataset(replace(run, preset="paper"))
    assert np.bincount(data.labels).tolist() == [40, 40, 40]
    assert min(data.rows["w1snr"].to_pylist()) > 5 and min(data.rows["w2snr"].to_pylist()) > 5
    assert data.provenance["settings"]["preset"] == "paper"


# --- refusals --------------------------------------------------------------------------------------


def spoil(table: pd.DataFrame, **columns) -> pd.DataFrame:
    """The table with the first row's values changed."""
    table = table.copy()
    for name, value in columns.items():
        table.loc[0, name] = value
    return table


BAD_LABELS = {
    "no class": (lambda t: t.drop(columns="class"), "no column class"),
    "no class, text in ra": (
        lambda t: t.drop(columns="class").astype({"ra": str}).replace({"ra": {str(t["ra"].iloc[0]): "?"}}),
        r"no column class \(found: source_id, ra, dec, coadd_id\)",
    ),
    "no position": (lambda t: t.drop(columns=["ra", "dec"]), "no columns ra and dec"),
    "no rows": (lambda t: t.iloc[:0], "no rows"),
    "strange class": (
        lambda t: spoil(t, **{"class": "nova"}),
        r"'nova' \(1 row\) is unknown; use galaxy, quasar, star",
    ),
    "empty class": (lambda t: spoil(t, **{"class": None}), "is unknown"),
    "one class": (lambda t: t[t["class"] != "quasar"], r"no quasar \(.* 0 quasar"),
    "off the sky": (lambda t: spoil(t, dec=-91.0), r"1 of .* rows has no position on the sky, such as row 1 \(ra"),
    "sexagesimal": (lambda t: t.assign(ra="10:00:00"), "sexagesimal"),
    "nameless": (lambda t: spoil(t, source_id=None), "source_id is empty in 1 row;"),
    "two labels, one name": (
        lambda t: pd.concat([t, spoil(t, **{"class": "star" if t["class"][0] != "star" else "quasar"}).iloc[:1]]),
        r"1 source has more than one class: 1497p015_ac51-000001 at .* decide",
    ),
    "two labels, one place": (
        lambda t: pd.concat(
            [t, t.iloc[:1].assign(**{"source_id": "x", "dec": t["dec"][0] + 0.7 / 3600, "class": other(t["class"][0])})]
        ),
        "more than one class: .*x at",
    ),
    "elsewhere": (lambda t: t.assign(ra=t["ra"] + 60, coadd_id=None), "none of .* labelled sources lies on a tile of"),
    "in hours": (
        lambda t: t.groupby("class").head(2).assign(ra=t["ra"] / 15, coadd_id=None),
        r"they span RA \S+, Dec \S+; if ra is in hours, multiply it by 15; is it another part of the sky",
    ),
    "elsewhere by name": (lambda t: t.assign(coadd_id="0000p000_ac51"), "lies on a tile of"),
}


def other(name: str) -> str:
    return "star" if name != "star" else "quasar"


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_cannot_be_right_are_refused_before_any_cutting(run, sky4, case, monkeypatch):
    monkeypatch.setattr(cutting, "cut", None)
    change, message = BAD_LABELS[case]
    with pytest.raises(CatalogError, match=message) as caught:
        build_dataset(replace(labelled(run, change(truth(sky4))), catalog=None))
    assert "\n" not in str(caught.value) and not Path(run.out).exists()


def test_other_input_that_cannot_be_right_is_refused(run, sky4, sky, tmp_path):
    table = truth(sky4)
    with pytest.raises(CatalogError, match="there is no such table file"):
        build_dataset(replace(run, labels=str(tmp_path / "none.csv")))
    (tmp_path / "empty.csv").touch()
    with pytest.raises(CatalogError, match="empty"):
        build_dataset(replace(run, labels=str(tmp_path / "empty.csv")))
    (tmp_path / "noise.csv").write_bytes(bytes(range(256)))
    with pytest.raises(CatalogError, match="none of CSV"):
        build_dataset(replace(run, labels=str(tmp_path / "noise.csv")))
    with pytest.raises(CatalogError, match="by source_id; drop that column"):
        build_dataset(labelled(run, table.assign(source_id="s" + table["source_id"])))
    with pytest.raises(
        ConfigError,
        match=r'no image of w4 .* only of w1, w2, w3.* --bands w1,w2,w3 \(in a file: bands = \["w1", "w2", "w3"\]\)',
    ):
        build_dataset(DatasetConfig(run.out, str(sky.truth), str(sky.images)))
    plain = tmp_path / "plain"
    plain.mkdir()
    for path in list(sky4.images.rglob("*-w[12]-int-3.fits")):
        shutil.copy(path, plain)
    with pytest.raises(ConfigError, match=r'no image of w3, w4 .* bands = \["w1", "w2"\]'):
        build_dataset(replace(run, images=str(plain)))
    unsaid = replace(labelled(run, table), catalog=None, images=str(tmp_path / "nowhere"), simulated=None)
    with pytest.raises(ArchiveError, match="no such folder"):
        build_dataset(unsaid)
    Path(run.out).mkdir()
    with pytest.raises(ConfigError, match="exists: choose another folder"):
        build_dataset(run)


def test_refused_files_of_the_images_are_told_once(run, sky4, tmp_path, caplog):
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in Path(sky4.images).rglob("*.fits"):
        (flat / path.name).symlink_to(path)
    for name in ("psf.fits", "notes.fits"):
        (flat / name).write_bytes(b"text")
    select_sources(replace(labelled(run, truth(sky4)), catalog=None, images=str(flat)))
    such = "such as notes.fits (not a FITS file); replace or remove them"
    words = f"2 files of {flat} are no usable Atlas images, {such}"
    assert [text for text in caplog.messages if "usable Atlas" in text] == [words]


def test_a_least_snr_that_nobody_knows_is_not_passed_over(run, sky4, tmp_path):
    bare = replace(labelled(run, truth(sky4)), catalog=None)
    with pytest.raises(ConfigError, match=r"min_w1snr = 5: none of the .* sources has w1snr"):
        select_sources(replace(bare, min_w1snr=5.0))
    rows = pq.read_table(sky4.truth).to_pandas().merge(read_snr(sky4), on="source_id")
    rows.loc[rows.index[:40], "w1snr"] = np.nan
    known = labelled(run, rows[["source_id", "coadd_id", "ra", "dec", "class", "w1snr"]], "snr.csv", catalog=None)
    assert select_sources(replace(known, min_w1snr=5.0)).notes == (
        "40 sources of unknown w1snr were not held to min_w1snr = 5",
    )
    assert select_sources(known).notes == ()


def read_snr(sky4) -> pd.DataFrame:
    files = sorted(Path(sky4.catalog).rglob("*.parquet"))
    return pd.concat([pq.read_table(f, columns=["source_id", "w1snr"], partitioning=None).to_pandas() for f in files])


def test_whether_data_are_simulated_must_be_known_and_is_never_denied(run, sky4, tmp_path):
    images = tmp_path / "copy" / "images"
    shutil.copytree(sky4.images, images)  # without the note beside them
    unknown = replace(labelled(run, truth(sky4)), catalog=None, images=str(images), simulated=None)
    with pytest.raises(ConfigError, match="set simulated = false"):
        build_dataset(unknown)
    assert select_sources(replace(unknown, simulated=False)).simulated is False
    for told in (
        replace(unknown, images=str(sky4.images)),
        replace(unknown, labels=str(sky4.truth)),
        replace(unknown, catalog=str(sky4.catalog)),
    ):
        assert select_sources(told).simulated is True
        with pytest.raises(ConfigError, match="say that they are simulated"):
            select_sources(replace(told, simulated=False))


def test_all_problems_of_a_configuration_stand_in_one_message():
    given = {
        "out": "s3://a",
        "labels": "",
        "images": "i",
        "bands": ["w5"],
        "size": "0px",
        "split": [0, 1],
        "preset": "x",
    }
    with pytest.raises(ConfigError) as caught:
        dataset_config(given | {"counts": {"qso": 1}, "match_radius_arcsec": 0})
    assert all(f"{key} " in str(caught.value) for key in ("labels", "bands", "size", "split", "preset", "counts"))
    with pytest.raises(
        ConfigError, match="unknown key 'label'.*tables = None: name a label table as labels.*seed = 'a'"
    ):
        dataset_config({"out": "o", "images": "i", "label": "x", "seed": "a"})
    assert dataset_config({"out": "o", "labels": "l", "images": "i", "split": [8, 1, 1]}).bands == BANDS


def test_a_side_is_pixels_or_an_angle_as_for_cutouts():
    given = {"out": "o", "labels": "l", "images": "i"}
    sides = {"37px": 37, "50arcsec": 37, "49.4arcsec": 35, "512px": 512}
    assert {size: dataset_config(given | {"size": size}).size_px for size in sides} == sides
    assert dataset_config(given).size_px == 37
    with pytest.raises(ConfigError, match="size = '50': 130909 pixels; choose 1 to 1024; 50 without a unit is degrees"):
        dataset_config(given | {"size": "50"})
    with pytest.raises(ConfigError, match="size = '513px': 513 pixels are more than a model takes: choose 512px"):
        dataset_config(given | {"size": "513px"})


# --- splits ----------------------------------------------------------------------------------------

SKIES = st.fixed_dictionaries(
    {
        "n": st.integers(3, 800),
        "seed": st.integers(0, 2**32),
        "width_deg": st.sampled_from([0.02, 0.3, 3.0, 40.0]),
        "dec": st.sampled_from([-89.9, -30.0, 0.0, 60.0]),
        "size_px": st.sampled_from([13, 37, 64]),
    }
)


def positions(case: dict) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(case["seed"])
    dec = np.clip(case["dec"] + rng.uniform(-1, 1, case["n"]) * case["width_deg"], -90, 90)
    ra = (rng.uniform(-1, 1, case["n"]) * case["width_deg"]) % 360
    return ra, dec, rng.choice(3, case["n"], p=[0.6, 0.05, 0.35])


@pytest.mark.integration
@settings(deadline=None, max_examples=40)
@given(SKIES, st.randoms(use_true_random=False))
def test_splits_share_no_sky_and_do_not_depend_on_order(case, random):
    ra, dec, labels = positions(case)
    split = splits.split_sky(ra, dec, labels, (8, 1, 1), 7, case["size_px"])
    assert 5 <= split.order <= 11 and split.n_none == (split.names == "none").sum()
    pixels = healpix(split.order, ra, dec)
    used = [set(pixels[split.names == name]) for name in ("train", "val", "test")]
    assert not (used[0] & used[1] or used[0] & used[2] or used[1] & used[2])
    shared_deg = case["size_px"] * 1.375 * np.sqrt(2) / 3600
    for held in ("val", "test"):
        rest = ~np.isin(split.names, (held, "none"))
        for i in np.flatnonzero(split.names == held):
            assert not rest.any() or separation_deg(ra[i], dec[i], ra[rest], dec[rest]).min() > shared_deg
    order = list(range(len(ra)))
    random.shuffle(order)
    again = splits.split_sky(ra[order], dec[order], labels[order], (8, 1, 1), 7, case["size_px"])
    assert (again.names == split.names[order]).all()


@pytest.mark.integration
@settings(deadline=None, max_examples=30)
@given(
    st.integers(0, 2**32), st.integers(60, 400), st.sampled_from([(8.0, 1.0, 1.0), (1.0, 1.0, 1.0), (3.0, 1.0, 0.0)])
)
def test_pixels_are_assigned_so_that_each_class_has_its_share(seed, n_pixels, fractions):
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rng.gamma(2, 1, (n_pixels, 1)) * [50, 4, 20]).astype(float)
    side = splits.assign_splits(counts, fractions, rng.permutation(n_pixels))
    target = np.asarray(fractions) / sum(fractions)
    shares = np.stack([counts[side == k].sum(axis=0) for k in range(3)]) / counts.sum(axis=0)
    assert np.abs(shares - target[:, None]).max() < 0.02 + counts.max(axis=0).max() / counts.sum(axis=0).min()
    assert (shares[target == 0] == 0).all()


def test_the_order_is_the_coarsest_with_enough_pixels_and_wide_ones():
    rng = np.random.default_rng(0)
    ra, dec = rng.uniform(0, 360, 5000), np.degrees(np.arcsin(rng.uniform(-1, 1, 5000)))
    assert splits.split_order(ra, dec, splits.cutout_reach_arcsec(37)) == 5
    assert splits.split_order(ra / 30, dec / 30, splits.cutout_reach_arcsec(37)) == 6
    assert splits.split_order(ra / 5000, dec / 5000, splits.cutout_reach_arcsec(37)) == 9
    assert splits.split_order(ra / 5000, dec / 5000, splits.cutout_reach_arcsec(8)) == 11


def test_a_seed_decides_the_splits(run):
    first, other = (select_sources(replace(run, seed=seed)).table for seed in (0, 1))
    assert first["source_id"].equals(other["source_id"]) and not first["split"].equals(other["split"])


# --- on disk ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path) -> Dataset:
    """A small dataset in a folder, of noise."""
    rng = np.random.default_rng(1)
    n = 50
    pixels = rng.normal(3, 1, (n, 4, SIZE, SIZE)).astype(np.float32)
    pixels[:, :, 0, :2] = np.nan
    rows = pa.table(
        {
            "source_id": [f"s{i}" for i in range(n)],
            "coadd_id": ["0000p000_ac51"] * n,
            "ra": rng.uniform(0, 1, n),
            "dec": rng.uniform(0, 1, n),
            "split": rng.choice(["train", "val", "test", "none"], n).tolist(),
        }
    )
    provenance = {"simulated": True, "digests": {"pixels": "p1"}}
    zero = tuple(ATLAS_ZERO_POINT_MAG.values())
    save_dataset(tmp_path / "noise", Dataset(pixels, rng.integers(0, 3, n), rows, Cut(SIZE, BANDS), zero, provenance))
    return load_dataset(tmp_path / "noise")


def test_what_a_killed_attempt_left_behind_is_removed_and_what_works_is_not(saved, tmp_path):
    left, busy = tmp_path / ".again-abc", tmp_path / ".again-xyz"
    for folder in (left, busy):
        folder.mkdir()
        (folder / ".lock").touch()
        (folder / "pixels.npy").write_bytes(b"half")
    with FileLock(busy / ".lock"):
        save_dataset(tmp_path / "again", saved)
    assert not left.exists() and (busy / "pixels.npy").exists() and len(load_dataset(tmp_path / "again")) == 50


def test_a_saved_dataset_comes_back_the_same_and_is_taken_by_rows(saved, tmp_path):
    assert isinstance(saved.pixels, np.memmap) and saved.path == tmp_path / "noise" and len(saved) == 50
    part = saved.take(saved.split("val"))
    assert set(part.rows["split"].to_pylist()) == {"val"} and part.path is None
    assert part.rows["source_id"].to_pylist() == [f"s{i}" for i in saved.split("val")]
    np.testing.assert_array_equal(part.pixels, saved.pixels[saved.split("val")])
    assert len(saved.take(saved.labels == 1)) == (saved.labels == 1).sum()
    with pytest.raises(ConfigError, match="split 'dev': choose one of train, val, test, none"):
        saved.split("dev")
    with pytest.raises(ConfigError, match="exists"):
        save_dataset(tmp_path / "noise", saved)
    total = [int(word.replace(",", "")) for word in summary(saved).splitlines()[4].split()[1:]]
    assert total == [len(saved.split(name)) for name in ("train", "val", "test", "none")] + [50]


def damage_settings(folder: Path, **changes) -> None:
    document = json.loads((folder / "dataset.json").read_text())
    (folder / "dataset.json").write_text(json.dumps(document | changes))


DAMAGE = {
    "missing": (lambda f: (f / "rows.parquet").unlink(), "is not a dataset .rows.parquet missing"),
    "another's": (lambda f: (f / "dataset.json").write_text("[]"), "format is None"),
    "older": (lambda f: damage_settings(f, format="skyclass training set 1"), "training set 1.*make the dataset again"),
    "no json": (lambda f: (f / "dataset.json").write_text("{"), "dataset.json: damaged"),
    "short": (lambda f: (f / "pixels.npy").write_bytes((f / "pixels.npy").read_bytes()[:5000]), "damaged dataset"),
    "other size": (lambda f: damage_settings(f, cut={"size_px": 9, "bands": list(BANDS)}), "ask for float32"),
    "no parquet": (lambda f: (f / "rows.parquet").write_text("x"), "damaged dataset"),
    "other pixels": (lambda f: change_pixels(f), "pixels.npy changed since the dataset was made"),
    "other order": (lambda f: reverse_rows(f), "rows.parquet changed since the dataset was made"),
    "no digests": (lambda f: damage_settings(f, files={}), "rows.parquet, pixels.npy changed|rows.parquet changed"),
}


def change_pixels(folder: Path) -> None:
    """Swap two sources where the file lies, as a script that sorts it would."""
    pixels = np.load(folder / "pixels.npy", mmap_mode="r+")
    pixels[[0, 1]] = pixels[[1, 0]]
    pixels.flush()
    os.utime(folder / "pixels.npy")


def reverse_rows(folder: Path) -> None:
    rows = pq.read_table(folder / "rows.parquet")
    pq.write_table(rows.take(np.arange(len(rows))[::-1]), folder / "rows.parquet")


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_or_foreign_folder_is_refused(saved, case):
    spoil_folder, message = DAMAGE[case]
    spoil_folder(saved.path)
    with pytest.raises(ConfigError, match=message):
        load_dataset(saved.path)


def test_pixels_are_read_whole_once_and_again_when_they_are_touched(saved, monkeypatch):
    read = []
    monkeypatch.setattr(dataset_module, "sha256_of", lambda path: read.append(path.name) or sha256_of(path))
    load_dataset(saved.path)
    assert read == ["rows.parquet"]
    os.utime(saved.path / "pixels.npy")
    load_dataset(saved.path)
    assert read[1:] == ["rows.parquet", "pixels.npy"]
    copy = shutil.copytree(saved.path, saved.path.parent / "copy")
    (copy / ".checked.json").write_text("{")
    assert len(load_dataset(copy)) == len(saved)


def test_composites_are_those_of_the_bands_and_kept_once(saved, monkeypatch):
    bands = ("w3", "w1")
    stretch = atlas_settings(bands)
    monkeypatch.setattr(composites_module, "BLOCK", 7)
    expected = composite(np.asarray(saved.pixels)[:, [2, 0]], (18.0, 20.5), stretch)
    first = composites(saved, bands, stretch)
    np.testing.assert_array_equal(first, expected)
    np.testing.assert_array_equal(composites(saved.take(np.arange(50)), bands, stretch), expected)
    made = [p for p in saved.path.iterdir() if p.name.startswith("composites-")]
    monkeypatch.setattr(composites_module, "composite", None)  # a second call must not make them again
    np.testing.assert_array_equal(composites(saved, bands, stretch), expected)
    monkeypatch.undo()
    made[0].write_bytes(made[0].read_bytes()[:999])
    np.testing.assert_array_equal(composites(load_dataset(saved.path), bands, stretch), expected)
    composites(saved, bands, atlas_settings(bands, stretch="linear"))
    assert len([p for p in saved.path.iterdir() if p.name.startswith("composites-")]) == 2
    with pytest.raises(ConfigError, match="has no w5, only w1, w2, w3, w4"):
        composites(saved, ("w5",), stretch)


def test_composites_asked_for_by_several_at_once_are_whole(saved):
    stretch = atlas_settings(BANDS)
    with ThreadPool(4) as pool:  # each opens the lock file for itself, as processes do
        sums = pool.starmap(composites_sum, [(str(saved.path), BANDS, stretch)] * 8)
    assert len(set(sums)) == 1 and sums[0] == composites_sum(str(saved.path), BANDS, stretch)
    assert len([p for p in saved.path.iterdir() if ".npy" in p.name]) == 2


def composites_sum(path: str, bands: tuple[str, ...], stretch) -> float:
    return float(np.nansum(composites(load_dataset(path), bands, stretch).astype(np.float64)))


def test_edge_cutouts_are_kept_and_flagged(run, sky4):
    data = build_dataset(replace(run, size="101px", counts=dict.fromkeys(DEFAULT_CLASSES, 60)))
    flags = data.rows["flags"].to_numpy()
    edge = (flags & int(Flag.EDGE)) != 0
    assert edge.any() and np.isnan(data.pixels[edge]).any(axis=(1, 2, 3)).all()
