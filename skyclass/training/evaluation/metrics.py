"""Metrics of a classifier: rates, ROC and calibration; and two colour cuts as a baseline.

Recall and accuracy on a balanced sample do not tell the purity of a catalogue, where stars and galaxies outnumber
quasars by hundreds to one. Purity depends on the class shares of the sky (`precision_at`).

One function, `metrics_from_weights`, computes every metric that has an interval from the weights of the rows. Weights
of 1 give the value, and the counts of a resampled draw give one draw of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ...errors import ConfigError
from ...model.photometry import LIMIT_SNR
from ...types import Float32, Float64, Int64

BINS = 15
"""Bins of the calibration error and of the reliability diagram (Guo et al. 2017)."""
ROC_POINTS = 200

CLASS_RATES = ("precision", "recall", "specificity", "f1", "class_accuracy")
RATE_METRICS = ("accuracy", "balanced_accuracy", *CLASS_RATES, *(f"macro_{name}" for name in CLASS_RATES))
"""Metrics of predicted classes, without probabilities: the colour cuts have only these."""


def scores(labels: Int64, probabilities: Float32, classes: Sequence[str]) -> dict[str, Any]:
    """Return the scores of probabilities (N, K) of `classes` as a dict that JSON can hold.

    It has the keys of `confusion_scores`, the rates among them, and: `auc` by class, `macro_auc`, `roc`, `ece` (15
    equal bins of the predicted class), `ece_floor` (the mean ECE of a perfectly calibrated model with as many rows),
    `classwise_ece`, `nll`, `brier` (sum over classes, 0 to 2), `reliability` (table by bin). A score that a missing
    class leaves undefined is None.
    """
    metrics = {name: per_class(value, classes) for name, value in metrics_of(labels, probabilities).items()}
    return confusion_scores(confusion(labels, probabilities.argmax(1), len(classes)), classes) | {
        **{name: value for name, value in metrics.items() if name not in RATE_METRICS},
        "ece_floor": calibration_floor(probabilities),
        "reliability": reliability(labels, probabilities, classes),
        "roc": {name: roc_curve(labels == k, probabilities[:, k]) for k, name in enumerate(classes)},
    }


def confusion(labels: Int64, predicted: NDArray[np.integer], n_classes: int) -> Int64:
    """Return the counts (K, K): rows are true classes, columns are predicted ones."""
    n = n_classes
    return np.bincount(labels * n + predicted, minlength=n * n).reshape(n, n).astype(np.int64)


def confusion_scores(table: Int64, classes: Sequence[str]) -> dict[str, Any]:
    """Return `n`, `classes`, `confusion`, and the rates of `table_rates` by class and overall, as JSON.

    `precision` is valid for the class shares of this sample only; a rate without rows is None.
    """
    rates = {name: per_class(value[0], classes) for name, value in table_rates(table[None]).items()}
    return {"n": int(table.sum()), "classes": list(classes), "confusion": table.tolist()} | rates


def table_rates(tables: NDArray[Any]) -> dict[str, Float64]:
    """Return the rates of confusion matrices (D, K, K): (D, K) by class, (D,) overall, NaN where undefined.

    Each class against the rest, as in Table 2 of Zhao et al. 2023 (RAA 23, 085010): precision TP / (TP + FP), recall
    TP / (TP + FN), specificity TN / (TN + FP), `f1` the harmonic mean of precision and recall, `class_accuracy`
    (TP + TN) / all. `macro_` is the mean over the classes that have the rate. `accuracy` is the share of correct rows,
    `balanced_accuracy` the mean recall, that is the macro recall.
    """
    t = np.asarray(tables, np.float64)
    correct, true, predicted, n = np.einsum("dkk->dk", t), t.sum(2), t.sum(1), t.sum((1, 2))[:, None]
    class_rates = {
        "precision": ratio(correct, predicted),
        "recall": ratio(correct, true),
        "specificity": ratio(n - true - predicted + correct, n - true),
        "f1": ratio(2 * correct, true + predicted),
        "class_accuracy": ratio(n - true - predicted + 2 * correct, n),
    }
    overall = {f"macro_{name}": mean_rate(rate) for name, rate in class_rates.items()}
    accuracy = ratio(correct.sum(1), n[:, 0])
    return {"accuracy": accuracy, "balanced_accuracy": overall["macro_recall"], **class_rates, **overall}


def balanced_accuracy(table: Int64) -> float:
    """Return the mean recall of the classes that have rows in a confusion matrix."""
    return float(table_rates(table[None])["balanced_accuracy"][0])


def precision_at(table: ArrayLike, shares: Mapping[str, float]) -> dict[str, float | None]:
    """Return the expected precision of each class in a sample with these class `shares`, from a confusion matrix.

    The order of `shares` is that of the classes in the matrix.

    share_k recall_k / sum_j share_j P(predicted k | true j): Bayes' theorem with the rates of this sample, which must
    have the depth and the kinds of sources of the other. None where the sample has no rows of a class.
    """
    if len(shares) != len(np.asarray(table)) or min(shares.values()) < 0:
        raise ConfigError(f"shares {dict(shares)}: set one number >= 0 for each of {len(np.asarray(table))} classes")
    value = precisions_at(np.asarray(table)[None], np.array(list(shares.values())))[0]
    return dict(zip(shares, nan_to_none(value), strict=True))


def precisions_at(tables: NDArray[Any], shares: Float64) -> Float64:
    """Return the expected precisions (D, K) at class shares (K,), from confusion matrices (D, K, K)."""
    t = np.asarray(tables, np.float64)
    joint = shares[:, None] * ratio(t, t.sum(2, keepdims=True))  # P(true j and predicted k)
    return ratio(np.einsum("dkk->dk", joint), joint.sum(1))


def calibration_error(labels: Int64, probabilities: Float32, bins: int = BINS) -> float:
    """Return the expected calibration error of the predicted class (Guo et al. 2017, arXiv:1706.04599)."""
    confidence = probabilities.max(1).astype(np.float64)
    correct = probabilities.argmax(1) == labels
    gap = np.bincount(_bin(confidence, bins), weights=correct - confidence, minlength=bins)
    return float(np.abs(gap).sum() / max(1, len(labels)))


def calibration_floor(probabilities: Float32, bins: int = BINS) -> float:
    """Return the mean ECE of labels drawn from these probabilities: that of a perfect calibration on N rows.

    The gap of a bin is nearly normal with the variance of a sum of Bernoulli draws (Broecker & Smith 2007).
    """
    confidence = probabilities.max(1).astype(np.float64)
    variance = np.bincount(_bin(confidence, bins), weights=confidence * (1 - confidence), minlength=bins)
    return float(np.sqrt(2 / np.pi * np.maximum(variance, 0)).sum() / max(1, len(probabilities)))


def reliability(
    labels: Int64, probabilities: Float32, classes: Sequence[str], bins: int = BINS
) -> dict[str, list[dict[str, Any]]]:
    """Return the reliability table of the predicted class ("given") and of each class, one entry for each bin.

    An entry has `low`, `high`, `n`, `confidence` (mean probability) and `share` (of the rows of that class); None in an
    empty bin.
    """
    predicted = (probabilities.max(1), probabilities.argmax(1) == labels)
    pairs = {"given": predicted} | {name: (probabilities[:, k], labels == k) for k, name in enumerate(classes)}
    return {name: _reliability_bins(p.astype(np.float64), true, bins) for name, (p, true) in pairs.items()}


def _reliability_bins(p: Float64, true: NDArray[np.bool_], bins: int) -> list[dict[str, Any]]:
    bin_index = _bin(p, bins)
    n, n_true, total = (np.bincount(bin_index, weights=w, minlength=bins) for w in (np.ones(len(p)), true, p))
    share, confidence = (nan_to_none(ratio(part, n)) for part in (n_true, total))
    return [
        {"low": i / bins, "high": (i + 1) / bins, "n": int(n[i]), "confidence": confidence[i], "share": share[i]}
        for i in range(bins)
    ]


def roc_curve(positive: NDArray[np.bool_], score: ArrayLike, points: int = ROC_POINTS) -> dict[str, Any] | None:
    """Return `fpr`, `tpr`, `threshold` of "score >= threshold", thinned to at most `points`.

    None without both positives and negatives. The points lie evenly along the curve; no area is computed from them.
    """
    score = np.asarray(score, np.float64)
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-score, kind="stable")
    last = np.flatnonzero(np.diff(score[order], append=-np.inf))
    tpr = np.r_[0.0, np.cumsum(positive[order])[last] / positive.sum()]
    fpr = np.r_[0.0, np.cumsum(~positive[order])[last] / (~positive).sum()]
    along_curve = np.linspace(0, 2, points)
    index = np.unique(np.clip(np.searchsorted(tpr + fpr, along_curve - 1e-12), 0, len(tpr) - 1))
    threshold = np.r_[np.nextafter(score[order[0]], np.inf), score[order[last]]]  # the first selects no row
    curve = {"fpr": np.round(fpr, 6), "tpr": np.round(tpr, 6), "threshold": threshold}
    return {name: value[index].tolist() for name, value in curve.items()}


CUT_CLASSES = ("galaxy", "quasar", "star")
"""The classes of `colour_cuts`."""


def colour_cuts(w1: ArrayLike, w2: ArrayLike, w3: ArrayLike, w3_snr: ArrayLike) -> NDArray[np.str_]:
    """Return class names by two cuts in Vega mag: W1-W2 > 0.8 quasar, else W2-W3 > 1.5 galaxy, else star.

    W3 below `LIMIT_SNR` is an upper limit: W2-W3 can be any smaller number, so the source does not pass the second cut.
    A comparison with NaN is false: without W1 or W2 no row is a quasar, without W2 or W3 none is a galaxy, and a row
    without any colour is a star. The first cut is that of Stern et al. 2012 (ApJ 753, 30).

    >>> colour_cuts([16.0, 14.0, 14.0], [14.9, 13.8, 13.8], [11.8, 10.5, 10.5], [5.0, 5.0, 1.0]).tolist()
    ['quasar', 'galaxy', 'star']
    """
    m1, m2, m3, snr = (np.asarray(m, dtype=np.float64) for m in (w1, w2, w3, w3_snr))
    m3 = np.where(snr < LIMIT_SNR, np.nan, m3)
    return np.where(m1 - m2 > 0.8, "quasar", np.where(m2 - m3 > 1.5, "galaxy", "star"))


# --- metrics from weighted rows --------------------------------------------------------------------


@dataclass(frozen=True)
class MetricTerms:
    """The contribution of each row to the metrics: `sums` (N, D), to be added by weight, and `auc` (K,).

    The D columns of `sums` (77 for three classes): K x K cells of the confusion matrix, -log p, squared error, 15 bins
    of (correct - confidence), K x 15 bins of (is of the class - probability), and by class the share of the other rows
    that a row of the class outranks, then the share of the rows of the class that outrank another row (DeLong et al.
    1988, Biometrics 44, 837).
    """

    sums: Float64
    auc: Float64

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.auc)


def metric_terms(labels: Int64, probabilities: Float32) -> MetricTerms:
    """Return the terms of `metrics_from_weights` for (N,) labels and (N, K) probabilities."""
    n, k = probabilities.shape
    p = probabilities.astype(np.float64)
    one_hot = np.eye(k)[labels]
    predicted, confidence = probabilities.argmax(1), p.max(1)
    cells = np.zeros((n, k * k))
    cells[np.arange(n), labels * k + predicted] = 1
    loss = -np.log(np.maximum(p[np.arange(n), labels], 1e-12))
    gaps = [_in_bins(_bin(confidence, BINS), (predicted == labels) - confidence)]
    gaps += [_in_bins(_bin(p[:, j], BINS), one_hot[:, j] - p[:, j]) for j in range(k)]
    ranks = [rank_shares(labels == j, p[:, j]) for j in range(k)]
    of_positives, of_negatives = (np.stack(shares, axis=1) for shares in zip(*ranks, strict=True))
    sums = [cells, loss[:, None], ((one_hot - p) ** 2).sum(1)[:, None], *gaps, of_positives, of_negatives]
    auc = ratio(of_positives.sum(0), np.bincount(labels, minlength=k))
    return MetricTerms(np.concatenate(sums, axis=1), auc)


def rank_shares(positive: NDArray[np.bool_], score: Float64) -> tuple[Float64, Float64]:
    """Return for each positive row the share of negatives below it, and for each negative the share of positives above.

    Both arrays are (N,), the first 0 for negatives, the second 0 for positives; ties count half. The mean of the first
    over the positives is the area under the ROC, and so is the mean of the second over the negatives.
    """
    positives, negatives = (np.sort(score[rows]) for rows in (positive, ~positive))
    below, above = (
        (np.searchsorted(others, score, "left") + np.searchsorted(others, score, "right")) / 2
        for others in (negatives, positives)
    )
    m, n = len(positives), len(negatives)
    return np.where(positive, below, 0) / max(n, 1), np.where(positive, 0, m - above) / max(m, 1)


def metrics_from_weights(terms: MetricTerms, weights: Float64) -> dict[str, Float64]:
    """Return every metric for weights (D, N) of the rows: (D,) or, by class, (D, K); NaN where undefined.

    All metrics are exact but the AUC. It is exact for equal weights and first order in them otherwise: its error is
    1 / N where the draws scatter by 1 / sqrt(N).
    """
    n, k = weights.sum(1), terms.n_classes
    edges = np.cumsum([k * k, 1, 1, (1 + k) * BINS, k])
    cells, loss, brier, gaps, of_positives, of_negatives = np.split(weights @ terms.sums, edges, axis=1)
    tables = cells.reshape(-1, k, k)
    true = tables.sum(2)
    gap = np.abs(gaps).reshape(len(n), 1 + k, BINS).sum(2) / n[:, None]
    auc = np.clip(ratio(of_positives, true) + ratio(of_negatives, n[:, None] - true) - terms.auc, 0, 1)
    return table_rates(tables) | {
        "auc": auc,
        "macro_auc": mean_rate(auc),
        "ece": gap[:, 0],
        "classwise_ece": gap[:, 1:].mean(1),
        "nll": loss[:, 0] / n,
        "brier": brier[:, 0] / n,
    }


def metrics_of(labels: Int64, probabilities: Float32) -> dict[str, Float64]:
    """Return every metric of unweighted rows: scalars, or (K,) by class."""
    metrics = metrics_from_weights(metric_terms(labels, probabilities), np.ones((1, len(labels))))
    return {name: value[0] for name, value in metrics.items()}


def _in_bins(bin_index: Int64, value: Float64) -> Float64:
    """Return (N, BINS) with the value of each row in its bin."""
    bins = np.zeros((len(bin_index), BINS))
    bins[np.arange(len(bin_index)), bin_index] = value
    return bins


def _bin(p: Float64, bins: int) -> Int64:
    return np.minimum((p * bins).astype(np.int64), bins - 1)


# --- rates and JSON --------------------------------------------------------------------------------


def ratio(part: Any, whole: Any) -> Float64:
    """Return part / whole, NaN where the whole is 0."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    ratios: Float64 = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return ratios


def mean_rate(rates: Float64) -> Float64:
    """Return the mean (D,) over the classes that have a rate."""
    known = np.isfinite(rates)
    return ratio(np.where(known, rates, 0).sum(1), known.sum(1))


def nan_to_none(values: Any) -> Any:
    """Return floats as JSON values: NaN becomes None."""
    if isinstance(values, np.ndarray) and values.ndim:
        return [nan_to_none(value) for value in values]
    return None if np.isnan(values) else float(values)


def per_class(values: Float64, classes: Sequence[str]) -> Any:
    """Return JSON of a metric (), and a dict by class of metrics (K,)."""
    return dict(zip(classes, nan_to_none(values), strict=True)) if np.ndim(values) else nan_to_none(values)
