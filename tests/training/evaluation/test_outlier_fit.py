"""Statistics of embeddings: distances of normal embeddings, limits on held-out sources, and bundles that keep them."""

from __future__ import annotations

import numpy as np
import pytest

from skyclass.errors import ConfigError
from skyclass.training.evaluation.outlier_fit import fit_outliers, whitening


def embeddings(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return correlated normal embeddings (n, 6) whose mean follows W1, and W1."""
    rng = np.random.default_rng(seed)
    w1 = rng.uniform(12, 17, n)
    mixing = np.random.default_rng(0).normal(size=(6, 6))
    return (rng.normal(size=(n, 6)) @ mixing + 5 * np.floor(w1)[:, None]).astype(np.float32), w1


def test_a_limit_is_exceeded_by_two_percent_of_new_sources() -> None:
    statistics = fit_outliers(*embeddings(20_000, 1))
    assert statistics.w1_edges[0] == 12 and statistics.w1_edges[-1] == 17 and statistics.width == 6
    new, w1 = embeddings(20_000, 2)
    scores = statistics.scores(new, w1)
    assert np.mean(scores > 1) == pytest.approx(0.02, abs=0.005)
    assert statistics.limits == pytest.approx([np.sqrt(15.03)] * len(statistics.limits), rel=0.1), "chi2(6), 98 %"
    assert np.mean(statistics.scores(new, w1 - 3) > 1) > 0.5, "a source unlike those of its W1"


def test_sources_without_w1_are_left_out() -> None:
    x, w1 = embeddings(3000, 3)
    unknown = np.concatenate([np.full(100, np.nan), w1])
    with_unknown = fit_outliers(np.concatenate([np.full((100, 6), 1e6, np.float32), x]), unknown)
    assert with_unknown == fit_outliers(x, w1) and sum(with_unknown.counts) == 3000


def test_whitened_residuals_have_unit_covariance() -> None:
    x, _ = embeddings(5000, 4)
    residuals = x - x.mean(0)
    whitened = residuals @ whitening(residuals)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(6), atol=0.1)  # less than 1 by the ridge
    constant = np.zeros((50, 3))
    assert np.isfinite(whitening(constant)).all(), "numbers that never vary"


def test_too_few_sources_and_networks_without_an_embedding_are_refused() -> None:
    x, w1 = embeddings(150, 5)
    with pytest.raises(ConfigError, match="too few rows with W1 for a bin"):
        fit_outliers(x, w1)
    with pytest.raises(ConfigError, match="gives no embedding"):
        fit_outliers(np.zeros((500, 0), np.float32), np.full(500, 15.0))
