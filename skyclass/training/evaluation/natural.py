"""Rates at the class shares of the sky, and completeness as a function of magnitude, latitude and depth. Pure.

    labels, predicted classes, W1, |b| -> natural_rates: purity and completeness in bins of W1 and |b|
    the same, depth -> selection_function: completeness of each class by W1, |b| and depth

The purity of a sample holds for its class shares. In each bin of W1 and |b|, the rates of confusion of the labelled
rows and the class shares of a `PriorTable` give the purity on the sky.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from ...model.photometry import numbers
from ...model.priors import PriorTable, bin_of
from ...types import Float64, Int64
from .bootstrap import LEVEL, interval, resampled_tables, with_interval
from .metrics import confusion, precisions_at, table_rates

LEAST_ROWS = 30
"""Rows of each class that a bin of W1 and |b| needs for a purity."""
W1_EDGES = (6.0, 10.0, 12.0, 13.0, 14.0, 15.0, 16.0, 16.5, 17.0, 17.5, 18.5)
ABS_B_EDGES = (0.0, 15.0, 30.0, 45.0, 60.0, 90.0)
DEPTH_EDGES = (14.0, 16.5, 17.0, 17.5, 18.0, 20.0)
"""Edges of the 5 sigma depth of a tile in W1 (Vega mag)."""
FAINT_SNR = (3.0, 20.0)
"""S/N of the sources from which a depth follows: that of brighter ones does not depend on the depth."""


def natural_rates(
    labels: Int64, predicted: Int64, w1: Float64, abs_b_deg: Float64, prior: PriorTable, draws: int, seed: int
) -> list[dict[str, Any]]:
    """Return purity and completeness at the class shares of a prior, one entry for each bin of W1 and |b|.

    An entry has `w1` and `abs_b_deg` ([low, high]), `n` rows and `shares` of the prior by class, and `purity` and
    `completeness` by class, each [value, low, high] with the interval of resampled rows. Bins with fewer than
    `LEAST_ROWS` rows of a class, or without shares, are left out.
    """
    classes, rng, entries = prior.classes, np.random.default_rng(seed), []
    i, j = bin_of(w1, prior.w1_edges), bin_of(abs_b_deg, prior.abs_b_edges)
    for a, row in enumerate(prior.shares):
        for b, shares in enumerate(row):
            inside = (i == a) & (j == b)
            table = confusion(labels[inside], predicted[inside], len(classes))
            if shares is None or table.sum(1).min() < LEAST_ROWS:
                continue
            drawn = resampled_tables(table, draws, rng)
            purity, recall = precisions_at(table[None], np.array(shares))[0], table_rates(table[None])["recall"][0]
            bounds = interval(purity, precisions_at(drawn, np.array(shares)))
            recall_bounds = interval(recall, table_rates(drawn)["recall"])
            entries.append(
                {
                    "w1": list(prior.w1_edges[a : a + 2]),
                    "abs_b_deg": list(prior.abs_b_edges[b : b + 2]),
                    "n": dict(zip(classes, table.sum(1).tolist(), strict=True)),
                    "shares": dict(zip(classes, shares, strict=True)),
                    "purity": with_interval(purity, bounds, classes),
                    "completeness": with_interval(recall, recall_bounds, classes),
                }
            )
    return entries


def selection_function(
    labels: Int64, predicted: Int64, classes: Sequence[str], w1: Float64, abs_b_deg: Float64, depth_mag: Float64
) -> list[dict[str, Any]]:
    """Return the completeness of each class by W1, |b| and 5 sigma depth, one entry for each bin with rows.

    An entry has `class`, the edges `w1_low`, `w1_high`, `abs_b_low_deg`, `abs_b_high_deg`, `depth_low_mag`,
    `depth_high_mag`, `n` rows, and `completeness` with its 95 % interval `low` to `high` (Clopper & Pearson 1934).
    """
    bins = [
        bin_of(values, edges) for values, edges in ((w1, W1_EDGES), (abs_b_deg, ABS_B_EDGES), (depth_mag, DEPTH_EDGES))
    ]
    keys, cell = np.unique(np.stack([labels, *bins], axis=1), axis=0, return_inverse=True)
    n = np.bincount(cell.ravel(), minlength=len(keys))
    right = np.bincount(cell.ravel(), weights=predicted == labels, minlength=len(keys)).astype(np.int64)
    return [
        _selection_entry(classes[k], (a, b, d), int(of_class), int(correct))
        for (k, a, b, d), of_class, correct in zip(keys.tolist(), n, right, strict=True)
        if min(a, b, d) >= 0
    ]


def _selection_entry(name: str, key: tuple[int, int, int], n: int, right: int) -> dict[str, Any]:
    result = stats.binomtest(right, n).proportion_ci(LEVEL)
    edges: Iterator[tuple[str, float]] = (
        (f"{column}_{end}{unit}", edges[i + step])
        for i, (column, unit, edges) in zip(
            key, (("w1", "", W1_EDGES), ("abs_b", "_deg", ABS_B_EDGES), ("depth", "_mag", DEPTH_EDGES)), strict=True
        )
        for step, end in enumerate(("low", "high"))
    )
    bounds = {"low": round(float(result.low), 6), "high": round(float(result.high), 6)}
    return {"class": name, **dict(edges), "n": n, "completeness": round(right / n, 6)} | bounds


def tile_depth_mag(rows: pa.Table) -> Float64:
    """Return the 5 sigma depth in W1 (Vega mag) of the tile of each row (N,), NaN where it is unknown.

    It is the median over the sources of the tile of W1 + 2.5 log10(S/N / 5), for S/N within `FAINT_SNR`.
    """
    depth = np.full(len(rows), np.nan)
    if not {"coadd_id", "w1mpro", "w1snr"} <= set(rows.column_names):
        return depth
    w1, snr = numbers(rows["w1mpro"]), numbers(rows["w1snr"])
    faint = (snr >= FAINT_SNR[0]) & (snr <= FAINT_SNR[1]) & np.isfinite(w1)
    tile = tile_numbers(rows)
    for number in np.unique(tile[faint]).tolist():
        own = tile == number
        some = own & faint
        depth[own] = np.median(w1[some] + 2.5 * np.log10(snr[some] / 5))
    return depth


def tile_numbers(rows: pa.Table) -> Int64:
    """Return a number (N,) for the tile of each row; rows without a tile have one number."""
    if "coadd_id" not in rows.column_names:
        return np.zeros(len(rows), np.int64)
    names = [name or "" for name in rows["coadd_id"].to_pylist()]
    return np.asarray(np.unique(names, return_inverse=True)[1], np.int64)
