"""The analyses of Zhao et al. 2023 (RAA 23, 085010): numbers first, then a figure of them.

    snr_statistics       Fig. 2         sweep               Figs. 8, 12
    rgb_histograms       Fig. 5         training_curves     Fig. 13
    colour_colour        Fig. 6         roc                 Fig. 14
    samples              Table 4        misclassified       Fig. 19
                                        outliers            Figs. 20, 21

Each function returns plain numbers and arrays; `draw_...` makes a matplotlib figure of them, which says so when
the data are simulated. matplotlib and scikit-learn are imported where they are used (extra `train`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skyclass.errors import CatalogError, ConfigError
from skyclass.text import named
from skyclass.training.data.dataset import Dataset
from skyclass.training.evaluation.metrics import roc_curve
from skyclass.training.evaluation.training_log import read_log
from skyclass.training.extra import train_extra
from skyclass.types import DEFAULT_CLASSES, Bool, Float16, Float32, Float64, Int64

SNR_LEVELS = (2.0, 3.0, 5.0)
APERTURE_PX = 3.0
"""Radius of the aperture, 4.1 arcsec: about half the width of a point source in the Atlas images, W1 to W3."""
CENTRE_SNR = 3.0
PEAK_PX = 3.0
SURE = 0.6
"""A right answer with less confidence is an outlier (Zhao et al. 2023, section 5)."""
CLUSTERS = 4
RINGS_PX = (0.0, 1.5, 3.0, 5.0, 8.0, 12.0, 18.0)


# --- S/N of the bands (Fig. 2) ---------------------------------------------------------------------------------------


def snr_statistics(dataset: Dataset, index: Int64 | None = None) -> dict[str, Any]:
    """Return the S/N of each band: median, quartiles and the shares above 2, 3 and 5, class by class.

    `table` maps band -> class -> {n, median, q25, q75, above: {level: share}}; `values` band -> (N,) S/N, NaN
    unknown; `labels` (N,); `source` says where the S/N come from. The catalogue's `w?snr` are taken when the
    rows have them for every band of the dataset; else all bands are measured alike in the cutouts (`cutout_snr`).
    """
    chosen = np.arange(len(dataset)) if index is None else index
    bands, rows = dataset.cut.bands, dataset.rows
    if {f"{band}snr" for band in bands} <= set(rows.column_names):
        values = {band: rows[f"{band}snr"].to_numpy().astype(np.float64)[chosen] for band in bands}
        source = "catalogue"
    else:
        measured = cutout_snr(dataset.pixels, chosen)
        values = {band: measured[:, b].astype(np.float64) for b, band in enumerate(bands)}
        source = "cutouts"
    labels = dataset.labels[chosen]
    table = {
        band: {name: _snr_row(snr[labels == k]) for k, name in enumerate(DEFAULT_CLASSES)}
        for band, snr in values.items()
    }
    return {"source": source, "levels": list(SNR_LEVELS), "table": table, "values": values, "labels": labels}


def cutout_snr(pixels: Float32, index: Int64 | None = None, radius_px: float = APERTURE_PX) -> Float32:
    """Return the S/N (N, B) of what lies at the centre of cutouts (M, B, S, S) in DN, at `index` or all.

    The mean in a central aperture, above the median of the same aperture set around the border, over their
    scatter (1.4826 MAD). Atlas noise is correlated over the width of a source, so the scatter of single pixels
    would promise too much; equal apertures measure noise and confusion as the source meets them. NaN where the
    centre or half of the border is missing.
    """
    size = pixels.shape[-1]
    weights = _apertures(size, radius_px)  # (P, S * S), the centre first
    out = []
    for part in _parts(np.arange(len(pixels)) if index is None else index):
        flat = np.asarray(pixels[part], dtype=np.float32).reshape(len(part), pixels.shape[1], size * size)
        known = np.isfinite(flat)
        share = known.astype(np.float32) @ weights.T
        total = np.where(known, flat, 0) @ weights.T
        means = np.where(share > 0.5, total / np.maximum(share, 1e-6), np.nan)
        out.append(_centre_over_border(means))
    found: Float32 = np.concatenate(out) if out else np.empty((0, pixels.shape[1]), np.float32)
    return found


def _centre_over_border(means: Float32) -> Float32:
    """Return (N, B) from aperture means (N, B, P), the centre first."""
    border = means[..., 1:]
    enough = np.isfinite(border).mean(-1) >= 0.5
    filled = np.where(enough[..., None], border, 0)  # no warning for rows that become NaN below
    sky = np.nanmedian(filled, axis=-1)
    scatter = 1.4826 * np.nanmedian(np.abs(filled - sky[..., None]), axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        snr = (means[..., 0] - sky) / scatter
    result: Float32 = np.where(enough & (scatter > 0), snr, np.nan).astype(np.float32)
    return result


def _apertures(size: int, radius_px: float) -> Float32:
    """Return weights (P, size * size) of round apertures: one at the centre, the others side by side on a ring."""
    ring_px = (size - 1) / 2 - radius_px
    if ring_px < 2 * radius_px:
        raise ConfigError(f"cutouts of {size} px have no border for apertures of {radius_px} px: cut larger ones")
    n = int(math.pi * ring_px / radius_px)
    angle = 2 * np.pi * np.arange(n) / n
    centres = np.concatenate(([[0.0, 0.0]], ring_px * np.stack((np.sin(angle), np.cos(angle)), 1)))
    axis = np.arange(size) - (size - 1) / 2
    y, x = axis[:, None], axis[None, :]
    masks = np.stack([np.hypot(y - cy, x - cx) <= radius_px + 0.25 for cy, cx in centres]).reshape(n + 1, -1)
    weights: Float32 = (masks / masks.sum(1, keepdims=True)).astype(np.float32)
    return weights


def _snr_row(values: Float64) -> dict[str, Any]:
    """Return the statistics of one band and class; unknown S/N are counted, and are above no level."""
    known = values[np.isfinite(values)]
    q25, median, q75 = (float(q) for q in np.percentile(known, (25, 50, 75))) if len(known) else (math.nan,) * 3
    above = {level: float((known > level).sum() / max(1, len(values))) for level in SNR_LEVELS}
    return {"n": len(values), "unknown": len(values) - len(known)} | {
        "median": median,
        "q25": q25,
        "q75": q75,
        "above": above,
    }


# --- pixel values (Fig. 5) and colours (Fig. 6) ----------------------------------------------------------------------


def rgb_histograms(
    images: Float16, labels: Int64, bands: Sequence[str], bins: int = 80, span: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Return the distribution of the pixel values of composites (N, C, S, S), by class and channel.

    `edges` (bins + 1,) in units of the composite; `density` class -> (C, bins), each row summing to 1 over the
    range when multiplied by the bin width; `bands` are the channels. `span` defaults to the middle 99.8 %.
    """
    if span is None:
        sample = np.asarray(images[:: max(1, len(images) // 500)], dtype=np.float32)
        low, high = np.nanpercentile(sample, (0.1, 99.9))
        span = (float(low), float(high))
    edges = np.linspace(*span, bins + 1)
    counts = np.zeros((len(DEFAULT_CLASSES), images.shape[1], bins))
    for part in _parts(np.arange(len(images))):
        block = np.asarray(images[part], dtype=np.float32)
        for k in np.unique(labels[part]):
            for c in range(images.shape[1]):
                counts[k, c] += np.histogram(block[labels[part] == k, c], edges)[0]  # NaN falls in no bin
    density = counts / np.maximum(counts.sum(2, keepdims=True), 1) / (edges[1] - edges[0])
    return {"edges": edges, "density": dict(zip(DEFAULT_CLASSES, density, strict=True)), "bands": tuple(bands)}


def colour_colour(dataset: Dataset, index: Int64 | None = None) -> dict[str, Any]:
    """Return W1-W2 and W2-W3 (Vega mag) of the sources: `w1-w2`, `w2-w3` (N,), `labels` (N,), and `table`.

    Rows without both colours are left out and counted in `dropped`. `table` is class -> {n, and median and
    scatter (1.4826 MAD) of each colour}. Raises `CatalogError` when the rows have no magnitudes.
    """
    chosen = np.arange(len(dataset)) if index is None else index
    names = ("w1mpro", "w2mpro", "w3mpro")
    if missing := set(names) - set(dataset.rows.column_names):
        raise CatalogError(f"the dataset has no {named('column', sorted(missing))}: build it with photometry")
    w1, w2, w3 = (dataset.rows[name].to_numpy().astype(np.float64)[chosen] for name in names)
    colours = {"w1-w2": w1 - w2, "w2-w3": w2 - w3}
    good = np.isfinite(w1 - w2) & np.isfinite(w2 - w3)
    kept = {name: values[good] for name, values in colours.items()}
    labels = dataset.labels[chosen][good]
    table = {
        name: {"n": int((labels == k).sum())} | {c: _middle(v[labels == k]) for c, v in kept.items()}
        for k, name in enumerate(DEFAULT_CLASSES)
    }
    return kept | {"labels": labels, "table": table, "dropped": int((~good).sum())}


def _middle(values: Float64) -> dict[str, float]:
    if not len(values):
        return {"median": math.nan, "scatter": math.nan}
    median = float(np.median(values))
    return {"median": median, "scatter": float(1.4826 * np.median(np.abs(values - median)))}


# --- sweeps (Figs. 8, 12) and the course of a training (Fig. 13) -----------------------------------------------------


def sweep(records: Iterable[Mapping[str, Any]], x: str, y: str = "balanced_accuracy") -> dict[str, Any]:
    """Return `y` against `x` over records of trainings: `x`, `mean`, `low`, `high`, `n` (K,), sorted by `x`.

    `low` and `high` are the least and greatest of the records (seeds) at each x. A record without `x` or `y`
    raises `ConfigError`.
    """
    groups: dict[float, list[float]] = {}
    for place, record in enumerate(records):
        if missing := [key for key in (x, y) if key not in record]:
            raise ConfigError(f"record {place} has no {', '.join(missing)}: it has {', '.join(map(str, record))}")
        groups.setdefault(record[x], []).append(float(record[y]))
    at = sorted(groups)
    summary: dict[str, Callable[[list[float]], Any]] = {"mean": np.mean, "low": min, "high": max, "n": len}
    return {"name": x, "of": y, "x": at} | {k: np.array([f(groups[a]) for a in at]) for k, f in summary.items()}


def training_curves(log: str | Path | Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return `epoch`, `loss`, `val_loss`, `val_balanced_accuracy` (K,) and `best` epoch from a training log.

    `log` is the JSON-lines file beside a bundle, or its records. The last record of an epoch counts (a resumed
    run may have written two); a value that is absent is NaN. Raises `ConfigError` for a log without epochs.
    """
    records = _read_log(Path(log)) if isinstance(log, str | Path) else log
    by_epoch = {int(record["epoch"]): record for record in records if {"epoch", "loss"} <= set(record)}
    if not by_epoch:
        raise ConfigError(f"{log if isinstance(log, str | Path) else 'the log'} holds no record of an epoch")
    epochs = sorted(by_epoch)
    curves = {
        key: np.array([by_epoch[e].get(key, math.nan) for e in epochs], dtype=np.float64)
        for key in ("loss", "val_loss", "val_balanced_accuracy")
    }
    seen = np.isfinite(curves["val_loss"])
    best = epochs[int(np.nanargmin(curves["val_loss"]))] if seen.any() else None
    return {"epoch": np.array(epochs), "best": best} | curves


def _read_log(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise ConfigError(f"{path}: there is no such training log")
    return read_log(path)


# --- single answers (Table 4) and ROC (Fig. 14) ----------------------------------------------------------------------


def samples(labels: Int64, probabilities: Float32, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the first row of each class, whatever its answer: class -> {name, probabilities: class -> number}."""
    first = {DEFAULT_CLASSES[k]: int(np.flatnonzero(labels == k)[0]) for k in np.unique(labels)}
    return {
        kind: {
            "name": names[row],
            "probabilities": dict(zip(DEFAULT_CLASSES, map(float, probabilities[row]), strict=True)),
        }
        for kind, row in first.items()
    }


def roc(labels: Int64, probabilities: Float32) -> dict[str, dict[str, list[float]] | None]:
    """Return `fpr` and `tpr` of each class against the rest, None for a class without rows."""
    curves = {name: roc_curve(labels == k, probabilities[:, k]) for k, name in enumerate(DEFAULT_CLASSES)}
    return {
        name: curve and {rate: np.round(curve[rate], 4).tolist() for rate in ("fpr", "tpr")}
        for name, curve in curves.items()
    }


# --- what goes wrong (Figs. 19 to 21) --------------------------------------------------------------------------------


def misclassified(
    labels: Int64, probabilities: Float32, features: Float32, pixels: Float32, *, k: int = CLUSTERS, seed: int = 0
) -> dict[str, Any]:
    """Return the wrong answers in `k` groups (K-means, Lloyd 1982) of standardised features (N, F).

    All arguments run over the same N rows: `features` an embedding or `ring_features`, `pixels` (N, B, S, S) in
    DN. `index` (M,) positions of the wrong ones; `cluster` (M,) their group, 0 the largest; `counts`. A group is
    called empty by what is in the pixels, not by looking: `empty` (M,) is `empty_centres`, `empty_count` their
    number, `empty_share` (k,) their share by group, `empty_cluster` the group with the greatest share (None
    when there are no empty ones): "Class 4" of Zhao et al. 2023.
    """
    index = np.flatnonzero(probabilities.argmax(1) != labels)
    cluster = _kmeans(features[index], k, seed)
    empty = empty_centres(pixels, index)["empty"]
    counts = np.bincount(cluster, minlength=k)
    share = np.bincount(cluster, weights=empty, minlength=k) / np.maximum(counts, 1)
    return {
        "index": index,
        "cluster": cluster,
        "counts": counts.tolist(),
        "empty": empty,
        "empty_count": int(empty.sum()),
        "empty_share": share.tolist(),
        "empty_cluster": int(share.argmax()) if empty.any() else None,
        "rule": EMPTY_RULE,
    }


EMPTY_RULE = (
    f"no source at the centre: in no band does the central aperture ({APERTURE_PX:g} px radius) reach S/N "
    f"{CENTRE_SNR:g}, or in every band where it does the brightest spot within {2 * PEAK_PX:g} px lies farther than "
    f"{PEAK_PX:g} px from the centre (light of a neighbour)"
)


def empty_centres(pixels: Float32, index: Int64 | None = None) -> dict[str, Any]:
    """Return which cutouts (M, B, S, S) in DN have no source at their centre, at `index` or all: `EMPTY_RULE`.

    `empty` (N,) is `faint` or `off_centre`, two masks; `snr` (N, B) is that of `cutout_snr`. A centre without
    pixels in some band (a saturated core, a tile's edge) is not taken as faint there, and not as a source.
    """
    chosen = np.arange(len(pixels)) if index is None else index
    snr = cutout_snr(pixels, chosen)
    bright: Bool = snr >= CENTRE_SNR
    parts = [_peak_is_central(np.asarray(pixels[part], dtype=np.float32)) for part in _parts(chosen)]
    central = np.concatenate(parts) if parts else np.empty_like(bright)
    detected, measured = np.asarray(bright.any(axis=1)), np.asarray(np.isfinite(snr).any(axis=1))
    faint = ~detected & measured
    off_centre = detected & ~np.asarray((bright & central).any(axis=1))
    return {"empty": faint | off_centre, "faint": faint, "off_centre": off_centre, "snr": snr}


def _peak_is_central(pixels: Float32) -> Bool:
    """Return (N, B): whether the 3 x 3 mean is greatest near the centre, of all within twice `PEAK_PX`."""
    size = pixels.shape[-1]
    filled = np.where(np.isfinite(pixels), pixels, -np.inf)
    rows = filled[:, :, :-2] + filled[:, :, 1:-1] + filled[:, :, 2:]
    smooth = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    axis = np.arange(1, size - 1) - (size - 1) / 2
    radius = np.hypot(axis[:, None], axis[None, :])
    inner = smooth[:, :, radius <= PEAK_PX].max(-1)
    ring: Bool = inner >= smooth[:, :, (radius > PEAK_PX) & (radius <= 2 * PEAK_PX)].max(-1)
    return ring


def ring_features(images: Float16, index: Int64) -> Float32:
    """Return the mean of each ring about the centre of composites (N, C, S, S): (len(index), C * rings).

    It does not change when an image is turned; rings without pixels count as sky, 0.
    """
    size = images.shape[-1]
    axis = np.arange(size) - (size - 1) / 2
    place = np.digitize(np.hypot(axis[:, None], axis[None, :]), RINGS_PX[1:])
    found = []
    for part in _parts(index):
        block = np.nan_to_num(np.asarray(images[part], dtype=np.float32), nan=0.0)
        rings = [block[:, :, place == r].mean(-1) for r in range(len(RINGS_PX) - 1) if (place == r).any()]
        found.append(np.concatenate(rings, axis=1))
    return np.concatenate(found)


def _kmeans(features: Float32, k: int, seed: int) -> Int64:
    """Return the group (M,) of each row, the largest group first; fewer than `k` groups for fewer rows."""
    if len(features) == 0:
        return np.empty(0, dtype=np.int64)
    with train_extra("K-means"):
        from sklearn.cluster import KMeans
        from sklearn.preprocessing import StandardScaler
    scaled = StandardScaler().fit_transform(features)
    groups = min(k, len(np.unique(scaled, axis=0)))
    found = KMeans(groups, n_init=10, random_state=seed).fit_predict(scaled)
    rank = np.argsort(np.argsort(-np.bincount(found, minlength=groups), kind="stable"))
    cluster: Int64 = rank[found].astype(np.int64)
    return cluster


def outliers(labels: Int64, probabilities: Float32, sure: float = SURE) -> dict[str, Any]:
    """Return the rows that are right with a confidence below `sure`: `index` (M,), the least sure first.

    `confidence` (M,) belongs to `index`; `counts` class -> number; `share` of all right rows.
    """
    confidence = probabilities.max(1)
    right = probabilities.argmax(1) == labels
    index = np.flatnonzero(right & (confidence < sure))
    index = index[np.argsort(confidence[index], kind="stable")]
    counts = np.bincount(labels[index], minlength=len(DEFAULT_CLASSES)).tolist()
    return {
        "index": index,
        "confidence": confidence[index],
        "counts": dict(zip(DEFAULT_CLASSES, counts, strict=True)),
        "share": len(index) / max(1, int(right.sum())),
        "sure": sure,
    }


def _parts(index: Int64, size: int = 1024) -> Iterator[Int64]:
    for start in range(0, len(index), size):
        yield index[start : start + size]
