"""HEALPix pixels, angles and distances, for arrays of positions.

astropy and astropy_healpix are imported by the functions that use them: the command line needs `parse_angle` at once,
and they take most of a second to import.
"""

from __future__ import annotations

import math
import re
from typing import Any, cast

import numpy as np
from numpy.typing import ArrayLike

from ..errors import ConfigError
from ..types import Float64, Int64

MAX_ORDER = 29
"""Deepest HEALPix order that fits an int64 (Gorski et al. 2005, ApJ 622, 759)."""
ROUNDING_DEG = 1e-9
"""Slack of covers: far above the rounding error of a double, far below the pixels of any cover."""
_UNITS_IN_DEG = {
    "": 1.0, "d": 1.0, "deg": 1.0, "degree": 1.0, "degrees": 1.0,
    "arcmin": 1 / 60, "arcminute": 1 / 60, "arcminutes": 1 / 60,
    "arcsec": 1 / 3600, "arcsecond": 1 / 3600, "arcseconds": 1 / 3600,
    "mas": 1 / 3.6e6, "rad": 180 / math.pi,
}  # fmt: skip
SEXAGESIMAL = r"^[-+]?\d+(:|h|d|\s)\s*\d+"
"""Start of a coordinate such as "10:12:13.4" or "10h12m13s", as a pattern of Python and of Arrow."""
ANGLE_DECIMALS = 6
"""Decimals of an angle in arcmin or arcsec, in messages; an angle that needs more is in degrees."""


def healpix(order: int, ra_deg: ArrayLike, dec_deg: ArrayLike) -> Int64:
    """Return the NESTED HEALPix pixel of each position at `order` (0..29), int64, shape of the input.

    Positions must be finite and dec within [-90, 90]; RA is taken modulo 360.
    """
    from astropy import units as u
    from astropy_healpix import lonlat_to_healpix

    ra, dec = np.asarray(ra_deg, np.float64), np.asarray(dec_deg, np.float64)
    # Twice, because the remainder of a tiny negative RA rounds to 360.
    lon = np.mod(np.mod(ra, 360.0), 360.0)
    pixels = lonlat_to_healpix(lon * u.deg, dec * u.deg, 2**order, order="nested")
    return cast(Int64, np.asarray(pixels, np.int64))


def healpix29(ra_deg: ArrayLike, dec_deg: ArrayLike) -> Int64:
    """Return the NESTED order-29 pixel of each position: the column `_healpix_29` of HATS (IVOA note).

    It differs from the index of `hats` only for positions exactly on a pixel border, where both sides are right.
    """
    return healpix(MAX_ORDER, ra_deg, dec_deg)


def pixel_centres(order: int, pixels: ArrayLike) -> tuple[Float64, Float64]:
    """Return (ra, dec) in degrees of the centres of NESTED pixels."""
    from astropy import units as u
    from astropy_healpix import healpix_to_lonlat

    lon, lat = healpix_to_lonlat(np.asarray(pixels, np.int64), 2**order, order="nested")
    return np.asarray(lon.to_value(u.deg), np.float64), np.asarray(lat.to_value(u.deg), np.float64)


def pixel_radius_deg(order: int) -> float:
    """Return the largest distance from a pixel's centre to its corners, over all pixels of an order.

    The worst pixel touches the latitude z = 2/3 where polar cap and belt meet (Gorski et al. 2005).
    """
    nside = 2**order
    z_corner = 1 - (1 - 1 / nside) ** 2 / 3
    dec = np.degrees(np.arcsin([2 / 3, z_corner]))
    return float(separation_deg(45.0 / nside, dec[0], 0.0, dec[1])) + ROUNDING_DEG


def separation_deg(ra1: ArrayLike, dec1: ArrayLike, ra2: ArrayLike, dec2: ArrayLike) -> Float64:
    """Return the great-circle distance in degrees, accurate at all distances; the positions broadcast."""
    from astropy.coordinates import angular_separation

    lon1, lat1, lon2, lat2 = (np.radians(np.asarray(a, np.float64)) for a in (ra1, dec1, ra2, dec2))
    return cast(Float64, np.degrees(angular_separation(lon1, lat1, lon2, lat2)))


def parse_angle(angle: str | float) -> float:
    """Return an angle in degrees from "30arcmin", "2deg", "50arcsec", "0.5" or a bare number (degrees).

    astropy's `Angle` is no substitute: it refuses "1e-1deg", "2 arcminutes" and "2DEG", and reads "1 2" as 1 degree
    and 2 minutes.
    """
    if re.search(SEXAGESIMAL, str(angle).strip()):
        raise ConfigError(sexagesimal_text("angle", angle))
    match = re.fullmatch(r"\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*([A-Za-z]*)\s*", str(angle))
    factor = _UNITS_IN_DEG.get(match[2].lower()) if match else None
    try:
        value = float(match[1]) * factor if match and factor is not None else math.nan
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ConfigError(
            f"angle {angle!r} is not understood: write a number of degrees or add a unit, "
            "one of deg, arcmin, arcsec, mas, rad (for example '30arcmin')"
        )
    return value


def sexagesimal_text(what: str, value: object) -> str:
    """Return the message for a sexagesimal coordinate where decimal degrees are expected."""
    return (
        f"{what} looks sexagesimal ('{value}'); give decimal degrees, for example from "
        "astropy.coordinates.SkyCoord(ra, dec, unit=('hourangle', 'deg')).ra.deg"
    )


def angle_text(angle_deg: float) -> str:
    """Return the shortest text that `parse_angle` reads as exactly this angle, in degrees, arcmin or arcsec.

    >>> angle_text(0.5), angle_text(40 / 60), angle_text(1 / 3600)
    ('0.5deg', '40arcmin', '1arcsec')
    """
    numbers = {"deg": angle_deg} | {
        unit: round(angle_deg / _UNITS_IN_DEG[unit], ANGLE_DECIMALS) for unit in ("arcmin", "arcsec")
    }
    texts = (f"{float(number)!r}".removesuffix(".0") + unit for unit, number in numbers.items())
    return min((text for text in texts if parse_angle(text) == angle_deg), key=len)


def unit_vectors(ra: ArrayLike, dec: ArrayLike) -> Float64:
    """Return unit vectors (..., 3) of positions in degrees."""
    lon, lat = np.radians(np.asarray(ra, np.float64)), np.radians(np.asarray(dec, np.float64))
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)


def checked_degrees(value: object, what: str, low: float, high: float) -> float:
    """Return an angle in degrees as a float within [low, high], or raise a `ConfigError` that names `what`."""
    if isinstance(value, str) and re.search(SEXAGESIMAL, value.strip()):
        raise ConfigError(sexagesimal_text(what, value))
    try:
        number = float(cast(Any, value))
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not low <= number <= high:
        raise ConfigError(f"{what} is {value!r}: it must be a number of degrees from {low:g} to {high:g}")
    return number
