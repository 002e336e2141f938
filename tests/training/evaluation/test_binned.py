"""Calibration within bins of W1, on probabilities whose true calibration is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from skyclass.errors import ConfigError
from skyclass.model.priors import calibrated_in_bins
from skyclass.training.evaluation.binned import bin_edges, fit_in_bins, fitted_scaling

CLASSES = ("galaxy", "quasar", "star")
Float = NDArray[np.float64]


def sky(n: int, seed: int = 1) -> tuple[Float, NDArray[np.int64], Float, Float]:
    """Return probabilities of a model that errs otherwise at W1 > 15, labels, W1 and the true probabilities."""
    rng = np.random.default_rng(seed)
    w1 = rng.uniform(13, 17, n)
    true = softmax(rng.normal(size=(n, 3)) * 2, axis=1)
    labels = (true.cumsum(1) > rng.random((n, 1))).argmax(1)
    faint = (w1 > 15)[:, None]
    logits = np.where(faint, np.log(true) * 2.0 + [0.0, 1.0, -1.0], np.log(true) * [0.5, 0.7, 0.6])
    return softmax(logits, axis=1), labels, w1, true


def test_the_fit_restores_the_true_probabilities_in_each_bin() -> None:
    p, labels, w1, true = sky(40_000)
    calibration, losses = fit_in_bins(p, labels, w1, CLASSES)
    found, index = calibrated_in_bins(p, w1, calibration)
    assert np.isfinite(found).all() and len(calibration.w1_edges) == 9
    assert np.abs(found - true).mean() < 0.01 and np.abs(p - true).mean() > 0.05
    assert losses["vector"] < losses["temperature"]
    new = sky(20_000, seed=2)
    found, _ = calibrated_in_bins(new[0], new[2], calibration)
    assert np.abs(found - new[3]).mean() < 0.015
    assert set(index.tolist()) == set(range(8))


def test_the_simpler_scaling_is_taken_where_it_is_as_good() -> None:
    rng = np.random.default_rng(3)
    true = softmax(rng.normal(size=(2_000, 3)), axis=1)
    labels = (true.cumsum(1) > rng.random((2_000, 1))).argmax(1)
    calibration, losses = fit_in_bins(true**2 / (true**2).sum(1, keepdims=True), labels, np.full(2_000, 15.2), CLASSES)
    assert calibration.w1_edges == (15.0, 15.5)
    assert losses["temperature"] <= losses["vector"] + 1e-3
    assert np.ptp(calibration.scale[0]) < 0.2 and 0.3 < np.mean(calibration.scale[0]) < 0.7


def test_shares_and_counts_are_those_of_the_rows() -> None:
    p, labels, w1, _ = sky(5_000)
    w1[:50] = np.nan
    calibration, _ = fit_in_bins(p, labels, w1, CLASSES)
    counts = np.array(calibration.counts)
    assert counts.sum() == 4_950 and (counts >= 100).all()
    np.testing.assert_allclose(np.array(calibration.shares), counts / counts.sum(1, keepdims=True), atol=1e-6)
    assert (np.array(calibration.reference).sum(2) == counts).all()
    b = 2
    low, high = calibration.w1_edges[b : b + 2]
    assert counts[b].tolist() == np.bincount(labels[(w1 >= low) & (w1 < high)], minlength=3).tolist()


def test_bins_are_joined_until_each_class_has_enough_rows() -> None:
    w1 = np.r_[np.full(500, 12.2), np.full(500, 15.2), np.full(500, 16.7)]
    labels = np.r_[np.tile([0, 2], 250), np.tile([0, 1], 250), np.tile([0, 1, 2, 2], 125)]
    assert bin_edges(w1, labels, 3, 100) == (12.0, 16.5, 17.0)
    assert bin_edges(w1, labels, 3, 300) == (12.0, 17.0)
    with pytest.raises(ConfigError, match=r"too few rows with W1 for a bin .375 of class 1.*give 500 of each class"):
        bin_edges(w1, labels, 3, 500)
    with pytest.raises(ConfigError, match="too few rows with W1"):
        bin_edges(np.full(1500, np.nan), labels, 3, 100)


@pytest.mark.parametrize("kind", ["temperature", "vector"])
def test_a_perfectly_separated_bin_has_finite_numbers(kind) -> None:
    labels = np.tile([0, 1, 2], 50)
    scale, bias = fitted_scaling(np.log(np.eye(3)[labels] * 0.97 + 0.01), labels, kind)
    assert np.isfinite(scale).all() and np.isfinite(bias).all() and (scale >= 1).all() and (scale <= 20).all()
    assert bias.sum() == pytest.approx(0, abs=1e-9)
