"""Photometry as network input: each feature by hand, what is unknown, and settings that cannot be."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from skyclass.errors import CatalogError, ConfigError
from skyclass.model.photometry import (
    PhotometrySettings,
    columns_of,
    features,
    further_columns,
    standardise,
)

ROWS = pa.table(
    {
        "w1mpro": pa.array([15.0, 14.0, None, 16.5], pa.float32()),
        "w2mpro": pa.array([14.5, 14.25, 13.0, float("nan")], pa.float32()),
        "w3mpro": pa.array([12.0, None, 11.0, float("inf")], pa.float32()),
        "w1snr": pa.array([40.0, -0.5, None, 10.0], pa.float32()),
        "w2snr": pa.array([20.0, 10.0, 5.0, 2.0], pa.float64()),
        "w3snr": pa.array([2.0, 1.99, None, -3.0], pa.float32()),
        "k_m_2mass": pa.array([13.5, None, 12.0, 15.0], pa.float64()),
        "pmra": pa.array([-120, 4, None, 0], pa.int32()),
    }
)


def test_every_feature_by_hand():
    n = np.nan
    expected = {
        "w1-w2": [0.5, -0.25, n, n],
        "w2-w3": [2.5, n, 2.0, n],
        "w1": [15.0, 14.0, n, 16.5],
        "w1_snr": [np.arcsinh(40), np.arcsinh(-0.5), n, np.arcsinh(10)],
        "w2_snr": np.arcsinh([20.0, 10, 5, 2]),
        "w3_snr": [np.arcsinh(2), np.arcsinh(1.99), n, np.arcsinh(-3)],
        "w3_limit": [0, 1, 1, 1],
        "k": [13.5, n, 12.0, 15.0],
        "k-w1": [-1.5, n, n, -1.5],
        "pmra": [-120, 4, n, 0],
    }
    given = features(ROWS, tuple(expected))
    assert given.dtype == np.float32 and given.shape == (4, 10)
    np.testing.assert_allclose(given, np.array(list(expected.values())).T, rtol=1e-6)
    chosen = ("w3_limit", "w2_snr")  # in the order that is asked for, whatever the chunks of the table
    again = features(pa.concat_tables([ROWS.slice(0, 1), ROWS.slice(1)]), chosen)
    assert np.array_equal(again, given[:, [6, 4]], equal_nan=True)
    assert features(ROWS.slice(0, 0), chosen).shape == (0, 2)


def test_a_limit_is_unknown_unless_the_features_tell_it():
    rows = pa.table({"w2mpro": [14.0, 14.0, 14.0], "w3mpro": [12.0, 12.0, 12.0], "w3snr": [1.99, 2.0, None]})
    assert np.isnan(features(rows, ("w2-w3", "w3"))[:, 0]).tolist() == [True, False, False]
    for telling in ("w3_limit", "w3_snr"):
        assert features(rows, ("w2-w3", telling))[:, 0].tolist() == [2, 2, 2]
    assert np.isnan(features(rows, ("w2-w3", "w2-w3snr"))[0, 0])  # any column may be part of a colour
    assert features(rows.drop_columns("w3snr"), ("w3",))[:, 0].tolist() == [12, 12, 12]


def test_only_the_columns_of_the_features_are_needed():
    assert columns_of(("w3_limit", "w1-w2", "w1", "j")) == ("w3snr", "w1mpro", "w2mpro", "j_m_2mass")
    assert columns_of(("w4", "w4_snr", "w4_limit")) == ("w4mpro", "w4snr")
    assert further_columns(columns_of(("w1", "w3_snr", "w1-w4", "h"))) == ("w4mpro", "h_m_2mass", "w4snr")
    assert features(ROWS.select(["w1mpro"]), ("w1",))[0] == 15
    with pytest.raises(CatalogError, match="no columns w2mpro, w3snr .*add the columns"):
        features(ROWS.select(["w1mpro"]), ("w1-w2", "w3_limit"))


def test_what_is_unknown_becomes_the_training_mean():
    settings = PhotometrySettings(("w1-w2", "w1"), (0.5, 15.0), (0.25, 2.0))
    given = standardise(np.array([[1.0, np.nan], [np.nan, 11.0], [0.5, 15.0]], np.float32), settings)
    assert given.dtype == np.float32 and given.tolist() == [[2, 0], [0, -2], [0, 0]]
    assert PhotometrySettings.from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        ((("w1-w2", "W1"), (0.0, 0.0), (1.0, 1.0)), "unknown feature 'W1': name a magnitude"),
        ((("w1-w2-w3",), (0.0,), (1.0,)), "unknown feature 'w1-w2-w3'"),
        ((("w1-cc_flags",), (0.0,), (1.0,)), "unknown feature 'w1-cc_flags'"),
        ((("label",), (0.0,), (1.0,)), "unknown feature 'label'"),
        ((("w1", "w1"), (0.0, 0.0), (1.0, 1.0)), "name each once"),
        (((), (), ()), "no feature"),
        ((("w1",), (0.0, 1.0), (1.0,)), "1 features, 2 means"),
        ((("w1",), (float("nan"),), (1.0,)), "finite"),
        ((("w1",), (0.0,), (0.0,)), "positive"),
    ],
)
def test_settings_that_cannot_be_are_refused(bad, word):
    with pytest.raises(ConfigError, match=word):
        PhotometrySettings(*bad)


def test_all_problems_stand_in_one_message():
    with pytest.raises(ConfigError, match="'W5'.*means.*positive"):
        PhotometrySettings(("W5",), (0.0, 0.0), (-1.0,))
    with pytest.raises(ConfigError, match="features, mean and std, not"):
        PhotometrySettings.from_dict({"features": ["w1"]})
