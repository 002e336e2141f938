"""The side of a cutout as text: pixels of Atlas images, or an angle."""

from __future__ import annotations

import re

from ..errors import ConfigError
from ..sky.healpix import parse_angle
from ..types import PIXEL_SCALE_ARCSEC

MAX_CUTOUT_PX = 1024


def parse_size(size: str) -> int:
    """Return the side in pixels of a size such as "37px"; for "50arcsec" the nearest odd number of Atlas pixels."""
    pixels = re.fullmatch(r"\s*([+-]?\d{1,9})\s*(px|pix|pixels)\s*", size)
    try:
        side = int(pixels[1]) if pixels else _odd_pixels(parse_angle(size))
    except ConfigError as error:
        raise ConfigError(f"{error.message}; pixels are written as 37px") from error
    if not 1 <= side <= MAX_CUTOUT_PX:
        raise ConfigError(f"{side} pixels; choose 1 to {MAX_CUTOUT_PX}{_missing_unit(size)}")
    return side


def _missing_unit(size: str) -> str:
    """Return the part of a message about a size without a unit, "" for one with a unit."""
    number = size.strip()
    if number[-1:].isalpha():
        return ""
    side = _odd_pixels(parse_angle(f"{number}arcsec"))
    sizes = f"{number}arcsec or {side}px" if 1 <= side <= MAX_CUTOUT_PX else "50arcsec or 37px, for example"
    return f"; {number} without a unit is degrees: write {sizes}"


def _odd_pixels(angle_deg: float) -> int:
    """Return the odd number of Atlas pixels that is nearest to an angle."""
    return _odd(min(angle_deg, 360.0) * 3600 / PIXEL_SCALE_ARCSEC)


def _odd(pixels: float) -> int:
    """Return the nearest odd number of pixels: a cutout has a central pixel."""
    return 2 * round((max(pixels, -1e9) - 1) / 2) + 1
