"""Check that rows are probabilities, and the trial that a model passes before it is used.

A network with NaN or infinite weights, or a calibration that overflows, gives NaN without an error. Therefore each
network that is loaded is tried on fixed composites, which include extreme ones.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import BundleError
from ..images.composite import FLOAT16_MAX
from ..types import Bool, Float16, Float32
from .bundle import Bundle
from .bundle_files import REMEDY
from .photometry import PhotometrySettings

SUM_TOLERANCE = 1e-3
"""Largest accepted difference of the sum of a row from 1."""

FAR_STD = 100.0
"""Photometry of the trial lies this many standard deviations from the training mean."""

Predict = Callable[[Float16, Float32 | None], Float32]


def is_distribution(probabilities: Float32) -> Bool:
    """Return whether each row of (N, K) is a probability distribution: finite, within 0..1, sum 1."""
    in_range = np.isfinite(probabilities) & (probabilities >= 0) & (probabilities <= 1)
    total = np.where(in_range, probabilities, 0).sum(axis=1, dtype=np.float64)
    is_valid: Bool = in_range.all(axis=1) & (np.abs(total - 1) <= SUM_TOLERANCE)
    return is_valid


def refuse_faulty(bundle: Bundle, predict: Predict) -> None:
    """Raise `BundleError` unless the network of a bundle gives probabilities for each trial composite."""
    composites = trial_composites(len(bundle.bands), bundle.size_px)
    photometry = trial_photometry(bundle.photometry, len(composites)) if bundle.photometry else None
    probabilities = predict(np.stack(list(composites.values())), photometry)
    if probabilities.shape[1] != len(bundle.classes):
        raise BundleError(
            f"the model bundle at {bundle.path} gives {probabilities.shape[1]} numbers for a composite, not one for "
            f"each of {', '.join(bundle.classes)}: {REMEDY}"
        )
    for name, row in zip(composites, probabilities[:, None], strict=True):
        if not is_distribution(row).all():
            values = ", ".join(f"{c} {p:g}" for c, p in zip(bundle.classes, row[0].tolist(), strict=True))
            raise BundleError(
                f"the model bundle at {bundle.path} is unusable: for a composite of {name} it gives {values}, which "
                f"are no probabilities (0 to 1, sum 1): weights or temperature overflow; {REMEDY}"
            )


def trial_composites(n_bands: int, size_px: int) -> dict[str, Float16]:
    """Return fixed composites (C, S, S) by name: extreme values, noise and a point source."""
    shape = (n_bands, size_px, size_px)
    noise = np.random.default_rng(0).normal(size=shape)
    point = noise.copy()
    point[:, size_px // 2, size_px // 2] = FLOAT16_MAX
    signs = np.where(np.indices(shape).sum(axis=0) % 2, FLOAT16_MAX, -FLOAT16_MAX)
    images = {
        "zeros": np.zeros(shape),
        "missing pixels": np.full(shape, np.nan),
        "ones": np.ones(shape),
        "the largest float16": np.full(shape, FLOAT16_MAX),
        "the smallest float16": np.full(shape, -FLOAT16_MAX),
        "infinity": np.full(shape, np.inf),
        "largest and smallest float16 in turn": signs,
        "noise": noise,
        "strong noise": 1000 * noise,
        "noise and one bright pixel": point,
        "noise, half of it missing": np.where(np.arange(size_px) < size_px // 2, np.nan, noise),
    }
    return {name: image.astype(np.float16) for name, image in images.items()}


def trial_photometry(settings: PhotometrySettings, n: int) -> Float32:
    """Return features (n, F): in turn unknown, the training mean, and values far below and above it."""
    mean, std = np.asarray(settings.mean), np.asarray(settings.std)
    rows = np.stack([np.full_like(mean, np.nan), mean, mean - FAR_STD * std, mean + FAR_STD * std])
    photometry: Float32 = rows[np.arange(n) % len(rows)].astype(np.float32)
    return photometry
