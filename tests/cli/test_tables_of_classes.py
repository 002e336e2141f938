"""From tables to a class catalogue by commands: datasets without images, forests, colours of real samples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from skyclass.catalog.query import open_catalog
from skyclass.cli.main import cli
from skyclass.model.bundle import load_bundle
from tests.support.paths import SHARED

TABLES = SHARED / "data" / "tables"
COLOURS = "w1-w2,w2-w3,w1-w3"
HERE = ("--device", "cpu", "--precision", "fp32")

pytestmark = pytest.mark.integration


def skyclass(*words: object) -> str:
    """Run the command line in this process; return its output."""
    done = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False, catch_exceptions=False)
    assert not done.return_value, done.output
    return done.stdout


def test_a_forest_of_a_catalogue_classifies_a_catalogue(sky, tmp_path: Path) -> None:
    data, model, out = tmp_path / "data", tmp_path / "model", tmp_path / "classes"
    said = skyclass("dataset", "--labels", sky.truth, "--catalog", sky.catalog, "--no-images", "--out", data)
    assert "SIMULATED sources without cutouts" in said
    features = f"{COLOURS},w1,w3_limit"
    skyclass(
        "train",
        "--network",
        "forest",
        "--features",
        features,
        "--bands",
        "w1",
        "--dataset",
        data,
        "--out",
        model,
        *HERE,
    )
    assert load_bundle(model).bands == ("w1",)
    places = ("--catalog", sky.catalog, "--images", sky.images, "--model", model, "--out", out)
    skyclass("classify", *places, "--cluster", "none", *HERE)
    rows = open_catalog(str(out)).to_pandas()
    assert len(rows) == sky.n_sources and rows["class"].notna().mean() > 0.9
    assert set(rows["class"].dropna()) <= {"galaxy", "quasar", "star"}
    known = rows[rows["class"].notna()]
    np.testing.assert_allclose(known[["p_galaxy", "p_quasar", "p_star"]].sum(axis=1), 1, atol=1e-5)


@pytest.mark.skipif(not TABLES.is_dir(), reason="the tables of real sources in ../shared are not here")
@pytest.mark.filterwarnings("ignore::skyclass.errors.TableWarning")
def test_colours_of_real_samples_are_told_apart(tmp_path: Path) -> None:
    files = {"galaxy": "sdss_galaxies", "QSO": "desi_quasars", "star": "exoplanet_host_stars"}
    tables = ",".join(f"{name}={TABLES / file}.parquet" for name, file in files.items())
    data, model, results = tmp_path / "data", tmp_path / "forest", tmp_path / "evaluation"
    said = skyclass("dataset", "--tables", tables, "--no-images", "--no-simulated", "--out", data)
    assert "26,393 real sources without cutouts" in said and "split at random by row" in said
    skyclass("train", "--network", "forest", "--features", COLOURS, "--dataset", data, "--out", model, *HERE)
    skyclass("evaluate", model, data, "-o", results, *HERE)
    scored = json.loads((results / "evaluation.json").read_text())
    recall = scored["models"][0]["recall"]
    assert recall["galaxy"] >= 0.974 and recall["quasar"] >= 0.992 and recall["star"] >= 0.987, recall
    cuts = scored["colour_cuts"]["recall"]
    assert scored["models"][0]["balanced_accuracy"] > sum(cuts.values()) / 3 + 0.01
