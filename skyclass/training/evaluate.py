"""What a model gets right: confusion, recall, calibration; and the two plain colour cuts it must beat.

A recall or accuracy on a balanced sample says nothing of the purity of a catalogue, where stars and galaxies
outnumber quasars by hundreds; purity needs the class fractions of the sky.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..bundle import Bundle
from ..errors import ConfigError
from ..infer import load_classifier
from ..types import CLASSES, Float32, Int64
from .dataset import Dataset

BINS = 15


def evaluate(bundle: Bundle, dataset: Dataset, device: str = "auto", precision: str = "auto") -> dict[str, Any]:
    """Return the scores of `bundle` on a dataset, and those of the colour cuts on the same rows.

    Keys as in `scores`, plus `model_id`, `training` (provenance) and, when the rows have photometry,
    `colour_cuts` (scores without calibration). Raises `ConfigError` if the composites were made otherwise.
    """
    if (dataset.cut, dataset.composite) != (bundle.cut, bundle.composite):
        raise ConfigError(
            f"the dataset was cut or stretched otherwise than {bundle.name} expects: "
            f"{dataset.cut}, {dataset.composite} against {bundle.cut}, {bundle.composite}"
        )
    probabilities = load_classifier(bundle, device, precision).predict(dataset.images)
    result = {"model_id": bundle.model_id, "training": bundle.training}
    result |= scores(dataset.labels, probabilities)
    magnitudes = [f"{band}mpro" for band in ("w1", "w2", "w3")]
    if set(magnitudes) <= set(dataset.rows.column_names):
        columns = [dataset.rows[name].to_numpy() for name in magnitudes]
        index = {name: k for k, name in enumerate(CLASSES)}
        guess = np.array([index[name] for name in colour_cuts(*columns)])
        result["colour_cuts"] = confusion_scores(confusion(dataset.labels, guess))
    return result


def scores(labels: Int64, probabilities: Float32) -> dict[str, Any]:
    """Return the scores of (N, 3) probabilities: those of `confusion_scores`, plus `ece` and `nll`."""
    nll = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], 1e-12)).mean()
    table = confusion(labels, probabilities.argmax(1))
    return confusion_scores(table) | {"ece": calibration_error(labels, probabilities), "nll": float(nll)}


def confusion(labels: Int64, guess: NDArray[np.integer]) -> Int64:
    """Return the counts (3, 3): rows are true classes, columns are given ones, in the order of `CLASSES`."""
    n = len(CLASSES)
    return np.bincount(labels * n + guess, minlength=n * n).reshape(n, n).astype(np.int64)


def confusion_scores(table: Int64) -> dict[str, Any]:
    """Return `n`, `confusion`, `recall` and `precision` by class, `balanced_accuracy`, `accuracy`.

    Balanced accuracy is the mean recall of the classes that have rows; a share without rows is None.
    `precision` holds for the class fractions of this very sample.
    """
    hits, true, given = np.diag(table), table.sum(1), table.sum(0)
    return {
        "n": int(table.sum()),
        "classes": list(CLASSES),
        "confusion": table.tolist(),
        "recall": _shares(hits, true),
        "precision": _shares(hits, given),
        "balanced_accuracy": balanced_accuracy(table),
        "accuracy": float(hits.sum() / max(1, table.sum())),
    }


def balanced_accuracy(table: Int64) -> float:
    """Return the mean recall of the classes that have rows in a confusion matrix."""
    true = table.sum(1)
    return float((np.diag(table)[true > 0] / true[true > 0]).mean())


def calibration_error(labels: Int64, probabilities: Float32, bins: int = BINS) -> float:
    """Return the expected calibration error of the given class (Guo et al. 2017, arXiv:1706.04599)."""
    confidence = probabilities.max(1).astype(np.float64)
    right = probabilities.argmax(1) == labels
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gap = np.bincount(place, weights=right - confidence, minlength=bins)
    return float(np.abs(gap).sum() / max(1, len(labels)))


def colour_cuts(w1: ArrayLike, w2: ArrayLike, w3: ArrayLike) -> NDArray[np.str_]:
    """Return class names by two cuts in Vega mag: W1-W2 > 0.8 quasar, else W2-W3 > 1.5 galaxy, else star.

    A comparison with NaN is false: without W1 or W2 no row is a quasar, without W2 or W3 none is a galaxy,
    and a row without any colour is a star. The first cut is that of Stern et al. 2012 (ApJ 753, 30).

    >>> colour_cuts([16.0, 14.0, 12.0], [14.9, 13.8, 12.0], [11.8, 10.5, float("nan")]).tolist()
    ['quasar', 'galaxy', 'star']
    """
    m1, m2, m3 = (np.asarray(m, dtype=np.float64) for m in (w1, w2, w3))
    return np.where(m1 - m2 > 0.8, "quasar", np.where(m2 - m3 > 1.5, "galaxy", "star"))


def _shares(part: Int64, whole: Int64) -> dict[str, float | None]:
    rows = zip(CLASSES, part.tolist(), whole.tolist(), strict=True)
    return {name: float(a / b) if b else None for name, a, b in rows}
