"""Cutouts in DN -> composites for a network: sky subtraction, zero points, stretch. Pure.

A composite keeps its native size (about 37 x 37) and is float16 with NaN where there is no pixel: small on the
wire, exact enough for the network, which resizes and normalises on its own device (`model/classifier.py`).
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

FLOAT16_MAX = np.float32(np.finfo(np.float16).max)

FAINTEST_MAG = 80.0
"""Zero points beyond it overflow float32 as a factor of flux."""

BLOCK = 64
"""Cutouts stretched at a time, so that the temporaries stay in cache."""


@dataclass(frozen=True)
class CompositeSettings:
    """How DN become network input. Belongs to the model bundle, so training and inference agree.

    `softening_dn` and `zero_point_mag` hold one number a band; pixels are brought to `zero_point_mag` before the
    stretch. `sky`: "border" subtracts the median of a frame `border_px` wide, "none" nothing. `stretch`:
    "asinh" arcsinh(x / softening), the fixed default, which keeps the colour; "linear" x / softening;
    "log" log1p(x / softening) of the positive part; "percentile" each band of each cutout scaled between its own
    `percentiles` (loses flux and colour); "lupton" the colour-preserving scheme of Lupton et al. 2004
    (PASP 116, 133) with `lupton_q`.
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
            problems.append("softening_dn and zero_point_mag need one number a band each")
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
        """Return the settings that `to_dict` wrote; unknown keys raise `ConfigError`."""
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
    pixels: Float32, zero_point_mag: tuple[float, ...], settings: CompositeSettings, out: Float16 | None = None
) -> Float16:
    """Return composites (N, B, S, S) float16, NaN where there is no pixel, for cutouts of the same shape in DN.

    `zero_point_mag` (B,) is the zero point of `pixels` in Vega magnitudes. The composites are written into `out`
    where it is given.
    """
    if pixels.shape[1] != len(settings.softening_dn):
        raise ConfigError(f"composite: {pixels.shape[1]} bands cut, {len(settings.softening_dn)} in the settings")
    softening = np.asarray(settings.softening_dn, dtype=np.float32)[:, None, None]
    unit = flux_scale(zero_point_mag, settings.zero_point_mag) / softening
    stretch = STRETCHES[settings.stretch]
    out = np.empty(pixels.shape, dtype=np.float16) if out is None else out
    for start in range(0, len(pixels), BLOCK):
        block = pixels[start : start + BLOCK]
        sky = border_sky(block, settings.border_px)[:, :, None, None] if settings.sky == "border" else np.float32(0)
        with np.errstate(invalid="ignore", over="ignore"):  # pixels of damaged images may be of any size
            scaled = np.subtract(block, sky)
            scaled *= unit
        half(stretch(scaled, settings), out[start : start + BLOCK])
    return out


def half(values: Float32, out: Float16) -> None:
    """Write values as float16 into `out`. Torch has the instruction for it; numpy takes thirty times as long."""
    import torch  # here, so that settings can be read without it

    torch.from_numpy(out).copy_(torch.from_numpy(values))


def border_sky(pixels: Float32, border_px: int) -> Float32:
    """Return the sky (N, B) in DN: the median of the finite pixels in the outer frame of each cutout.

    NaN where the frame has no pixel; the centre never counts, so a bright source does not lift its own sky.
    """
    size = pixels.shape[-1]
    inner = slice(border_px, size - border_px)
    frame = np.ones((size, size), dtype=bool)
    frame[inner, inner] = False
    ring = pixels[:, :, frame]
    middle = ring.shape[-1] // 2
    ring.sort(axis=-1)  # faster than np.median, which partitions thrice
    sky: Float32 = (ring[..., (ring.shape[-1] - 1) // 2] + ring[..., middle]) * np.float32(0.5)
    sky[np.isnan(ring[..., -1])] = np.nan  # they sort last: those few frames again, without them
    for n, b in zip(*np.nonzero(np.isnan(sky)), strict=True):
        finite = ring[n, b][np.isfinite(ring[n, b])]
        if len(finite):
            sky[n, b] = np.median(finite)
    return sky


def flux_scale(zero_point_mag: tuple[float, ...], reference_mag: tuple[float, ...]) -> Float32:
    """Return factors (B, 1, 1) that bring DN at `zero_point_mag` to `reference_mag`."""
    difference = np.subtract(reference_mag, zero_point_mag)
    return np.power(10.0, 0.4 * difference).astype(np.float32)[:, None, None]


def _asinh(x: Float32, settings: CompositeSettings) -> Float32:
    return np.arcsinh(x, out=x)


def _linear(x: Float32, settings: CompositeSettings) -> Float32:
    return np.clip(x, -FLOAT16_MAX, FLOAT16_MAX, out=x)


def _log(x: Float32, settings: CompositeSettings) -> Float32:
    return np.log1p(np.maximum(x, 0))


def _percentile(x: Float32, settings: CompositeSettings) -> Float32:
    filled = np.where(np.isfinite(x).any(axis=(2, 3), keepdims=True), x, 0)  # an empty band has no percentiles
    low, high = np.nanpercentile(filled, settings.percentiles, axis=(2, 3), keepdims=True).astype(np.float32)
    scaled: Float32 = np.clip((x - low) / np.maximum(high - low, np.float32(1e-6)), 0, 1)
    return scaled


def _lupton(x: Float32, settings: CompositeSettings) -> Float32:
    intensity = np.maximum(x.mean(axis=1, keepdims=True), np.float32(1e-6))
    q = np.float32(settings.lupton_q)
    stretched: Float32 = x * (np.arcsinh(q * intensity) / (q * intensity))
    return np.clip(stretched, -FLOAT16_MAX, FLOAT16_MAX)


STRETCHES: dict[str, Callable[[Float32, CompositeSettings], Float32]] = {  # they may write over what they are given
    "asinh": _asinh,
    "linear": _linear,
    "log": _log,
    "percentile": _percentile,
    "lupton": _lupton,
}
