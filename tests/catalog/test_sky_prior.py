"""Probabilities for other class shares, and the shares of a sky that are estimated from its probabilities."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from skyclass.catalog.sky_prior import (
    Cells,
    Fit,
    _refusal,
    calibration_scatter,
    cells,
    estimated_prior,
    estimated_shares,
    fit_of,
    log_likelihood,
    merged,
    merged_counts,
    share_intervals,
    sky_counts,
    widened,
)
from skyclass.errors import ConfigError
from skyclass.model.priors import (
    BinnedCalibration,
    PriorTable,
    adapted,
    bin_of,
    calibrated_in_bins,
    confidence_counts,
    sky_probabilities,
)

Float = NDArray[np.float64]
CLASSES = ("galaxy", "quasar", "star")
MEANS = np.array([[0.0, 0.0], [2.2, 0.4], [0.3, 2.4]])
"""Centres of the classes in a plane of two features with unit scatter, so that the true probabilities are known."""
EQUAL = np.full(3, 1 / 3)
CALIBRATION = BinnedCalibration(
    CLASSES, (8.0, 15.0, 17.0), (0.0, 90.0), ((1.0,) * 3, (0.8, 0.9, 1.1)), ((0.0,) * 3, (0.2, -0.1, -0.1)),
    ((1 / 3,) * 3, (0.5, 0.2, 0.3)), ((900,) * 3, (500, 200, 300)), ((((0,) * 15,) * 3,),) * 2,
    ((0.4, 0.5, 0.6), (0.0, 0.1, 1.0)),
)  # fmt: skip
PRIOR = PriorTable(
    CLASSES, (8.0, 15.0, 17.0), (0.0, 30.0, 90.0),
    (((0.1, 0.0, 0.9), (0.4, 0.05, 0.55)), ((0.6, 0.02, 0.38), None)), "by hand",
)  # fmt: skip


def drawn(n: int, shares: Float, rng: np.random.Generator) -> tuple[Float, NDArray[np.int64]]:
    """Return features (n, 2) and labels (n,) of a sky with class shares."""
    labels = rng.choice(3, n, p=shares)
    return MEANS[labels] + rng.normal(size=(n, 2)), labels


def exact(x: Float, shares: Float) -> Float:
    """Return the probabilities of the classes by Bayes' theorem."""
    density = np.exp(-0.5 * ((x[:, None] - MEANS) ** 2).sum(-1)) * shares
    return np.asarray(density / density.sum(1, keepdims=True))


def test_bins_are_closed_on_the_left_and_the_last_on_both_sides() -> None:
    assert bin_of([7.9, 8, 14.99, 15, 17, 17.1, np.nan], (8, 15, 17)).tolist() == [-1, 0, 0, 1, 1, -1, -1]


def test_calibrated_probabilities_equal_numbers_by_hand() -> None:
    p = np.array([[0.7, 0.2, 0.1]] * 4)
    found, index = calibrated_in_bins(p, [10.0, 16.0, 18.0, np.nan], [50.0] * 4, CALIBRATION)
    assert index.tolist() == [0, 1, -1, -1] and np.isfinite(found).all(axis=1).tolist() == [True, True, False, False]
    np.testing.assert_allclose(found[0], p[0])
    z = np.exp(np.array([0.8, 0.9, 1.1]) * np.log(p[0]) + [0.2, -0.1, -0.1])
    np.testing.assert_allclose(found[1], z / z.sum())


def test_probabilities_of_another_sky_are_those_of_bayes() -> None:
    rng, sky = np.random.default_rng(1), np.array([0.7, 0.02, 0.28])
    x, _ = drawn(500, EQUAL, rng)
    np.testing.assert_allclose(adapted(exact(x, EQUAL), EQUAL, sky), exact(x, sky), atol=1e-12)
    np.testing.assert_allclose(adapted(exact(x, EQUAL), np.tile(EQUAL, (500, 1)), sky), exact(x, sky), atol=1e-12)
    assert np.isnan(adapted([[0.2, 0.3, 0.5]], EQUAL, (np.nan, 0.5, 0.5))).all()
    assert adapted([[0.2, 0.3, 0.5]], EQUAL, (0.0, 0.5, 0.5))[0, 0] == 0


