"""Galactic latitude of ICRS positions. Pure."""

from __future__ import annotations

from typing import cast

import numpy as np
from numpy.typing import ArrayLike

from ..types import Float64

NORTH_POLE_DEG = (192.85948, 27.12825)
"""ICRS position of the north galactic pole (Hipparcos and Tycho Catalogues, ESA SP-1200, volume 1, section 1.5.3)."""


def abs_galactic_latitude_deg(ra_deg: ArrayLike, dec_deg: ArrayLike) -> Float64:
    """Return |b| in degrees of ICRS positions in degrees.

    >>> abs_galactic_latitude_deg([192.85948, 266.405], [27.12825, -28.936]).round(2).tolist()
    [90.0, 0.0]
    """
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    pole_ra, pole_dec = np.radians(NORTH_POLE_DEG)
    sine = np.sin(dec) * np.sin(pole_dec) + np.cos(dec) * np.cos(pole_dec) * np.cos(ra - pole_ra)
    return cast(Float64, np.degrees(np.arcsin(np.clip(np.abs(sine), 0, 1))))
