"""Datasets of photometry: of a label table, of a table for each class, with and without positions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from skyclass.errors import CatalogError, ConfigError, TableWarning
from skyclass.model.bundle import Cut, load_bundle
from skyclass.schema import SOURCE_SCHEMA
from skyclass.training.data.build import build_dataset
from skyclass.training.data.config import DatasetConfig, dataset_config
from skyclass.training.data.dataset import load_dataset, rows_digest, summary
from skyclass.training.data.splits import split_rows
from skyclass.training.evaluation.caveats import caveats
from skyclass.training.evaluation.evaluate import evaluate
from skyclass.training.fit.recipe import train_config
from skyclass.training.fit.train import train
from tests.support.bundles import make_bundle

pytestmark = pytest.mark.filterwarnings("ignore::skyclass.errors.TableWarning")


def small_tables(folder: Path) -> dict[str, str]:
    """Write a table for each class, and return their paths: only stars have positions, ids and marks of limits."""
    rng, n = np.random.default_rng(1), 200
    colours = {"galaxy": (0.2, 3.0), "QSO": (1.2, 3.0), "star": (0.0, 0.1)}
    paths = {}
    for name, (w1_w2, w2_w3) in colours.items():
        w2 = rng.uniform(12, 15, n)
        columns: dict[str, Any] = {
            "W1mpro": w2 + w1_w2 + rng.normal(0, 0.1, n),
            "w2mpro": w2,
            "w3mpro": w2 - w2_w3 + rng.normal(0, 0.1, n),
            "pmra": rng.normal(0, 50 if name == "star" else 1, n),
        }
        if name == "star":
            columns |= {"source_id": [f"HD {i}" for i in range(n)], "w3lim": np.arange(n) % 4 == 0}
            columns |= {"ra": rng.uniform(0, 360, n), "dec": rng.uniform(-60, 60, n)}
            columns["w3lim"] = columns["w3lim"].astype(float)
        paths[name] = str(folder / f"{name}.parquet")
        pq.write_table(pa.table(columns), paths[name])
    return paths


@pytest.fixture
def config(tmp_path: Path) -> DatasetConfig:
    return DatasetConfig(
        str(tmp_path / "set"), tables=small_tables(tmp_path), no_images=True, simulated=False, columns=("PMRA",)
    )


def test_a_table_for_each_class_without_positions_makes_a_dataset(config: DatasetConfig) -> None:
    with pytest.warns(TableWarning, match="50 values of column w3mpro are limits and become null"):
        made = build_dataset(config)
    assert not made.has_images and made.pixels.shape == (600, 0, 37, 37) and made.cut == Cut(37, config.bands)
    assert made.rows.column_names == [*SOURCE_SCHEMA.names, "pmra", "split", "flags"]
    ids = dict(zip(made.rows["source_id"].to_pylist(), made.labels.tolist(), strict=True))
    assert ids["galaxy-000001"] == 0 and ids["quasar-000200"] == 1 and ids["HD 7"] == 2 and len(ids) == 600
    by_id = {row["source_id"]: row for row in made.rows.to_pylist()}
    galaxies = pq.read_table(config.tables["galaxy"]).to_pylist()
    assert by_id["galaxy-000005"]["pmra"] == galaxies[4]["pmra"] and by_id["galaxy-000005"]["ra"] is None
    assert by_id["HD 4"]["w3mpro"] is None and by_id["HD 5"]["w3mpro"] is not None
    counts = {name: np.bincount(made.labels[made.split(name)]).tolist() for name in ("train", "val", "test", "none")}
    assert counts == {"train": [160] * 3, "val": [20] * 3, "test": [20] * 3, "none": []}
    assert made.provenance["split"]["order"] is None
    text = summary(made)
    assert "600 real sources without cutouts" in text
    assert "split at random by row, not by sky, because 400 sources have no position" in text
    loaded = load_dataset(config.out)
    assert loaded.rows.equals(made.rows) and not loaded.take(np.arange(5)).has_images
    again = build_dataset(replace(config, out=config.out + "2"))
    assert rows_digest(again) == rows_digest(made) and again.provenance == made.provenance
    other = build_dataset(replace(config, out=config.out + "3", seed=1))
    assert rows_digest(other) != rows_digest(made)
    assert other.provenance["digests"]["pixels"] == made.provenance["digests"]["pixels"]


def test_networks_of_photometry_train_on_it_and_others_are_refused_at_once(
    config: DatasetConfig, tmp_path: Path
) -> None:
    data = build_dataset(config)
    keys = {"dataset": config.out, "device": "cpu", "precision": "fp32", "epochs": 4, "recipe": "modern"}
    keys |= {"learning_rate": 0.02, "features": ["w1-w2", "w2-w3", "pmra"]}
    for network in ("colour", "forest"):
        bundle = train(train_config(keys | {"network": network, "out": str(tmp_path / network)}))
        assert bundle.cut == Cut(37, ("w1", "w2", "w3"))
        results = evaluate(bundle, data, draws=20)
        assert results["balanced_accuracy"] > 0.95, network
        assert any("split at random by row" in text for text in results["caveats"])
        assert any("Fitted on rows" in text for text in caveats([bundle], data, "train", data.split("train")))
    absent = keys | {"network": "colour", "out": str(tmp_path / "x"), "features": ["j-w1", "pmdec"]}
    with pytest.raises(
        ConfigError, match="no columns j_m_2mass, pmdec .*make the dataset with --columns j_m_2mass,pmd"
    ):
        train(train_config(absent))
    for changes in ({"network": "iicnet", "features": []}, {"network": "fusion", "start_from": "fusion-mock"}):
        with pytest.raises(
            ConfigError, match=f"{config.out} has no cutouts, and the network takes images: make a data"
        ):
            train(train_config(keys | {"out": str(tmp_path / "x")} | changes))
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError, match="tiny-.*: it takes images, and the dataset has no cutouts"):
        evaluate(load_bundle(make_bundle(tmp_path / "images").path), data)


def test_the_sources_and_splits_are_those_of_a_dataset_with_images(sky, tmp_path: Path) -> None:
    given = {"labels": str(sky.truth), "catalog": str(sky.catalog), "bands": ["w1", "w2"]}
    cut = build_dataset(dataset_config(given | {"out": str(tmp_path / "cut"), "images": str(sky.images)}))
    rows = build_dataset(dataset_config(given | {"out": str(tmp_path / "rows"), "no_images": True}))
    assert rows.provenance["split"]["order"] is not None and rows.provenance["simulated"] is True
    splits, expected = (
        dict(zip(made.rows["source_id"].to_pylist(), made.rows["split"].to_pylist(), strict=True))
        for made in (rows, cut)
    )
    same = [splits[name] == split for name, split in expected.items()]
    assert len(same) > 600 and np.mean(same) > 0.95  # the sources without an image shift the shares a little


def test_a_split_by_row_has_the_shares_of_each_class() -> None:
    labels = np.repeat([0, 1, 2], [1000, 57, 10])
    split = split_rows(labels, (8, 1, 1), 4)
    shares = [[int((split.names[labels == k] == name).sum()) for name in ("train", "val", "test")] for k in range(3)]
    assert shares == [[800, 100, 100], [46, 5, 6], [8, 1, 1]] and split.order is None
    assert (split_rows(labels, (8, 1, 1), 5).names != split.names).any()
    assert set(split_rows(labels, (1, 0, 1), 5).names) == {"train", "test"}


def test_wrong_tables_are_refused(config: DatasetConfig, sky, tmp_path: Path) -> None:
    tables = dict(config.tables or {})
    cases: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"tables": {"galaxy": tables["galaxy"]}}, CatalogError, "classes galaxy, and classes is galaxy, quasar, star"),
        ({"tables": tables | {"star": "none.csv"}}, CatalogError, "table of class star none.csv: there is no such"),
        ({"catalog": str(sky.catalog)}, CatalogError, "400 sources without ra and dec, which a catalogue needs"),
        ({"no_images": False, "images": str(sky.images)}, CatalogError, "400 sources without ra .* which images need"),
        ({"columns": ("pmra", "h_m_2mass")}, CatalogError, "none of the 600 labelled sources has a value in h_m_2mass"),
        ({"simulated": None}, ConfigError, "no input says whether"),
    ]
    for changes, kind, message in cases:
        with pytest.raises(kind, match=message):
            build_dataset(replace(config, **changes))
    assert not Path(config.out).exists()
    settings: list[tuple[dict[str, Any], str]] = [
        ({"labels": "l"}, "tables = .*: name a label table as labels, or a table for each class"),
        ({"tables": None}, "tables = None: name a label table"),
        ({"images": "i"}, "no_images = True: name a folder as images"),
        ({"no_images": False}, "no_images = False: name a folder as images"),
        ({"columns": ("w4", "Pmra", "source_id")}, "columns = .*: w4, source_id: name numeric columns"),
    ]
    for changes, message in settings:
        with pytest.raises(ConfigError, match=message):
            replace(config, **changes)
