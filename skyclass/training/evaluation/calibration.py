"""Calibration of probabilities: a temperature, class biases, and class shares that differ between samples.

`fit_temperature` corrects over- and under-confidence and keeps the order of the classes; `fit_bias_and_temperature`
also fits the class shares of the rows. All functions but `calibrate` are float64 arithmetic on logits, without a
network. `binned.py` calibrates in bins of W1 and |b|.
"""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike
from scipy import optimize, special

from ...errors import ConfigError
from ...model.bundle import Bundle, load_weights, save_bundle
from ...model.bundle_files import check_target
from ...model.photometry import numbers
from ...sky.galactic import abs_galactic_latitude_deg
from ...text import named
from ...types import Float64, Int64
from ..data.classes import label_counts
from ..data.dataset import Dataset, pixels_digest
from .binned import fit_in_bins
from .caveats import is_simulated
from .natural import tile_numbers
from .outlier_fit import fit_outliers
from .predictions import embeddings_of, logits_of, probabilities_of, rows_of

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
"""Range of a fitted temperature. Rows that ask for a value outside are separated perfectly or not at all."""
KINDS = ("temperature", "bias", "bins", "outliers")


def softmax(logits: ArrayLike) -> Float64:
    """Return the probabilities (N, K) float64 of logits (N, K)."""
    return cast(Float64, special.softmax(np.asarray(logits, np.float64), axis=1))


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the mean of -log p(true class) over rows, each weighted by its class's entry of `weights` (K,)."""
    logs, y = _log_softmax(logits), np.asarray(labels, np.int64)
    return -float(_row_shares(y, weights) @ logs[np.arange(len(y)), y])


