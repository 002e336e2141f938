"""Galactic latitude, compared with astropy."""

from __future__ import annotations

import numpy as np
from astropy import units as u
from astropy.coordinates import SkyCoord

from skyclass.sky.galactic import abs_galactic_latitude_deg


def test_the_latitude_is_that_of_astropy() -> None:
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(0, 360, 2_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 2_000)))
    expected = np.abs(SkyCoord(ra * u.deg, dec * u.deg).galactic.b.deg)
    np.testing.assert_allclose(abs_galactic_latitude_deg(ra, dec), expected, atol=1e-4)


def test_a_missing_position_has_no_latitude() -> None:
    assert np.isnan(abs_galactic_latitude_deg([np.nan, 10.0], [5.0, np.nan])).all()
