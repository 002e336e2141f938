"""The measurement of outliers: AUC within bins, positions that are what they are called, shares with intervals."""

import numpy as np
import pytest
from scipy.spatial import cKDTree
from sklearn.metrics import roc_auc_score

pytest.importorskip("photutils")
from benchmarks import outliers, positions
from skyclass.mock import write_mock
from skyclass.types import Flag


def test_the_mean_placement_is_the_auc_within_bins():
    rng = np.random.default_rng(1)
    score, bins = np.round(rng.normal(size=600), 1), rng.integers(0, 3, 600)
    is_kind = rng.random(600) < 0.2
    score[is_kind] += 1
    placed = outliers.placements(score, is_kind, ~is_kind, bins)
    n_of_bins = [np.sum(is_kind & (bins == b)) for b in range(3)]
    each = [roc_auc_score(is_kind[bins == b], score[bins == b]) for b in range(3)]
    assert placed.mean() == pytest.approx(np.average(each, weights=n_of_bins), abs=1e-9)


def test_blank_pixels_are_far_from_detections_and_from_each_other():
    rng = np.random.default_rng(2)
    found = rng.integers(0, 200, (60, 2))
    blank = outliers.blank_pixels((200, 150), found, rng)
    assert len(blank) > 20 and cKDTree(found).query(blank)[0].min() > outliers.DETECTION_PX
    assert cKDTree(blank).query(blank, 2)[0][:, 1].min() > outliers.APART_PX
    assert outliers.boxes_at(np.zeros((3, 200, 150)), blank).shape == (len(blank), 3, 37, 37)


def test_a_table_has_shares_with_wilson_intervals():
    table = outliers.flag_table({"some": np.array([1024, 0, 4096, 0])}, {"BLANK": Flag.BLANK})
    assert "| some | 4 | 25.0 (4.6 to 69.9) |" in table


@pytest.mark.integration
def test_positions_of_a_simulated_sky(tmp_path):
    # Low galactic latitude: some stars saturate.
    write_mock(tmp_path / "sky", 1, seed=3, size_px=700, centers=((95.0, 30.0),), outliers_per_deg2=2000)
    found = positions.positions_of(tmp_path / "sky")
    kinds, n = np.unique(found.kind, return_counts=True)
    assert {"star", "galaxy", positions.BLANK, "T dwarf"} <= set(kinds) and found.pixels.shape == (n.sum(), 3, 37, 37)
    measures = outliers.measured(found.pixels)
    blank, point = found.kind == positions.BLANK, found.is_isolated & (found.kind == "star")
    assert np.median(measures.contrast[blank]) < 0 < np.median(measures.contrast[point])
    assert np.isnan(found.w1[blank]).all() and np.isfinite(found.w1[found.is_ordinary]).all()
