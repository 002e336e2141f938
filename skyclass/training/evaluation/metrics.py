"""What a set of answers gets right: rates, ROC, calibration; and two plain colour cuts to beat.

A recall or accuracy on a balanced sample says nothing of the purity of a catalogue, where stars and galaxies
outnumber quasars by hundreds; purity needs the class shares of the sky (`precision_at`).

Every number comes from one function, `numbers`, of the rows' weights: all ones give the value, the counts of a
resampled draw give one draw of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import ConfigError
from ...types import CLASSES, Float32, Float64, Int64

BINS = 15
"""Bins of the calibration error and of the reliability diagram (Guo et al. 2017)."""
ROC_POINTS = 200

BY_CLASS = ("precision", "recall", "specificity", "f1", "class_accuracy", "auc")
OF_GUESSES = ("accuracy", "balanced_accuracy", *BY_CLASS[:5], *(f"macro_{name}" for name in BY_CLASS[:5]))
"""Numbers that need no probabilities: the colour cuts have these only."""


def scores(labels: Int64, probabilities: Float32) -> dict[str, Any]:
    """Return the scores of (N, 3) probabilities, as JSON.

    Those of `confusion_scores`, and `auc` by class, `macro_auc`, `roc`, `ece` (15 equal bins of the given class),
    `ece_floor` (the mean ECE of a perfectly calibrated model on so few rows), `classwise_ece`, `nll`, `brier` (sum
    over classes, 0 to 2), `reliability` (table by bin). What a missing class leaves undefined is None.
    """
    found = {name: named(value) for name, value in numbers_of(labels, probabilities).items()}
    return confusion_scores(confusion(labels, probabilities.argmax(1))) | {
        **{name: value for name, value in found.items() if name not in OF_GUESSES},
        "ece_floor": calibration_floor(probabilities),
        "reliability": reliability(labels, probabilities),
        "roc": {name: roc_curve(labels == k, probabilities[:, k]) for k, name in enumerate(CLASSES)},
    }


def confusion(labels: Int64, guess: NDArray[np.integer]) -> Int64:
    """Return the counts (3, 3): rows are true classes, columns are given ones, in the order of `CLASSES`."""
    n = len(CLASSES)
    return np.bincount(labels * n + guess, minlength=n * n).reshape(n, n).astype(np.int64)


def confusion_scores(table: Int64) -> dict[str, Any]:
    """Return `n`, `classes`, `confusion`, and the rates of `table_rates` by class and overall, as JSON.

    `precision` holds for the class shares of this very sample; a rate without rows is None.
    """
    rates = {name: named(value[0]) for name, value in table_rates(table[None]).items()}
    return {"n": int(table.sum()), "classes": list(CLASSES), "confusion": table.tolist()} | rates


def table_rates(tables: NDArray[Any]) -> dict[str, Float64]:
    """Return the rates of confusion matrices (D, 3, 3): (D, 3) by class, (D,) overall, NaN where undefined.

    Each class against the rest, as in Table 2 of Zhao et al. 2023 (RAA 23, 085010): precision TP / (TP + FP), recall
    TP / (TP + FN), specificity TN / (TN + FP), `f1` their harmonic mean (of precision and recall), `class_accuracy`
    (TP + TN) / all. `macro_` is the mean over the classes that have one. `accuracy` is the share of right rows,
    `balanced_accuracy` the mean recall: the macro recall.
    """
    t = np.asarray(tables, np.float64)
    hits, true, given, n = np.einsum("dkk->dk", t), t.sum(2), t.sum(1), t.sum((1, 2))[:, None]
    by_class = {
        "precision": ratio(hits, given),
        "recall": ratio(hits, true),
        "specificity": ratio(n - true - given + hits, n - true),
        "f1": ratio(2 * hits, true + given),
        "class_accuracy": ratio(n - true - given + 2 * hits, n),
    }
    overall = {f"macro_{name}": mean_rate(rate) for name, rate in by_class.items()}
    accuracy = ratio(hits.sum(1), n[:, 0])
    return {"accuracy": accuracy, "balanced_accuracy": overall["macro_recall"], **by_class, **overall}


def balanced_accuracy(table: Int64) -> float:
    """Return the mean recall of the classes that have rows in a confusion matrix."""
    return float(table_rates(table[None])["balanced_accuracy"][0])


def precision_at(table: ArrayLike, shares: Mapping[str, float]) -> dict[str, float | None]:
    """Return the precision to expect of each class where the classes have these `shares`, from a confusion matrix.

    share_k recall_k / sum_j share_j P(given k | true j): Bayes' theorem with the rates of this sample, whose
    depth and kinds of sources must be those of the other. None where the sample has no rows of a class.
    """
    if set(shares) != set(CLASSES) or min(shares.values()) < 0:
        raise ConfigError(f"shares {dict(shares)}: give one number >= 0 for each of {', '.join(CLASSES)}")
    value = precisions_at(np.asarray(table)[None], np.array([shares[name] for name in CLASSES]))[0]
    return dict(zip(CLASSES, plain(value), strict=True))


def precisions_at(tables: NDArray[Any], shares: Float64) -> Float64:
    t = np.asarray(tables, np.float64)
    given = shares[:, None] * ratio(t, t.sum(2, keepdims=True))  # P(true j and given k)
    return ratio(np.einsum("dkk->dk", given), given.sum(1))


def calibration_error(labels: Int64, probabilities: Float32, bins: int = BINS) -> float:
    """Return the expected calibration error of the given class (Guo et al. 2017, arXiv:1706.04599)."""
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    gap = np.bincount(_bin(confidence, bins), weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / max(1, len(labels)))


def calibration_floor(probabilities: Float32, bins: int = BINS) -> float:
    """Return the mean ECE of labels drawn from these very probabilities: what chance alone gives on N rows.

    The gap of a bin is near normal with the variance of a sum of Bernoulli draws (Broecker & Smith 2007).
    """
    confidence = probabilities.max(1).astype(np.float64)
    variance = np.bincount(_bin(confidence, bins), weights=confidence * (1 - confidence), minlength=bins)
    return float(np.sqrt(2 / np.pi * np.maximum(variance, 0)).sum() / max(1, len(probabilities)))


def reliability(labels: Int64, probabilities: Float32, bins: int = BINS) -> dict[str, list[dict[str, Any]]]:
    """Return the reliability table of the given class ("given") and of each class: one entry a bin.

    `low`, `high`, `n`, `confidence` (mean probability), `share` (of rows that are it); None in an empty bin.
    """
    given = (probabilities.max(1), probabilities.argmax(1) == labels)
    pairs = {"given": given} | {name: (probabilities[:, k], labels == k) for k, name in enumerate(CLASSES)}
    return {name: _reliability_bins(p.astype(np.float64), true, bins) for name, (p, true) in pairs.items()}


def _reliability_bins(p: Float64, true: NDArray[np.bool_], bins: int) -> list[dict[str, Any]]:
    place = _bin(p, bins)
    n, hits, total = (np.bincount(place, weights=w, minlength=bins) for w in (np.ones(len(p)), true, p))
    share, confidence = (plain(ratio(part, n)) for part in (hits, total))
    return [
        {"low": i / bins, "high": (i + 1) / bins, "n": int(n[i]), "confidence": confidence[i], "share": share[i]}
        for i in range(bins)
    ]


def roc_curve(positive: NDArray[np.bool_], score: ArrayLike, points: int = ROC_POINTS) -> dict[str, Any] | None:
    """Return `fpr`, `tpr`, `threshold` of "score >= threshold", thinned to at most `points`; None without both kinds.

    The points kept lie evenly along the curve; the area is never computed from them.
    """
    score = np.asarray(score, np.float64)
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=-np.inf))
    tpr = np.r_[0.0, np.cumsum(positive[order])[last] / positive.sum()]
    fpr = np.r_[0.0, np.cumsum(~positive[order])[last] / (~positive).sum()]
    place = np.linspace(0, 2, points)
    keep = np.unique(np.clip(np.searchsorted(tpr + fpr, place - 1e-12), 0, len(tpr) - 1))
    threshold = np.r_[np.nextafter(score[order[0]], np.inf), score[order[last]]]  # above the highest: none is called
    named = {"fpr": np.round(fpr, 6), "tpr": np.round(tpr, 6), "threshold": threshold}
    return {name: value[keep].tolist() for name, value in named.items()}


def colour_cuts(w1: ArrayLike, w2: ArrayLike, w3: ArrayLike) -> NDArray[np.str_]:
    """Return class names by two cuts in Vega mag: W1-W2 > 0.8 quasar, else W2-W3 > 1.5 galaxy, else star.

    A comparison with NaN is false: without W1 or W2 no row is a quasar, without W2 or W3 none is a galaxy,
    and a row without any colour is a star. The first cut is that of Stern et al. 2012 (ApJ 753, 30).

    >>> colour_cuts([16.0, 14.0, 12.0], [14.9, 13.8, 12.0], [11.8, 10.5, float("nan")]).tolist()
    ['quasar', 'galaxy', 'star']
    """
    m1, m2, m3 = (np.asarray(m, dtype=np.float64) for m in (w1, w2, w3))
    return np.where(m1 - m2 > 0.8, "quasar", np.where(m2 - m3 > 1.5, "galaxy", "star"))


# --- every number, from weighted rows --------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """What the numbers of a model need of its rows: `sums` (N, 77), to be added up by weight, and `auc` (3,).

    Columns of `sums`: 9 cells of the confusion matrix, -log p, squared error, 15 bins of (right - confidence),
    3 x 15 bins of (is it - probability), and by class the share of the others that a row of it outranks, then the
    share of its rows that outrank a row of the others (DeLong et al. 1988, Biometrics 44, 837).
    """

    sums: Float64
    auc: Float64


def sample(labels: Int64, probabilities: Float32) -> Sample:
    """Return what `numbers` needs of (N,) labels and (N, 3) probabilities."""
    n, k = len(labels), len(CLASSES)
    p = probabilities.astype(np.float64)
    is_it = np.eye(k)[labels]
    guess, confidence = probabilities.argmax(1), p.max(1)
    cells = np.zeros((n, k * k))
    cells[np.arange(n), labels * k + guess] = 1
    loss = -np.log(np.maximum(p[np.arange(n), labels], 1e-12))
    gaps = [_spread(_bin(confidence, BINS), (guess == labels) - confidence)]
    gaps += [_spread(_bin(p[:, j], BINS), is_it[:, j] - p[:, j]) for j in range(k)]
    wins = [outranked(labels == j, p[:, j]) for j in range(k)]
    own, others = (np.stack(w, axis=1) for w in zip(*wins, strict=True))
    sums = [cells, loss[:, None], ((is_it - p) ** 2).sum(1)[:, None], *gaps, own, others]
    return Sample(np.concatenate(sums, axis=1), ratio(own.sum(0), np.bincount(labels, minlength=k)))


def outranked(positive: NDArray[np.bool_], score: Float64) -> tuple[Float64, Float64]:
    """Return for each row (N,) the share of the other kind on its right side: below a positive, above a negative.

    The first array is 0 for negatives, the second for positives; ties count half. Its mean over the positives is
    the area under the ROC, and so is that of the second over the negatives.
    """
    ordered = [np.sort(score[side]) for side in (positive, ~positive)]
    below, above = (
        (np.searchsorted(other, score, "left") + np.searchsorted(other, score, "right")) / 2 for other in ordered[::-1]
    )
    m, n = (len(side) for side in ordered)
    return np.where(positive, below, 0) / max(n, 1), np.where(positive, 0, m - above) / max(m, 1)


def numbers(rows: Sample, weights: Float64) -> dict[str, Float64]:
    """Return every number for weights (D, N) of the rows: (D,) or, by class, (D, 3); NaN where undefined.

    All is exact but the AUC, which is so for equal weights and first order in them otherwise: it errs by 1 / N
    where the draws scatter by 1 / sqrt(N).
    """
    n, k = weights.sum(1), len(CLASSES)
    cuts = np.cumsum([k * k, 1, 1, (1 + k) * BINS, k])
    cells, loss, brier, gaps, own, others = np.split(weights @ rows.sums, cuts, axis=1)
    tables = cells.reshape(-1, k, k)
    true = tables.sum(2)
    gap = np.abs(gaps).reshape(len(n), 1 + k, BINS).sum(2) / n[:, None]
    auc = np.clip(ratio(own, true) + ratio(others, n[:, None] - true) - rows.auc, 0, 1)
    return table_rates(tables) | {
        "auc": auc,
        "macro_auc": mean_rate(auc),
        "ece": gap[:, 0],
        "classwise_ece": gap[:, 1:].mean(1),
        "nll": loss[:, 0] / n,
        "brier": brier[:, 0] / n,
    }


def numbers_of(labels: Int64, probabilities: Float32) -> dict[str, Float64]:
    """Return every number of the rows as they are: scalars, or (3,) by class."""
    found = numbers(sample(labels, probabilities), np.ones((1, len(labels))))
    return {name: value[0] for name, value in found.items()}


def _spread(place: Int64, value: Float64) -> Float64:
    """Return (N, BINS) with each row's value in its bin."""
    out = np.zeros((len(place), BINS))
    out[np.arange(len(place)), place] = value
    return out


def _bin(p: Float64, bins: int) -> Int64:
    return np.minimum((p * bins).astype(np.int64), bins - 1)


# --- small parts -----------------------------------------------------------------------------------


def ratio(part: Any, whole: Any) -> Float64:
    """Return part / whole, NaN where there is nothing to divide by."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    shares: Float64 = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares


def mean_rate(rates: Float64) -> Float64:
    """Return the mean (D,) over the classes that have a rate."""
    known = np.isfinite(rates)
    return ratio(np.where(known, rates, 0).sum(1), known.sum(1))


def plain(values: Any) -> Any:
    """Return floats as JSON takes them: NaN is None."""
    if isinstance(values, np.ndarray) and values.ndim:
        return [plain(v) for v in values]
    return None if np.isnan(values) else float(values)


def named(values: Float64) -> Any:
    """Return JSON of a number () or its interval (2,); by class for numbers (3,) and intervals (3, 2)."""
    by_class = np.shape(values)[:1] == (len(CLASSES),)
    return dict(zip(CLASSES, plain(values), strict=True)) if by_class else plain(values)
