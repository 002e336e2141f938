"""What the report says of a catalogue with a prior: expected counts, purity and completeness, and cuts for a purity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..catalog.expected import Cut, ExpectedRates, cut_for_purity, expected_rates
from ..catalog.prior_files import read_prior_file
from ..sky.galactic import NORTH_POLE_DEG
from ..types import Float64
from .drawing import FEW_ROWS, Json, class_colours, legend, new_figure
from .page import Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..catalog.query import ClassCatalog

PURITIES = (0.8, 0.9, 0.95)
"""Purities for which the report recommends cuts."""
CUT_BINS = 100
EXPECTATION_CAPTION = "Purity and completeness of class_sky that are expected from the probabilities, by W1"
NOTE = (
    "These numbers follow from p_<class>_sky alone and do not test the probabilities. Completeness is the share of the "
    "sources of a class in this catalogue, with p_<class>_sky, that class_sky finds. Sources without p_<class>_sky do "
    "not count, nor do sources that are not in the input. (a to b) is a 95 % interval from the estimated shares. "
    "Purity, completeness and F1 have no interval."
)


def expectations(classes: ClassCatalog) -> Json | None:
    """Return the expected confusion matrices of a catalogue by W1 and |b|, and its cuts; None without a prior."""
    if classes.manifest.prior_key is None:
        return None
    document = read_prior_file(classes.root)
    names, prior = classes.manifest.class_names, document["prior"]
    cells = classes.sql_arrow(_cell_query(names, prior["w1_edges"], prior["abs_b_edges"])).to_pylist()
    return {
        "classes": list(names),
        "label": prior["label"],
        "prior_id": document["prior_id"],
        "w1_edges": prior["w1_edges"],
        "abs_b_edges": prior["abs_b_edges"],
        "cells": cells,
        "bins": document["bins"],
        "cuts": {name: classes.sql_arrow(_cut_query(name)).to_pylist() for name in names},
    }


def _cell_query(names: Sequence[str], w1_edges: Sequence[float], abs_b_edges: Sequence[float]) -> str:
    sums = ", ".join(f'sum(p_{name}_sky) AS "p_{name}"' for name in names)
    w1, b = _bin("coalesce(w1mpro, w1_aperture)", w1_edges), _bin(_abs_b(), abs_b_edges)
    return (
        f"SELECT {w1} AS w1, {b} AS b, class_sky, count(*) AS n, {sums} "
        "FROM classes WHERE class_sky IS NOT NULL GROUP BY ALL ORDER BY ALL"
    )


def _bin(value: str, edges: Sequence[float]) -> str:
    """Return SQL for the bin of a value."""
    return " + ".join(f"CAST({value} >= {edge!r} AS INTEGER)" for edge in edges[1:-1]) or "0"


def _abs_b() -> str:
    """Return SQL for |b| in degrees."""
    ra, dec = NORTH_POLE_DEG
    sin, cos = math.sin(math.radians(dec)), math.cos(math.radians(dec))
    sine = f"sin(radians(dec)) * {sin!r} + cos(radians(dec)) * {cos!r} * cos(radians(ra - {ra!r}))"
    return f"degrees(asin(least(1.0, abs({sine}))))"


def _cut_query(name: str) -> str:
    column = f"p_{name}_sky"
    return (
        f"SELECT CAST(least(floor({column} * {CUT_BINS}), {CUT_BINS - 1}) AS INTEGER) AS bin, count(*) AS n, "
        f"sum({column}) AS p_sum FROM classes WHERE {column} IS NOT NULL GROUP BY ALL ORDER BY ALL"
    )


def confusion_of(cells: Sequence[Json], classes: Sequence[str]) -> Float64:
    """Return the expected counts (K, K) over cells: rows are true classes, columns are values of `class_sky`."""
    table = np.zeros((len(classes), len(classes)))
    for cell in cells:
        table[:, classes.index(cell["class_sky"])] += [cell[f"p_{name}"] for name in classes]
    return table


def expectation_tables(found: Json) -> list[Table]:
    """Return the tables of the expectations: all sources, by W1 and |b|, and cuts."""
    return [_total_table(found), _cell_table(found), _cut_table(found)]


def _total_table(found: Json) -> Table:
    classes = found["classes"]
    rates, ranges = expected_rates(confusion_of(found["cells"], classes)), _count_ranges(found)
    rows = tuple(
        (name, f"{rates.n_predicted[i]:,.0f}", f"{rates.n_expected[i]:,.0f}{ranges[i]}", *_shown(rates, i))
        for i, name in enumerate(classes)
    )
    return Table(
        f"Expected for the class shares of {found['prior_id']} ({found['label']})",
        ("class", "class_sky", "expected sources", "purity", "completeness", "F1"),
        rows,
        NOTE,
    )


def _count_ranges(found: Json) -> list[str]:
    """Return the 95 % interval of the expected sources of each class from those of estimated shares, as text.

    The errors of the bins add up, because bins of |b| share a calibration.
    """
    bins = [one for one in found["bins"] if not one["refusal"]]
    if not bins:
        return [""] * len(found["classes"])
    n = np.array([one["n_sources"] for one in bins])[:, None]
    share, ends = np.array([one["shares"] for one in bins]), np.array([one["intervals"] for one in bins])
    scale = sum(cell["n"] for cell in found["cells"]) / n.sum()  # outliers have probabilities and take no other part
    low, high = (scale * (n * np.maximum(sign * (ends[:, :, i] - share), 0)).sum(0) for i, sign in ((0, -1), (1, 1)))
    total = confusion_of(found["cells"], found["classes"]).sum(axis=1)
    return [f" ({max(0.0, t - a):,.0f} to {t + b:,.0f})" for t, a, b in zip(total, low, high, strict=True)]


def _shown(rates: ExpectedRates, i: int) -> tuple[str, ...]:
    return tuple(_rate(value[i]) for value in (rates.purity, rates.completeness, rates.f1))


def _rate(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _cell_table(found: Json) -> Table:
    classes, rows = found["classes"], []
    for i, (w1, w1_end) in enumerate(zip(found["w1_edges"], found["w1_edges"][1:], strict=False)):
        for j, (b, b_end) in enumerate(zip(found["abs_b_edges"], found["abs_b_edges"][1:], strict=False)):
            cells = [cell for cell in found["cells"] if (cell["w1"], cell["b"]) == (i, j)]
            if not cells:
                continue
            rates = expected_rates(confusion_of(cells, classes))
            by_class = (
                f"{_rate(rates.purity[k])} / {_rate(rates.completeness[k])} ({rates.n_expected[k]:,.0f})"
                for k in range(len(classes))
            )
            n = sum(cell["n"] for cell in cells)
            rows.append((f"{w1:g} to {w1_end:g}", f"{b:g} to {b_end:g}", f"{n:,}", *by_class))
    return Table(
        "Expected purity and completeness by W1 and |b|",
        ("W1 (mag)", "|b| (deg)", "sources", *(f"{name}: purity / completeness (expected)" for name in classes)),
        tuple(rows),
    )


def _cut_table(found: Json) -> Table:
    rows = []
    for name in found["classes"]:
        bins = found["cuts"][name]
        limits, n, p_sum = (np.array([row[key] for row in bins], np.float64) for key in ("bin", "n", "p_sum"))
        for purity in PURITIES:
            cut = cut_for_purity(limits / CUT_BINS, n, p_sum, purity) if bins else None
            rows.append((name, f"{purity:g}", *(_cut_cells(name, cut) if cut else ("none", "-", "-", "-"))))
    return Table(
        "Cuts for a purity",
        ("class", "wanted purity", "condition", "sources", "expected purity", "expected completeness"),
        tuple(rows),
        "The most complete sample whose expected purity is the wanted one or higher. A condition holds for all "
        "sources of this catalogue together, not for a range of W1, a part of the sky or a further selection.",
    )


def _cut_cells(name: str, cut: Cut) -> tuple[str, ...]:
    return f"p_{name}_sky >= {cut.limit:.2f}", f"{cut.n:,}", _rate(cut.purity), _rate(cut.completeness)


def expectation_figure(found: Json, warning: str = "") -> Figure:
    """Return expected purity and completeness of `class_sky` by W1."""
    figure = new_figure(10.5, 3.4, "Expected of class_sky, for the class shares of the prior", warning)
    edges, classes, colours = found["w1_edges"], found["classes"], class_colours(found["classes"])
    panels: Any = figure.subplots(1, 2, sharey=True)
    by_bin = [[cell for cell in found["cells"] if cell["w1"] == i] for i in range(len(edges) - 1)]
    rates = [expected_rates(confusion_of(cells, classes)) for cells in by_bin]
    middle = (np.array(edges[1:]) + np.array(edges[:-1])) / 2
    for axes, key in zip(panels, ("purity", "completeness"), strict=True):
        for k, name in enumerate(classes):
            values = [getattr(one, key)[k] if one.n_expected[k] >= FEW_ROWS else np.nan for one in rates]
            axes.plot(middle, values, marker=".", color=colours[name], label=name)
        axes.set_xlabel("W1 (Vega mag)")
        axes.set_ylabel(f"expected {key}")
        axes.set_ylim(0, 1.03)
    legend(panels[0], "lower right")
    return figure
