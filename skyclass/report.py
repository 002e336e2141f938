"""Figures and one HTML page, from an evaluation or from a published class catalogue.

    evaluation.json -> tables, figures          (plain dicts in, nothing of the model)
    ClassCatalog    -> SQL aggregates -> tables, figures
    tables, figures -> Markdown, or one HTML page that needs no other file

What was simulated is called so on every figure and page. Figures need matplotlib: `pip install 'skyclass[train]'`.
"""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from . import __version__
from .errors import ConfigError
from .types import CLASSES, Flag, Float64

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .query import ClassCatalog

Json = Mapping[str, Any]

RESULTS = "evaluation.json"
CLASS_COLOURS = {"galaxy": "#0072B2", "quasar": "#D55E00", "star": "#009E73", "unclassified": "#999999"}
"""Okabe & Ito (2008): told apart with any kind of colour vision."""
MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MODEL_MARKERS = "osD^vPX"
CUTS_COLOUR = "#777777"
FEW_ROWS = 5
"""Below this no line is drawn through a mean or share."""
DPI = 130
PANEL_IN = 3.1
"""Side of a small panel in inches."""

NUMBERS: dict[str, str] = {
    "accuracy": "accuracy (share of right rows)",
    "balanced_accuracy": "balanced accuracy (mean recall)",
    "macro_precision": "precision, mean of classes",
    "macro_specificity": "specificity, mean of classes",
    "macro_f1": "F1, mean of classes",
    "macro_class_accuracy": "accuracy one against the rest, mean of classes",
    "macro_auc": "AUC one against the rest, mean of classes",
    "ece": "ECE (15 bins)",
    "ece_floor": "ECE of a perfect model on so few rows",
    "classwise_ece": "classwise ECE",
    "nll": "negative log-likelihood",
    "brier": "Brier score (0 to 2)",
}
"""Headline number -> its name for people."""
BY_CLASS: dict[str, str] = {
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "f1": "F1",
    "class_accuracy": "accuracy",
    "auc": "AUC",
}
COMPARED = ("balanced_accuracy", "accuracy", "macro_f1", "macro_auc", "ece", "nll", "brier")
PICTURED = ("balanced_accuracy", "macro_f1", "macro_auc", "ece", "nll", "brier")


