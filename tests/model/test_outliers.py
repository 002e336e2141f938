"""Scores of outliers: distances worked out by hand, bins of W1, and statistics that do not fit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skyclass.errors import BundleError, ConfigError
from skyclass.model.bundle import load_bundle, load_weights, save_bundle
from skyclass.model.classifier import NullClassifier, load_classifier
from skyclass.model.outliers import OutlierStatistics, nearest_bin
from skyclass.row_products import BLOCK_ROWS, row_products
from tests.support.bundles import COLOUR, FIELDS, FUSION, PHOTOMETRY, make_bundle

HAND = OutlierStatistics(
    (10.0, 14.0, 17.0), (((1.0, 2.0), (9.0, 9.0)), ((0.0, 0.0), (1.0, 0.0))), ((2.0,), (1.0, 3.0)),
    ((5.0, 1.0), (2.0, 1.0)), ((40, 5), (60, 7)),
)  # fmt: skip
"""Two bins of W1 and two classes."""


def statistics_of(width: int) -> OutlierStatistics:
    triangle = tuple(tuple(float(i == j) for j in range(i + 1)) for i in range(width))
    return OutlierStatistics((8.0, 18.0), (((0.0,) * width,) * 3,), triangle, ((1.0,) * 3,), ((100,) * 3,))


def test_scores_are_distances_over_the_limit_of_the_bin() -> None:
    embeddings = np.array([[2.0, 4.0], [1.0, 2.0], [1.0, 1.0], [1.0, 0.0], [1.0, 1.0]], np.float32)
    # (e - mean) times the matrix ((2, 0), (1, 3)): (1, 2) -> (4, 6), (1, 1) -> (3, 3), (0, 1) -> (1, 3)
    expected = [np.hypot(4, 6) / 5, 0, min(np.hypot(3, 3) / 2, np.hypot(1, 3) / 1), 0, np.nan]
    np.testing.assert_allclose(HAND.scores(embeddings, [12.0, 9.0, 17.5, 16.0, np.nan]), expected, rtol=1e-6)
    assert np.isnan(HAND.scores(np.zeros((3, 0), np.float32), [12.0] * 3)).all(), "a network without an embedding"
    assert HAND.scores(embeddings[:0], []).shape == (0,)


def test_bins_outside_of_the_edges_are_the_nearest() -> None:
    assert nearest_bin(np.array([1.0, 13.99, 14.0, 17.0, 25.0]), HAND.w1_edges).tolist() == [0, 0, 1, 1, 1]


def test_a_score_does_not_depend_on_the_other_sources() -> None:
    rng = np.random.default_rng(1)
    embeddings, w1 = rng.normal(size=(500, 2)).astype(np.float32), rng.uniform(9, 18, 500)
    whole = HAND.scores(embeddings, w1)
    for some in (np.arange(3), np.arange(100, 400), rng.permutation(500)):
        np.testing.assert_array_equal(HAND.scores(embeddings[some], w1[some]), whole[some])


@pytest.mark.parametrize("n", [0, 1, BLOCK_ROWS, BLOCK_ROWS + 1])
def test_row_products_are_matrix_products(n: int) -> None:
    rng = np.random.default_rng(n)
    rows, weights = rng.normal(size=(n, 30)).astype(np.float32), rng.normal(size=(30, 7)).astype(np.float32)
    np.testing.assert_allclose(row_products(rows, weights), rows @ weights, rtol=1e-4, atol=1e-5)


def test_statistics_round_trip_and_refuse_nonsense() -> None:
    assert OutlierStatistics.from_dict(json.loads(json.dumps(HAND.to_dict()))) == HAND
    with pytest.raises(ConfigError, match="its keys are w1_edges, means.*, not means"):
        OutlierStatistics.from_dict({"means": []})
    changes = {
        "whitening": ((1.0, 2.0), (3.0,)),
        "limits": ((1.0, 0.0), (1.0, 1.0)),
        "counts": ((1,),),
        "w1_edges": (17.0, 10.0, 19.0),
    }
    with pytest.raises(ConfigError, match="w1_edges = .*; whitening: .*; counts: .*; limits: a number is not positive"):
        replace(HAND, **changes)
    with pytest.raises(ConfigError, match="a number is not finite"):
        replace(HAND, means=(((np.nan, 0.0), (0.0, 0.0)), HAND.means[1]))
    with pytest.raises(ConfigError, match="means: give 2 numbers for each of 2 bins and 2 classes"):
        replace(HAND, means=(((1.0, 2.0),), HAND.means[1]))


@pytest.mark.parametrize("changes", [{}, FUSION], ids=["iicnet", "fusion"])
def test_logits_and_embedding_come_from_one_pass(tmp_path: Path, changes: dict) -> None:
    bundle = make_bundle(tmp_path / "m", **changes)
    classifier = load_classifier(bundle, "cpu", "fp32")
    rng = np.random.default_rng(2)
    images = rng.normal(0, 2, (40, 3, 37, 37)).astype(np.float16)
    photometry = rng.normal(PHOTOMETRY.mean, PHOTOMETRY.std, (40, 3)).astype(np.float32) if changes else None
    passes = []
    forward = classifier.module.forward
    classifier.module.forward = lambda *batch: passes.append(1) or forward(*batch)  # type: ignore[method-assign]
    probabilities, embedding = classifier.predict_and_embed(images, photometry)
    assert len(passes) == 2, "two batches of 32 images"
    weights = load_weights(bundle)
    last = max(name for name in weights if name.startswith("head.") and name.endswith("weight")).removesuffix("weight")
    logits = embedding @ weights[f"{last}weight"].numpy().T + weights[f"{last}bias"].numpy()
    np.testing.assert_allclose(logits, classifier.logits(images, photometry), atol=1e-4)
    np.testing.assert_array_equal(probabilities, classifier.predict(images, photometry))
    assert embedding.shape == (40, classifier.width) and classifier.width == weights[f"{last}weight"].shape[1]
    no_photometry = None if photometry is None else photometry[:0]
    assert classifier.predict_and_embed(images[:0], no_photometry)[1].shape == (0, classifier.width)


def test_networks_without_an_embedding_have_none(tmp_path: Path) -> None:
    images = np.zeros((5, 3, 37, 37), np.float16)
    assert NullClassifier().predict_and_embed(images)[1].shape == (5, 0)
    classifier = load_classifier(make_bundle(tmp_path / "colour", **COLOUR), "cpu", "fp32")
    assert classifier.width == 0
    assert classifier.predict_and_embed(images, np.zeros((5, 3), np.float32))[1].shape == (5, 0)


def test_a_bundle_keeps_its_statistics_and_refuses_those_of_another_network(tmp_path: Path) -> None:
    plain = make_bundle(tmp_path / "plain")
    made = save_bundle(tmp_path / "m", FIELDS | {"outliers": statistics_of(8)}, load_weights(plain))
    assert load_bundle(tmp_path / "m").outliers == statistics_of(8) and made.digest != plain.digest
    assert load_classifier(made, "cpu", "fp32").width == 8
    other = save_bundle(tmp_path / "other", FIELDS | {"outliers": statistics_of(5)}, load_weights(plain))
    with pytest.raises(BundleError, match="statistics of 5 numbers of an embedding, and its network 'iicnet' gives 8"):
        load_classifier(other, "cpu", "fp32")
