"""What a model gets right: rates, ROC, calibration, each with its interval; and two plain colour cuts to beat.

A recall or accuracy on a balanced sample says nothing of the purity of a catalogue, where stars and galaxies
outnumber quasars by hundreds; purity needs the class shares of the sky (`precision_at`).

Every number of every model comes from one function, `numbers`, of the rows' weights: all ones give the value,
the counts of a resampled draw give one draw of the bootstrap. All models see the same draws, so the difference
of two is a paired one.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from .. import __version__
from ..bundle import Bundle, load_bundle
from ..errors import ConfigError
from ..infer import load_classifier
from ..networks import INPUTS
from ..photometry import columns_of, features
from ..photometry import numbers as floats
from ..types import CLASSES, Float16, Float32, Float64, Int64
from .dataset import Dataset, class_counts, composites

BINS = 15
"""Bins of the calibration error and of the reliability diagram (Guo et al. 2017)."""
DRAWS = 1000
LEVEL = 0.95
ROC_POINTS = 200
BATCH = 4096
"""Images given to the network at a time: 30 MB."""
WEIGHTS_AT_ONCE = 2**22
"""Weights (draws x rows) of the bootstrap in memory: 32 MB."""
CUTS = "colour cuts"
SKY_SHARES = {"galaxy": 0.4975, "quasar": 0.005, "star": 0.4975}
"""Assumed shares for the example of a purity: 0.5 % quasars, the rest halved."""

SCHEMA = "skyclass evaluation 1"
STRATA: dict[str, tuple[str, tuple[float, ...]]] = {
    "w1snr": ("W1 S/N", (-math.inf, 3, 5, 10, 20, 50, math.inf)),
    "w1mpro": ("W1 (Vega mag)", (-math.inf, 11, 12, 13, 14, 15, 16, 17, math.inf)),
    "abs_b_deg": ("|b| (deg)", (0, 10, 20, 30, 45, 60, 90)),
}
"""Column -> (name with unit, edges): [low, high) each, the last one closed."""

BY_CLASS = ("precision", "recall", "specificity", "f1", "class_accuracy", "auc")
OF_GUESSES = ("accuracy", "balanced_accuracy", *BY_CLASS[:5], *(f"macro_{name}" for name in BY_CLASS[:5]))
"""Numbers that need no probabilities: the colour cuts have these only."""
OF_ERRORS = ("ece", "classwise_ece")
"""Sums of absolute gaps: draws lie higher than the value, by their own noise, and are moved back to it."""

CAVEATS = (
    "Precision holds for the class shares of this very sample, and balanced accuracy is not the purity of a "
    "catalogue: on the sky quasars are outnumbered by hundreds. `precision at sky shares` says what would be left.",
    "Intervals are 95 % bootstrap intervals over the rows: they do not cover another training run, another field, "
    "or labels that are wrong.",
)


# --- a model on a dataset --------------------------------------------------------------------------


def evaluate(
    bundle: Bundle,
    dataset: Dataset,
    split: str = "test",
    device: str = "auto",
    precision: str = "auto",
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the scores of `bundle` on one split of a dataset ("all" for every row), as JSON.

    The keys of `scores`, and `model_id`, `training` (provenance), `simulated`, `intervals` (as the scores, [low,
    high]), `strata`, `precision_at_sky`, `colour_cuts` (the same on the same rows, without probabilities; None when
    the rows have no magnitudes), `dataset`. Raises `ConfigError` when the dataset does not fit the bundle.
    """
    document = evaluate_models([bundle], dataset, split, device, precision, draws, seed)
    own = {k: v for k, v in document.items() if k not in ("models", "differences")}
    return own | dict(document["models"][0])


