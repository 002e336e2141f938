"""The report of an evaluation: its tables, its Markdown and its page, made from `evaluation.json` alone."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path

from ..text import counted, one_or_many
from .drawing import Json
from .evaluation_plots import EVALUATION_FIGURES
from .evaluation_results import (
    CLASS_METRIC_LABELS,
    METRIC_LABELS,
    entries,
    facts_of,
    range_label,
    simulation_warning,
    title_of,
)
from .page import Table, format_number, render

COMPARED = ("balanced_accuracy", "accuracy", "macro_f1", "macro_auc", "ece", "nll", "brier")
"""The metrics in the table of differences."""


def evaluation_page(folder: Path, results: Json) -> str:
    """Return the page of an evaluation, with the figures that its folder holds."""
    files = {caption: folder / f"{name}.png" for name, caption in EVALUATION_FIGURES.items()}
    training = {model["name"]: model["training"] for model in results["models"]}
    return render(
        "page.html",
        title=title_of(results),
        warning=simulation_warning(results),
        caveats=results["caveats"],
        facts=facts_of(results),
        tables=evaluation_tables(results),
        pictures={caption: path.read_bytes() for caption, path in files.items() if path.is_file()},
        provenance=json.dumps(training | {"dataset": results["dataset"]["provenance"]}, indent=1, default=str),
    )


def markdown(results: Json, figures: Sequence[str] = ()) -> str:
    """Return an evaluation as Markdown: caveats, tables, and links to figures in the same folder."""
    return render(
        "evaluation.md",
        title=title_of(results),
        caveats=results["caveats"],
        facts=facts_of(results),
        tables=evaluation_tables(results),
        figures={name: EVALUATION_FIGURES[name] for name in figures},
    )


def evaluation_tables(results: Json) -> list[Table]:
    """Return the tables of an evaluation: overall, by class, confusion, differences, precision, strata."""
    models = entries(results)
    tables = [_overall_table(results), *map(_class_table, models), *map(_confusion_table, models)]
    if results["differences"]:
        tables.append(_difference_table(results["differences"]))
    tables += [*_sky_precision_tables(models), *(_natural_table(m) for m in models if m["natural"])]
    return tables + [_stratum_table(column, models) for column in models[0]["strata"]]


def _overall_table(results: Json) -> Table:
    models = entries(results)
    rows = [
        (label, *(_with_interval(m.get(name), m["intervals"].get(name)) for m in models))
        for name, label in METRIC_LABELS.items()
    ]
    rows_of_split = f"{counted(results['n'], 'row')} of split {results['split']}"
    note = f"{rows_of_split}; value [95 % bootstrap interval]. {_ZERO_WIDTH_NOTE} {_ECE_NOTE}"
    return Table("Overall", ("metric", *(m["name"] for m in models)), tuple(rows), note)


def _class_table(model: Json) -> Table:
    labels = {name: label for name, label in CLASS_METRIC_LABELS.items() if name in model}
    counts = [sum(row) for row in model["confusion"]]
    rows = [
        (k, *(_with_interval(model[name][k], model["intervals"][name][k]) for name in labels), f"{n:,}")
        for k, n in zip(model["classes"], counts, strict=True)
    ]
    overall = [_with_interval(model[f"macro_{name}"], model["intervals"][f"macro_{name}"]) for name in labels]
    rows.append(("overall", *overall, f"{sum(counts):,}"))
    note = "Each class against the rest, as in Table 2 of Zhao et al. (2023); overall is the mean of the classes."
    return Table(f"By class: {model['name']}", ("class", *labels.values(), "n"), tuple(rows), note)


def _confusion_table(model: Json) -> Table:
    rows = [
        (f"true {name}", *(f"{n:,}" for n in row))
        for name, row in zip(model["classes"], model["confusion"], strict=True)
    ]
    columns = ("", *(f"predicted {name}" for name in model["classes"]))
    return Table(f"Confusion: {model['name']}", columns, tuple(rows))


def _difference_table(differences: Sequence[Json]) -> Table:
    names = [name for name in COMPARED if any(name in pair["numbers"] for pair in differences)]
    labels = [METRIC_LABELS[name].split(" (")[0].split(",")[0] for name in names]
    rows = [
        (f"{pair['b']} - {pair['a']}", *(_difference(pair["numbers"].get(name)) for name in names))
        for pair in differences
    ]
    note = "Paired bootstrap of the same rows; * marks an interval without 0. ECE, NLL and Brier: less is better."
    return Table("Differences", ("pair", *labels), tuple(rows), note)


def _sky_precision_tables(models: Sequence[Json]) -> list[Table]:
    """Return a table of the precision at sky shares; none where the shares of the classes are not known."""
    if models[0]["precision_at_sky"] is None:
        return []
    shares = models[0]["precision_at_sky"]["shares"]
    rows = [(m["name"], *(_estimate(m["precision_at_sky"]["precision"][k]) for k in shares)) for m in models]
    assumed = ", ".join(f"{100 * share:g} % {name}" for name, share in shares.items())
    note = (
        f"Expected precision of each class on a sky with {assumed} (assumed), from the confusion matrix of this "
        f"sample. {_ZERO_WIDTH_NOTE} At such shares, a few errors among the rows of other classes decide the precision."
    )
    return [Table("Precision at assumed class shares", ("model", *shares), tuple(rows), note)]


def _natural_table(model: Json) -> Table:
    classes = model["classes"]
    rows = tuple(
        (
            f"{entry['w1'][0]:g} to {entry['w1'][1]:g}",
            f"{entry['abs_b_deg'][0]:g} to {entry['abs_b_deg'][1]:g}",
            *(f"{100 * entry['shares'][k]:.1f} %" for k in classes),
            *(_estimate(entry[rate][k]) for k in classes for rate in ("purity", "completeness")),
        )
        for entry in model["natural"]
    )
    rates = (f"{name} {rate}" for name in classes for rate in ("purity", "completeness"))
    columns = ("W1 (mag)", "|b| (deg)", *(f"share of {name}" for name in classes), *rates)
    title = f"Purity and recall at published class shares by W1 and |b|: {model['name']}"
    return Table(title, columns, rows, _NATURAL_NOTE)


def selection_csv(results: Json) -> str:
    """Return the completeness of each model by class, W1, |b| and depth as CSV."""
    text = io.StringIO()
    lines = [{"model": model["name"], **entry} for model in entries(results) for entry in model["selection"]]
    writer = csv.DictWriter(text, list(lines[0]) if lines else ["model"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return text.getvalue()


def _stratum_table(column: str, models: Sequence[Json]) -> Table:
    strata = models[0]["strata"][column]
    rows = []
    for i, stratum in enumerate(strata["bins"]):
        rates = [_estimate(m["strata"][column]["bins"][i]["balanced_accuracy"]) for m in models]
        rows.append(
            (range_label(stratum), f"{stratum['n']:,}", *(f"{n:,}" for n in stratum["counts"].values()), *rates)
        )
    columns = (strata["label"], "n", *(f"n {k}" for k in strata["bins"][0]["counts"]), *(m["name"] for m in models))
    unknown = (
        f" {counted(strata['unknown'], 'row')} {one_or_many(strata['unknown'], 'has', 'have')} no value."
        if strata["unknown"]
        else ""
    )
    return Table(f"Balanced accuracy by {strata['label']}", columns, tuple(rows), _STRATUM_NOTE + unknown)


_ZERO_WIDTH_NOTE = (
    "An interval of zero width means that all of these rows are right, or all are wrong. It does not exclude "
    "errors: among n rows, an error rate of 3/n still has a probability of 5 % to show none."
)
_NATURAL_NOTE = (
    "At the class shares of published counts (the prior table counts), with the rates of confusion of the rows in "
    "each bin of W1 and |b|; value [95 % interval of resampled rows, without the differences between tiles]. Bins "
    "with fewer than 30 rows of a class are left out. They are not necessarily good bins."
)
_ECE_NOTE = "The intervals of the two ECE are corrected for their bias on few rows, and can therefore begin below 0."
_STRATUM_NOTE = f"A bin with - is empty. {_ZERO_WIDTH_NOTE}"


def _with_interval(value: float | None, interval: Sequence[float | None] | None) -> str:
    if value is None or interval is None or interval[0] is None:
        return format_number(value)
    return f"{value:.4f} [{interval[0]:.4f}, {interval[1]:.4f}]"


def _estimate(estimate: Sequence[float | None] | None) -> str:
    """Return a value with the ends of its interval as text."""
    return "-" if estimate is None else _with_interval(estimate[0], estimate[1:])


def _difference(estimate: Sequence[float | None] | None) -> str:
    value, low, high = estimate or (None, None, None)
    if value is None or low is None or high is None:
        return "-"
    star = "*" if low > 0 or high < 0 else ""
    return f"{value:+.4f}{star} [{low:+.4f}, {high:+.4f}]"