@given(
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
    st.lists(st.floats(0.01, 1), min_size=3, max_size=3),
)
def test_the_way_to_other_shares_and_back_is_the_identity(p: list[float], old: list[float], new: list[float]) -> None:
    row = np.array([p]) / np.sum(p)
    there = adapted(row, np.array(old), np.array(new))
    np.testing.assert_allclose(adapted(there, np.array(new), np.array(old)), row, rtol=1e-9)


def test_the_sky_of_a_source_follows_from_its_magnitude_and_latitude() -> None:
    p = np.array([[0.7, 0.2, 0.1]] * 5)
    found = sky_probabilities(p, [10, 10, 16, 16, 10], [10, 60, 10, 60, np.nan], CALIBRATION, PRIOR)
    assert np.isfinite(found).all(axis=1).tolist() == [True, True, True, False, False]
    assert found[0, 1] == 0
    weights = p[0] / EQUAL * [0.4, 0.05, 0.55]
    np.testing.assert_allclose(found[1], weights / weights.sum())
    with pytest.raises(ConfigError, match="the prior has the classes a, b, the model galaxy, quasar, star"):
        sky_probabilities(p, [10] * 5, [10] * 5, CALIBRATION, PriorTable(("a", "b"), (8, 9), (0, 90), ((None,),), ""))


def test_tables_are_the_same_as_json_and_refuse_what_does_not_fit() -> None:
    assert BinnedCalibration.from_dict(json.loads(json.dumps(CALIBRATION.to_dict()))) == CALIBRATION
    assert PriorTable.from_dict(json.loads(json.dumps(PRIOR.to_dict()))) == PRIOR
    assert replace(PRIOR, label="other").prior_id == PRIOR.prior_id != replace(PRIOR, w1_edges=(8, 14, 17)).prior_id
    with pytest.raises(ConfigError, match=r"w1_edges = .8, 8, 9.: give two or more rising numbers"):
        replace(PRIOR, w1_edges=(8, 8, 9))
    with pytest.raises(ConfigError, match="give 3 numbers >= 0 with the sum 1, or null"):
        replace(PRIOR, shares=(((0.5, 0.5, 0.1), None), (None, None)))
    with pytest.raises(ConfigError, match="a list of 2 bins of .b. for each of 2 bins of W1"):
        replace(PRIOR, shares=((None,), (None, None)))
    with pytest.raises(ConfigError, match="bias: give a finite number for each of 2 bins and 3 classes"):
        replace(CALIBRATION, bias=((0.0,) * 3, (0.0, 0.0, float("nan"))))
    with pytest.raises(ConfigError, match="shares: those of a bin do not sum to 1"):
        replace(CALIBRATION, shares=((0.5,) * 3, (0.5, 0.2, 0.3)))
    with pytest.raises(ConfigError, match="shares: a class has none"):
        replace(CALIBRATION, shares=((0.5, 0.0, 0.5), (0.5, 0.2, 0.3)))
    with pytest.raises(ConfigError, match="reference: give one or more tiles of 3 x 15 numbers for each bin"):
        replace(CALIBRATION, reference=(((0,) * 14,) * 3,) * 2)
    with pytest.raises(ConfigError, match="its keys are classes, w1_edges"):
        BinnedCalibration.from_dict({"classes": ["a"]})
    with pytest.raises(ConfigError, match="prior table: its keys are"):
        PriorTable.from_dict({})


# --- the shares of a sky ----------------------------------------------------------------------------


