"""Intervals of metrics by the bootstrap over rows, paired between models, and metrics by stratum.

All models have the same draws, so the difference of two models is a paired one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...types import Float32, Float64, Int64
from .metrics import (
    confusion,
    metric_terms,
    metrics_from_weights,
    metrics_of,
    nan_to_none,
    precisions_at,
    table_rates,
)

DRAWS = 1000
LEVEL = 0.95
MAX_WEIGHTS = 2**22
"""Weights (draws x rows) of the bootstrap in memory: 32 MB."""
SKY_SHARES = {"galaxy": 0.4975, "quasar": 0.005, "star": 0.4975}
"""Assumed class shares for an example of the purity: 0.5 % quasars, the rest halved."""
BIASED_METRICS = ("ece", "classwise_ece")
"""Sums of absolute gaps: noise makes the draws larger than the value, and `interval` shifts their mean back to it."""


def bootstrap(
    labels: Int64, probabilities: Mapping[str, Float32], draws: int = DRAWS, seed: int = 0
) -> dict[str, dict[str, Float64]]:
    """Return `draws` resampled values of every metric of every model: (draws,) or, by class, (draws, K).

    Rows are drawn with replacement, the same for all models, and not stratified, so the class counts vary as they would
    in another sample.
    """
    terms = {model: metric_terms(labels, p) for model, p in probabilities.items()}
    batches: dict[str, list[dict[str, Float64]]] = {model: [] for model in probabilities}
    for weights in resamples(len(labels), draws, seed):
        for model, model_terms in terms.items():
            batches[model].append(metrics_from_weights(model_terms, weights))
    return {
        model: {metric: np.concatenate([batch[metric] for batch in parts]) for metric in parts[0]}
        for model, parts in batches.items()
    }


def resamples(n: int, draws: int, seed: int) -> Iterator[Float64]:
    """Yield weights (D, n), the number of times that each row is drawn, in batches that fit in memory."""
    rng = np.random.default_rng(seed)
    batch = max(1, MAX_WEIGHTS // n)
    for start in range(0, draws, batch):
        d = min(batch, draws - start)
        rows = rng.integers(0, n, (d, n)) + n * np.arange(d)[:, None]
        yield np.bincount(rows.ravel(), minlength=d * n).reshape(d, n).astype(np.float64)


def interval(value: ArrayLike, drawn: Float64, metric: str = "") -> Float64:
    """Return the 95 % interval (..., 2) of draws (D, ...) by percentiles, for `BIASED_METRICS` around the value.

    Undefined draws (of a class that was not drawn) do not count; NaN where the value itself is undefined.
    """
    tail = (1 - LEVEL) / 2
    shifted = drawn + (np.asarray(value) - drawn.mean(0)) if metric in BIASED_METRICS else drawn
    low, high = _quantiles(shifted, (tail, 1 - tail))
    defined = np.isfinite(np.asarray(value, np.float64))
    return np.where(defined[..., None], np.stack([low, high], axis=-1), np.nan)


def _quantiles(drawn: Float64, levels: tuple[float, float]) -> tuple[Float64, Float64]:
    """Return two quantiles of the finite values over the first axis; NaN without a finite value."""
    columns = [column[np.isfinite(column)] for column in drawn.reshape(len(drawn), -1).T]
    quantiles = [np.quantile(column, levels) if len(column) else (np.nan, np.nan) for column in columns]
    low, high = np.array(quantiles).T.reshape(2, *drawn.shape[1:])
    return low, high


def differences(
    labels: Int64,
    probabilities: Mapping[str, Float32],
    drawn: Mapping[str, Mapping[str, Float64]],
    classes: Sequence[str],
) -> list[dict[str, Any]]:
    """Return for each pair (a, b) of models the difference b - a of every metric that both have, paired row by row.

    Each metric maps to [value, low, high], or to a dict of these by class. `drawn` is the result of `bootstrap`.
    """
    metrics = {model: metrics_of(labels, p) for model, p in probabilities.items()}
    pairs = []
    for a, b in combinations(probabilities, 2):
        shared = [metric for metric in drawn[a] if metric in drawn[b]]
        gaps = {metric: metrics[b][metric] - metrics[a][metric] for metric in shared}
        bounds = {metric: interval(gaps[metric], drawn[b][metric] - drawn[a][metric], metric) for metric in shared}
        numbers = {metric: with_interval(gaps[metric], bounds[metric], classes) for metric in shared}
        pairs.append({"a": a, "b": b, "numbers": numbers})
    return pairs


def strata(
    labels: Int64,
    predicted: Int64,
    values: Float64,
    edges: Sequence[float],
    classes: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Return the rates of the rows in each bin of `values` (N,), one entry for each bin, None where a bin is empty.

    An entry has `low` and `high` (None = open), `n`, `counts` by class, and `accuracy`, `balanced_accuracy` and
    `recall` by class, each [value, low, high]. The confusion matrix of resampled rows is a multinomial draw.
    """
    bin_of_row = np.searchsorted(np.asarray(edges[1:-1], np.float64), values, side="right")
    rng, bins = np.random.default_rng(seed), []
    for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        inside = (bin_of_row == i) & ~np.isnan(values)
        table = confusion(labels[inside], predicted[inside], len(classes))
        bounds = {"low": low if math.isfinite(low) else None, "high": high if math.isfinite(high) else None}
        counts = dict(zip(classes, table.sum(1).tolist(), strict=True))
        rates = _rates_with_intervals(table, classes, draws, rng)
        bins.append(bounds | {"n": int(table.sum()), "counts": counts} | rates)
    return bins


def _rates_with_intervals(table: Int64, classes: Sequence[str], draws: int, rng: np.random.Generator) -> dict[str, Any]:
    names = ("accuracy", "balanced_accuracy", "recall")
    if not table.sum():
        return dict.fromkeys(names)
    rates, drawn = table_rates(table[None]), table_rates(resampled_tables(table, draws, rng))
    return {name: with_interval(rates[name][0], interval(rates[name][0], drawn[name]), classes) for name in names}


def precision_at_sky(table: Int64, classes: Sequence[str], draws: int, seed: int) -> dict[str, Any] | None:
    """Return the expected precision [value, low, high] of each class at `SKY_SHARES`, from a confusion matrix.

    None for other classes than those of `SKY_SHARES`.
    """
    if set(classes) != set(SKY_SHARES):
        return None
    shares = np.array([SKY_SHARES[name] for name in classes])
    value = precisions_at(table[None], shares)[0]
    drawn = precisions_at(resampled_tables(table, draws, np.random.default_rng(seed)), shares)
    return {"shares": SKY_SHARES, "precision": with_interval(value, interval(value, drawn), classes)}


def resampled_tables(table: Int64, draws: int, rng: np.random.Generator) -> Int64:
    """Return confusion matrices (D, K, K) of resampled rows."""
    cells = table.ravel()
    drawn = rng.multinomial(cells.sum(), cells / cells.sum(), size=draws)
    return drawn.reshape(draws, *table.shape)


def with_interval(value: ArrayLike, bounds: Float64, classes: Sequence[str]) -> Any:
    """Return [value, low, high] as JSON, and a dict of these by class for values (K,)."""
    rows = np.concatenate([np.asarray(value, np.float64)[..., None], bounds], axis=-1)
    return dict(zip(classes, nan_to_none(rows), strict=True)) if np.ndim(value) else nan_to_none(rows)