def evaluate_models(
    bundles: Sequence[Bundle | str | Path],
    dataset: Dataset,
    split: str = "test",
    device: str = "auto",
    precision: str = "auto",
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the scores of several models on the same rows, side by side, with paired differences, as JSON.

    `models` holds one entry a model as `evaluate` returns it, `differences` one entry a pair: b minus a, with the
    interval of the paired bootstrap. Every model is checked against the dataset before the first one runs.
    """
    models = [b if isinstance(b, Bundle) else load_bundle(b) for b in bundles]
    check_fit(models, dataset)
    index = rows_of(dataset, split)
    given = {
        name: probabilities_of(bundle, dataset, index, device, precision)
        for name, bundle in zip(_names(models), models, strict=True)
    }
    labels = dataset.labels[index]
    document = _compared(labels, dataset.rows.take(pa.array(index)), given, draws, seed)
    provenance = [_provenance(bundle) for bundle in models]
    document["models"] = [known | found for known, found in zip(provenance, document["models"], strict=True)]
    simulated = is_simulated(dataset)
    return {
        "schema": SCHEMA,
        "skyclass": __version__,
        "split": split,
        "dataset": _dataset_words(dataset, labels),
        "simulated_data": simulated,
        "bootstrap": {"draws": draws, "seed": seed, "level": LEVEL},
        "caveats": [*_simulated_words(simulated, models), *CAVEATS],
    } | document


def probabilities_of(
    bundle: Bundle,
    dataset: Dataset,
    index: Int64 | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Float32:
    """Return (N, 3) calibrated probabilities, by the bundle, of the rows at `index` (all when None)."""
    classifier = load_classifier(bundle, device, precision)
    return _answers(classifier.predict, bundle, dataset, index)


def logits_of(
    bundle: Bundle,
    dataset: Dataset,
    index: Int64 | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Float32:
    """Return (N, 3) logits, before temperature and bias, of the rows at `index` (all when None)."""
    classifier = load_classifier(bundle, device, precision)
    return _answers(classifier.logits, bundle, dataset, index)


def rows_of(dataset: Dataset, split: str) -> Int64:
    """Return the positions of a split, or of every row for "all"; `ConfigError` when there are none."""
    if split == "all":
        return np.arange(len(dataset), dtype=np.int64)
    index = dataset.split(split)
    if not len(index):
        raise ConfigError(f"the dataset has no rows of split {split!r}: choose train, val, test or all")
    return index


def is_simulated(dataset: Dataset) -> bool:
    """Return whether the images of a dataset were simulated; `ConfigError` when its provenance does not say."""
    if not isinstance(simulated := dataset.provenance.get("simulated"), bool):
        raise ConfigError("the provenance of the dataset does not say `simulated` (true or false): make it again")
    return simulated


def check_fit(bundles: Sequence[Bundle], dataset: Dataset) -> None:
    """Raise `ConfigError`, naming every misfit, unless each bundle can look at the dataset's cutouts."""
    problems = [f"{bundle.model_id}: {words}" for bundle in bundles for words in _misfits(bundle, dataset)]
    if problems:
        where = f"the dataset {dataset.path}" if dataset.path else "the dataset"
        raise ConfigError(
            f"{where} does not fit: " + "; ".join(problems) + "; make one with `skyclass dataset` for these models"
        )


def _misfits(bundle: Bundle, dataset: Dataset) -> Iterator[str]:
    needs = INPUTS.get(bundle.network, ("images",))
    mine, theirs = bundle.cut, dataset.cut
    if "spectra" in needs:
        yield f"network {bundle.network!r} looks at spectra, and a dataset has none"
    if "images" in needs:
        if (mine.size_px, mine.pixel_scale_arcsec) != (theirs.size_px, theirs.pixel_scale_arcsec):
            yield (
                f"it takes cutouts of {mine.size_px} px of {mine.pixel_scale_arcsec} arcsec, the dataset has "
                f"{theirs.size_px} px of {theirs.pixel_scale_arcsec} arcsec"
            )
        if lost := [band for band in mine.bands if band not in theirs.bands]:
            yield f"it needs {', '.join(lost)}, the dataset has {', '.join(theirs.bands)}"
    wanted = columns_of(bundle.photometry.features) if bundle.photometry else ()
    if absent := [column for column in wanted if column not in dataset.rows.column_names]:
        yield f"it needs the columns {', '.join(absent)}, which the dataset's rows lack"


def _answers(ask: Any, bundle: Bundle, dataset: Dataset, index: Int64 | None) -> Float32:
    """Return what `ask(images, photometry)` answers for the rows at `index`, batch by batch."""
    check_fit([bundle], dataset)
    index = np.arange(len(dataset)) if index is None else index
    images, settings = _images(bundle, dataset), bundle.photometry
    known = features(dataset.rows, settings.features) if settings else None
    parts = np.array_split(index, max(1, math.ceil(len(index) / BATCH)))
    found = [ask(images[part], None if known is None else known[part]) for part in parts]
    return np.concatenate(found)


def _images(bundle: Bundle, dataset: Dataset) -> Float16:
    """Return composites (N, C, S, S); for a network that looks at none, zeros that take no memory."""
    if "images" in INPUTS.get(bundle.network, ("images",)):
        return composites(dataset, bundle.bands, bundle.composite)
    shape = (len(dataset), len(bundle.bands), bundle.size_px, bundle.size_px)
    return np.broadcast_to(np.float16(0), shape)


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """Return a name for each model, as short as tells them apart."""
    choices = ([b.name for b in bundles], [b.path.name for b in bundles], [b.model_id for b in bundles])
    names = next((names for names in choices if len(set(names) | {CUTS}) == len(bundles) + 1), None)
    if names is None:
        raise ConfigError(f"a model is named twice among {', '.join(choices[-1])}: name each once")
    return names


def _provenance(bundle: Bundle) -> dict[str, Any]:
    return {
        "model_id": bundle.model_id,
        "network": bundle.network,
        "training": bundle.training,
        "simulated": bool(bundle.training["simulated"]),
        "bands": list(bundle.bands),
        "size_px": bundle.size_px,
        "temperature": bundle.temperature,
        "bias": list(bundle.bias),
        "log": training_log(bundle),
    }


def training_log(bundle: Bundle) -> list[dict[str, Any]]:
    """Return the records of the epochs that training wrote beside the bundle; empty when there are none."""
    path = Path(f"{bundle.path}.jsonl")
    if not path.is_file():
        return []
    records = (json.loads(line) for line in path.read_text().splitlines() if line.strip())
    return [record for record in records if "epoch" in record and "loss" in record]


def _dataset_words(dataset: Dataset, labels: Int64) -> dict[str, Any]:
    provenance = json.loads(json.dumps(dataset.provenance, default=str))
    return {"path": str(dataset.path or ""), "counts": class_counts(labels), "provenance": provenance}


def _simulated_words(simulated_data: bool, bundles: Sequence[Bundle]) -> list[str]:
    words = []
    if simulated_data:
        words.append("The images, magnitudes and labels are SIMULATED: no number here is one of the real sky.")
    if trained := [b.name for b in bundles if b.training["simulated"]]:
        words.append(f"Trained on a SIMULATED sky: {', '.join(dict.fromkeys(trained))}.")
    return words


# --- one set of rows, several answers --------------------------------------------------------------


def _compared(labels: Int64, rows: pa.Table, given: Mapping[str, Float32], draws: int, seed: int) -> dict[str, Any]:
    """Return the scores of each set of probabilities, of the colour cuts, and their paired differences."""
    cuts = _cut_guess(rows)
    one_hot = {} if cuts is None else {CUTS: np.eye(len(CLASSES), dtype=np.float32)[cuts]}
    everyone = {**given, **one_hot}
    drawn = bootstrap(labels, everyone, draws, seed)
    if cuts is not None:
        drawn[CUTS] = {name: drawn[CUTS][name] for name in OF_GUESSES}
    values = _strata_values(rows)
    found = {
        name: {"name": name} | _scored(labels, p, drawn[name], values, name == CUTS, draws, seed)
        for name, p in everyone.items()
    }
    return {
        "n": len(labels),
        "classes": list(CLASSES),
        "models": [found[name] for name in given],
        "colour_cuts": found.get(CUTS),
        "differences": differences(labels, everyone, drawn),
    }


def _scored(
    labels: Int64,
    probabilities: Float32,
    drawn: Mapping[str, Float64],
    values: Mapping[str, Float64],
    guesses_only: bool,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    guess = probabilities.argmax(1)
    table = confusion(labels, guess)
    found = confusion_scores(table) if guesses_only else scores(labels, probabilities)
    point = {name: np.asarray(value) for name, value in _numbers(labels, probabilities).items()}
    found["intervals"] = {name: _named(interval(point[name], drawn[name], name)) for name in drawn}
    found["precision_at_sky"] = _precision_at_sky(table, draws, seed)
    found["strata"] = {
        column: {"label": words, "unknown": int(np.isnan(values[column]).sum())}
        | {"bins": strata(labels, guess, values[column], edges, draws, seed)}
        for column, (words, edges) in STRATA.items()
        if column in values
    }
    return found


def _cut_guess(rows: pa.Table) -> Int64 | None:
    """Return the class (N,) that the colour cuts give, an index into `CLASSES`; None without magnitudes."""
    names = ("w1mpro", "w2mpro", "w3mpro")
    if not set(names) <= set(rows.column_names):
        return None
    index = {name: k for k, name in enumerate(CLASSES)}
    guess = colour_cuts(*(floats(rows[name]) for name in names))
    return np.array([index[name] for name in guess.tolist()], dtype=np.int64)


def _strata_values(rows: pa.Table) -> dict[str, Float64]:
    known = {name: floats(rows[name]) for name in STRATA if name in rows.column_names}
    return known | {"abs_b_deg": galactic_latitude_deg(floats(rows["ra"]), floats(rows["dec"]))}


def galactic_latitude_deg(ra_deg: ArrayLike, dec_deg: ArrayLike) -> Float64:
    """Return |b| in degrees of ICRS positions in degrees."""
    from astropy import units as u  # a second to import, which training need not pay
    from astropy.coordinates import SkyCoord

    return np.abs(np.asarray(SkyCoord(ra_deg * u.deg, dec_deg * u.deg).galactic.b.deg, np.float64))


# --- scores ----------------------------------------------------------------------------------------


def scores(labels: Int64, probabilities: Float32) -> dict[str, Any]:
    """Return the scores of (N, 3) probabilities, as JSON.

    Those of `confusion_scores`, and `auc` by class, `macro_auc`, `roc`, `ece` (15 equal bins of the given class),
    `ece_floor` (the mean ECE of a perfectly calibrated model on so few rows), `classwise_ece`, `nll`, `brier` (sum
    over classes, 0 to 2), `reliability` (table by bin). What a missing class leaves undefined is None.
    """
    found = {name: _named(value) for name, value in _numbers(labels, probabilities).items()}
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
    rates = {name: _named(value[0]) for name, value in table_rates(table[None]).items()}
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
        "precision": _share(hits, given),
        "recall": _share(hits, true),
        "specificity": _share(n - true - given + hits, n - true),
        "f1": _share(2 * hits, true + given),
        "class_accuracy": _share(n - true - given + 2 * hits, n),
    }
    overall = {f"macro_{name}": _mean(rate) for name, rate in by_class.items()}
    accuracy = _share(hits.sum(1), n[:, 0])
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
    value = _precision_at(np.asarray(table)[None], np.array([shares[name] for name in CLASSES]))[0]
    return dict(zip(CLASSES, _plain(value), strict=True))


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
    threshold = np.r_[score[order[0]], score[order[last]]]
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


# --- bootstrap -------------------------------------------------------------------------------------


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
    return Sample(np.concatenate(sums, axis=1), _share(own.sum(0), np.bincount(labels, minlength=k)))


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
    auc = _share(own, true) + _share(others, n[:, None] - true) - rows.auc
    return table_rates(tables) | {
        "auc": auc,
        "macro_auc": _mean(auc),
        "ece": gap[:, 0],
        "classwise_ece": gap[:, 1:].mean(1),
        "nll": loss[:, 0] / n,
        "brier": brier[:, 0] / n,
    }


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


def differences(
    labels: Int64, given: Mapping[str, Float32], drawn: Mapping[str, Mapping[str, Float64]]
) -> list[dict[str, Any]]:
    """Return for each pair (a, b) of models the difference b - a of every number both have, paired row by row.

    Numbers map to [value, low, high], by class where they are. The draws must be those of `bootstrap`.
    """
    points = {name: _numbers(labels, p) for name, p in given.items()}
    found = []
    for a, b in combinations(given, 2):
        shared = [name for name in drawn[a] if name in drawn[b]]
        gaps = {name: points[b][name] - points[a][name] for name in shared}
        ends = {name: interval(gaps[name], drawn[b][name] - drawn[a][name]) for name in shared}
        found.append({"a": a, "b": b, "numbers": {name: _triple(gaps[name], ends[name]) for name in shared}})
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
    return {name: _triple(point[name][0], ends[name]) for name in names}


def _precision_at_sky(table: Int64, draws: int, seed: int) -> dict[str, Any]:
    shares = np.array([SKY_SHARES[name] for name in CLASSES])
    value = _precision_at(table[None], shares)[0]
    ends = interval(value, _precision_at(_tables(table, draws, np.random.default_rng(seed)), shares))
    return {"shares": SKY_SHARES, "precision": _triple(value, ends)}


def _tables(table: Int64, draws: int, rng: np.random.Generator) -> Int64:
    """Return confusion matrices (D, 3, 3) of as many resampled rows."""
    cells = table.ravel()
    drawn = rng.multinomial(cells.sum(), cells / cells.sum(), size=draws)
    return drawn.reshape(draws, *table.shape)


def _precision_at(tables: NDArray[Any], shares: Float64) -> Float64:
    t = np.asarray(tables, np.float64)
    given = shares[:, None] * _share(t, t.sum(2, keepdims=True))  # P(true j and given k)
    return _share(np.einsum("dkk->dk", given), given.sum(1))


def _numbers(labels: Int64, probabilities: Float32) -> dict[str, Float64]:
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


def _reliability_bins(p: Float64, true: NDArray[np.bool_], bins: int) -> list[dict[str, Any]]:
    place = _bin(p, bins)
    n, hits, total = (np.bincount(place, weights=w, minlength=bins) for w in (np.ones(len(p)), true, p))
    share, confidence = (_plain(_share(part, n)) for part in (hits, total))
    return [
        {"low": i / bins, "high": (i + 1) / bins, "n": int(n[i]), "confidence": confidence[i], "share": share[i]}
        for i in range(bins)
    ]


def _share(part: Any, whole: Any) -> Float64:
    """Return part / whole, NaN where there is nothing to divide by."""
    part, whole = np.broadcast_arrays(np.asarray(part, np.float64), np.asarray(whole, np.float64))
    shares: Float64 = np.divide(part, whole, out=np.full(part.shape, np.nan), where=whole > 0)
    return shares


def _mean(rates: Float64) -> Float64:
    """Return the mean (D,) over the classes that have a rate."""
    known = np.isfinite(rates)
    return _share(np.where(known, rates, 0).sum(1), known.sum(1))


def _quantiles(drawn: Float64, at: tuple[float, float]) -> tuple[Float64, Float64]:
    """Return two quantiles over the first axis, NaN left out; NaN where nothing is left."""
    columns = drawn.reshape(len(drawn), -1).T
    found = [np.quantile(c[np.isfinite(c)], at) if np.isfinite(c).any() else (np.nan, np.nan) for c in columns]
    low, high = np.array(found).T.reshape(2, *drawn.shape[1:])
    return low, high


def _plain(values: Any) -> Any:
    """Return floats as JSON takes them: NaN is None."""
    if isinstance(values, np.ndarray) and values.ndim:
        return [_plain(v) for v in values]
    return None if np.isnan(values) else float(values)


def _named(values: Float64) -> Any:
    """Return JSON of a number () or its interval (2,); by class for numbers (3,) and intervals (3, 2)."""
    by_class = np.shape(values)[:1] == (len(CLASSES),)
    return dict(zip(CLASSES, _plain(values), strict=True)) if by_class else _plain(values)


def _triple(value: ArrayLike, ends: Float64) -> Any:
    """Return [value, low, high] as JSON, by class for values (3,)."""
    rows = np.concatenate([np.asarray(value, np.float64)[..., None], ends], axis=-1)
    return dict(zip(CLASSES, _plain(rows), strict=True)) if np.ndim(value) else _plain(rows)


# --- writing ---------------------------------------------------------------------------------------


def write_evaluation(folder: str | Path, results: Mapping[str, Any]) -> Path:
    """Write what `evaluate_models` returned and return the folder: figures, evaluation.md, evaluation.json.

    The JSON comes last, so a folder that has one is whole. An earlier evaluation there is replaced; a folder with
    anything else raises `ConfigError`.
    """
    from .. import report

    target = Path(folder)
    if target.exists() and not (target.is_dir() and ((target / report.RESULTS).is_file() or not any(target.iterdir()))):
        raise ConfigError(f"{target} exists and is no evaluation: give another folder to `-o`")
    figures = report.evaluation_figures(results)
    target.mkdir(parents=True, exist_ok=True)
    for old in (target / report.RESULTS, *(target / f"{name}.png" for name in report.EVALUATION_FIGURES)):
        old.unlink(missing_ok=True)
    for name, figure in figures.items():
        report.save_figure(figure, target / f"{name}.png")
    (target / "evaluation.md").write_text(report.markdown(results, list(figures)))
    (target / report.RESULTS).write_text(json.dumps(results, indent=1, allow_nan=False) + "\n")
    return target
