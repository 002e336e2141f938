"""Probabilities that mean what they say: temperature, bias, and the class shares of another sample.

`temperature` keeps the order of the classes and mends over- or under-confidence; `bias` also moves the
shares of the classes to those of the rows it is fitted on; `estimate_prior` and `adapt` carry calibrated
probabilities to a sample whose shares nobody knows. All of it is float64 numpy on logits, no network.
"""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...errors import ConfigError
from ...model.bundle import Bundle, check_target, load_weights, save_bundle
from ...types import CLASSES, Float64, Int64
from ..data.dataset import Dataset, class_counts
from .evaluate import is_simulated, logits_of, pixels_digest, rows_of

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.05, 20.0
"""Outside of this a network says nothing, or everything."""
KINDS = ("temperature", "bias")


def softmax(logits: ArrayLike) -> Float64:
    """Return probabilities (N, K) float64 of logits (N, K)."""
    return np.exp(_log_softmax(np.asarray(logits, np.float64)))


def negative_log_likelihood(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the mean of -log p(true class) over rows, each weighted by its class's entry of `weights` (K,)."""
    logs, y, w = _log_softmax(np.asarray(logits, np.float64)), np.asarray(labels, np.int64), _weights(labels, weights)
    return float(-(w * logs[np.arange(len(y)), y]).sum() / w.sum())


def fit_temperature(logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Return the temperature that makes the loss of logits (N, K) least (Guo et al. 2017, arXiv:1706.04599).

    `weights` (K,) weigh the classes, as in training. Golden-section search of log T between 0.05 and 20, where
    the loss has one minimum.
    """
    z = np.asarray(logits, np.float64)
    low, high = math.log(LEAST_TEMPERATURE), math.log(MOST_TEMPERATURE)
    golden = (math.sqrt(5) - 1) / 2

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(z / math.exp(log_temperature), labels, weights)

    for _ in range(40):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return round(math.exp((low + high) / 2), 6)


def fit_bias_and_temperature(
    logits: ArrayLike, labels: ArrayLike, weights: ArrayLike | None = None
) -> tuple[float, tuple[float, ...]]:
    """Return (T, biases) that make the loss of softmax(logits / T + bias) least; the biases sum to 0.

    Bias-corrected temperature scaling (Alexandari, Kundaje & Shrikumar 2020, ICML). The loss is convex in
    (1 / T, biases), so Newton's method with halved steps finds its one minimum; T stays between 0.05 and 20.
    Raises `ConfigError` when a class has no rows: its bias would be minus infinity.
    """
    z, y = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    classes = z.shape[1]
    if lost := [CLASSES[k] for k in range(classes) if not (y == k).any()]:
        raise ConfigError(f"no {', '.join(lost)} among the {len(y):,} rows: a bias cannot be fitted; use temperature")
    point = _newton(z, y, _weights(y, weights), np.r_[1.0, np.zeros(classes - 1)], np.ones(classes, bool))
    slope = float(np.clip(point[0], 1 / MOST_TEMPERATURE, 1 / LEAST_TEMPERATURE))
    if slope != point[0]:  # at the end of its range the temperature stands, and the biases are fitted alone
        start = np.r_[slope, np.zeros(classes - 1)]
        point = _newton(z, y, _weights(y, weights), start, np.arange(classes) > 0)
    bias = _zero_sum(classes) @ point[1:]
    return round(1 / slope, 6), tuple(np.round(bias, 6).tolist())


def estimate_prior(
    probabilities: ArrayLike, old_prior: ArrayLike, tolerance: float = 1e-9, most_steps: int = 10_000
) -> Float64:
    """Return the class shares (K,) of the rows that `probabilities` (N, K) speak of; labels are not needed.

    The probabilities must be calibrated for the shares `old_prior` (K,). Expectation-maximisation of Saerens,
    Latinne & Decaestecker 2002 (Neural Computation 14, 21), whose likelihood has one maximum. It finds how the
    shares differ, not how the classes themselves do: a sample of another depth is beyond it.
    """
    p, old = np.asarray(probabilities, np.float64), _prior(old_prior)
    prior = old
    for _ in range(most_steps):
        better: Float64 = adapt(p, old, prior).mean(0)
        if np.abs(better - prior).max() < tolerance:
            return better
        prior = better
    raise ConfigError(f"the class shares do not settle within {most_steps:,} steps: raise tolerance = {tolerance}")


def adapt(probabilities: ArrayLike, old_prior: ArrayLike, new_prior: ArrayLike) -> Float64:
    """Return probabilities (N, K) for a sample with shares `new_prior` (K,), given those for `old_prior` (K,).

    Bayes' theorem with the densities of the classes unchanged (Saerens et al. 2002, equation 4).
    """
    weighted = np.asarray(probabilities, np.float64) * (_prior(new_prior, least=0.0) / _prior(old_prior))
    adapted: Float64 = weighted / weighted.sum(1, keepdims=True)
    return adapted


def calibrate(
    bundle: Bundle,
    dataset: Dataset,
    split: str = "val",
    out: str | Path = "calibrated",
    kind: str = "temperature",
    prior: str = "sample",
    device: str = "auto",
    precision: str = "auto",
) -> Bundle:
    """Return `bundle` with a calibration fitted on one split of a dataset, written as a new bundle at `out`.

    `kind`: "temperature" alone, or "bias" (temperature and one bias a class). `prior`: "sample" gives probabilities
    for the class shares of those rows, "equal" for equal shares. The weights stay; what was fitted, on what, and
    the loss before and after stand in `training["calibration"]`. Raises `ConfigError`, `BundleError`.
    """
    _check(kind, prior)
    check_target(out)
    index = rows_of(dataset, split)
    logits, labels = logits_of(bundle, dataset, index, device, precision), dataset.labels[index]
    weights = np.ones(len(CLASSES)) if prior == "sample" else _equal_weights(labels)
    if kind == "bias":
        temperature, bias = fit_bias_and_temperature(logits, labels, weights)
    else:
        temperature, bias = fit_temperature(logits, labels, weights), (0.0,) * len(CLASSES)
    before = logits / np.float64(bundle.temperature) + np.asarray(bundle.bias)
    after = logits / np.float64(temperature) + np.asarray(bias)
    record = {
        "kind": kind,
        "prior": "class shares of the sample" if prior == "sample" else "equal classes",
        "split": split,
        "pixels": pixels_digest(dataset),
        "of": bundle.model_id,
        "simulated": is_simulated(dataset),
        "counts": class_counts(labels),
        "loss_before": round(negative_log_likelihood(before, labels, weights), 6),
        "loss_after": round(negative_log_likelihood(after, labels, weights), 6),
    }
    training = bundle.training | {"calibration": record, "prior": record["prior"]}
    changes = {"temperature": temperature, "bias": bias, "training": training}
    return save_bundle(out, fields_of(bundle) | changes, load_weights(bundle))


def fields_of(bundle: Bundle) -> dict[str, Any]:
    """Return what `save_bundle` takes to write this bundle again."""
    own = ("path", "weights_sha256", "digest")
    return {f.name: getattr(bundle, f.name) for f in fields(bundle) if f.name not in own}


def _check(kind: str, prior: str) -> None:
    problems = [] if kind in KINDS else [f"kind = {kind!r}: choose {', '.join(KINDS)}"]
    problems += [] if prior in ("sample", "equal") else [f"prior = {prior!r}: choose sample or equal"]
    if problems:
        raise ConfigError("calibration: " + "; ".join(problems))


def _equal_weights(labels: Int64) -> Float64:
    counts = np.bincount(labels, minlength=len(CLASSES))
    return np.where(counts > 0, len(labels) / np.maximum(counts, 1), 0.0)


def _weights(labels: ArrayLike, weights: ArrayLike | None) -> Float64:
    """Return the weight of each row (N,)."""
    y = np.asarray(labels, np.int64)
    return np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)[y]


def _prior(values: ArrayLike, least: float = 1e-300) -> Float64:
    prior = np.asarray(values, np.float64)
    if not (np.isfinite(prior).all() and (prior >= least).all() and prior.sum() > 0):
        raise ConfigError(f"class shares {prior.tolist()}: must be positive numbers")
    shares: Float64 = prior / prior.sum()
    return shares


def _log_softmax(z: Float64) -> Float64:
    shifted = z - z.max(1, keepdims=True)
    logs: Float64 = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    return logs


def _zero_sum(classes: int) -> Float64:
    """Return an orthonormal basis (K, K - 1) of the vectors that sum to 0."""
    basis: Float64 = np.linalg.qr(np.eye(classes) - 1 / classes)[0][:, : classes - 1]
    return basis


def _newton(z: Float64, y: Int64, w: Float64, start: Float64, free: np.ndarray[Any, np.dtype[np.bool_]]) -> Float64:
    """Return the (1 / T, zero-sum coordinates of the biases) of least loss; only `free` ones move."""
    point = start.copy()
    for _ in range(100):
        loss, slope, curve = _derivatives(z, y, w, point)
        step = np.zeros(len(point))
        step[free] = np.linalg.solve(curve[np.ix_(free, free)] + 1e-12 * np.eye(free.sum()), slope[free])
        while _derivatives(z, y, w, point - step)[0] > loss and np.abs(step).max() > 1e-10:
            step /= 2
        point = point - step
        if np.abs(step).max() < 1e-9 or abs(point[0]) > 10 / LEAST_TEMPERATURE:
            break
    return point


def _derivatives(z: Float64, y: Int64, w: Float64, point: Float64) -> tuple[float, Float64, Float64]:
    """Return loss, gradient (K,) and Hessian (K, K) at (1 / T, coordinates); logits are linear in both."""
    n, classes = z.shape
    basis = _zero_sum(classes)
    logs = _log_softmax(point[0] * z + basis @ point[1:])
    p, share = np.exp(logs), w / w.sum()
    design = np.concatenate([z[:, :, None], np.broadcast_to(basis, (n, *basis.shape))], axis=2)  # (N, K, K)
    mean = np.einsum("nk,nki->ni", p, design)
    slope = share @ (mean - design[np.arange(n), y])
    curve = np.einsum("n,nk,nki,nkj->ij", share, p, design, design, optimize=True) - (share[:, None] * mean).T @ mean
    return float(-(share * logs[np.arange(n), y]).sum()), slope, curve
