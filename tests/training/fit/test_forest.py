"""A forest is that of scikit-learn: its probabilities, its bundle, and what it has no use for."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from skyclass.errors import BundleError, ConfigError
from skyclass.model.bundle import load_bundle
from skyclass.model.classifier import load_classifier
from skyclass.model.photometry import features, standardise
from skyclass.networks import build
from skyclass.networks.forest import ForestNet
from skyclass.training.evaluation.predictions import probabilities_of
from skyclass.training.fit.forest import copy_forest, fitted_forest, rounded_down
from skyclass.training.fit.recipe import TrainConfig, train_config
from skyclass.training.fit.train import train
from tests.support.bundles import rewritten
from tests.support.datasets import blobs

NAMES = ("w1-w2", "w2-w3", "w1")


def forest_run(folder: Path, **changes: Any) -> TrainConfig:
    keys = {"out": str(folder / "forest"), "dataset": "in memory", "network": "forest", "features": list(NAMES)}
    return train_config(keys | {"options": {"trees": 20, "depth": 5}, "device": "cpu", "precision": "fp32"} | changes)


def network_of(forest: Any, depth: int, n_features: int, n_classes: int) -> ForestNet:
    network = ForestNet(n_features, n_classes, len(forest.estimators_), depth)
    copy_forest(forest, network)
    return network.eval()


@pytest.mark.parametrize(("depth", "more", "n_classes"), [(1, 0, 2), (4, 0, 3), (4, 3, 3), (9, 0, 5)])
def test_probabilities_are_those_of_scikit_learn(depth: int, more: int, n_classes: int) -> None:
    rng = np.random.default_rng(depth)
    x = rng.normal(size=(3000, 4)).astype(np.float32)
    x[rng.random(x.shape) < 0.2] = 0  # unknown
    x[:, 3] = rng.integers(0, 4, 3000)  # many sources at a threshold
    labels = (x[:, 0] + x[:, 3] + rng.normal(size=3000) > 1).astype(np.int64)
    labels += rng.integers(0, n_classes - 1, 3000)
    weights = rng.uniform(0.5, 5, 3000).astype(np.float32)
    forest = fitted_forest(x, labels, weights, 30, depth, seed=2**40 + 1)
    network = network_of(forest, depth + more, 4, n_classes)
    thresholds = np.concatenate([one.tree_.threshold for one in forest.estimators_])
    at_thresholds = np.tile(rounded_down(thresholds)[:, None], (1, 4))
    for rows in (x, rng.normal(size=(500, 4)).astype(np.float32) * 3, at_thresholds, np.nextafter(at_thresholds, 9)):
        with torch.inference_mode():
            given = torch.softmax(network(torch.from_numpy(rows)), 1).numpy()
        np.testing.assert_allclose(given, forest.predict_proba(rows), atol=1e-6)


def test_a_trained_forest_is_the_same_in_its_bundle_with_unknown_photometry(tmp_path: Path) -> None:
    data = blobs(400, seed=3)
    missing = np.where(np.arange(400) % 5 == 0, np.nan, data.rows["w3mpro"].to_numpy())
    rows = data.rows.set_column(data.rows.column_names.index("w3mpro"), "w3mpro", pa.array(missing, pa.float32()))
    data = replace(data, rows=rows)
    run = forest_run(tmp_path)
    bundle = train(run, dataset=data)
    settings = bundle.photometry
    assert settings and bundle.training["train_counts"].keys() == {"galaxy", "quasar", "star"}
    raw = features(rows, NAMES)
    assert np.isnan(raw[:, 1]).sum() == 80
    x, chosen = standardise(raw, settings), data.split("train")
    counts = np.bincount(data.labels[chosen])
    weights = (len(chosen) / (3 * counts)).astype(np.float32)[data.labels[chosen]]
    forest = fitted_forest(x[chosen], data.labels[chosen], weights, 20, 5, run.seed)
    images = np.zeros((400, 3, 21, 21), np.float16)
    given = load_classifier(load_bundle(bundle.path), "cpu", "fp32").logits(images, raw)
    shares = np.exp(given.astype(np.float64))
    np.testing.assert_allclose(shares / shares.sum(1, keepdims=True), forest.predict_proba(x), atol=1e-6)
    half = probabilities_of(bundle, data, precision="bf16", device="cpu")
    np.testing.assert_array_equal(half, probabilities_of(bundle, data, precision="fp32", device="cpu"))
    test = data.split("test")
    assert (half[test].argmax(1) == data.labels[test]).mean() > 0.9
    assert train(run, dataset=data).model_id == bundle.model_id
    assert (
        train(forest_run(tmp_path, out=str(tmp_path / "again")), dataset=data).weights_sha256 == bundle.weights_sha256
    )
    assert (
        train(forest_run(tmp_path, out=str(tmp_path / "c"), seed=1), dataset=data).weights_sha256
        != bundle.weights_sha256
    )


def test_inference_needs_no_scikit_learn(tmp_path: Path) -> None:
    bundle = train(forest_run(tmp_path), dataset=blobs(200))
    code = (
        "import sys; sys.modules['sklearn'] = None\n"
        "import numpy as np\n"
        "from skyclass.model.classifier import load_classifier\n"
        f"classifier = load_classifier({str(bundle.path)!r}, 'cpu', 'fp32')\n"
        "print(classifier.predict(np.zeros((2, 3, 21, 21), np.float16), np.full((2, 3), np.nan, np.float32)).shape)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "(2, 3)\n"


def test_without_scikit_learn_training_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.ensemble", None)
    with pytest.raises(ConfigError, match="network 'forest' needs sklearn.ensemble: pip install 'skyclass\\[train\\]'"):
        train(forest_run(tmp_path), dataset=blobs(200))


def test_what_a_forest_has_no_use_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        forest_run(tmp_path, start_from="iicnet-mock", hide_photometry=0.1, compile=True, cluster="local")
    message = str(caught.value)
    assert all(f"{key} = " in message for key in ("start_from", "hide_photometry", "compile", "cluster"))
    assert message.count("is fitted at once, by one process and without gradients: leave it out") == 4
    for options in ({"trees": 0}, {"depth": 15}, {"trees": 10_001}):
        with pytest.raises(ConfigError, match="must be one or more, at most 10,000 trees and a depth of 14"):
            build("forest", **options)


def test_a_bundle_of_another_depth_is_refused(tmp_path: Path) -> None:
    bundle = train(forest_run(tmp_path), dataset=blobs(200))
    rewritten(bundle.path, network_options={"features": 3, "trees": 20, "depth": 6})
    with pytest.raises(BundleError, match="do not fit network 'forest'"):
        load_classifier(load_bundle(bundle.path), "cpu", "fp32")
