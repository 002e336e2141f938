"""Classic methods, small networks and the real tables: each beats chance, and says what it is not."""

from __future__ import annotations

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from benchmarks.paper.classic import METHODS, embed_images, embeddings, fit_forest, fit_svm, network_of, thinned
from benchmarks.paper.spectrum import SpectrumNet
from benchmarks.paper.tabular import (
    fit_tabular,
    logits_of,
    read_colours,
    real_tables,
    scale_of,
    scaled,
    seeded,
    split_rows,
)
from skyclass.errors import CatalogError, ConfigError
from skyclass.images.composite import atlas_settings, composite
from skyclass.model.bundle import Cut, load_bundle
from skyclass.model.preprocess import Preprocess
from skyclass.networks import build
from skyclass.networks.colour import ColourNet
from skyclass.training.data.dataset import Dataset
from skyclass.training.evaluation.metrics import balanced_accuracy, confusion
from tests.support.paths import SHARED

TABLES = SHARED / "data" / "tables"
BANDS = ("w1", "w2", "w3")


def blobs(n: int, seed: int, classes=(0, 1, 2)):
    """Return simulated photometry (n, 4) with holes, and labels: the classes differ in the first two features."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n)
    x = rng.normal(0, 1, (n, 4)).astype(np.float32)
    x[:, :2] += 2.5 * np.array([[1, 0], [0, 1], [-1, -1]])[labels]
    x[rng.random((n, 4)) < 0.1] = np.nan
    return x, labels


def score(labels, probabilities) -> float:
    return balanced_accuracy(confusion(labels, probabilities.argmax(1), 3))


@pytest.mark.integration
@pytest.mark.parametrize("name", METHODS)
def test_each_method_beats_chance_with_holes_in_the_data_and_repeats_itself(name):
    (x, y), (x_new, y_new) = blobs(400, 1), blobs(400, 2)
    given = METHODS[name](x, y, 0).predict_proba(x_new)
    assert score(y_new, given) > 0.8
    np.testing.assert_allclose(given.sum(1), 1, atol=1e-5)
    assert given.dtype == np.float32
    np.testing.assert_array_equal(given, METHODS[name](x, y, 0).predict_proba(x_new))
    assert METHODS[name](x, y, 0).predict_proba(x_new[:0]).shape == (0, 3)


@pytest.mark.integration
@pytest.mark.parametrize("name", METHODS)
def test_a_class_never_seen_keeps_its_column_at_zero(name):
    x, y = blobs(200, 3, classes=(0, 2))
    given = METHODS[name](x, y, 0).predict_proba(x)
    assert (given[:, 1] == 0).all() and score(y, given) > 0.9


@pytest.mark.integration
def test_a_column_that_is_unknown_throughout_and_new_holes_are_no_trouble():
    x, y = blobs(200, 4)
    x[:, 3] = np.nan
    x[:, 0] = np.nan_to_num(x[:, 0])  # complete in training, with holes afterwards
    holes = x.copy()
    holes[::2, 0] = np.nan
    for fit in (fit_forest, fit_svm):
        assert np.isfinite(fit(x, y, 0).predict_proba(holes)).all()


def test_the_rows_of_a_large_sample_are_thinned_class_by_class():
    y = np.repeat([0, 1, 2], (9000, 900, 4))
    kept = thinned(y, 1000, 0)
    assert np.bincount(y[kept]).tolist() == [909, 91, 3] and (np.diff(kept) > 0).all()


def test_what_cannot_be_fitted_is_said_at_once():
    x, y = blobs(50, 5)
    with pytest.raises(ConfigError, match="do not belong together.*"):
        fit_forest(x[:10], y, 0)
    with pytest.raises(ConfigError, match="infinite.*fewer than two classes"):
        fit_svm(np.full_like(x, np.inf), np.zeros_like(y), 0)
    with pytest.raises(ConfigError, match="only 2 rows"):
        fit_svm(x[:22], np.repeat([0, 1], (20, 2)), 0)


def test_without_scikit_learn_the_error_says_how_to_get_it(monkeypatch):
    for name in [m for m in sys.modules if m.startswith("sklearn")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match=r"pip install 'skyclass\[train\]'"):
        fit_forest(*blobs(50, 5), 0)


def test_embeddings_are_what_the_last_layer_sees(bundle):
    described = load_bundle(bundle)
    rng = np.random.default_rng(0)
    pixels = rng.normal(5, 1, (6, 3, 37, 37)).astype(np.float32)
    rows = pa.table({"source_id": [str(i) for i in range(6)]})
    zero_point_mag = atlas_settings(BANDS).zero_point_mag
    dataset = Dataset(pixels, np.zeros(6, np.int64), rows, Cut(37, BANDS), zero_point_mag, {"simulated": True})
    found = embeddings(described, dataset, np.array([4, 1]), device="cpu")
    assert found.shape == (2, 64)
    network = network_of(described)
    images = composite(pixels[[4, 1]], zero_point_mag, described.composite)
    with torch.inference_mode():
        logits = network(Preprocess(described.preprocessing)(torch.from_numpy(images)))
        np.testing.assert_allclose(network.head[-1](torch.from_numpy(found)), logits, atol=1e-5)
    with pytest.raises(ConfigError, match="has no embedding"):
        embed_images(build("colour"), described.preprocessing, images)


@pytest.mark.integration
def test_a_small_network_learns_stops_early_and_follows_its_seed():
    (x, y), (x_val, y_val) = blobs(400, 6), blobs(200, 7)
    scale = scale_of(x)
    sets = [scaled(part, scale) for part in (x, x_val)]

    def fit(seed):
        network = seeded(ColourNet, seed, features=4)
        fit_tabular(network, sets[0], y, val=(sets[1], y_val), epochs=30, batch_size=64, seed=seed)
        return logits_of(network, sets[1])

    first = fit(0)
    assert score(y_val, first) > 0.8
    np.testing.assert_array_equal(first, fit(0))
    assert not np.array_equal(first, fit(1))


@pytest.mark.integration
def test_a_small_network_of_spectra_learns():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 192)
    wave = np.arange(128)
    lines = np.exp(-((wave - np.array([30, 64, 100])[labels, None]) ** 2) / 20)
    spectra = scaled((lines + rng.normal(0, 0.1, lines.shape)).astype(np.float32), (tuple([0.0] * 128), (1.0,) * 128))
    network = fit_tabular(seeded(SpectrumNet, 0), spectra, labels, epochs=6, batch_size=32)
    assert score(labels, logits_of(network, spectra)) > 0.9


def test_scaling_passes_over_what_is_unknown():
    x = np.array([[1, np.nan, 5], [3, np.nan, 5], [np.nan, np.nan, 5]], np.float32)
    scale = scale_of(x)
    assert scale == ((2.0, 0.0, 5.0), (1.0, 1.0, 1.0))
    np.testing.assert_array_equal(scaled(x, scale), [[-1, 0, 0], [1, 0, 0], [0, 0, 0]])


def test_a_small_network_refuses_what_it_cannot_learn():
    x, y = blobs(50, 8)
    with pytest.raises(ConfigError, match="not finite.*epochs = 0"):
        fit_tabular(build("colour", features=4), x, y, epochs=0)


def test_splits_are_stratified_disjoint_and_whole():
    labels = np.repeat([0, 1, 2], (1000, 500, 30))
    parts = split_rows(labels, 0)
    assert sorted(np.concatenate(list(parts.values()))) == list(range(1530))
    counts = {name: np.bincount(labels[index]).tolist() for name, index in parts.items()}
    assert counts == {"train": [800, 400, 24], "val": [100, 50, 3], "test": [100, 50, 3]}
    assert not np.array_equal(parts["test"], split_rows(labels, 1)["test"])


def test_a_table_that_is_missing_or_of_another_kind_is_named(tmp_path):
    with pytest.raises(CatalogError, match="sdss_galaxies.parquet: there is no such table"):
        real_tables(tmp_path, 0)
    pq.write_table(pa.table({"key": ["a"], "w1mpro": [1.0]}), tmp_path / "sdss_galaxies.parquet")
    with pytest.raises(CatalogError, match="column w2mpro, w3mpro is missing"):
        real_tables(tmp_path, 0)


def test_second_rows_and_rows_without_a_colour_are_left_out_and_counted(tmp_path):
    for name in ("sdss_galaxies", "desi_quasars", "exoplanet_host_stars"):
        columns = {"w1mpro": [15.0, 15.0, 14.0, None], "w2mpro": [14.0, 14.0, 14.0, 13.0], "w3mpro": [11.0] * 4}
        pq.write_table(pa.table({"key": ["a", "a", "b", "c"], **columns}), tmp_path / f"{name}.parquet")
    colours, labels, dropped = read_colours(tmp_path)
    assert dropped == {"galaxy": 2, "quasar": 2, "star": 2} and labels.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_allclose(colours[:2], [[1, 3], [0, 3]])


@pytest.mark.slow
@pytest.mark.skipif(not TABLES.is_dir(), reason="the folder of real tables is not here")
def test_the_colour_network_recalls_each_class_of_the_real_tables():
    result = real_tables(TABLES, 0, epochs=25)
    recall = result["recall"]["colour_network"]
    assert min(recall.values()) > 0.9, recall
    cuts = result["recall"]["colour_cuts"]
    assert min(cuts.values()) > 0.95, cuts
    assert np.mean(list(recall.values())) > np.mean(list(cuts.values())) - 0.005
    low, high = result["interval"]["colour_network"]["star"]
    assert low < recall["star"] < high and high - low < 0.08
    assert result["simulated"] is False and any("purity" in words for words in result["caveats"])
