"""The figures of an evaluation: scores, confusion, ROC, reliability, strata, training log."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from astropy.stats import binom_conf_interval

from .drawing import FEW_ROWS, PANEL_IN, Json, class_colours, legend, new_figure, new_panels
from .evaluation_results import METRIC_LABELS, entries, range_label, simulation_warning

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MODEL_MARKERS = "osD^vPX"
CUTS_COLOUR = "#777777"

PLOTTED_METRICS = ("balanced_accuracy", "macro_f1", "macro_auc", "ece", "nll", "brier")

EVALUATION_FIGURES = {
    "scores": "Overall metrics of each model with 95 % intervals",
    "confusion": "Confusion matrices: share of each true class, and rows",
    "roc": "ROC of each class against the rest, on linear and logarithmic axes",
    "reliability": "Reliability: share of right rows by probability, and rows by probability",
    "strata": "Rates by W1 S/N, W1 magnitude and galactic latitude",
    "loss": "Loss and balanced accuracy during training",
}
"""Figure -> caption, in the order of the page."""


def evaluation_figures(results: Json) -> dict[str, Figure]:
    """Return the figures of an evaluation by name; "loss" only for models with a training log."""
    models, with_cuts, warning = results["models"], entries(results), simulation_warning(results)
    figures = {
        "scores": scores_figure(with_cuts, warning),
        "confusion": confusion_figure(with_cuts, warning),
        "roc": roc_figure(models, warning),
        "reliability": reliability_figure(models, warning),
        "strata": strata_figure(with_cuts, warning),
    }
    logs = {model["name"]: model["log"] for model in models if model["log"]}
    return figures | ({"loss": loss_figure(logs, warning)} if logs else {})


def scores_figure(models: Sequence[Json], warning: str = "") -> Figure:
    """Return the overall metrics: a panel for each metric, a line for each model with its 95 % interval."""
    rows = math.ceil(len(PLOTTED_METRICS) / 3)
    figure = new_figure(10.0, rows * (0.9 + 0.32 * len(models)) + 0.5, "Overall metrics", warning)
    panels = figure.subplots(rows, 3, sharey=True).ravel()
    for axes, name in zip(panels, PLOTTED_METRICS, strict=True):
        for i, model in enumerate(models):
            if model.get(name) is not None:
                _draw_interval(axes, model[name], i, model["intervals"][name], _style(i, model))
        axes.set_yticks(range(len(models)), [m["name"] for m in models])
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlabel(METRIC_LABELS[name])
        axes.grid(axis="x", alpha=0.3)
        axes.locator_params(axis="x", nbins=4)
    return figure


def confusion_figure(models: Sequence[Json], warning: str = "") -> Figure:
    """Return a confusion matrix for each model: the colour is the share of the true class, the text share and rows."""
    figure, panels = new_panels(len(models), "Confusion", warning, height=PANEL_IN + 0.1)
    for axes, model in zip(panels, models, strict=True):
        counts, names = np.asarray(model["confusion"]), model["classes"]
        share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(counts.shape):
            colour = "white" if share[i, j] > 0.6 else "black"
            axes.text(j, i, f"{share[i, j]:.3f}\n{counts[i, j]:,}", ha="center", va="center", color=colour, fontsize=8)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        axes.set_title(model["name"], fontsize=9)
    return figure


def roc_figure(models: Sequence[Json], warning: str = "") -> Figure:
    """Return the ROC of each class against the rest, a line for each model: linear axes above, logarithmic below."""
    classes = models[0]["classes"]
    figure = new_figure(len(classes) * PANEL_IN, 2 * PANEL_IN + 0.3, "ROC, one class against the rest", warning)
    panels = figure.subplots(2, len(classes), sharey="row")
    for k, name in enumerate(classes):
        for axes in panels[:, k]:
            for i, model in enumerate(models):
                if curve := model["roc"][name]:
                    label = f"{model['name']}, AUC {model['auc'][name]:.4f}"
                    axes.plot(curve["fpr"], curve["tpr"], color=_style(i, model)["color"], label=label, lw=1.4)
            axes.set_xlabel("false positive rate")
            axes.grid(alpha=0.3)
        panels[0, k].plot([0, 1], [0, 1], color="#bbbbbb", lw=0.8, ls="--")
        panels[0, k].set_title(name, fontsize=10)
        panels[1, k].set_xscale("log")
        panels[1, k].set_xlim(1e-3, 1)
        legend(panels[0, k], "lower right")
    for axes in panels[:, 0]:
        axes.set_ylabel("true positive rate (recall)")
    return figure


def reliability_figure(models: Sequence[Json], warning: str = "") -> Figure:
    """Return a reliability diagram for each model: share of right rows by probability, and below it the rows by bin."""
    columns = len(models)
    figure = new_figure(max(2, columns) * PANEL_IN, PANEL_IN * 1.6, "Reliability", warning)
    panels = figure.subplots(2, columns, sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1))
    for axes, histogram, model in zip(*panels, models, strict=True):
        axes.plot([0, 1], [0, 1], color="#bbbbbb", lw=0.8, ls="--")
        for name in model["classes"]:
            _reliability_line(
                axes, model["reliability"][name], class_colours(model["classes"])[name], f"probability of {name}"
            )
        bins = model["reliability"]["given"]
        _reliability_points(axes, bins)
        counts = [each["n"] or np.nan for each in bins]
        histogram.bar([each["low"] for each in bins], counts, width=1 / len(bins), align="edge", color="#999999")
        histogram.set_yscale("log")
        histogram.set_xlabel("probability")
        axes.set_title(
            f"{model['name']}\nECE {model['ece']:.4f}, expected by chance {model['ece_floor']:.4f}", fontsize=9
        )
        axes.set_aspect("equal")
    legend(panels[0, 0], "lower right")
    panels[0, 0].set_ylabel("share of right rows")
    panels[1, 0].set_ylabel("rows")
    return figure


def strata_figure(models: Sequence[Json], warning: str = "") -> Figure:
    """Return balanced accuracy, recall of each class and rows by S/N, magnitude and galactic latitude."""
    columns = list(models[0]["strata"])
    rows = ("balanced_accuracy", *models[0]["classes"])
    figure = new_figure(
        1.25 * PANEL_IN * len(columns), 1.9 * (len(rows) + 1), "Rates by brightness and position", warning
    )
    panels = figure.subplots(len(rows) + 1, len(columns), sharey="row", sharex="col", squeeze=False)
    for c, column in enumerate(columns):
        for r, name in enumerate(rows):
            for i, model in enumerate(models):
                _stratum_line(panels[r, c], model["strata"][column]["bins"], name, i, model, len(models))
            panels[r, c].grid(alpha=0.3)
            panels[r, 0].set_ylabel("balanced accuracy" if r == 0 else f"recall of {name}")
        _stratum_counts(panels[-1, c], models[0]["strata"][column]["bins"])
        panels[-1, c].set_xlabel(models[0]["strata"][column]["label"])
    legend(panels[0, 0])
    panels[-1, 0].set_ylabel("rows")
    legend(panels[-1, 0])
    return figure


def loss_figure(logs: Mapping[str, Sequence[Json]], warning: str = "") -> Figure:
    """Return loss (training dashed, validation solid) and validation accuracy by epoch, a colour for each model."""
    figure = new_figure(9.0, 3.6, "Training", warning)
    left, right = figure.subplots(1, 2)
    for i, (name, records) in enumerate(logs.items()):
        colour = MODEL_COLOURS[i % len(MODEL_COLOURS)]
        _log_line(left, records, "loss", f"{name}, training", color=colour, ls="--")
        _log_line(left, records, "val_loss", f"{name}, validation", color=colour)
        _log_line(right, records, "val_balanced_accuracy", name, color=colour)
    left.set_ylabel("loss")
    right.set_ylabel("balanced accuracy, validation")
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
        legend(axes)
    return figure


def _style(i: int, model: Json) -> dict[str, Any]:
    """Return colour and marker of a model. The colour cuts, which have no `model_id`, are grey."""
    if "model_id" not in model:
        return {"color": CUTS_COLOUR, "marker": "x"}
    return {"color": MODEL_COLOURS[i % len(MODEL_COLOURS)], "marker": MODEL_MARKERS[i % len(MODEL_MARKERS)]}


def _draw_interval(
    axes: Axes, value: float, y: float, interval: Sequence[float | None], style: Mapping[str, Any]
) -> None:
    axes.plot(value, y, ms=5, ls="none", **style)
    if interval[0] is not None and interval[1] is not None:
        axes.plot([interval[0], interval[1]], [y, y], color=style["color"], lw=1.6)


def _reliability_line(axes: Axes, bins: Sequence[Json], colour: str, label: str) -> None:
    drawn = [each for each in bins if each["n"] >= FEW_ROWS]
    axes.plot([p["confidence"] for p in drawn], [p["share"] for p in drawn], color=colour, lw=1, alpha=0.8, label=label)


def _reliability_points(axes: Axes, bins: Sequence[Json]) -> None:
    """Draw the share of right predicted classes with the interval of Wilson (1927), which stays between 0 and 1."""
    filled = [each for each in bins if each["n"]]
    n, share = (np.array([each[name] for each in filled], np.float64) for name in ("n", "share"))
    low, high = binom_conf_interval(np.rint(share * n), n, 0.95, interval="wilson")
    x = [each["confidence"] for each in filled]
    bars = np.maximum([share - low, high - share], 0)
    axes.errorbar(x, share, bars, fmt="o", ms=3.5, color="black", lw=1, label="predicted class")


def _stratum_line(axes: Axes, bins: Sequence[Json], name: str, i: int, model: Json, n_models: int) -> None:
    """Draw one rate of one model by bin; an offset for each model keeps the intervals apart."""
    rates = [(x, _rate(stratum, name)) for x, stratum in enumerate(bins)]
    known = [(x + 0.12 * (i - (n_models - 1) / 2), rate) for x, rate in rates if rate and rate[0] is not None]
    if not known:
        return
    x, value = [p[0] for p in known], [p[1][0] for p in known]
    bars = np.array([[max(r[0] - r[1], 0), max(r[2] - r[0], 0)] if r[1] is not None else [0, 0] for _, r in known]).T
    axes.errorbar(x, value, bars, ms=4, lw=1.1, label=model["name"], **_style(i, model))


def _rate(stratum: Json, name: str) -> Sequence[Any] | None:
    """Return an estimate of a stratum (value, low, high): a metric by its name, the recall by that of its class."""
    estimate = stratum[name] if name in stratum else (stratum["recall"] or {}).get(name)
    return None if estimate is None else list(estimate)


def _stratum_counts(axes: Axes, bins: Sequence[Json]) -> None:
    bottom = np.zeros(len(bins))
    colours = class_colours(bins[0]["counts"])
    for name in bins[0]["counts"]:
        counts = np.array([stratum["counts"][name] for stratum in bins])
        axes.bar(range(len(bins)), counts, bottom=bottom, color=colours[name], label=name, width=0.8)
        bottom = bottom + counts
    axes.set_xticks(range(len(bins)), [range_label(stratum) for stratum in bins], rotation=40, ha="right", fontsize=7)


def _log_line(axes: Axes, records: Sequence[Json], key: str, label: str, **style: Any) -> None:
    known = [(record["epoch"], record[key]) for record in records if record.get(key) is not None]
    if known:
        axes.plot(*zip(*known, strict=True), label=label, lw=1.3, marker="." if len(known) < 40 else None, **style)