def test_cells_of_parts_are_those_of_the_whole() -> None:
    p = exact(drawn(2000, EQUAL, np.random.default_rng(2))[0], EQUAL)
    whole, parts = cells(p), merged([cells(p[:700]), cells(p[700:701]), cells(p[701:])])
    assert np.array_equal(whole.code, parts.code) and np.array_equal(whole.n, parts.n)
    np.testing.assert_allclose(whole.total, parts.total)
    assert whole.n.sum() == 2000 and len(whole.n) < 1400
    np.testing.assert_allclose(whole.mean.sum(1), 1)


def test_cells_hardly_change_the_likelihood() -> None:
    p = exact(drawn(5000, EQUAL, np.random.default_rng(3))[0], EQUAL)
    counted, single = cells(p), Cells(np.zeros((5000, 2), np.int16), np.ones(5000, np.int64), p)
    one, other = np.array([0.7, 0.01, 0.29]), np.array([0.3, 0.35, 0.35])
    a, b = (
        log_likelihood(c.mean / EQUAL, c.n, one) - log_likelihood(c.mean / EQUAL, c.n, other) for c in (counted, single)
    )
    assert a < -1000 and a == pytest.approx(b, rel=0.01)
    assert estimated_shares(counted, EQUAL) == pytest.approx(estimated_shares(single, EQUAL), abs=1e-3)


@pytest.mark.parametrize("sky", [(0.7, 0.001, 0.299), (0.5, 0.05, 0.45), (0.05, 0.1, 0.85)])
def test_estimated_shares_are_unbiased_and_their_intervals_cover_the_truth(sky: tuple[float, ...]) -> None:
    rng, truth, n_skies = np.random.default_rng(4), np.array(sky), 60
    found, covered = [], []
    for _ in range(n_skies):
        counted = cells(exact(drawn(4000, truth, rng)[0], EQUAL))
        shares = estimated_shares(counted, EQUAL)
        ends = share_intervals(counted, EQUAL, shares)
        assert shares.sum() == pytest.approx(1) and (ends[:, 0] <= shares).all() and (shares <= ends[:, 1]).all()
        found.append(shares)
        covered.append((ends[:, 0] <= truth) & (truth <= ends[:, 1]))
    mean, error = np.mean(found, axis=0), np.std(found, axis=0) / np.sqrt(n_skies)
    assert (np.abs(mean - truth) <= 4 * error + 2e-4).all()
    assert (np.mean(covered, axis=0) >= 0.86).all()


def test_a_sky_like_the_calibration_fits_and_another_one_does_not() -> None:
    rng, sky = np.random.default_rng(5), np.array([0.6, 0.05, 0.35])
    x, labels = drawn(9000, EQUAL, rng)
    reference = np.stack([confidence_counts(exact(x[labels == k], EQUAL)) for k in range(3)])
    p_values = []
    for _ in range(20):
        p = exact(drawn(5000, sky, rng)[0], EQUAL)
        fit = fit_of(confidence_counts(p), reference, estimated_shares(cells(p), EQUAL))
        assert fit.is_good and fit.distance < 0.05
        p_values.append(fit.p_value)
    assert 0.2 < np.mean(p_values) < 0.8
    blurred = exact(0.5 * drawn(5000, sky, rng)[0] + 0.5 * MEANS.mean(0), EQUAL)
    fit = fit_of(confidence_counts(blurred), reference, estimated_shares(cells(blurred), EQUAL))
    assert not fit.is_good and fit.p_value < 1e-6 and fit.distance > 0.05


def test_few_sources_are_not_refused_by_chance() -> None:
    rng = np.random.default_rng(6)
    x, labels = drawn(3000, EQUAL, rng)
    reference = np.stack([confidence_counts(exact(x[labels == k], EQUAL)) for k in range(3)])
    p = exact(drawn(30, EQUAL, rng)[0], EQUAL)
    assert fit_of(confidence_counts(p), reference, EQUAL).is_good
    assert confidence_counts(np.array([[0.0, 1.0], [0.6, 0.4]])).tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, 1]


