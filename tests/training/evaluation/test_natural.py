"""Purity at the shares of the sky, and completeness by magnitude, latitude and depth, for rates that are known."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from skyclass.model.priors import PriorTable
from skyclass.training.evaluation.natural import natural_rates, selection_function, tile_depth_mag
from skyclass.types import DEFAULT_CLASSES

PRIOR = PriorTable(
    DEFAULT_CLASSES, (14.0, 15.0, 16.0), (0.0, 30.0, 90.0),
    (((0.5, 0.01, 0.49), (0.8, 0.02, 0.18)), ((0.6, 0.01, 0.39), None)), "by hand",
)  # fmt: skip


def labelled(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return n rows of each class, of which a tenth of the galaxies and a fifth of the quasars are confused."""
    labels = np.repeat([0, 1, 2], n)
    predicted = labels.copy()
    predicted[: n // 10] = 1
    predicted[n : n + n // 5] = 2
    return labels, predicted


def test_purity_follows_from_the_shares_of_the_sky_and_the_rates_of_the_sample() -> None:
    """Of 0.8 galaxies and 0.02 quasars, 0.08 and 0.016 are called quasar."""
    labels, predicted = labelled(100)
    w1, b = np.full(300, 14.5), np.full(300, 50.0)
    found = natural_rates(labels, predicted, w1, b, PRIOR, 400, 1)
    assert [(entry["w1"], entry["abs_b_deg"]) for entry in found] == [([14.0, 15.0], [30.0, 90.0])]
    purity, completeness = found[0]["purity"]["quasar"], found[0]["completeness"]["quasar"]
    assert purity[0] == pytest.approx(0.016 / 0.096) and purity[1] < purity[0] < purity[2] < 0.35
    assert completeness[0] == 0.8 and 0.7 < completeness[1] < 0.8 < completeness[2] < 0.9
    assert found[0]["shares"] == {"galaxy": 0.8, "quasar": 0.02, "star": 0.18} and found[0]["n"]["star"] == 100


def test_bins_with_few_rows_or_without_shares_are_left_out() -> None:
    labels, predicted = labelled(100)
    assert natural_rates(labels, predicted, np.full(300, 15.5), np.full(300, 50.0), PRIOR, 50, 1) == []
    assert natural_rates(labels, predicted, np.full(300, np.nan), np.full(300, 50.0), PRIOR, 50, 1) == []
    few = np.r_[0:29, 100:300]
    assert natural_rates(labels[few], predicted[few], np.full(229, 14.5), np.full(229, 10.0), PRIOR, 50, 1) == []


def test_the_selection_function_has_the_completeness_of_each_bin() -> None:
    labels, predicted = labelled(100)
    depth = np.where(np.arange(300) % 2 == 0, 16.8, 17.2)
    found = selection_function(labels, predicted, DEFAULT_CLASSES, np.full(300, 14.5), np.full(300, 50.0), depth)
    assert len(found) == 6 and sum(entry["n"] for entry in found) == 300
    quasars = [entry for entry in found if entry["class"] == "quasar"]
    assert [entry["depth_low_mag"] for entry in quasars] == [16.5, 17.0]
    assert all(entry["completeness"] == 0.8 and entry["n"] == 50 for entry in quasars)
    # Clopper & Pearson for 40 of 50, from tables
    assert quasars[0]["low"] == pytest.approx(0.6628, abs=1e-4) and quasars[0]["high"] == pytest.approx(
        0.8997, abs=1e-4
    )
    assert (quasars[0]["w1_low"], quasars[0]["w1_high"], quasars[0]["abs_b_low_deg"]) == (14.0, 15.0, 45.0)
    depth[:] = np.nan
    assert selection_function(labels, predicted, DEFAULT_CLASSES, np.full(300, 14.5), np.full(300, 50.0), depth) == []


def test_the_depth_of_a_tile_is_where_its_faint_sources_have_five_sigma() -> None:
    """Noise of 0.2 mag depth more in the second tile; a bright source and one without S/N do not count."""
    w1 = np.array([16.0, 16.5, 9.0, 16.0, 16.5, 17.0])
    snr = np.array([10.0, 10 * 10**-0.2, 50.0, 12.0, 12 * 10**-0.2, np.nan])
    rows = pa.table({"coadd_id": ["a", "a", "a", "b", "b", None], "w1mpro": w1, "w1snr": snr})
    depth = tile_depth_mag(rows)
    assert depth[:3] == pytest.approx([16 + 2.5 * np.log10(2)] * 3)
    assert depth[3:5] == pytest.approx([16 + 2.5 * np.log10(12 / 5)] * 2) and np.isnan(depth[5])
    assert np.isnan(tile_depth_mag(rows.drop_columns("w1snr"))).all()
