"""How sure a score is: bootstrap over rows, paired between models, and strata with an interval each.

All models see the same draws, so the difference of two is a paired one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ...types import CLASSES, Float32, Float64, Int64
from .metrics import confusion, numbers, numbers_of, plain, precisions_at, sample, table_rates

DRAWS = 1000
LEVEL = 0.95
WEIGHTS_AT_ONCE = 2**22
"""Weights (draws x rows) of the bootstrap in memory: 32 MB."""
SKY_SHARES = {"galaxy": 0.4975, "quasar": 0.005, "star": 0.4975}
"""Assumed shares for the example of a purity: 0.5 % quasars, the rest halved."""
OF_ERRORS = ("ece", "classwise_ece")
"""Sums of absolute gaps: draws lie higher than the value, by their own noise, and are moved back to it."""


def bootstrap(
    labels: Int64, given: Mapping[str, Float32], draws: int = DRAWS, seed: int = 0
) -> dict[str, dict[str, Float64]]:
    """Return `draws` resampled values of every number of every model: (draws,) or, by class, (draws, 3).

    Rows are drawn with replacement, all models seeing the same ones; nothing is stratified, so the class counts
    vary as they would in another sample.
    """
    samples = {name: sample(labels, p) for name, p in given.items()}
    parts: dict[str, list[dict[str, Float64]]] = {name: [] for name in given}
    for weights in resamples(len(labels), draws, seed):
        for name, rows in samples.items():
            parts[name].append(numbers(rows, weights))
    return {name: {key: np.concatenate([p[key] for p in some]) for key in some[0]} for name, some in parts.items()}


def resamples(n: int, draws: int, seed: int) -> Iterator[Float64]:
    """Yield weights (some draws, n): how often each row was drawn, in batches that fit in memory."""
    rng = np.random.default_rng(seed)
    at_once = max(1, WEIGHTS_AT_ONCE // n)
    for start in range(0, draws, at_once):
        d = min(at_once, draws - start)
        chosen = rng.integers(0, n, (d, n)) + n * np.arange(d)[:, None]
        yield np.bincount(chosen.ravel(), minlength=d * n).reshape(d, n).astype(np.float64)


def interval(value: ArrayLike, drawn: Float64, name: str = "") -> Float64:
    """Return the 95 % interval (..., 2) of draws (D, ...): percentiles, for `OF_ERRORS` with their mean at the value.

    Draws without a value (a class was not drawn) are left out; NaN where the value itself is undefined.
    """
    tail = (1 - LEVEL) / 2
    moved = drawn + (np.asarray(value) - drawn.mean(0)) if name in OF_ERRORS else drawn
    low, high = _quantiles(moved, (tail, 1 - tail))
    known = np.isfinite(np.asarray(value, np.float64))
    return np.where(known[..., None], np.stack([low, high], axis=-1), np.nan)


def _quantiles(drawn: Float64, at: tuple[float, float]) -> tuple[Float64, Float64]:
    """Return two quantiles over the first axis, NaN left out; NaN where nothing is left."""
    columns = drawn.reshape(len(drawn), -1).T
    found = [np.quantile(c[np.isfinite(c)], at) if np.isfinite(c).any() else (np.nan, np.nan) for c in columns]
    low, high = np.array(found).T.reshape(2, *drawn.shape[1:])
    return low, high


def differences(
    labels: Int64, given: Mapping[str, Float32], drawn: Mapping[str, Mapping[str, Float64]]
) -> list[dict[str, Any]]:
    """Return for each pair (a, b) of models the difference b - a of every number both have, paired row by row.

    Numbers map to [value, low, high], by class where they are. The draws must be those of `bootstrap`.
    """
    points = {name: numbers_of(labels, p) for name, p in given.items()}
    found = []
    for a, b in combinations(given, 2):
        shared = [name for name in drawn[a] if name in drawn[b]]
        gaps = {name: points[b][name] - points[a][name] for name in shared}
        ends = {name: interval(gaps[name], drawn[b][name] - drawn[a][name], name) for name in shared}
        found.append({"a": a, "b": b, "numbers": {name: triple(gaps[name], ends[name]) for name in shared}})
    return found


def strata(
    labels: Int64, guess: Int64, values: Float64, edges: Sequence[float], draws: int = DRAWS, seed: int = 0
) -> list[dict[str, Any]]:
    """Return the rates of the rows in each bin of `values` (N,), one entry a bin, None where a bin is empty.

    `low` and `high` (None = open), `n`, `counts` by class, `accuracy`, `balanced_accuracy` and `recall` by class, each
    [value, low, high]. A confusion matrix of resampled rows is a multinomial draw, so that is what is drawn.
    """
    place = np.searchsorted(np.asarray(edges[1:-1], np.float64), values, side="right")
    rng, found = np.random.default_rng(seed), []
    for i, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        inside = (place == i) & ~np.isnan(values)
        table = confusion(labels[inside], guess[inside])
        ends = {"low": low if math.isfinite(low) else None, "high": high if math.isfinite(high) else None}
        counts = dict(zip(CLASSES, table.sum(1).tolist(), strict=True))
        found.append(ends | {"n": int(table.sum()), "counts": counts} | _with_intervals(table, draws, rng))
    return found


def _with_intervals(table: Int64, draws: int, rng: np.random.Generator) -> dict[str, Any]:
    names = ("accuracy", "balanced_accuracy", "recall")
    if not table.sum():
        return dict.fromkeys(names)
    point, drawn = table_rates(table[None]), table_rates(_tables(table, draws, rng))
    ends = {name: interval(point[name][0], drawn[name]) for name in names}
    return {name: triple(point[name][0], ends[name]) for name in names}


def precision_at_sky(table: Int64, draws: int, seed: int) -> dict[str, Any]:
    shares = np.array([SKY_SHARES[name] for name in CLASSES])
    value = precisions_at(table[None], shares)[0]
    ends = interval(value, precisions_at(_tables(table, draws, np.random.default_rng(seed)), shares))
    return {"shares": SKY_SHARES, "precision": triple(value, ends)}


def _tables(table: Int64, draws: int, rng: np.random.Generator) -> Int64:
    """Return confusion matrices (D, 3, 3) of as many resampled rows."""
    cells = table.ravel()
    drawn = rng.multinomial(cells.sum(), cells / cells.sum(), size=draws)
    return drawn.reshape(draws, *table.shape)


def triple(value: ArrayLike, ends: Float64) -> Any:
    """Return [value, low, high] as JSON, by class for values (3,)."""
    rows = np.concatenate([np.asarray(value, np.float64)[..., None], ends], axis=-1)
    return dict(zip(CLASSES, plain(rows), strict=True)) if np.ndim(value) else plain(rows)