# --- all bins of a sky ------------------------------------------------------------------------------


def gaussian_calibration(n: int = 6000) -> BinnedCalibration:
    """Return a calibration of exact probabilities in two bins of W1, with the same classes in both."""
    rng = np.random.default_rng(7)
    x, labels = drawn(n, EQUAL, rng)
    reference = tuple(tuple(confidence_counts(exact(x[labels == k], EQUAL)).tolist()) for k in range(3))
    count = tuple(np.bincount(labels).tolist())
    return BinnedCalibration(
        CLASSES, (8.0, 15.0, 17.0), (0.0, 90.0), ((1.0,) * 3,) * 2, ((0.0,) * 3,) * 2, (tuple(EQUAL.tolist()),) * 2,
        (count,) * 2, ((reference,),) * 2, ((0.5,) * 3,) * 2,
    )  # fmt: skip


def test_a_prior_is_estimated_in_each_bin_and_refused_where_it_cannot_be() -> None:
    calibration, rng = gaussian_calibration(), np.random.default_rng(8)
    skies = {
        (10.0, 5.0): np.array([0.1, 0.01, 0.89]),
        (10.0, 80.0): np.array([0.7, 0.05, 0.25]),
        (16.0, 80.0): np.array([0.3, 0.6, 0.1]),
    }
    parts = []
    for (w1, b), shares in skies.items():
        p = exact(drawn(4000, shares, rng)[0], EQUAL)
        parts += [sky_counts(half, [w1] * 2000, [b] * 2000, calibration) for half in (p[:2000], p[2000:])]
    parts.append(sky_counts(exact(drawn(300, EQUAL, rng)[0], EQUAL), [16.0] * 300, [5.0] * 300, calibration))
    strange = exact(0.4 * drawn(3000, EQUAL, rng)[0] + 0.6 * MEANS.mean(0), EQUAL)
    parts.append(sky_counts(strange, [16.0] * 3000, [25.0] * 3000, calibration))
    parts.append(
        sky_counts([[np.nan] * 3, [0.2, 0.3, 0.5], [0.2, 0.3, 0.5]], [16, np.nan, 18.0], [5.0] * 3, calibration)
    )
    prior, bins = estimated_prior(merged_counts(parts), calibration)
    assert len(bins) == 2 * 6 and prior.classes == CLASSES
    for (w1, b), shares in skies.items():
        np.testing.assert_allclose(prior.shares_of([w1], [b])[0], shares, atol=0.03)
    by_place = {(one.w1[0], one.abs_b_deg[0]): one for one in bins}
    assert by_place[15.0, 0.0].refusal == "300 sources, fewer than 500"
    assert by_place[15.0, 20.0].refusal.startswith("the sources do not fit the calibration (distance 0.")
    assert by_place[15.0, 20.0].shares is not None and by_place[8.0, 10.0].refusal == "0 sources, fewer than 500"
    assert np.isnan(prior.shares_of([16.0, 16.0, 12.0], [5.0, 25.0, 25.0])).all()
    one = by_place[8.0, 60.0]
    assert one.n_sources == 4000 and one.shares and one.intervals and not one.refusal
    assert all(low <= share <= high for share, (low, high) in zip(one.shares, one.intervals, strict=True))
    none, _ = estimated_prior(merged_counts(parts[6:7]), calibration)
    assert np.isnan(none.shares_of([16.0, 12.0], [5.0, 5.0])).all()


def test_the_probabilities_of_a_sky_add_up_to_its_classes() -> None:
    calibration, rng, sky = gaussian_calibration(), np.random.default_rng(9), np.array([0.6, 0.03, 0.37])
    x, labels = drawn(20_000, sky, rng)
    p, w1, b = exact(x, EQUAL), np.full(20_000, 12.0), np.full(20_000, 50.0)
    prior, _ = estimated_prior(sky_counts(p, w1, b, calibration), calibration)
    found = sky_probabilities(p, w1, b, calibration, prior)
    np.testing.assert_allclose(found.sum(0), np.bincount(labels, minlength=3), rtol=0.1)
    assert np.abs(found - exact(x, sky)).mean() < 0.01
    raw = p.argmax(1) == 1
    assert (labels[raw] == 1).mean() < 0.5 < (labels[found.argmax(1) == 1] == 1).mean()


