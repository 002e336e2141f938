"""A published class catalogue in tables, figures and a page.

ClassCatalog -> SQL aggregates -> tables, figures -> page
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..types import CLASSES, Flag, Float64
from .drawing import CLASS_COLOURS, FEW_ROWS, Json, Table, legend, new_figure, new_panels, number_words, png
from .page import html_list, page_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from ..catalog.query import ClassCatalog

MAGNITUDE_BIN = 0.5
COLOUR_FRAME = {"w2-w3": (-1.5, 6.0, 0.1), "w1-w2": (-1.0, 2.5, 0.05)}
"""Axis of the colour-colour figure -> low, high, bin (Vega mag)."""
PROBABILITY_BINS = 40
MOST_CELLS, ROWS_PER_CELL = 64, 10
"""A map of a field has at most so many cells on a side, and so many sources in a cell or more, on average."""
ALL_SKY_DEG, ALL_SKY_ORDER = 40.0, 5
"""Catalogues wider than this radius are drawn on the whole sky, by HEALPix pixels of this order."""

_SUMMARY = (
    "SELECT coalesce(class, 'unclassified') AS class, count(*) AS n, count(*) FILTER (flags = 0) AS clean, "
    "avg(greatest(p_galaxy, p_quasar, p_star)) AS confidence, "
    "count(*) FILTER (greatest(p_galaxy, p_quasar, p_star) > 0.9) AS sure, median(w1mpro) AS w1mpro "
    "FROM classes GROUP BY ALL ORDER BY class"
)


# --- what is counted -------------------------------------------------------------------------------


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


# --- tables and figures ----------------------------------------------------------------------------


def catalogue_tables(statistics: Json) -> list[Table]:
    """Return the tables of a catalogue: rows by class, and by flag."""
    from ..schema import FLAG_MEANINGS

    total = max(1, statistics["rows"])
    by_class = [
        (r["class"], f"{r['n']:,}", f"{100 * r['n'] / total:.2f} %", number_words(r["confidence"]), f"{r['sure']:,}",
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
    figure = new_figure(10.5, 3.4, "By W1 magnitude", words)
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
    legend(counts)
    sure.set_ylim(1 / 3, 1.01)
    return figure


def colour_figure(rows: Sequence[Json], words: str = "") -> Figure:
    """Return the density of each class in W2-W3 and W1-W2, from rows of `class`, `x`, `y` (bins), `n`."""
    (x0, x1, dx), (y0, y1, dy) = COLOUR_FRAME.values()
    shape = round((y1 - y0) / dy), round((x1 - x0) / dx)
    figure, panels = new_panels(len(CLASSES), "Colours", words, share=True)
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
    figure, panels = new_panels(1 + len(CLASSES), "Sources per square degree", words, share=True)
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

    from ..sky.healpix import pixel_centres

    title = f"Sources by HEALPix pixel of order {sky['order']}, RA 0 in the middle and growing to the left"
    figure = new_figure(10.5, 5.2, title, words)
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
    figure, panels = new_panels(len(CLASSES), "Probabilities", words, share=True)
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
        legend(axes, "upper center")
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


# --- page ------------------------------------------------------------------------------------------


def catalogue_page(classes: ClassCatalog) -> str:
    """Return the page of a published class catalogue."""
    statistics = catalogue_statistics(classes)
    pictures = {CATALOGUE_FIGURES[name]: png(figure) for name, figure in catalogue_figures(statistics).items()}
    words = "classes of a model trained on a SIMULATED sky" if statistics["simulated"] else ""
    facts = [f"{statistics['rows']:,} sources, run {statistics['run_id']}", f"Model: {statistics['label']}"]
    title = "Class catalogue" + (f" ({words})" if words else "")
    tables = catalogue_tables(statistics)
    return page_of(title, words, [html_list(facts)], tables, pictures, dict(classes.manifest.provenance))
