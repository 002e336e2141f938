"""The figures of the paper's analyses: one `draw_` for each result of `analyses.py`. What was simulated says so."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from skyclass.training.extra import train_extra
from skyclass.types import DEFAULT_CLASSES, PIXEL_SCALE_ARCSEC, Float16, Float32, Int64

from .analyses import SNR_LEVELS

INK, FAINT = "#333333", "#999999"
COLOURS = dict(zip(DEFAULT_CLASSES, ("#0072b2", "#d55e00", "#009e73"), strict=True))
"""Blue, vermilion, green of Okabe & Ito: told apart with every kind of colour vision."""
MARKERS = dict(zip(DEFAULT_CLASSES, ("o", "s", "^"), strict=True))
DASHES = dict(zip(DEFAULT_CLASSES, ("-", "--", ":"), strict=True))


def draw_snr(statistics: Mapping[str, Any], *, simulated: bool) -> Any:
    """Return the figure of `snr_statistics`: quartiles by band and class, and shares above the levels."""
    table = statistics["table"]
    figure, (left, right) = _figure(1, 2, (9.5, 3.8), "Signal to noise by band and class", simulated)
    for k, name in enumerate(DEFAULT_CLASSES):
        x = np.arange(len(table)) + 0.22 * (k - 1)
        middle, low, high = (np.array([table[b][name][q] for b in table]) for q in ("median", "q25", "q75"))
        style = {"color": COLOURS[name], "marker": MARKERS[name], "linestyle": "none", "label": name}
        left.errorbar(x, middle, (middle - low, high - middle), capsize=3, **style)
        for level, filled in zip(SNR_LEVELS, (1.0, 0.6, 0.3), strict=True):
            share = [100 * table[b][name]["above"][level] for b in table]
            right.plot(x, share, **style | {"alpha": filled, "label": None})
            for xi, si in zip(x, share, strict=True):
                right.annotate(f"{level:g}", (xi, si), (4, -3), textcoords="offset points", fontsize=6, color=INK)
    for axes in (left, right):
        axes.set_xticks(range(len(table)), [b.upper() for b in table])
    left.set_yscale("symlog", linthresh=10)
    top = max((v["q75"] for row in table.values() for v in row.values() if np.isfinite(v["q75"])), default=10)
    ticks = [t for t in (0, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if t <= max(10, 1.2 * top)]
    left.set_yticks(ticks, [str(t) for t in ticks])
    left.set_yticks([], minor=True)
    left.set_ylabel(f"S/N ({statistics['source']}): median, quartiles")
    left.axhline(SNR_LEVELS[0], color=FAINT, lw=0.8)
    right.set_ylabel("share above S/N 2, 3, 5 [%]")
    right.set_ylim(-4, 104)
    left.legend(frameon=False)
    return figure


def draw_histograms(histograms: Mapping[str, Any], *, simulated: bool) -> Any:
    """Return the figure of `rgb_histograms`: a panel a channel, a line a class."""
    bands, edges = histograms["bands"], histograms["edges"]
    figure, axes = _figure(1, len(bands), (3.2 * len(bands), 3.2), "Pixel values of the composites", simulated)
    for c, (panel, band) in enumerate(zip(np.atleast_1d(axes), bands, strict=True)):
        for name in DEFAULT_CLASSES:
            line = {"color": COLOURS[name], "linestyle": DASHES[name], "label": name}
            panel.stairs(histograms["density"][name][c], edges, lw=1.4, **line)
        panel.set_yscale("log")
        channel = f" ({'RGB'[c]})" if len(bands) == 3 else ""
        panel.set_title(f"{band.upper()}{channel}", fontsize=10)
        panel.set_xlabel("value in the composite (stretched)")
    np.atleast_1d(axes)[0].set_ylabel("density")
    np.atleast_1d(axes)[-1].legend(frameon=False)
    return figure


def draw_colour_colour(data: Mapping[str, Any], *, simulated: bool, points: int = 3000) -> Any:
    """Return the figure of `colour_colour`: up to `points` sources a class, and the two plain cuts."""
    figure, axes = _figure(1, 1, (5.6, 4.8), "Colours", simulated)
    for k, name in enumerate(DEFAULT_CLASSES):
        rows = np.flatnonzero(data["labels"] == k)
        rows = rows[:: max(1, math.ceil(len(rows) / points))]
        style = {"s": 7, "alpha": 0.35, "linewidths": 0, "color": COLOURS[name], "marker": MARKERS[name]}
        axes.scatter(data["w2-w3"][rows], data["w1-w2"][rows], **style, label=f"{name} ({data['table'][name]['n']:,})")
    x, y = (np.percentile(data[c], (0.3, 99.7)) if len(data[c]) else (0.0, 1.0) for c in ("w2-w3", "w1-w2"))
    axes.set_xlim(x[0] - 0.3, x[1] + 0.3)
    axes.set_ylim(y[0] - 0.2, y[1] + 0.2)
    axes.axhline(0.8, color=INK, lw=1, ls="--", label="the two plain cuts")
    axes.plot([1.5, 1.5], [-9, 0.8], color=INK, lw=1, ls="--")
    axes.set_xlabel("W2 - W3 [Vega mag]")
    axes.set_ylabel("W1 - W2 [Vega mag]")
    legend = axes.legend(frameon=True, framealpha=0.9, edgecolor="none", markerscale=2)
    for handle in legend.legend_handles:
        handle.set_alpha(1)
    return figure


def draw_sweep(
    curve: Mapping[str, Any], xlabel: str, *, simulated: bool, paper: Mapping[float, float] | None = None
) -> Any:
    """Return the figure of `sweep`; `paper` maps x to the figure printed in the paper, drawn beside ours."""
    figure, axes = _figure(1, 1, (5.6, 3.8), f"{curve['of'].replace('_', ' ')} against {xlabel}", simulated)
    bars = (100 * (curve["mean"] - curve["low"]), 100 * (curve["high"] - curve["mean"]))
    seeds = f"{curve['n'].min()}" if curve["n"].min() == curve["n"].max() else f"{curve['n'].min()}-{curve['n'].max()}"
    line = {"color": COLOURS["galaxy"], "marker": "o", "capsize": 3}
    axes.errorbar(curve["x"], 100 * curve["mean"], bars, **line, label=f"this work: mean, range of seeds ({seeds})")
    if paper:
        at = sorted(paper)
        other = {"color": COLOURS["quasar"], "marker": "s", "linestyle": "--"}
        axes.plot(at, [100 * paper[a] for a in at], **other, label="Zhao et al. 2023, real data")
    axes.set_xticks(curve["x"])
    axes.set_xlabel(xlabel)
    axes.set_ylabel(f"{curve['of'].replace('_', ' ')} [%]")
    axes.legend(frameon=False)
    return figure


def draw_training(curves: Mapping[str, Any], *, simulated: bool) -> Any:
    """Return the figure of `training_curves`: losses on the left, balanced accuracy on the right."""
    figure, (left, right) = _figure(1, 2, (9, 3.6), "Training", simulated)
    left.plot(curves["epoch"], curves["loss"], color=COLOURS["galaxy"], label="training")
    left.plot(curves["epoch"], curves["val_loss"], color=COLOURS["quasar"], ls="--", label="validation")
    accuracy = 100 * curves["val_balanced_accuracy"]
    right.plot(curves["epoch"], accuracy, color=COLOURS["quasar"], ls="--", label="validation")
    for axes, label in ((left, "cross-entropy [nat]"), (right, "balanced accuracy [%]")):
        if curves["best"] is not None:
            axes.axvline(curves["best"], color=FAINT, lw=0.8, label=f"kept: epoch {curves['best']}")
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.legend(frameon=False)
    return figure


def draw_roc(record: Mapping[str, Any], *, simulated: bool) -> Any:
    """Return the ROC curves of a record with `roc` and `auc`: a line a class, against the rest."""
    figure, axes = _figure(1, 1, (5.2, 4.6), "ROC, each class against the rest", simulated)
    for name in DEFAULT_CLASSES:
        if curve := record["roc"][name]:
            label = f"{name}, AUC {record['auc'][name]:.4f}"
            axes.plot(curve["fpr"], curve["tpr"], color=COLOURS[name], ls=DASHES[name], label=label)
    axes.plot([0, 1], [0, 1], color=FAINT, lw=0.8)
    axes.set(xlabel="false positive rate", ylabel="true positive rate (recall)", aspect="equal")
    axes.legend(frameon=False, loc="lower right")
    return figure


def draw_validation(
    networks: Mapping[str, Sequence[float]], bands: Mapping[str, Sequence[float]], *, simulated: bool
) -> Any:
    """Return the validation accuracy by epoch: of the networks on the left, of numbers of bands on the right.

    Both map a label to the balanced accuracy of each epoch, from the first.
    """
    figure, panels = _figure(1, 2, (10.5, 4.2), "Validation accuracy by epoch", simulated)
    for axes, curves, title in zip(panels, (networks, bands), ("a: networks", "b: bands of IICnet"), strict=True):
        for k, (label, values) in enumerate(curves.items()):
            epochs = np.arange(1, len(values) + 1)
            style = {"marker": "o^sDvPX"[k % 7], "markersize": 4, "markevery": max(1, len(values) // 10)}
            axes.plot(epochs, 100 * np.asarray(values), color=f"C{k}", lw=1.2, label=label, **style)
        axes.set(xlabel="epoch", ylabel="balanced accuracy [%]")
        axes.set_title(title, fontsize=10)
        axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
        if curves:
            axes.legend(frameon=False, fontsize=7)
    return figure


def draw_confusion(record: Mapping[str, Any], *, simulated: bool) -> Any:
    """Return the confusion matrix of a record as in the paper: columns are true classes, rows predicted ones."""
    counts = np.array(record["confusion"]).T
    share = counts / np.maximum(counts.sum(0, keepdims=True), 1)
    wrong, n = counts.sum() - np.trace(counts), counts.sum()
    figure, axes = _figure(1, 1, (4.8, 4.6), f"{wrong:,} of {n:,} test images misclassified", simulated)
    shown = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        words = f"{count:,}\n{100 * share[row, column]:.1f} %"
        colour = "white" if share[row, column] > 0.6 else INK
        axes.text(column, row, words, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(DEFAULT_CLASSES)), DEFAULT_CLASSES)
    axes.set_yticks(range(len(DEFAULT_CLASSES)), DEFAULT_CLASSES)
    axes.set(xlabel="true class", ylabel="predicted class")
    figure.colorbar(shown, ax=axes, label="share of the true class", fraction=0.046)
    return figure


def draw_feature_maps(maps: Mapping[str, Float32], image: Float16, *, simulated: bool) -> Any:
    """Return the figure of `feature_maps`, a row a layer, with the composite (C, S, S) they come from."""
    with train_extra("the figure"):
        from matplotlib import colormaps
    viridis = colormaps["viridis"]
    lines, words = [], []
    for stack in maps.values():
        span = np.maximum(stack.max((1, 2), keepdims=True) - stack.min((1, 2), keepdims=True), 1e-12)
        pictures = viridis((stack - stack.min((1, 2), keepdims=True)) / span)[..., :3]
        lines.append([rgb(image[None])[0], *pictures])
        words.append(["composite", *(f"to {m.max():.2g}" for m in stack)])
    heading = "Feature maps of the strongest channels, each from its least to its greatest value"
    names = [f"after\n{name}" for name in maps]
    return _mosaic(lines, words, names, _title(heading, simulated), 1 + max(len(m) for m in maps.values()))


def draw_grad_cam(images: Float16, heat: Float32, titles: Sequence[str], *, simulated: bool) -> Any:
    """Return the figure of `grad_cam`: composites (N, C, S, S) above, with the heat (N, P, P) on them below."""
    n = len(images)
    figure, axes = _figure(2, n, (1.6 * n + 0.6, 3.9), "", simulated)
    panels = np.asarray(axes).reshape(2, n)
    size = images.shape[-1]
    for column, image, warm, title in zip(panels.T, rgb(images), heat, titles, strict=True):
        column[0].imshow(image, origin="lower")
        column[0].set_title(title, fontsize=8)
        column[1].imshow(image.mean(2), origin="lower", cmap="gray")
        shown = column[1].imshow(
            warm, origin="lower", cmap="inferno", alpha=0.55, vmin=0, vmax=1, extent=(-0.5, size - 0.5) * 2
        )
    panels[0, 0].set_ylabel("W1 W2 W3 as RGB", fontsize=8)
    panels[1, 0].set_ylabel("Grad-CAM", fontsize=8)
    _bare(panels)
    figure.colorbar(shown, ax=panels[1].tolist(), label="evidence, 1 = most", fraction=0.03, pad=0.02)
    figure.suptitle(_title("Where the evidence for the class lies", simulated), fontsize=10)
    return figure


def draw_misclassified(
    groups: Mapping[str, Any],
    images: Float16,
    labels: Int64,
    probabilities: Float32,
    *,
    simulated: bool,
    columns: int = 8,
) -> Any:
    """Return the gallery of `misclassified`: a row a group; composites (N, C, S, S) of all N rows are given.

    In each row those without a source at the centre come first.
    """
    names = []
    for c, count in enumerate(groups["counts"]):
        words = f"{c + 1}: {count}\n{100 * groups['empty_share'][c]:.0f} % empty"
        names.append(words + ("\n(cf. Class 4)" if c == groups["empty_cluster"] else ""))
    first = np.argsort(~groups["empty"], kind="stable")  # those without a source come first in their row
    index, cluster = groups["index"][first], groups["cluster"][first]
    rows = [index[cluster == c][:columns] for c in range(len(names))]
    heading = (
        f"{len(index)} misclassified, grouped by K-means; {groups['empty_count']} have no source at the centre, "
        "and stand first in their row"
    )
    return gallery(images, rows, names, _words(labels, probabilities), heading, simulated=simulated, columns=columns)


def draw_outliers(
    found: Mapping[str, Any],
    images: Float16,
    labels: Int64,
    probabilities: Float32,
    *,
    simulated: bool,
    columns: int = 8,
) -> Any:
    """Return the gallery of `outliers`: a row a class, the least sure first."""
    index = found["index"]
    rows = [index[labels[index] == k][:columns] for k in range(len(DEFAULT_CLASSES))]
    names = [f"{name}\n{found['counts'][name]}" for name in DEFAULT_CLASSES]
    heading = f"Right, with a confidence below {found['sure']:g}: {100 * found['share']:.1f} % of the right answers"
    return gallery(images, rows, names, _words(labels, probabilities), heading, simulated=simulated, columns=columns)


# --- pictures --------------------------------------------------------------------------------------------------------


def gallery(
    images: Float16,
    rows: Sequence[Int64],
    names: Sequence[str],
    words: Mapping[int, str] | Sequence[str],
    heading: str,
    *,
    simulated: bool,
    columns: int = 8,
) -> Any:
    """Return a figure of composites (N, C, S, S) as W1 W2 W3 = RGB: `rows` of positions, each with a name.

    `words` stand above the cutouts. North is up, east is left, as in the Atlas images.
    """
    lines = [list(rgb(np.asarray(images[index]))) for index in rows]
    side = images.shape[-1] * PIXEL_SCALE_ARCSEC
    caption = f"W1 W2 W3 as R G B, {side:.0f} arcsec on a side; true > given class (G, Q, S), confidence"
    heading = f"{_title(heading, simulated)}\n{caption}"
    return _mosaic(lines, [[words[int(i)] for i in index] for index in rows], names, heading, columns)


def _mosaic(
    lines: Sequence[Sequence[Float32]],
    words: Sequence[Sequence[str]],
    names: Sequence[str],
    heading: str,
    columns: int,
) -> Any:
    """Return a figure of pictures (S, S, 3) in rows, with words above each and a name before each row.

    One pair of axes for all: a hundred of them would take ten seconds to lay out.
    """
    figure, axes = _figure(1, 1, (1.2 * columns + 1.0, 1.38 * len(lines) + 0.5), "", False)
    for r, (pictures, above, name) in enumerate(zip(lines, words, names, strict=True)):
        y = -1.22 * r
        axes.text(-0.1, y + 0.5, name, ha="right", va="center", fontsize=9, color=INK)
        for c, (picture, word) in enumerate(zip(pictures, above, strict=True)):
            axes.imshow(picture, origin="lower", extent=(1.06 * c, 1.06 * c + 1, y, y + 1), interpolation="nearest")
            axes.text(1.06 * c + 0.5, y + 1.03, word, ha="center", va="bottom", fontsize=7, color=INK)
        if not pictures:
            axes.text(0.1, y + 0.5, "none", va="center", fontsize=9, color=FAINT)
    axes.set(xlim=(-0.95, 1.06 * columns), ylim=(-1.22 * (len(lines) - 1) - 0.05, 1.2), aspect="equal")
    axes.axis("off")
    figure.suptitle(heading, fontsize=9)
    return figure


def rgb(images: Float16) -> Float32:
    """Return composites (N, C, S, S) as pictures (N, S, S, 3) in [0, 1]: W1 W2 W3 are red, green, blue.

    One scale for the three channels of a picture, from a little below the sky to its brightest pixel, so that
    colours can be compared; missing pixels are mid-grey. One channel gives a grey picture.
    """
    x = np.asarray(images, dtype=np.float32)[:, :3]
    x = np.repeat(x[:, :1], 3, axis=1) if x.shape[1] < 3 else x
    top = np.nanmax(np.where(np.isfinite(x), x, 0), axis=(1, 2, 3), keepdims=True)
    shown = np.clip((x + 1) / (np.maximum(top, 3.0) + 1), 0, 1)
    missing = ~np.isfinite(x).all(1, keepdims=True)
    return np.where(missing, np.float32(0.5), shown).transpose(0, 2, 3, 1).astype(np.float32)


def _words(labels: Int64, probabilities: Float32) -> list[str]:
    given, confidence = probabilities.argmax(1), probabilities.max(1)
    pairs = zip(labels, given, confidence, strict=True)
    return [f"{DEFAULT_CLASSES[a][0].upper()} > {DEFAULT_CLASSES[b][0].upper()}  {p:.2f}" for a, b, p in pairs]


def _figure(rows: int, columns: int, size: tuple[float, float], title: str, simulated: bool) -> tuple[Any, Any]:
    """Return a figure and its axes; `Figure` draws to files by itself and leaves the user's backend alone."""
    with train_extra("the figure"):
        from matplotlib.figure import Figure
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns)
    for panel in np.atleast_1d(axes).ravel():
        panel.tick_params(labelsize=8)
    if title:
        figure.suptitle(_title(title[0].upper() + title[1:], simulated), fontsize=10)
    return figure, axes


def _title(words: str, simulated: bool) -> str:
    return f"SIMULATED data. {words}" if simulated else words


def _bare(panels: Any) -> None:
    for panel in panels.ravel():
        panel.set_xticks([])
        panel.set_yticks([])
