"""The figures of a class catalogue, drawn from the counts of `catalogue_counts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..schema import UNCLASSIFIED
from ..types import Float64
from .catalogue_counts import COLOUR_FRAME, MAGNITUDE_BIN, PROBABILITY_BINS
from .drawing import FEW_ROWS, Json, class_colours, legend, new_figure, new_panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CATALOGUE_FIGURES = {
    "magnitudes": "Sources, shares of the classes and mean highest probability by W1",
    "colours": "Colour-colour density of each class; dotted lines are the colour cuts",
    "sky": "Sources by position",
    "probabilities": "Probabilities: of all sources, and of those with the class",
}
"""Figure -> caption, in the order of the page."""


def catalogue_figures(statistics: Json) -> dict[str, Figure]:
    """Return the figures of a catalogue by name."""
    warning = "model trained on a SIMULATED sky" if statistics["simulated"] else ""
    sky = all_sky_figure if statistics["sky"]["kind"] == "all" else field_figure
    classes = statistics["classes"]
    return {
        "magnitudes": magnitude_figure(statistics["magnitudes"], classes, warning),
        "colours": colour_figure(statistics["colours"], classes, warning),
        "sky": sky(statistics["sky"], classes, warning),
        "probabilities": probability_figure(statistics["probabilities"], warning),
    }


def magnitude_figure(rows: Sequence[Json], classes: Sequence[str], warning: str = "") -> Figure:
    """Return count, share and mean highest probability by W1, from rows of `low`, `class`, `n`, `confidence`."""
    figure = new_figure(10.5, 3.4, "By W1 magnitude", warning)
    counts, shares, confidences = figure.subplots(1, 3)
    lows = np.array(sorted({row["low"] for row in rows}))
    n_by_class = {name: _by_low(rows, lows, name, "n", 0.0) for name in (*classes, UNCLASSIFIED)}
    colours = class_colours(classes)
    total = np.maximum(sum(n_by_class.values(), np.zeros(len(lows))), 1)
    bottom = np.zeros(len(lows))
    for name, n in n_by_class.items():
        if not n.any():
            continue
        colour = colours[name]
        counts.step(lows + MAGNITUDE_BIN / 2, np.where(n > 0, n, np.nan), where="mid", color=colour, label=name)
        shares.bar(lows, n / total, MAGNITUDE_BIN, bottom, align="edge", color=colour, label=name)
        bottom = bottom + n / total
        if name != UNCLASSIFIED:
            confidence = np.where(n >= FEW_ROWS, _by_low(rows, lows, name, "confidence", np.nan), np.nan)
            confidences.plot(lows + MAGNITUDE_BIN / 2, confidence, marker=".", color=colour, label=name)
    counts.set_yscale("log" if rows else "linear")
    for axes, label in (
        (counts, f"sources per {MAGNITUDE_BIN} mag"),
        (shares, "share"),
        (confidences, "mean highest probability"),
    ):
        axes.set_xlabel("W1 (Vega mag)")
        axes.set_ylabel(label)
    legend(counts)
    confidences.set_ylim(1 / len(classes), 1.01)
    return figure


def colour_figure(rows: Sequence[Json], classes: Sequence[str], warning: str = "") -> Figure:
    """Return the density of each class in W2-W3 and W1-W2, from rows of `class`, `x` and `y` (bins), `n`."""
    (x0, x1, dx), (y0, y1, dy) = COLOUR_FRAME.values()
    shape = round((y1 - y0) / dy), round((x1 - x0) / dx)
    figure, panels = new_panels(len(classes), "Colours", warning, share=True)
    for axes, name in zip(panels, classes, strict=True):
        cells = [row for row in rows if row["class"] == name]
        image = _density(axes, cells, shape, (0, 0), (x0, x1, y0, y1))
        axes.axhline(0.8, color="#555555", lw=0.8, ls=":")
        axes.plot([1.5, 1.5], [y0, 0.8], color="#555555", lw=0.8, ls=":")
        axes.set_title(f"{name}: {sum(row['n'] for row in cells):,}", fontsize=9)
        axes.set_xlabel("W2-W3 (Vega mag)")
        if image:
            figure.colorbar(image, ax=axes, shrink=0.8, label="sources per bin" if name == classes[-1] else "")
    panels[0].set_ylabel("W1-W2 (Vega mag)")
    return figure


def field_figure(sky: Json, classes: Sequence[str], warning: str = "") -> Figure:
    """Return maps of one field, of all sources and of each class: sources per square degree, east to the left."""
    figure, panels = new_panels(1 + len(classes), "Sources per square degree", warning, share=True)
    cells, cell_deg = sky["cells"], sky["cell_deg"]
    xs, ys = ([row[axis] for row in cells] or [0] for axis in "xy")
    low, shape = (min(ys), min(xs)), (max(ys) - min(ys) + 1, max(xs) - min(xs) + 1)
    x_deg, y_deg = ((low[i] * cell_deg, (low[i] + shape[i]) * cell_deg) for i in (1, 0))
    extent = (*x_deg, *y_deg)
    for axes, name in zip(panels, ("all", *classes), strict=True):
        selected = [row for row in cells if name in ("all", row["class"])]
        if image := _density(axes, selected, shape, low, extent, per_area=1 / cell_deg**2):
            figure.colorbar(image, ax=axes, shrink=0.75)
        axes.set_aspect("equal")
        axes.set_title(f"{name}: {sum(row['n'] for row in selected):,}", fontsize=9)
        axes.set_xlabel(f"east of RA {sky['ra']:.3f} (deg)")
    panels[0].invert_xaxis()
    panels[0].set_ylabel(f"north of Dec {sky['dec']:+.3f} (deg)")
    return figure


def all_sky_figure(sky: Json, classes: Sequence[str], warning: str = "") -> Figure:
    """Return Mollweide maps of the whole sky: sources by HEALPix pixel, RA 0 in the middle, growing to the left."""
    from matplotlib.colors import LogNorm

    from ..sky.healpix import pixel_centres

    title = f"Sources by HEALPix pixel of order {sky['order']}, RA 0 in the middle and growing to the left"
    n_rows = (len(classes) + 2) // 2
    figure = new_figure(10.5, 2.6 * n_rows, title, warning)
    panels = figure.subplots(n_rows, 2, subplot_kw={"projection": "mollweide"}).ravel()
    for unused in panels[1 + len(classes) :]:
        unused.remove()
    panels = panels[: 1 + len(classes)]
    for axes, name in zip(panels, ("all", *classes), strict=True):
        selected = [row for row in sky["cells"] if name in ("all", row["class"])]
        total = np.bincount([row["pixel"] for row in selected], [row["n"] for row in selected], 12 * 4 ** sky["order"])
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


def probability_figure(by_class: Mapping[str, Sequence[Json]], warning: str = "") -> Figure:
    """Return a histogram of the probability of each class: all sources in outline, those with the class filled."""
    figure, panels = new_panels(len(by_class), "Probabilities", warning, share=True)
    edges, colours = np.linspace(0, 1, PROBABILITY_BINS + 1), class_colours(by_class)
    for axes, (name, rows) in zip(panels, by_class.items(), strict=True):
        n_all, n_class = (
            np.bincount([row["bin"] for row in selected], [row["n"] for row in selected], PROBABILITY_BINS)
            for selected in (rows, [row for row in rows if row["class"] == name])
        )
        axes.bar(edges[:-1], n_class, 1 / PROBABILITY_BINS, align="edge", color=colours[name], label=f"class {name}")
        axes.stairs(n_all, edges, color="black", lw=1, label="all")
        axes.set_yscale("log" if rows else "linear")
        axes.set_xlabel(f"probability of {name}")
        legend(axes, "upper center")
    most = max((sum(r["n"] for r in rows) for rows in by_class.values()), default=0)
    panels[0].set_ylim(0.7, 2 * max(most, 1))
    panels[0].set_ylabel("sources per bin")
    return figure


def _by_low(rows: Sequence[Json], lows: Float64, name: str, key: str, empty: float) -> Float64:
    """Return one value of a class by magnitude bin (len(lows),); `empty` for a bin without rows."""
    values = {row["low"]: row[key] for row in rows if row["class"] == name and row[key] is not None}
    return np.array([values.get(low, empty) for low in lows.tolist()], np.float64)


def _density(
    axes: Axes,
    cells: Sequence[Json],
    shape: tuple[int, int],
    low: tuple[int, int],
    extent: tuple[float, float, float, float],
    per_area: float | None = None,
) -> Any:
    """Draw counts by cell, empty cells in white. Return the image, or None without cells.

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
