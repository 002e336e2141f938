"""Statistics of embeddings: distances of normal embeddings, limits on held-out sources, and bundles that keep them."""

from __future__ import annotations

import numpy as np
import pytest

from skyclass.errors import ConfigError
from skyclass.training.evaluation.outlier_fit import fit_outliers, whitening


def embeddings(n: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return correlated normal embeddings (n, 6) whose mean follows W1 and the class, labels, and W1.

    A class of 10 % of the sources is far from the others.
    """
    rng = np.random.default_rng(seed)
    w1, labels = rng.uniform(12, 17, n), rng.choice(3, n, p=[0.5, 0.1, 0.4])
    mixing = np.random.default_rng(0).normal(size=(6, 6))
    x = rng.normal(size=(n, 6)) @ mixing + 5 * np.floor(w1)[:, None] + np.array([0, 12, 3])[labels][:, None]
    return x.astype(np.float32), labels.astype(np.int64), w1


def test_a_limit_is_exceeded_by_two_percent_of_the_new_sources_of_each_class() -> None:
    statistics = fit_outliers(*embeddings(60_000, 1), 3)
    assert statistics.w1_edges[0] == 12 and statistics.w1_edges[-1] == 17 and statistics.width == 6
    new, labels, w1 = embeddings(60_000, 2)
    scores = statistics.scores(new, w1)
    for k in range(3):
        assert np.mean(scores[labels == k] > 1) == pytest.approx(0.02, abs=0.008)
    assert np.mean(statistics.limits) == pytest.approx(np.sqrt(15.03), rel=0.1), "chi2(6), 98 %"
    assert np.mean(statistics.scores(new, w1 - 3) > 1) > 0.5, "a source unlike those of its W1"


def test_sources_without_w1_are_left_out() -> None:
    x, labels, w1 = embeddings(30_000, 3)
    unknown = np.concatenate([np.full(100, np.nan), w1])
    strange = np.concatenate([np.full((100, 6), 1e6, np.float32), x]), np.concatenate([np.zeros(100, np.int64), labels])
    with_unknown = fit_outliers(*strange, unknown, 3)
    assert with_unknown == fit_outliers(x, labels, w1, 3) and np.sum(with_unknown.counts) == 30_000


def test_whitened_residuals_have_unit_covariance() -> None:
    residuals = np.random.default_rng(4).normal(size=(5000, 6)) @ np.random.default_rng(0).normal(size=(6, 6))
    whitened = residuals @ whitening(residuals)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(6), atol=0.1)  # less than 1 by the ridge
    constant = np.zeros((50, 3))
    assert np.isfinite(whitening(constant)).all(), "numbers that never vary"


def test_too_few_sources_and_networks_without_an_embedding_are_refused() -> None:
    x, labels, w1 = embeddings(150, 5)
    with pytest.raises(ConfigError, match="too few rows with W1 for a bin"):
        fit_outliers(x, labels, w1, 3)
    with pytest.raises(ConfigError, match="too few rows with W1 for a bin .0 of class 3.: give 200 of each class"):
        fit_outliers(*embeddings(30_000, 6), 4)
    with pytest.raises(ConfigError, match="no row has W1"):
        fit_outliers(x, labels, np.full(150, np.nan), 3)
    with pytest.raises(ConfigError, match="gives no embedding"):
        fit_outliers(np.zeros((500, 0), np.float32), np.zeros(500, np.int64), np.full(500, 15.0), 3)
