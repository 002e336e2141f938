"""Calibration within bins of W1, on probabilities whose true calibration is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from skyclass.errors import ConfigError
from skyclass.model.priors import BinnedCalibration, calibrated_in_bins, in_sets
from skyclass.training.evaluation.binned import (
    Kind,
    abs_b_edges,
    fit_in_bins,
    fitted_scaling,
    joined_bins,
    set_thresholds,
    w1_edges,
)

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


def fitted(p: Float, labels: NDArray[np.int64], w1: Float) -> tuple[BinnedCalibration, dict[Kind, float]]:
    """Return the fit to rows at |b| = 50 degrees on two tiles."""
    return fit_in_bins(p, labels, w1, np.full(len(p), 50.0), np.arange(len(p)) % 2, CLASSES)


def test_the_fit_restores_the_true_probabilities_in_each_bin() -> None:
    p, labels, w1, true = sky(40_000)
    calibration, losses = fitted(p, labels, w1)
    found, index = calibrated_in_bins(p, w1, np.full(len(w1), 50.0), calibration)
    assert np.isfinite(found).all() and len(calibration.w1_edges) == 9
    assert np.abs(found - true).mean() < 0.01 and np.abs(p - true).mean() > 0.05
    assert losses["vector"] < losses["temperature"]
    new = sky(20_000, seed=2)
    found, _ = calibrated_in_bins(new[0], new[2], np.full(20_000, 50.0), calibration)
    assert np.abs(found - new[3]).mean() < 0.015
    assert set(index.tolist()) == set(range(8))


def test_the_simpler_scaling_is_taken_where_it_is_as_good() -> None:
    rng = np.random.default_rng(3)
    true = softmax(rng.normal(size=(2_000, 3)), axis=1)
    labels = (true.cumsum(1) > rng.random((2_000, 1))).argmax(1)
    calibration, losses = fitted(true**2 / (true**2).sum(1, keepdims=True), labels, np.full(2_000, 15.2))
    assert calibration.w1_edges == (15.0, 15.5)
    assert losses["temperature"] <= losses["vector"] + 1e-3
    assert np.ptp(calibration.scale[0]) < 0.2 and 0.3 < np.mean(calibration.scale[0]) < 0.7


def test_shares_and_counts_are_those_of_the_rows() -> None:
    p, labels, w1, _ = sky(5_000)
    w1[:50] = np.nan
    calibration, _ = fitted(p, labels, w1)
    counts = np.array(calibration.counts)
    assert counts.sum() == 4_950 and (counts >= 100).all()
    np.testing.assert_allclose(np.array(calibration.shares), counts / counts.sum(1, keepdims=True), atol=1e-6)
    assert np.shape(calibration.reference) == (len(counts), 2, 3, 15)
    assert (np.array(calibration.reference).sum((1, 3)) == counts).all()
    b = 2
    low, high = calibration.w1_edges[b : b + 2]
    assert counts[b].tolist() == np.bincount(labels[(w1 >= low) & (w1 < high)], minlength=3).tolist()


def test_bins_are_joined_until_each_class_has_enough_rows() -> None:
    w1 = np.r_[np.full(500, 12.2), np.full(500, 15.2), np.full(500, 16.7)]
    labels = np.r_[np.tile([0, 2], 250), np.tile([0, 1], 250), np.tile([0, 1, 2, 2], 125)]
    one = np.zeros(1500, np.int64)
    assert w1_edges(w1, labels, one, 3, 100) == (12.0, 16.5, 17.0)
    assert w1_edges(w1, labels, one, 3, 300) == (12.0, 17.0)
    with pytest.raises(ConfigError, match=r"too few rows with W1 for a bin .375 of class 1.*give 500 of each class"):
        w1_edges(w1, labels, one, 3, 500)
    with pytest.raises(ConfigError, match="too few rows with W1"):
        w1_edges(np.full(1500, np.nan), labels, one, 3, 100)


def test_each_bin_of_latitude_needs_the_rows() -> None:
    """Near the plane there are few rows at W1 > 15, so that the bins of W1 there are joined for both."""
    w1 = np.r_[np.tile([14.2, 14.7, 15.2, 15.7], 300), np.tile([14.2, 14.7], 150)]
    labels, column = np.tile([0, 0, 0, 0, 1, 1, 1, 1], 188)[:1500], np.r_[np.ones(1200), np.zeros(300)].astype(np.int64)
    assert w1_edges(w1[:1200], labels[:1200], column[:1200] - 1, 2, 100) == (14.0, 14.5, 15.0, 15.5, 16.0)
    assert w1_edges(w1, labels, column, 2, 60) == (14.0, 14.5, 16.0)


def test_bins_of_latitude_are_joined_from_the_poles_on() -> None:
    b = np.repeat([5.0, 15.0, 25.0, 60.0], 200)
    labels = np.tile([0, 1], 400)
    assert abs_b_edges(b, labels, 2, 100) == (0.0, 10.0, 20.0, 30.0, 90.0)
    assert abs_b_edges(b, labels, 2, 101) == (0.0, 20.0, 90.0)
    labels[:390] = 0
    assert abs_b_edges(b, labels, 2, 100) == (20.0, 30.0, 90.0)
    with pytest.raises(ConfigError, match="too few rows for a bin of .b.: give 206 of each class"):
        abs_b_edges(b, labels, 2, 206)


def test_rows_near_the_plane_have_a_calibration_of_their_own() -> None:
    """The model errs otherwise at |b| < 30 than far from the plane."""
    p, labels, w1, true = sky(40_000)
    b = np.where(np.random.default_rng(6).random(40_000) < 0.5, 15.0, 60.0)
    p[b < 30] = softmax(np.log(true[b < 30]) * 0.4 + [0.5, 0.0, -0.5], axis=1)
    calibration, _ = fit_in_bins(p, labels, w1, b, np.zeros(40_000), CLASSES)
    assert calibration.abs_b_edges == (10.0, 30.0, 90.0)
    found, index = calibrated_in_bins(p, w1, b, calibration)
    assert np.abs(found - true).mean() < 0.012 and len(set(index.tolist())) == 16
    found, index = calibrated_in_bins(p[:2], w1[:2], [5.0, np.nan], calibration)
    assert np.isnan(found).all() and index.tolist() == [-1, -1]


def test_ninety_per_cent_of_each_class_have_it_in_their_set() -> None:
    """On new rows, in each bin and for each class, and whatever the shares of the classes."""
    p, labels, w1, _ = sky(60_000)
    calibration, _ = fitted(p, labels, w1)
    new_p, new_labels, new_w1, _ = sky(60_000, seed=5)
    keep = (new_labels != 1) | (np.random.default_rng(1).random(60_000) < 0.1)
    members, has_set = in_sets(new_p, new_w1, np.full(60_000, 50.0), calibration)
    assert has_set.all()
    for k in range(3):
        for low, high in zip(calibration.w1_edges, calibration.w1_edges[1:], strict=False):
            rows = keep & (new_labels == k) & (new_w1 >= low) & (new_w1 < high)
            assert abs(members[rows, k].mean() - 0.9) < 3.5 * np.sqrt(0.09 / rows.sum()) + 0.005
    assert members.sum(1).min() >= 0 and (members.sum(1) > 1).any()


def test_the_threshold_of_a_set_is_an_order_statistic_of_the_class() -> None:
    """Of 599 rows the 60th smallest probability; bins with too few rows share theirs."""
    p = np.stack([np.arange(1, 600) / 600, 1 - np.arange(1, 600) / 600], axis=1)
    labels = np.zeros(599, np.int64)
    both = np.concatenate([p, p]), np.concatenate([labels, labels + 1])
    rows = [np.arange(599), np.arange(599, 1198)]
    found = set_thresholds(both[0], both[1], rows, 500)
    assert found[0] == pytest.approx([0.1, 0.1], abs=2e-6) and found[1] == pytest.approx(found[0])
    assert joined_bins([599, 0], 500) == [range(2)] and joined_bins([3, 4], 500) == [range(2)]


@pytest.mark.parametrize("kind", ["temperature", "vector"])
def test_a_perfectly_separated_bin_has_finite_numbers(kind) -> None:
    labels = np.tile([0, 1, 2], 50)
    scale, bias = fitted_scaling(np.log(np.eye(3)[labels] * 0.97 + 0.01), labels, kind)
    assert np.isfinite(scale).all() and np.isfinite(bias).all() and (scale >= 1).all() and (scale <= 20).all()
    assert bias.sum() == pytest.approx(0, abs=1e-9)