def reference_of(n: int, shift: Float, rng: np.random.Generator) -> Float:
    """Return the counts of n rows of each class whose features are shifted."""
    return np.array([confidence_counts(exact(MEANS[k] + shift + rng.normal(size=(n, 2)), EQUAL)) for k in range(3)])


def test_the_scatter_of_the_calibration_falls_with_its_rows() -> None:
    """Compared with estimates from many calibrations of the same size."""
    rng, sky = np.random.default_rng(11), np.array([0.6, 0.05, 0.35])
    x, _ = drawn(200_000, sky, rng)
    observed, none = confidence_counts(exact(x, EQUAL)), np.zeros(2)
    for n in (300, 3000):
        stated = np.mean([calibration_scatter(reference_of(n, none, rng)[None], sky) for _ in range(5)], axis=0)
        estimates = [_estimate(observed, reference_of(n, none, rng)) for _ in range(60)]
        np.testing.assert_allclose(stated, np.std(estimates, axis=0), rtol=0.35)


def test_the_scatter_of_the_calibration_has_the_differences_between_tiles() -> None:
    """The features of each tile are shifted at random. The scatter is that of estimates for other such tiles."""
    rng, sky = np.random.default_rng(12), np.array([0.6, 0.05, 0.35])
    tiles = np.stack([reference_of(4_000, shift, rng) for shift in rng.normal(0, 0.15, (12, 2))])
    stated = calibration_scatter(tiles, sky)
    errors = []
    for shift in rng.normal(0, 0.15, (60, 2)):
        x, _ = drawn(20_000, sky, rng)
        errors.append(_estimate(confidence_counts(exact(x + shift, EQUAL)), tiles.sum(0)) - sky)
    np.testing.assert_allclose(stated, np.sqrt(np.mean(np.square(errors), axis=0)), rtol=0.5)
    alone = calibration_scatter(tiles.sum(0)[None], sky)
    assert (alone < 0.3 * stated).all()


def _estimate(observed: Float, reference: Float) -> Float:
    """Return the shares of largest likelihood for counts in cells."""
    density = ((reference + 1e-9) / reference.sum(1, keepdims=True)).T
    shares = EQUAL.copy()
    for _ in range(2_000):
        shares = shares * ((observed / observed.sum()) @ (density / (density @ shares)[:, None]))
    return shares


def test_an_interval_is_widened_by_a_further_scatter() -> None:
    ends, shares = np.array([[0.2, 0.3], [0.7, 0.8]]), np.array([0.25, 0.75])
    assert widened(ends, shares, np.zeros(2)) == pytest.approx(ends)
    wider = widened(ends, shares, np.array([0.05, 0.5]))
    assert wider[0] == pytest.approx([0.25 - 0.10999, 0.25 + 0.10999], abs=1e-4) and wider[1] == pytest.approx([0, 1])


def test_shares_that_are_too_uncertain_are_refused() -> None:
    ends = np.array([[0.5, 0.66], [0.0, 0.02], [0.3, 0.5001]])
    assert _refusal(Fit(0.5, 0.3), ends, CLASSES) == "the share of star is uncertain by 0.10"
    ends[2] = (0.3, 0.4999)
    assert _refusal(Fit(0.5, 0.3), ends, CLASSES) == "" == _refusal(Fit(1e-9, 0.04), ends, CLASSES)
    assert _refusal(Fit(1e-9, 0.06), ends, CLASSES).startswith("the sources do not fit the calibration (distance 0.06")
