"""Cutouts in DN -> composites for a network: sky subtraction, zero points, stretch. Pure functions.

A composite keeps the native size of its cutout (about 37 x 37 pixels) and is float16 with NaN where a pixel is missing.
It is therefore small when it is sent to another process, and exact enough for the network, which resizes and normalises
it on its own device (`model/preprocess.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..types import BANDS, Float16, Float32

ATLAS_ZERO_POINT_MAG = dict(zip(BANDS, (20.5, 19.5, 18.0, 13.0), strict=True))
"""Vega zero points of AllWISE Atlas images (header card MAGZP; Explanatory Supplement, section IV.4)."""

ATLAS_NOISE_DN = dict(zip(BANDS, (0.11, 0.06, 0.30, 0.03), strict=True))
"""Typical pixel scatter of an Atlas image, confusion included: the softening of the default stretch."""

FLOAT16_MAX = float(np.finfo(np.float16).max)
"""Largest finite value of a composite."""

FAINTEST_MAG = 80.0
"""Fainter zero points overflow float32 when they are converted to a flux ratio."""

LOWER_SIGMA = 0.1587
"""Share of a normal distribution more than one standard deviation below its mean."""

BLOCK = 64
"""Number of cutouts stretched at a time: the temporary arrays of so few stay in the cache."""


@dataclass(frozen=True)
class CompositeSettings:
    """How pixels in DN become a composite. The settings belong to the model bundle, so training and inference agree.

    Parameters
    ----------
    softening_dn : tuple of float, one for each band
        Flux in DN, at `zero_point_mag`, by which pixels are divided before the stretch.
    zero_point_mag : tuple of float, one for each band
        Zero point in Vega magnitudes to which the pixels are scaled.
    stretch : str
        "asinh": arcsinh(x / softening), which keeps the colour. "linear": x / softening. "log": log1p(x / softening) of
        the positive part. "percentile": each band of each cutout scaled between its own `percentiles`, which loses flux
        and colour. "lupton": the scheme of Lupton et al. 2004 (PASP 116, 133) with `lupton_q`, which keeps the colour.
    sky : str
        "border" subtracts the median of the outer frame of each cutout, `border_px` wide; "none" subtracts nothing.
    border_px : int
        Width of the frame in pixels.
    percentiles : (float, float)
        Percentiles that the stretch "percentile" maps to 0 and 1.
    lupton_q : float
        Softening parameter Q of the stretch "lupton".

    Raises
    ------
    ConfigError
        With every problem in one message.
    """

    softening_dn: tuple[float, ...]
    zero_point_mag: tuple[float, ...]
    stretch: str = "asinh"
    sky: str = "border"
    border_px: int = 3
    percentiles: tuple[float, float] = (0.5, 99.5)
    lupton_q: float = 8.0

    def __post_init__(self) -> None:
        problems = []
        if self.stretch not in STRETCHES:
            problems.append(f"stretch = {self.stretch!r}: choose one of {', '.join(STRETCHES)}")
        if self.sky not in ("border", "none"):
            problems.append(f"sky = {self.sky!r}: choose border or none")
        if len(self.softening_dn) != len(self.zero_point_mag):
            problems.append("softening_dn and zero_point_mag need one number for each band")
        if not all(0 < s < np.inf for s in self.softening_dn):
            problems.append(f"softening_dn = {self.softening_dn}: must be positive and finite")
        if not all(abs(m) <= FAINTEST_MAG for m in self.zero_point_mag):
            problems.append(f"zero_point_mag = {self.zero_point_mag}: must lie within {FAINTEST_MAG:g} mag of 0")
        if not 0 < self.lupton_q < np.inf:
            problems.append(f"lupton_q = {self.lupton_q}: must be positive and finite")
        if self.border_px < 1:
            problems.append(f"border_px = {self.border_px}: must be at least 1")
        if len(self.percentiles) != 2 or not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            problems.append(f"percentiles = {self.percentiles}: must rise within 0..100")
        if problems:
            raise ConfigError("composite: " + "; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> CompositeSettings:
        """Return the settings that `to_dict` wrote; raise `ConfigError` for unknown keys."""
        unknown = set(data) - {f.name for f in fields(CompositeSettings)}
        if unknown:
            raise ConfigError(f"composite: unknown settings {sorted(unknown)}")
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return CompositeSettings(**values)


def atlas_settings(bands: tuple[str, ...], **changes: Any) -> CompositeSettings:
    """Return the default settings for Atlas images in these bands, with `changes` applied."""
    fixed: dict[str, Any] = {
        "softening_dn": tuple(ATLAS_NOISE_DN[b] for b in bands),
        "zero_point_mag": tuple(ATLAS_ZERO_POINT_MAG[b] for b in bands),
    }
    return CompositeSettings(**(fixed | changes))


def composite(
    pixels: Float32,
    zero_point_mag: tuple[float, ...],
    settings: CompositeSettings,
    out: Float16 | None = None,
    sky: Float32 | None = None,
) -> Float16:
    """Return the composites of cutouts.

    Parameters
    ----------
    pixels : (N, B, S, S) float32
        Cutouts in DN, NaN where a pixel is missing.
    zero_point_mag : tuple of float
        Zero point of each of the B bands in Vega magnitudes.
    settings : CompositeSettings
        Sky, reference zero points, softening and stretch.
    out : (N, B, S, S) float16, optional
        Array to write into.
    sky : (N, B) float32, optional
        Sky in DN, if `border_levels` has measured it already.

    Returns
    -------
    (N, B, S, S) float16
        Composites, NaN where a pixel is missing.

    Raises
    ------
    ConfigError
        If the settings are made for another number of bands.

    Examples
    --------
    >>> settings = CompositeSettings((2.0,), (20.5,), stretch="linear", sky="none")
    >>> composite(np.full((1, 1, 2, 2), 6.0, np.float32), (20.5,), settings)[0, 0].tolist()
    [[3.0, 3.0], [3.0, 3.0]]
    """
    if pixels.shape[1] != len(settings.softening_dn):
        raise ConfigError(
            f"composite: {pixels.shape[1]} bands cut, {len(settings.softening_dn)} in the settings: "
            "cut the bands of the model"
        )
    softening = np.asarray(settings.softening_dn, dtype=np.float32)[:, None, None]
    unit = flux_scale(zero_point_mag, settings.zero_point_mag) / softening
    stretch = STRETCHES[settings.stretch]
    out = np.empty(pixels.shape, dtype=np.float16) if out is None else out
    for start in range(0, len(pixels), BLOCK):
        block = pixels[start : start + BLOCK]
        if settings.sky == "none":
            level = np.zeros(block.shape[:2], np.float32)
        else:
            level = border_sky(block, settings.border_px) if sky is None else sky[start : start + BLOCK]
        with np.errstate(invalid="ignore", over="ignore"):  # damaged images may have pixels of any value
            scaled = np.subtract(block, level[:, :, None, None])
            scaled *= unit
            stretched = stretch(scaled, settings)
        to_float16(stretched, out[start : start + BLOCK])
    return out


def to_float16(values: Float32, out: Float16) -> None:
    """Write values as float16 into `out`. Torch uses a processor instruction; numpy takes thirty times as long."""
    import torch  # here, so that settings can be read without it

    torch.from_numpy(out).copy_(torch.from_numpy(values))


def border_sky(pixels: Float32, border_px: int) -> Float32:
    """Return the sky (N, B) in DN: the median of the finite pixels in the outer frame of each cutout.

    The sky is NaN where the frame has no finite pixel. A bright source in the centre does not raise its own sky.
    """
    return border_levels(pixels, border_px)[0]


def border_levels(pixels: Float32, border_px: int) -> tuple[Float32, Float32]:
    """Return level and scatter (N, B) of the sky in DN, from the finite pixels in the outer frame of each cutout.

    The level is the median. The scatter is the median less the quantile `LOWER_SIGMA`, which neighbours hardly change.
    It is the standard deviation of a normal distribution. Both are NaN where the frame has no finite pixel.
    """
    size = pixels.shape[-1]
    inner = slice(border_px, size - border_px)
    frame = np.ones((size, size), dtype=bool)
    frame[inner, inner] = False
    ring = pixels[:, :, frame]
    middle, low = ring.shape[-1] // 2, round(LOWER_SIGMA * (ring.shape[-1] - 1))
    ring.sort(axis=-1)  # faster than np.median, which partitions three times
    level: Float32 = (ring[..., (ring.shape[-1] - 1) // 2] + ring[..., middle]) * np.float32(0.5)
    lower: Float32 = ring[..., low].copy()
    level[np.isnan(ring[..., -1])] = np.nan  # NaN sorts last: these few frames are computed again, without NaN
    for n, b in zip(*np.nonzero(np.isnan(level)), strict=True):
        finite = ring[n, b][np.isfinite(ring[n, b])]
        if len(finite):
            level[n, b], lower[n, b] = np.median(finite), finite[round(LOWER_SIGMA * (len(finite) - 1))]
    with np.errstate(invalid="ignore", over="ignore"):
        return level, level - lower


def flux_scale(zero_point_mag: tuple[float, ...], reference_mag: tuple[float, ...]) -> Float32:
    """Return the factors (B, 1, 1) that convert DN at `zero_point_mag` to DN at `reference_mag`."""
    difference = np.subtract(reference_mag, zero_point_mag)
    return np.power(10.0, 0.4 * difference).astype(np.float32)[:, None, None]


def _asinh(x: Float32, settings: CompositeSettings) -> Float32:
    return np.arcsinh(x, out=x)


def _linear(x: Float32, settings: CompositeSettings) -> Float32:
    return np.clip(x, -FLOAT16_MAX, FLOAT16_MAX, out=x)


def _log(x: Float32, settings: CompositeSettings) -> Float32:
    return np.log1p(np.maximum(x, 0))


def _percentile(x: Float32, settings: CompositeSettings) -> Float32:
    has_pixels = np.isfinite(x).any(axis=(2, 3), keepdims=True)
    filled = np.where(has_pixels, x, 0)  # numpy warns of a band without pixels
    low, high = np.nanpercentile(filled, settings.percentiles, axis=(2, 3), keepdims=True).astype(np.float32)
    scaled: Float32 = np.clip((x - low) / np.maximum(high - low, np.float32(1e-6)), 0, 1)
    return scaled


def _lupton(x: Float32, settings: CompositeSettings) -> Float32:
    intensity = np.maximum(x.mean(axis=1, keepdims=True), np.float32(1e-6))
    q = np.float32(settings.lupton_q)
    stretched: Float32 = x * (np.arcsinh(q * intensity) / (q * intensity))
    return np.clip(stretched, -FLOAT16_MAX, FLOAT16_MAX)


STRETCHES: dict[str, Callable[[Float32, CompositeSettings], Float32]] = {
    "asinh": _asinh,
    "linear": _linear,
    "log": _log,
    "percentile": _percentile,
    "lupton": _lupton,
}
"""Stretch -> function of (flux / softening, settings). A stretch may overwrite its argument."""
