"""Predictions of model bundles for the rows of a dataset: which models fit it, and what they answer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ...errors import ConfigError
from ...model.bundle import Bundle
from ...model.classifier import load_classifier
from ...model.network import inputs_of_bundle
from ...model.photometry import columns_of, features
from ...model.photometry import numbers as floats
from ...text import named
from ...types import Bool, Float16, Float32, Int64
from ..data.composites import composites
from ..data.dataset import Dataset

BATCH = 4096
"""Images in one call of the network: 30 MB."""


def probabilities_of(
    bundle: Bundle,
    dataset: Dataset,
    index: Int64 | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Float32:
    """Return the calibrated probabilities (N, K) of a bundle for the rows at `index` (all when None)."""
    classifier = load_classifier(bundle, device, precision)
    return _predict(classifier.predict, bundle, dataset, index)


def logits_of(
    bundle: Bundle,
    dataset: Dataset,
    index: Int64 | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Float32:
    """Return the logits (N, K), before temperature and bias, for the rows at `index` (all when None)."""
    classifier = load_classifier(bundle, device, precision)
    return _predict(classifier.logits, bundle, dataset, index)


def embeddings_of(
    bundle: Bundle,
    dataset: Dataset,
    index: Int64 | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Float32:
    """Return the embeddings (N, W) of the rows at `index` (all when None); W is 0 for a network without one."""
    classifier = load_classifier(bundle, device, precision)
    return _predict(lambda *inputs: classifier.predict_and_embed(*inputs)[1], bundle, dataset, index)


def rows_of(dataset: Dataset, split: str) -> Int64:
    """Return the positions of the rows of a split, of all rows for "all"; `ConfigError` when there are none."""
    if split == "all":
        return np.arange(len(dataset), dtype=np.int64)
    index = dataset.split(split)
    if not len(index):
        raise ConfigError(f"the dataset has no rows of split {split!r}: choose train, val, test or all")
    return index


def check_fit(bundles: Sequence[Bundle], dataset: Dataset) -> None:
    """Raise `ConfigError` with every problem unless each bundle can classify the dataset's cutouts."""
    problems = [f"{bundle.model_id}: {problem}" for bundle in bundles for problem in _fit_problems(bundle, dataset)]
    if problems:
        where = f"the dataset {dataset.path}" if dataset.path else "the dataset"
        raise ConfigError(
            f"{where} does not fit: " + "; ".join(problems) + "; make one with `skyclass dataset` for these models"
        )


def _fit_problems(bundle: Bundle, dataset: Dataset) -> Iterator[str]:
    if bundle.classes != dataset.classes:
        yield f"its classes are {', '.join(bundle.classes)}, those of the dataset {', '.join(dataset.classes)}"
    inputs = inputs_of_bundle(bundle)
    needed, available = bundle.cut, dataset.cut
    if "images" in inputs and not dataset.has_images:
        yield "it takes images, and the dataset has no cutouts"
    elif "images" in inputs:
        if (needed.size_px, needed.pixel_scale_arcsec) != (available.size_px, available.pixel_scale_arcsec):
            yield (
                f"it takes cutouts of {needed.size_px} px of {needed.pixel_scale_arcsec} arcsec, the dataset has "
                f"{available.size_px} px of {available.pixel_scale_arcsec} arcsec"
            )
        if missing := [band for band in needed.bands if band not in available.bands]:
            yield f"it needs {', '.join(missing)}, the dataset has {', '.join(available.bands)}"
    columns = columns_of(bundle.photometry.features) if bundle.photometry else ()
    if absent := [column for column in columns if column not in dataset.rows.column_names]:
        yield f"it needs the {named('column', absent)}, which the dataset's rows lack (--columns)"
    elif bundle.photometry and "images" not in inputs and not has_photometry(bundle, dataset).any():
        yield f"it looks at {', '.join(columns)} alone, and no row has a value"


def has_photometry(bundle: Bundle, dataset: Dataset) -> Bool:
    """Return which rows (N,) have a value of the photometry that a model uses; limit flags are no values."""
    assert bundle.photometry is not None
    columns = columns_of(bundle.photometry.features)
    known: Bool = np.any([np.isfinite(floats(dataset.rows[column])) for column in columns], axis=0)
    return known


def _predict(predict: Any, bundle: Bundle, dataset: Dataset, index: Int64 | None) -> Float32:
    """Return `predict(images, photometry)` for the rows at `index`, batch by batch."""
    check_fit([bundle], dataset)
    index = np.arange(len(dataset)) if index is None else index
    images, settings = _images(bundle, dataset), bundle.photometry
    photometry = features(dataset.rows, settings.features) if settings else None
    batches = np.array_split(index, max(1, math.ceil(len(index) / BATCH)))
    return np.concatenate([predict(images[rows], None if photometry is None else photometry[rows]) for rows in batches])


def _images(bundle: Bundle, dataset: Dataset) -> Float16:
    """Return composites (N, C, S, S); for a network without images, zeros that take no memory."""
    if "images" in inputs_of_bundle(bundle):
        return composites(dataset, bundle.bands, bundle.composite)
    shape = (len(dataset), len(bundle.bands), bundle.size_px, bundle.size_px)
    return np.broadcast_to(np.float16(0), shape)