def fit_temperature(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the temperature, from 0.05 to 20, that minimises the loss of logits (N, K).

    `weights` (K,) weight the classes, as in training (Guo et al. 2017, arXiv:1706.04599).
    """
    return _minimise_loss(logits, labels, weights, with_bias=False)[0]


def fit_bias_and_temperature(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> tuple[float, tuple[float, ...]]:
    """Return (T, biases) that minimise the loss of softmax(logits / T + bias).

    T lies between 0.05 and 20; the biases sum to 0. Bias-corrected temperature scaling (Alexandari, Kundaje &
    Shrikumar 2020, ICML). Raises `ConfigError` when a class has no rows: its bias would be minus infinity.
    """
    y = np.asarray(labels, np.int64)
    counts = np.bincount(y, minlength=np.shape(logits)[1])
    if absent := [str(k) for k in np.flatnonzero(counts == 0)]:
        raise ConfigError(f"no {named('label', absent)} among the {len(y):,} rows: a bias cannot be fitted")
    temperature, bias = _minimise_loss(logits, y, weights, with_bias=True)
    return temperature, tuple(np.round(bias, 6).tolist())


def _minimise_loss(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None, with_bias: bool
) -> tuple[float, Float64]:
    """Return (T, zero-sum biases (K,)) of least loss; the loss is convex in (1 / T, biases)."""
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    rows, share = np.arange(len(y)), _row_shares(y, weights)
    n_biases = z.shape[1] if with_bias else 0

    def loss_and_gradient(point: Float64) -> tuple[float, Float64]:
        logs = _log_softmax(point[0] * z + (point[1:] if with_bias else 0.0))
        residual = share[:, None] * np.exp(logs)
        residual[rows, y] -= share
        return -float(share @ logs[rows, y]), np.r_[(residual * z).sum(), residual.sum(0)][: 1 + n_biases]

    limits = [(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE), *[(None, None)] * n_biases]
    start, options = np.r_[1.0, np.zeros(n_biases)], {"ftol": 1e-16, "gtol": 1e-11, "maxiter": 1000, "maxcor": 20}
    point = optimize.minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", bounds=limits, options=options).x
    bias = point[1:] if with_bias else np.zeros(z.shape[1])
    return round(1 / float(point[0]), 6), bias - bias.mean()  # a constant in all biases does not change the loss


def calibrate(
    bundle: Bundle,
    dataset: Dataset,
    split: str = "val",
    out: str | Path = "calibrated",
    kind: str = "temperature",
    prior: str = "sample",
    device: str = "auto",
    precision: str = "auto",
    symmetry: int | None = None,
) -> Bundle:
    """Return `bundle` with a calibration fitted on one split of a dataset, and write it as a new bundle to `out`.

    `kind` is "temperature", or "bias" for a temperature and one bias per class. With `prior` "sample" the
    probabilities are for the class shares of the split, with "equal" for equal shares. The kind "bins" leaves the
    probabilities as they are, and adds a `binned_calibration` for the class shares of the split. The kind
    "outliers" adds `outliers` alone; the rows should look like the sky, and the training has seen none of them. The
    weights are unchanged. `training["calibration"]` records the fit, its data, and the loss before and after. With
    `symmetry` the bundle gets that number of orientations; calibrations and statistics for another number are removed.
    Raises `ConfigError`, `BundleError`.
    """
    _check(kind, prior)
    check_target(out)
    if symmetry and symmetry != bundle.symmetry:
        bundle = replace(bundle, symmetry=symmetry, binned_calibration=None, outliers=None)
    if kind == "outliers":
        return _add_outliers(bundle, dataset, split, out, device, precision)
    if kind == "bins":
        return _calibrate_in_bins(bundle, dataset, split, out, device, precision)
    index, n_classes = rows_of(dataset, split), len(bundle.classes)
    logits, labels = logits_of(bundle, dataset, index, device, precision), dataset.labels[index]
    weights = np.ones(n_classes) if prior == "sample" else _equal_weights(labels, n_classes)
    if kind == "bias":
        if absent := [name for name, n in label_counts(labels, bundle.classes).items() if not n]:
            raise ConfigError(
                f"no {', '.join(absent)} among the {len(labels):,} rows of split {split}: a bias cannot be fitted; use "
                "temperature"
            )
        temperature, bias = fit_bias_and_temperature(logits, labels, weights)
    else:
        temperature, bias = fit_temperature(logits, labels, weights), (0.0,) * n_classes
    before = logits / np.float64(bundle.temperature) + np.asarray(bundle.bias)
    after = logits / np.float64(temperature) + np.asarray(bias)
    record = {
        "kind": kind,
        "prior": "class shares of the sample" if prior == "sample" else "equal classes",
        "split": split,
        "pixels": pixels_digest(dataset),
        "of": bundle.model_id,
        "simulated": is_simulated(dataset),
        "counts": label_counts(labels, bundle.classes),
        "loss_before": round(negative_log_likelihood(before, labels, weights), 6),
        "loss_after": round(negative_log_likelihood(after, labels, weights), 6),
    }
    training = bundle.training | {"calibration": record, "prior": record["prior"]}
    training.pop("binned_calibration", None)  # it was fitted to the probabilities of before
    changes = {"temperature": temperature, "bias": bias, "training": training, "binned_calibration": None}
    return save_bundle(out, fields_of(bundle) | changes, load_weights(bundle))


def _calibrate_in_bins(
    bundle: Bundle, dataset: Dataset, split: str, out: str | Path, device: str, precision: str
) -> Bundle:
    """Return `bundle` with a calibration in bins of W1 and |b|, and write it to `out`."""
    index = rows_of(dataset, split)
    p, labels = probabilities_of(bundle, dataset, index, device, precision), dataset.labels[index]
    rows = dataset.rows.take(pa.array(index))
    b = abs_galactic_latitude_deg(numbers(rows["ra"]), numbers(rows["dec"]))
    tile = tile_numbers(rows)
    fitted, losses = fit_in_bins(p, labels, numbers(rows["w1mpro"]), b, tile, bundle.classes)
    record = {
        "split": split,
        "pixels": pixels_digest(dataset),
        "of": bundle.model_id,
        "simulated": is_simulated(dataset),
        "held_out_loss": {name: round(loss, 6) for name, loss in losses.items()},
    }
    changes = {"binned_calibration": fitted, "training": bundle.training | {"binned_calibration": record}}
    return save_bundle(out, fields_of(bundle) | changes, load_weights(bundle))


def _add_outliers(bundle: Bundle, dataset: Dataset, split: str, out: str | Path, device: str, precision: str) -> Bundle:
    """Return `bundle` with the embeddings of one split of a dataset as its `outliers`, and write it to `out`."""
    index = rows_of(dataset, split)
    without = replace(bundle, outliers=None)  # they may be those of another network
    embeddings, w1 = embeddings_of(without, dataset, index, device, precision), numbers(dataset.rows["w1mpro"])[index]
    fitted = fit_outliers(embeddings, dataset.labels[index], w1, len(bundle.classes))
    record = {
        "split": split,
        "pixels": pixels_digest(dataset),
        "of": bundle.model_id,
        "simulated": is_simulated(dataset),
        "counts": label_counts(dataset.labels[index], bundle.classes),
    }
    changes = {"outliers": fitted, "training": bundle.training | {"outliers": record}}
    return save_bundle(out, fields_of(bundle) | changes, load_weights(bundle))


def fields_of(bundle: Bundle) -> dict[str, Any]:
    """Return the fields of a bundle that `save_bundle` takes; it computes the others."""
    computed = ("path", "weights_sha256", "digest")
    return {f.name: getattr(bundle, f.name) for f in fields(bundle) if f.name not in computed}


def _check(kind: str, prior: str) -> None:
    problems = [] if kind in KINDS else [f"kind = {kind!r}: choose {', '.join(KINDS)}"]
    problems += [] if prior in ("sample", "equal") else [f"prior = {prior!r}: choose sample or equal"]
    if kind in ("bins", "outliers") and prior != "sample":
        problems.append(f"the kind {kind} is fitted for the class shares of the sample: leave out the prior")
    if problems:
        raise ConfigError("calibration: " + "; ".join(problems))


def _equal_weights(labels: Int64, n_classes: int) -> Float64:
    """Return the weight of each class (K,) that makes the classes of a sample count equally."""
    counts = np.bincount(labels, minlength=n_classes)
    return np.where(counts > 0, len(labels) / np.maximum(counts, 1), 0.0)


def _row_shares(labels: Int64, weights: ArrayLike | None) -> Float64:
    """Return the weight of each row (N,), scaled to a sum of 1."""
    w = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)[labels]
    return cast(Float64, w / w.sum())


def _log_softmax(logits: ArrayLike) -> Float64:
    return cast(Float64, special.log_softmax(np.asarray(logits, np.float64), axis=1))