@dataclass(frozen=True)
class Table:
    """A table for people: cells are text already; `note` stands under it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


# --- evaluation: tables ----------------------------------------------------------------------------


def evaluation_tables(results: Json) -> list[Table]:
    """Return the tables of an evaluation: headline, by class, confusion, differences, purity, strata."""
    models, everyone = results["models"], contestants(results)
    tables = [_headline(results), *(_class_table(model) for model in everyone)]
    tables += [_confusion_table(model) for model in everyone]
    tables += [_difference_table(results["differences"])] if results["differences"] else []
    tables.append(_purity_table(everyone))
    return tables + [_stratum_table(column, everyone) for column in models[0]["strata"]]


def contestants(results: Json) -> list[Json]:
    """Return the models of an evaluation, and the colour cuts after them where the rows have magnitudes."""
    return [*results["models"], *([results["colour_cuts"]] if results["colour_cuts"] else [])]


def is_simulated(results: Json) -> bool:
    """Return whether anything in an evaluation was simulated: the rows, or what a model was trained on."""
    return bool(results["simulated_data"]) or any(model["simulated"] for model in results["models"])


def stamp(results: Json) -> str:
    """Return the words that stand on every figure of an evaluation; empty when nothing was simulated."""
    if results["simulated_data"]:
        return "SIMULATED data"
    return "model trained on a SIMULATED sky" if is_simulated(results) else ""


def _headline(results: Json) -> Table:
    everyone = contestants(results)
    rows = [
        (words, *(_with_interval(m.get(name), m["intervals"].get(name)) for m in everyone))
        for name, words in NUMBERS.items()
    ]
    note = f"{results['n']:,} rows of split {results['split']}; value [95 % bootstrap interval]."
    return Table("Overall", ("number", *(m["name"] for m in everyone)), tuple(rows), note)


def _class_table(model: Json) -> Table:
    shown = {name: words for name, words in BY_CLASS.items() if name in model}
    counts = [sum(row) for row in model["confusion"]]
    rows = [
        (k, *(_with_interval(model[name][k], model["intervals"][name][k]) for name in shown), f"{n:,}")
        for k, n in zip(model["classes"], counts, strict=True)
    ]
    overall = [_with_interval(model[f"macro_{name}"], model["intervals"][f"macro_{name}"]) for name in shown]
    note = "Each class against the rest, as Table 2 of Zhao et al. 2023 has it; overall is the mean of the classes."
    rows.append(("overall", *overall, f"{sum(counts):,}"))
    return Table(f"By class: {model['name']}", ("class", *shown.values(), "n"), tuple(rows), note)


def _confusion_table(model: Json) -> Table:
    rows = [
        (f"true {name}", *(f"{n:,}" for n in row))
        for name, row in zip(model["classes"], model["confusion"], strict=True)
    ]
    return Table(f"Confusion: {model['name']}", ("", *(f"given {k}" for k in model["classes"])), tuple(rows))


def _difference_table(differences: Sequence[Json]) -> Table:
    names = [name for name in COMPARED if any(name in d["numbers"] for d in differences)]
    rows = [(f"{d['b']} - {d['a']}", *(_signed(d["numbers"].get(name)) for name in names)) for d in differences]
    note = "Paired bootstrap of the same rows; * marks an interval without 0. ECE, NLL and Brier: less is better."
    return Table(
        "Differences", ("pair", *(NUMBERS[name].split(" (")[0].split(",")[0] for name in names)), tuple(rows), note
    )


def _purity_table(models: Sequence[Json]) -> Table:
    shares = models[0]["precision_at_sky"]["shares"]
    rows = [(m["name"], *(_triple(m["precision_at_sky"]["precision"][k]) for k in shares)) for m in models]
    words = ", ".join(f"{100 * share:g} % {name}" for name, share in shares.items())
    note = f"Expected precision of each class where the sky holds {words} (assumed), with this sample's confusion."
    return Table("Precision at sky shares", ("model", *shares), tuple(rows), note)


def _stratum_table(column: str, models: Sequence[Json]) -> Table:
    strata = models[0]["strata"][column]
    rows = []
    for i, part in enumerate(strata["bins"]):
        rates = [_triple(m["strata"][column]["bins"][i]["balanced_accuracy"]) for m in models]
        rows.append((_range(part), f"{part['n']:,}", *(f"{n:,}" for n in part["counts"].values()), *rates))
    columns = (strata["label"], "n", *(f"n {k}" for k in strata["bins"][0]["counts"]), *(m["name"] for m in models))
    unknown = f" {strata['unknown']:,} rows have no value." if strata["unknown"] else ""
    return Table(f"Balanced accuracy by {strata['label']}", columns, tuple(rows), _STRATUM_NOTE + unknown)


_STRATUM_NOTE = (
    "-: an empty bin. An interval without width says that no row was wrong, not that none could be: with n rows "
    "an error rate of 3/n is still likely to show none."
)


def _range(part: Json) -> str:
    low, high = part["low"], part["high"]
    if low is None or high is None:
        return f"< {high:g}" if low is None else f">= {low:g}"
    return f"{low:g} to {high:g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _with_interval(value: float | None, ends: Sequence[float | None] | None) -> str:
    if value is None or ends is None or ends[0] is None:
        return _number(value)
    return f"{value:.4f} [{ends[0]:.4f}, {ends[1]:.4f}]"


def _triple(values: Sequence[float | None] | None) -> str:
    return "-" if values is None else _with_interval(values[0], values[1:])


def _signed(values: Sequence[float | None] | None) -> str:
    if values is None or values[0] is None or values[1] is None or values[2] is None:
        return "-"
    sure = "*" if values[1] > 0 or values[2] < 0 else ""
    return f"{values[0]:+.4f}{sure} [{values[1]:+.4f}, {values[2]:+.4f}]"


def markdown(results: Json, figures: Sequence[str] = ()) -> str:
    """Return an evaluation as Markdown: caveats, tables, and the figures that lie beside it."""
    parts = [f"# {_title(results)}", "\n".join(f"- **{words}**" for words in results["caveats"])]
    parts.append("\n".join(f"- {line}" for line in _facts(results)))
    parts += [_markdown_table(table) for table in evaluation_tables(results)]
    parts += [f"![{EVALUATION_FIGURES[name]}]({name}.png)" for name in figures]
    return "\n\n".join(parts) + "\n"


def _title(results: Json) -> str:
    names = ", ".join(model["name"] for model in results["models"])
    words = stamp(results)
    return f"Evaluation of {names}" + (f" ({words})" if words else "")


def _facts(results: Json) -> list[str]:
    counts = ", ".join(f"{n:,} {name}" for name, n in results["dataset"]["counts"].items())
    kind = "SIMULATED" if results["simulated_data"] else "observed"
    lines = [f"{kind} rows of split {results['split']}: {results['n']:,} ({counts})"]
    lines += [
        f"{m['name']}: {m['model_id']}, network {m['network']}, training: {m['training'].get('label', 'not recorded')}"
        for m in results["models"]
    ]
    return [*lines, f"{results['bootstrap']['draws']:,} bootstrap draws; skyclass {results['skyclass']}"]


def _markdown_table(table: Table) -> str:
    lines = [_markdown_row(table.columns), "|" + " --- |" * len(table.columns)]
    lines += [_markdown_row(row) for row in table.rows]
    return f"## {table.title}\n\n" + "\n".join(lines) + (f"\n\n{table.note}" if table.note else "")


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


# --- evaluation: figures ---------------------------------------------------------------------------

EVALUATION_FIGURES = {
    "scores": "Headline numbers of each model with 95 % intervals",
    "confusion": "Confusion matrices: share of each true class, and rows",
    "roc": "ROC of each class against the rest, on linear and logarithmic axes",
    "reliability": "Reliability: how often a probability is right, and how many rows have it",
    "strata": "Rates by W1 S/N, W1 magnitude and galactic latitude",
    "loss": "Loss and balanced accuracy during training",
}
"""Figure -> caption, in the order of a page."""


def evaluation_figures(results: Json) -> dict[str, Figure]:
    """Return the figures of an evaluation by name; "loss" only where a training log was found."""
    models, everyone, words = results["models"], contestants(results), stamp(results)
    figures = {
        "scores": scores_figure(everyone, words),
        "confusion": confusion_figure(everyone, words),
        "roc": roc_figure(models, words),
        "reliability": reliability_figure(models, words),
        "strata": strata_figure(everyone, words),
    }
    logs = {model["name"]: model["log"] for model in models if model["log"]}
    return figures | ({"loss": loss_figure(logs, words)} if logs else {})


def scores_figure(models: Sequence[Json], words: str = "") -> Figure:
    """Return the headline numbers: one panel each, one line a model, with its 95 % interval."""
    rows = math.ceil(len(PICTURED) / 3)
    figure = _figure(10.0, rows * (0.9 + 0.32 * len(models)) + 0.5, "Headline numbers", words)
    panels = figure.subplots(rows, 3, sharey=True).ravel()
    for axes, name in zip(panels, PICTURED, strict=True):
        for i, model in enumerate(models):
            if model.get(name) is not None:
                _dot(axes, model[name], i, model["intervals"][name], _style(i, model))
        axes.set_yticks(range(len(models)), [m["name"] for m in models])
        axes.set_ylim(len(models) - 0.5, -0.5)
        axes.set_xlabel(NUMBERS[name])
        axes.grid(axis="x", alpha=0.3)
        axes.locator_params(axis="x", nbins=4)
    return figure


def confusion_figure(models: Sequence[Json], words: str = "") -> Figure:
    """Return one confusion matrix a model: colour is the share of the true class, numbers are share and rows."""
    figure, panels = _panels(len(models), "Confusion", words, height=PANEL_IN + 0.1)
    for axes, model in zip(panels, models, strict=True):
        table, names = np.asarray(model["confusion"]), model["classes"]
        share = table / np.maximum(table.sum(1, keepdims=True), 1)
        axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(table.shape):
            dark = "white" if share[i, j] > 0.6 else "black"
            axes.text(j, i, f"{share[i, j]:.3f}\n{table[i, j]:,}", ha="center", va="center", color=dark, fontsize=8)
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("class given")
        axes.set_ylabel("true class")
        axes.set_title(model["name"], fontsize=9)
    return figure


def roc_figure(models: Sequence[Json], words: str = "") -> Figure:
    """Return the ROC of each class against the rest, a line a model: linear above, logarithmic below."""
    figure = _figure(3 * PANEL_IN, 2 * PANEL_IN + 0.3, "ROC, one class against the rest", words)
    panels = figure.subplots(2, len(CLASSES), sharey="row")
    for k, name in enumerate(CLASSES):
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
        _legend(panels[0, k], "lower right")
    for axes in panels[:, 0]:
        axes.set_ylabel("true positive rate (recall)")
    return figure


def reliability_figure(models: Sequence[Json], words: str = "") -> Figure:
    """Return one reliability diagram a model: share of right rows against probability, and rows a bin below."""
    columns = len(models)
    figure = _figure(max(2, columns) * PANEL_IN, PANEL_IN * 1.6, "Reliability", words)
    panels = figure.subplots(2, columns, sharex=True, sharey="row", squeeze=False, height_ratios=(3, 1))
    for axes, below, model in zip(*panels, models, strict=True):
        axes.plot([0, 1], [0, 1], color="#bbbbbb", lw=0.8, ls="--")
        for name in CLASSES:
            _reliability_line(axes, model["reliability"][name], CLASS_COLOURS[name], f"probability of {name}")
        given = model["reliability"]["given"]
        _reliability_points(axes, given)
        counts = [part["n"] or np.nan for part in given]
        below.bar([part["low"] for part in given], counts, width=1 / len(given), align="edge", color="#999999")
        below.set_yscale("log")
        below.set_xlabel("probability")
        axes.set_title(f"{model['name']}\nECE {model['ece']:.4f}, by chance {model['ece_floor']:.4f}", fontsize=9)
        axes.set_aspect("equal")
    _legend(panels[0, 0], "lower right")
    panels[0, 0].set_ylabel("share that is right")
    panels[1, 0].set_ylabel("rows")
    return figure


def strata_figure(models: Sequence[Json], words: str = "") -> Figure:
    """Return rates by S/N, magnitude and |b|: balanced accuracy, recall of each class, and the rows below."""
    columns = list(models[0]["strata"])
    rows = ("balanced_accuracy", *CLASSES)
    figure = _figure(1.25 * PANEL_IN * len(columns), 9.5, "Rates by brightness and place", words)
    panels = figure.subplots(len(rows) + 1, len(columns), sharey="row", sharex="col", squeeze=False)
    for c, column in enumerate(columns):
        for r, name in enumerate(rows):
            for i, model in enumerate(models):
                _stratum_line(panels[r, c], model["strata"][column]["bins"], name, i, model, len(models))
            panels[r, c].grid(alpha=0.3)
            panels[r, 0].set_ylabel("balanced accuracy" if r == 0 else f"recall of {name}")
        _stratum_counts(panels[-1, c], models[0]["strata"][column]["bins"])
        panels[-1, c].set_xlabel(models[0]["strata"][column]["label"])
    _legend(panels[0, 0])
    panels[-1, 0].set_ylabel("rows")
    _legend(panels[-1, 0])
    return figure


def loss_figure(logs: Mapping[str, Sequence[Json]], words: str = "") -> Figure:
    """Return the loss (training dashed, validation solid) and the validation accuracy by epoch, a colour a model."""
    figure = _figure(9.0, 3.6, "Training", words)
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
        _legend(axes)
    return figure


def _style(i: int, model: Json) -> dict[str, Any]:
    """Return colour and marker of a contestant; the colour cuts, which have no `model_id`, are grey."""
    if "model_id" not in model:
        return {"color": CUTS_COLOUR, "marker": "x"}
    return {"color": MODEL_COLOURS[i % len(MODEL_COLOURS)], "marker": MODEL_MARKERS[i % len(MODEL_MARKERS)]}


def _dot(axes: Axes, value: float, y: float, ends: Sequence[float | None], style: Mapping[str, Any]) -> None:
    axes.plot(value, y, ms=5, ls="none", **style)
    if ends[0] is not None and ends[1] is not None:
        axes.plot([ends[0], ends[1]], [y, y], color=style["color"], lw=1.6)


def _reliability_line(axes: Axes, bins: Sequence[Json], colour: str, label: str) -> None:
    full = [part for part in bins if part["n"] >= FEW_ROWS]
    axes.plot([p["confidence"] for p in full], [p["share"] for p in full], color=colour, lw=1, alpha=0.8, label=label)


def _reliability_points(axes: Axes, bins: Sequence[Json]) -> None:
    """Points of the given class with the 95 % interval of Wilson (1927), which stays between 0 and 1."""
    full = [part for part in bins if part["n"]]
    n, share = (np.array([part[name] for part in full], np.float64) for name in ("n", "share"))
    low, high = wilson(share, n)
    x = [part["confidence"] for part in full]
    bars = np.maximum([share - low, high - share], 0)
    axes.errorbar(x, share, bars, fmt="o", ms=3.5, color="black", lw=1, label="class given")


def wilson(share: Float64, n: Float64, z: float = 1.96) -> tuple[Float64, Float64]:
    """Return the 95 % interval of shares (K,) out of `n` (K,) (Wilson 1927, J. Am. Stat. Assoc. 22, 209)."""
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return middle - half, middle + half


def _stratum_line(axes: Axes, bins: Sequence[Json], name: str, i: int, model: Json, models: int) -> None:
    """Draw one rate of one model over the bins; models are moved aside so that intervals do not overlap."""
    found = [(x, _rate(part, name)) for x, part in enumerate(bins)]
    known = [(x + 0.12 * (i - (models - 1) / 2), rate) for x, rate in found if rate and rate[0] is not None]
    if not known:
        return
    x, value = [p[0] for p in known], [p[1][0] for p in known]
    bars = np.array([[max(r[0] - r[1], 0), max(r[2] - r[0], 0)] if r[1] is not None else [0, 0] for _, r in known]).T
    axes.errorbar(x, value, bars, ms=4, lw=1.1, label=model["name"], **_style(i, model))


def _rate(part: Json, name: str) -> Sequence[Any] | None:
    found = part[name] if name in part else (part["recall"] or {}).get(name)
    return found if found is None else list(found)


def _stratum_counts(axes: Axes, bins: Sequence[Json]) -> None:
    bottom = np.zeros(len(bins))
    for name in CLASSES:
        counts = np.array([part["counts"][name] for part in bins])
        axes.bar(range(len(bins)), counts, bottom=bottom, color=CLASS_COLOURS[name], label=name, width=0.8)
        bottom = bottom + counts
    axes.set_xticks(range(len(bins)), [_range(part) for part in bins], rotation=40, ha="right", fontsize=7)


def _log_line(axes: Axes, records: Sequence[Json], key: str, label: str, **style: Any) -> None:
    known = [(record["epoch"], record[key]) for record in records if record.get(key) is not None]
    if known:
        axes.plot(*zip(*known, strict=True), label=label, lw=1.3, marker="." if len(known) < 40 else None, **style)


# --- catalogue: what is counted --------------------------------------------------------------------

MAGNITUDE_BIN = 0.5
COLOUR_FRAME = {"w2-w3": (-1.5, 6.0, 0.1), "w1-w2": (-1.0, 2.5, 0.05)}
"""Axis of the colour-colour figure -> low, high, bin (Vega mag)."""
PROBABILITY_BINS = 40
MOST_CELLS, ROWS_PER_CELL = 64, 10
"""A map of a field has at most so many cells on a side, and so many sources in a cell or more, on average."""
ALL_SKY_DEG, ALL_SKY_ORDER = 40.0, 5
"""Catalogues wider than this radius are drawn on the whole sky, by HEALPix pixels of this order."""


def catalogue_statistics(classes: ClassCatalog) -> dict[str, Any]:
    """Return what a report says of a class catalogue: counts by class, magnitude, colour, place, probability, flag.

    Every number is an aggregate that DuckDB streams from the files, so memory follows the bins, not the rows.
    """
    training = classes.manifest.provenance.get("info", {}).get("model", {}).get("training", {})
    return {
        "label": classes.manifest.label,
        "simulated": bool(training.get("simulated")) or "simulated" in classes.manifest.label.lower(),
        "run_id": classes.manifest.run_id,
        "rows": classes.count(),
        "counts": classes.class_counts(),
        "magnitudes": _rows(classes, _magnitude_query()),
        "colours": _rows(classes, _colour_query()),
        "probabilities": {name: _rows(classes, _probability_query(name)) for name in CLASSES},
        "flags": _rows(classes, _flag_query())[0],
        "summary": _rows(classes, _SUMMARY),
        "sky": _sky(classes),
    }


_SUMMARY = (
    "SELECT coalesce(class, 'unclassified') AS class, count(*) AS n, count(*) FILTER (flags = 0) AS clean, "
    "avg(greatest(p_galaxy, p_quasar, p_star)) AS confidence, "
    "count(*) FILTER (greatest(p_galaxy, p_quasar, p_star) > 0.9) AS sure, median(w1mpro) AS w1mpro "
    "FROM classes GROUP BY ALL ORDER BY class"
)


def _rows(classes: ClassCatalog, query: str) -> list[dict[str, Any]]:
    return list(classes.sql_arrow(query).to_pylist())


def _magnitude_query() -> str:
    return (
        f"SELECT floor(w1mpro / {MAGNITUDE_BIN}) * {MAGNITUDE_BIN} AS low, coalesce(class, 'unclassified') AS class, "
        "count(*) AS n, avg(greatest(p_galaxy, p_quasar, p_star)) AS confidence "
        "FROM classes WHERE w1mpro BETWEEN -5 AND 30 GROUP BY ALL ORDER BY ALL"
    )


def _colour_query() -> str:
    (x0, x1, dx), (y0, y1, dy) = COLOUR_FRAME.values()
    return (
        f"SELECT class, CAST(floor((w2mpro - w3mpro - {x0}) / {dx}) AS INTEGER) AS x, "
        f"CAST(floor((w1mpro - w2mpro - {y0}) / {dy}) AS INTEGER) AS y, count(*) AS n FROM classes "
        f"WHERE class IS NOT NULL AND w2mpro - w3mpro >= {x0} AND w2mpro - w3mpro < {x1} "
        f"AND w1mpro - w2mpro >= {y0} AND w1mpro - w2mpro < {y1} GROUP BY ALL"
    )


def _probability_query(name: str) -> str:
    bins = PROBABILITY_BINS
    return (
        f"SELECT class, CAST(least(floor(p_{name} * {bins}), {bins - 1}) AS INTEGER) AS bin, count(*) AS n "
        "FROM classes WHERE class IS NOT NULL GROUP BY ALL ORDER BY ALL"
    )


def _flag_query() -> str:
    counts = ", ".join(f"count(*) FILTER (flags & {flag.value} != 0) AS {flag.name}" for flag in Flag)
    return f"SELECT count(*) FILTER (flags = 0) AS clean, {counts} FROM classes"


def _sky(classes: ClassCatalog) -> dict[str, Any]:
    """Return rows by cell of sky: on a SIN projection round the middle, or by HEALPix pixel when it is wide."""
    ra, dec, radius_deg = _middle(classes)
    if radius_deg > ALL_SKY_DEG:
        shift = 2 * (29 - ALL_SKY_ORDER)
        query = f"SELECT _healpix_29 >> {shift} AS pixel, class, count(*) AS n FROM classes GROUP BY ALL"
        return {"kind": "all", "order": ALL_SKY_ORDER, "cells": _rows(classes, query)}
    across = min(MOST_CELLS, max(4, math.isqrt(classes.count() // ROWS_PER_CELL)))
    cell_deg = max(2.04 * radius_deg / across, 1 / 3600)
    x, y = _sin_projection(ra, dec)
    query = (
        f"SELECT CAST(floor({x} / {cell_deg!r}) AS INTEGER) AS x, CAST(floor({y} / {cell_deg!r}) AS INTEGER) AS y, "
        "class, count(*) AS n FROM classes GROUP BY ALL"
    )
    return {"kind": "field", "ra": ra, "dec": dec, "cell_deg": cell_deg, "cells": _rows(classes, query)}


def _middle(classes: ClassCatalog) -> tuple[float, float, float]:
    """Return RA, Dec (deg) of the middle of a catalogue, and the radius (deg) that holds every source."""
    if not classes.count():
        return 0.0, 0.0, 0.0
    vector = "cos(radians(ra)) * cos(radians(dec))", "sin(radians(ra)) * cos(radians(dec))", "sin(radians(dec))"
    means = ", ".join(f"avg({part})" for part in vector)
    mean = np.array([column[0].as_py() for column in classes.sql_arrow(f"SELECT {means} FROM classes").columns])
    length = float(np.linalg.norm(mean))
    if length < 1e-9:  # sources all round the sky have no middle
        return 0.0, 0.0, 180.0
    x, y, z = (mean / length).tolist()
    cosine = " + ".join(f"({part}) * {value!r}" for part, value in zip(vector, (x, y, z), strict=True))
    least = classes.sql_arrow(f"SELECT min({cosine}) AS c FROM classes")["c"][0].as_py()
    ra, dec = math.degrees(math.atan2(y, x)) % 360, math.degrees(math.asin(min(max(z, -1.0), 1.0)))
    return ra, dec, math.degrees(math.acos(min(max(least, -1.0), 1.0)))


def _sin_projection(ra: float, dec: float) -> tuple[str, str]:
    """Return SQL of the offsets in degrees, east and north, from a position in degrees."""
    turn = f"radians(ra - {ra!r})"
    sin, cos = math.sin(math.radians(dec)), math.cos(math.radians(dec))
    east = f"degrees(cos(radians(dec)) * sin({turn}))"
    return east, f"degrees(sin(radians(dec)) * {cos!r} - cos(radians(dec)) * {sin!r} * cos({turn}))"


# --- catalogue: tables and figures -----------------------------------------------------------------


def catalogue_tables(statistics: Json) -> list[Table]:
    """Return the tables of a catalogue: rows by class, and by flag."""
    from .store import FLAG_MEANINGS

    total = max(1, statistics["rows"])
    by_class = [
        (r["class"], f"{r['n']:,}", f"{100 * r['n'] / total:.2f} %", _number(r["confidence"]), f"{r['sure']:,}",
         f"{r['clean']:,}", "-" if r["w1mpro"] is None else f"{r['w1mpro']:.2f}")
        for r in statistics["summary"]
    ]  # fmt: skip
    flags = statistics["flags"]
    by_flag = [("0", "clean", f"{flags['clean']:,}", "nothing was wrong with the pixels")]
    by_flag += [(str(flag.value), str(flag.name), f"{flags[flag.name]:,}", FLAG_MEANINGS[flag]) for flag in Flag]
    return [
        Table(
            "Classes",
            ("class", "sources", "share", "mean highest probability", "above 0.9", "without a flag", "median W1 (mag)"),
            tuple(by_class),
            "The class is that of the highest probability. It is not a pure sample: rare classes hold many strays.",
        ),
        Table("Flags", ("bit", "name", "sources", "meaning"), tuple(by_flag), "A source may carry several."),
    ]


CATALOGUE_FIGURES = {
    "magnitudes": "Sources, shares of the classes and mean highest probability by W1",
    "colours": "Colour-colour density of each class; lines are the two plain cuts",
    "sky": "Sources by place",
    "probabilities": "Probabilities: of all sources, and of those given the class",
}


def catalogue_figures(statistics: Json) -> dict[str, Figure]:
    """Return the figures of a catalogue by name."""
    words = "model trained on a SIMULATED sky" if statistics["simulated"] else ""
    sky = all_sky_figure if statistics["sky"]["kind"] == "all" else field_figure
    return {
        "magnitudes": magnitude_figure(statistics["magnitudes"], words),
        "colours": colour_figure(statistics["colours"], words),
        "sky": sky(statistics["sky"], words),
        "probabilities": probability_figure(statistics["probabilities"], words),
    }


def magnitude_figure(rows: Sequence[Json], words: str = "") -> Figure:
    """Return counts, class shares and mean highest probability by W1 from rows of `low`, `class`, `n`, `confidence`."""
    figure = _figure(10.5, 3.4, "By W1 magnitude", words)
    counts, shares, sure = figure.subplots(1, 3)
    lows = np.array(sorted({row["low"] for row in rows}))
    table = {name: _by_low(rows, lows, name, "n", 0.0) for name in CLASS_COLOURS}
    total = np.maximum(sum(table.values(), np.zeros(len(lows))), 1)
    bottom = np.zeros(len(lows))
    for name, n in table.items():
        if not n.any():
            continue
        colour = CLASS_COLOURS[name]
        counts.step(lows + MAGNITUDE_BIN / 2, np.where(n > 0, n, np.nan), where="mid", color=colour, label=name)
        shares.bar(lows, n / total, MAGNITUDE_BIN, bottom, align="edge", color=colour, label=name)
        bottom = bottom + n / total
        if name in CLASSES:
            confidence = np.where(n >= FEW_ROWS, _by_low(rows, lows, name, "confidence", np.nan), np.nan)
            sure.plot(lows + MAGNITUDE_BIN / 2, confidence, marker=".", color=colour, label=name)
    counts.set_yscale("log" if rows else "linear")
    for axes, label in (
        (counts, f"sources per {MAGNITUDE_BIN} mag"),
        (shares, "share"),
        (sure, "mean highest probability"),
    ):
        axes.set_xlabel("W1 (Vega mag)")
        axes.set_ylabel(label)
    _legend(counts)
    sure.set_ylim(1 / 3, 1.01)
    return figure


def colour_figure(rows: Sequence[Json], words: str = "") -> Figure:
    """Return the density of each class in W2-W3 and W1-W2, from rows of `class`, `x`, `y` (bins), `n`."""
    (x0, x1, dx), (y0, y1, dy) = COLOUR_FRAME.values()
    shape = round((y1 - y0) / dy), round((x1 - x0) / dx)
    figure, panels = _panels(len(CLASSES), "Colours", words, share=True)
    for axes, name in zip(panels, CLASSES, strict=True):
        cells = [row for row in rows if row["class"] == name]
        image = _density(axes, cells, shape, (0, 0), (x0, x1, y0, y1))
        axes.axhline(0.8, color="#555555", lw=0.8, ls=":")
        axes.plot([1.5, 1.5], [y0, 0.8], color="#555555", lw=0.8, ls=":")
        axes.set_title(f"{name}: {sum(row['n'] for row in cells):,}", fontsize=9)
        axes.set_xlabel("W2-W3 (Vega mag)")
        if image:
            figure.colorbar(image, ax=axes, shrink=0.8, label="sources per bin" if name == CLASSES[-1] else "")
    panels[0].set_ylabel("W1-W2 (Vega mag)")
    return figure


def field_figure(sky: Json, words: str = "") -> Figure:
    """Return maps of one field, all sources and each class: sources per square degree, east to the left."""
    figure, panels = _panels(1 + len(CLASSES), "Sources per square degree", words, share=True)
    cells, cell = sky["cells"], sky["cell_deg"]
    xs, ys = ([row[axis] for row in cells] or [0] for axis in "xy")
    low, shape = (min(ys), min(xs)), (max(ys) - min(ys) + 1, max(xs) - min(xs) + 1)
    extent = (low[1] * cell, (low[1] + shape[1]) * cell, low[0] * cell, (low[0] + shape[0]) * cell)
    for axes, name in zip(panels, ("all", *CLASSES), strict=True):
        chosen = [row for row in cells if name in ("all", row["class"])]
        if image := _density(axes, chosen, shape, low, extent, per_area=1 / cell**2):
            figure.colorbar(image, ax=axes, shrink=0.75)
        axes.set_aspect("equal")
        axes.set_title(f"{name}: {sum(row['n'] for row in chosen):,}", fontsize=9)
        axes.set_xlabel(f"east of RA {sky['ra']:.3f} (deg)")
    panels[0].invert_xaxis()
    panels[0].set_ylabel(f"north of Dec {sky['dec']:+.3f} (deg)")
    return figure


def all_sky_figure(sky: Json, words: str = "") -> Figure:
    """Return maps of the whole sky, Mollweide, RA growing to the left from 180 at the rim: sources by pixel."""
    from matplotlib.colors import LogNorm

    from .sky import pixel_centres

    title = f"Sources by HEALPix pixel of order {sky['order']}, RA 0 in the middle and growing to the left"
    figure = _figure(10.5, 5.2, title, words)
    panels = figure.subplots(2, 2, subplot_kw={"projection": "mollweide"}).ravel()
    for axes, name in zip(panels, ("all", *CLASSES), strict=True):
        chosen = [row for row in sky["cells"] if name in ("all", row["class"])]
        total = np.bincount([row["pixel"] for row in chosen], [row["n"] for row in chosen], 12 * 4 ** sky["order"])
        pixels = np.flatnonzero(total)
        ra, dec = pixel_centres(sky["order"], pixels)
        lon = -np.radians((ra + 180) % 360 - 180)
        axes.set_title(f"{name}: {int(total.sum()):,}", fontsize=9)
        axes.set_xticklabels([])
        axes.grid(alpha=0.3)
        if len(pixels):
            norm = LogNorm(1, max(2, total.max()))
            dots = axes.scatter(lon, np.radians(dec), c=total[pixels], s=4, lw=0, cmap="viridis", norm=norm)
            figure.colorbar(dots, ax=axes, shrink=0.6, label="sources")
    return figure


def probability_figure(by_class: Mapping[str, Sequence[Json]], words: str = "") -> Figure:
    """Return a histogram of each probability: all sources in outline, those given that class filled."""
    figure, panels = _panels(len(CLASSES), "Probabilities", words, share=True)
    edges = np.linspace(0, 1, PROBABILITY_BINS + 1)
    for axes, (name, rows) in zip(panels, by_class.items(), strict=True):
        everyone, own = (
            np.bincount([r["bin"] for r in part], [r["n"] for r in part], PROBABILITY_BINS)
            for part in (rows, [row for row in rows if row["class"] == name])
        )
        axes.bar(edges[:-1], own, 1 / PROBABILITY_BINS, align="edge", color=CLASS_COLOURS[name], label=f"given {name}")
        axes.stairs(everyone, edges, color="black", lw=1, label="all")
        axes.set_yscale("log" if rows else "linear")
        axes.set_xlabel(f"probability of {name}")
        _legend(axes, "upper center")
    most = max((sum(r["n"] for r in rows) for rows in by_class.values()), default=0)
    panels[0].set_ylim(0.7, 2 * max(most, 1))
    panels[0].set_ylabel("sources per bin")
    return figure


def _by_low(rows: Sequence[Json], lows: Float64, name: str, key: str, empty: float) -> Float64:
    found = {row["low"]: row[key] for row in rows if row["class"] == name and row[key] is not None}
    return np.array([found.get(low, empty) for low in lows.tolist()], np.float64)


def _density(
    axes: Axes,
    cells: Sequence[Json],
    shape: tuple[int, int],
    low: tuple[int, int],
    extent: tuple[float, float, float, float],
    per_area: float | None = None,
) -> Any:
    """Draw counts by cell, empty cells white; return the image, None without cells.

    Counts are on a logarithmic scale, densities (counts times `per_area`) on a linear one from 0.
    """
    from matplotlib.colors import LogNorm, Normalize

    grid = np.zeros(shape)
    for row in cells:
        grid[min(row["y"] - low[0], shape[0] - 1), min(row["x"] - low[1], shape[1] - 1)] += row["n"] * (per_area or 1)
    axes.set_xlim(*extent[:2])
    axes.set_ylim(*extent[2:])
    if not cells:
        return None
    norm = Normalize(0, grid.max()) if per_area else LogNorm(1, max(2, grid.max()))
    filled = np.ma.masked_equal(grid, 0)
    return axes.imshow(filled, origin="lower", extent=extent, aspect="auto", cmap="viridis", norm=norm)


# --- pages -----------------------------------------------------------------------------------------


def write_html(folder: str | Path, out: str | Path | None = None) -> Path:
    """Return the path of one HTML page, which needs no other file, on an evaluation folder or a class catalogue.

    Written to `out`; by default to report.html in the folder of an evaluation, or here for a catalogue. Raises
    `ConfigError` where the evaluation is of another version, `StoreError` where there is neither.
    """
    from . import store
    from .query import open_catalog

    source = Path(folder)
    if (source / RESULTS).is_file():
        page, target = evaluation_page(source), Path(out or source / "report.html")
    else:
        page, target = catalogue_page(open_catalog(source)), Path(out or "report.html")
    store.write_bytes(target, page.encode())
    return target


def read_evaluation(folder: str | Path) -> dict[str, Any]:
    """Return what `evaluation.json` in a folder holds; `ConfigError` when it is none or of another version."""
    path = Path(folder) / RESULTS
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): run `skyclass evaluate` again") from error
    if not isinstance(results, dict) or results.get("schema") != "skyclass evaluation 1":
        raise ConfigError(f"{path} is no evaluation of this version: run `skyclass evaluate` again")
    return results


def evaluation_page(folder: Path) -> str:
    """Return the page of an evaluation folder: its tables, and the figures that lie there."""
    results = read_evaluation(folder)
    files = {name: folder / f"{name}.png" for name in EVALUATION_FIGURES}
    pictures = {EVALUATION_FIGURES[n]: path.read_bytes() for n, path in files.items() if path.is_file()}
    details = {m["name"]: m["training"] for m in results["models"]} | {"dataset": results["dataset"]["provenance"]}
    body = [_list(results["caveats"], "warning"), _list(_facts(results))]
    return _page(_title(results), stamp(results), body, evaluation_tables(results), pictures, details)


def catalogue_page(classes: ClassCatalog) -> str:
    """Return the page of a published class catalogue."""
    statistics = catalogue_statistics(classes)
    pictures = {CATALOGUE_FIGURES[name]: png(figure) for name, figure in catalogue_figures(statistics).items()}
    words = "classes of a model trained on a SIMULATED sky" if statistics["simulated"] else ""
    facts = [f"{statistics['rows']:,} sources, run {statistics['run_id']}", f"Model: {statistics['label']}"]
    title = "Class catalogue" + (f" ({words})" if words else "")
    tables = catalogue_tables(statistics)
    return _page(title, words, [_list(facts)], tables, pictures, dict(classes.manifest.provenance))


def _page(
    title: str,
    banner: str,
    body: Sequence[str],
    tables: Sequence[Table],
    pictures: Mapping[str, bytes],
    details: Json,
) -> str:
    parts = [f"<h1>{html.escape(title)}</h1>"]
    parts += [f'<p class="banner">{html.escape(banner)}: not a result on the real sky</p>'] if banner else []
    parts += [*body, *(_html_table(table) for table in tables[:1])]
    parts += [_html_picture(caption, data) for caption, data in pictures.items()]
    parts += [_html_table(table) for table in tables[1:]]
    text = html.escape(json.dumps(details, indent=1, default=str))
    parts.append(f"<details><summary>Provenance</summary><pre>{text}</pre></details>")
    parts.append(f"<footer>skyclass {html.escape(__version__)}</footer>")
    return _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(parts))


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin: 2rem 0 .4rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; display: block; overflow-x: auto }
th, td { padding: .25rem .7rem; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap }
th { border-bottom: 2px solid #888 } th:first-child, td:first-child { text-align: left }
td.text { text-align: left; white-space: normal }
figure { margin: 1.5rem 0 } img { max-width: 100%; height: auto } figcaption, .note, footer { color: #555 }
.banner { background: #fff1e0; border-left: 5px solid #D55E00; padding: .6rem 1rem; font-weight: 600 }
.warning { background: #f6f6f6; padding: .6rem .6rem .6rem 2rem } pre { overflow-x: auto; font-size: .8rem }
"""


