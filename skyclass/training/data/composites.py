"""The composites of a dataset, made once and stored in its folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ...errors import ConfigError
from ...files import replacing, translate_write_errors
from ...images.composite import CompositeSettings, composite
from ...types import Float16
from ...version import code_version
from ..locks import file_lock
from .dataset import BLOCK, LOCK, Dataset, pixels_digest


def composites(dataset: Dataset, bands: tuple[str, ...], settings: CompositeSettings) -> Float16:
    """Return the composites (N, C, S, S) float16 of `bands`, NaN = missing, made in blocks.

    For a dataset on disk they are a memory map of a file in its folder. One process writes the file, whole or not at
    all, and the others wait for it. Raises `ConfigError` for a band that the dataset lacks, and without images.
    """
    if not dataset.has_images:
        raise ConfigError(
            f"the dataset {dataset.path or 'in memory'} has no cutouts, and the network takes images: make a dataset "
            "with --images, or choose a network of photometry alone, such as colour"
        )
    if missing := [band for band in bands if band not in dataset.cut.bands]:
        available = ", ".join(dataset.cut.bands)
        raise ConfigError(
            f"the dataset has no {', '.join(missing)}, only {available}: train on those, or cut the dataset again"
        )
    shape = (len(dataset), len(bands), dataset.cut.size_px, dataset.cut.size_px)
    if dataset.path is None:
        images: Float16 = np.empty(shape, np.float16)
        _fill(images, dataset, bands, settings)
        return images
    path = dataset.path / f"composites-{_digest(dataset, bands, settings)}.npy"
    return _stored(path, shape, partial(_fill, dataset=dataset, bands=bands, settings=settings))


def _digest(dataset: Dataset, bands: tuple[str, ...], settings: CompositeSettings) -> str:
    """Return a digest of what decides the composites: pixels, bands, settings and code."""
    facts = [pixels_digest(dataset) or "", len(dataset), list(bands), settings.to_dict(), code_version()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def _fill(images: Float16, dataset: Dataset, bands: tuple[str, ...], settings: CompositeSettings) -> None:
    """Write the composites into `images`, a block at a time."""
    index = [dataset.cut.bands.index(band) for band in bands]
    zero_point_mag = tuple(dataset.zero_point_mag[i] for i in index)
    for start in range(0, len(dataset), BLOCK):
        pixels = np.asarray(dataset.pixels[start : start + BLOCK])[:, index]
        images[start : start + BLOCK] = composite(pixels, zero_point_mag, settings)


def _stored(path: Path, shape: tuple[int, ...], fill: Callable[[Float16], None]) -> Float16:
    """Return a float16 memory map of a file, which is written first where it is absent or damaged."""
    if (images := _memory_map(path, shape)) is not None:
        return images
    with translate_write_errors(path.parent), file_lock(path.parent / LOCK):
        if (images := _memory_map(path, shape)) is None:
            with replacing(path) as temp:
                new = np.lib.format.open_memmap(temp, mode="w+", dtype="<f2", shape=shape)
                fill(new)
                new.flush()
            images = np.load(path, mmap_mode="r")
    return images


def _memory_map(path: Path, shape: tuple[int, ...]) -> Float16 | None:
    """Return the memory map of a file, None where it is absent or damaged."""
    try:
        images: Float16 = np.load(path, mmap_mode="r")
    except (OSError, ValueError):
        return None
    return images if images.shape == shape and images.dtype == np.float16 else None
