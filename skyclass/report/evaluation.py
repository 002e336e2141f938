"""An evaluation in tables, figures, Markdown and a page: plain dicts in, nothing of the model.

evaluation.json -> tables, figures -> Markdown, page
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError
from ..types import CLASSES, Float64
from .drawing import CLASS_COLOURS, FEW_ROWS, PANEL_IN, Json, Table, legend, new_figure, new_panels, number_words
from .page import html_list, page_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

RESULTS = "evaluation.json"
MODEL_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MODEL_MARKERS = "osD^vPX"
CUTS_COLOUR = "#777777"

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


# --- tables ----------------------------------------------------------------------------------------


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


def _with_interval(value: float | None, ends: Sequence[float | None] | None) -> str:
    if value is None or ends is None or ends[0] is None:
        return number_words(value)
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
    parts = [f"# {title_of(results)}", "\n".join(f"- **{words}**" for words in results["caveats"])]
    parts.append("\n".join(f"- {line}" for line in facts_of(results)))
    parts += [_markdown_table(table) for table in evaluation_tables(results)]
    parts += [f"![{EVALUATION_FIGURES[name]}]({name}.png)" for name in figures]
    return "\n\n".join(parts) + "\n"


def title_of(results: Json) -> str:
    names = ", ".join(model["name"] for model in results["models"])
    words = stamp(results)
    return f"Evaluation of {names}" + (f" ({words})" if words else "")


def facts_of(results: Json) -> list[str]:
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


# --- figures ---------------------------------------------------------------------------------------

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
    figure = new_figure(10.0, rows * (0.9 + 0.32 * len(models)) + 0.5, "Headline numbers", words)
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
    figure, panels = new_panels(len(models), "Confusion", words, height=PANEL_IN + 0.1)
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
    figure = new_figure(3 * PANEL_IN, 2 * PANEL_IN + 0.3, "ROC, one class against the rest", words)
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
        legend(panels[0, k], "lower right")
    for axes in panels[:, 0]:
        axes.set_ylabel("true positive rate (recall)")
    return figure


def reliability_figure(models: Sequence[Json], words: str = "") -> Figure:
    """Return one reliability diagram a model: share of right rows against probability, and rows a bin below."""
    columns = len(models)
    figure = new_figure(max(2, columns) * PANEL_IN, PANEL_IN * 1.6, "Reliability", words)
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
    legend(panels[0, 0], "lower right")
    panels[0, 0].set_ylabel("share that is right")
    panels[1, 0].set_ylabel("rows")
    return figure


def strata_figure(models: Sequence[Json], words: str = "") -> Figure:
    """Return rates by S/N, magnitude and |b|: balanced accuracy, recall of each class, and the rows below."""
    columns = list(models[0]["strata"])
    rows = ("balanced_accuracy", *CLASSES)
    figure = new_figure(1.25 * PANEL_IN * len(columns), 9.5, "Rates by brightness and place", words)
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


def loss_figure(logs: Mapping[str, Sequence[Json]], words: str = "") -> Figure:
    """Return the loss (training dashed, validation solid) and the validation accuracy by epoch, a colour a model."""
    figure = new_figure(9.0, 3.6, "Training", words)
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


# --- page ------------------------------------------------------------------------------------------


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
    body = [html_list(results["caveats"], "warning"), html_list(facts_of(results))]
    return page_of(title_of(results), stamp(results), body, evaluation_tables(results), pictures, details)