def _list(lines: Sequence[str], kind: str = "facts") -> str:
    return f'<ul class="{kind}">' + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>"


def _html_table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in table.columns)
    rows = "".join("<tr>" + "".join(map(_html_cell, row)) + "</tr>" for row in table.rows)
    note = f'<p class="note">{html.escape(table.note)}</p>' if table.note else ""
    title = f"<h2>{html.escape(table.title)}</h2>"
    return f"{title}\n<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}"


def _html_cell(text: str) -> str:
    kind = ' class="text"' if len(text) > 40 or text.isupper() else ""
    return f"<td{kind}>{html.escape(text)}</td>"


def _html_picture(caption: str, data: bytes) -> str:
    source = "data:image/png;base64," + base64.b64encode(data).decode()
    words = html.escape(caption)
    return f'<figure><img alt="{words}" src="{source}"><figcaption>{words}</figcaption></figure>'


# --- figures in general ----------------------------------------------------------------------------


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG and return the path."""
    Path(path).write_bytes(png(figure))
    return Path(path)


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def _figure(width_in: float, height_in: float, title: str, words: str) -> Figure:
    """Return an empty figure with its title; `words` stand beside it in the colour of a warning."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("figures need matplotlib: pip install 'skyclass[train]'") from error
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    figure.suptitle(f"{title} - {words}" if words else title, fontsize=11, color="#A33F00" if words else "black")
    return figure


def _panels(n: int, title: str, words: str, height: float = PANEL_IN, share: bool = False) -> tuple[Figure, list[Axes]]:
    """Return a figure of n small panels, at most four in a row."""
    columns = min(n, 4)
    rows = math.ceil(n / columns)
    figure = _figure(max(2, columns) * (PANEL_IN + 0.15), rows * height + 0.35, title, words)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for spare in grid[n:]:
        spare.remove()
    return figure, list(grid[:n])


def _legend(axes: Axes, loc: Literal["best", "upper center", "lower right"] = "best") -> None:
    """Add a legend where there is something to explain."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, labels, fontsize=7, loc=loc)
