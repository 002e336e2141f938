"""Draw the figures of the documentation: `python -m docs.make_figures`.

`_static/pipeline.svg` shows the path of the data, `_static/row.svg` the files that a row passes (`docs/path.py`), and
`_static/packages.svg` the packages in their import order, which is read from pyproject.toml.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import tomllib
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from docs.path import PATH, Step

FOLDER = Path(__file__).parent / "_static"
CHECKOUT = Path(__file__).parents[1]
STYLE = {"svg.hashsalt": "skyclass", "svg.fonttype": "none", "font.family": "sans-serif"}
SVG_METADATA = {"Date": None, "Creator": None}

INPUTS, STEPS, OUTPUTS = "#dbe9f6", "#e4f1df", "#fbe8d3"
BOXES = (
    ("catalogue\npartitions,\nor a table", 0, 0.0, INPUTS),
    ("Atlas images\nW1, W2, W3", 0, -1.1, INPUTS),
    ("plan\nsources by tile", 1, 0.0, STEPS),
    ("cut\ncutouts,\ncomposites", 2, 0.0, STEPS),
    ("infer\nIICnet:\nprobabilities", 3, 0.0, STEPS),
    ("commit\none file for\neach tile", 4, 0.0, STEPS),
    ("publish\nclass catalogue\n(HATS, Parquet)", 5, 0.0, OUTPUTS),
    ("query,\nreport,\nexport", 6, 0.0, OUTPUTS),
)
"""Text, column, height and colour of each box of the pipeline."""
ARROWS = ((0, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7))
WORKERS = (("driver", 1, 1), ("CPU workers", 2, 2), ("GPU workers, or CPU", 3, 3), ("workers", 4, 5))
"""Who works on the columns from one to another."""

ROLES = (("driver", INPUTS), ("worker", STEPS), ("reader", OUTPUTS))
"""Who works on a step, and the colour of its box."""

PURPOSES = {
    "cli": "the commands",
    "mock": "a simulated sky, with truth",
    "training": "labels, datasets, training, evaluation",
    "report": "one HTML page of a catalogue or an evaluation",
    "engine": "a run on Dask: clusters, placement, a bounded window",
    "run": "one run: configuration, plan, stages, commits, report",
    "catalog": "the class catalogue: publish, verify, query, export",
    "model": "model bundles and inference",
    "networks": "network definitions",
    "images": "Atlas tiles, cutouts, composites",
    "sources": "input tables and catalogue partitions",
    "sky": "regions, HEALPix, tile pixels",
}
"""Package -> what it is for, highest first."""


def box(
    axes: Axes, x: float, y: float, size: tuple[float, float], text: str, colour: str, fontsize: float = 8.0
) -> None:
    """Draw a box with centred text."""
    width, height = size
    style = "round,pad=0.02,rounding_size=0.06"
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor="#555555", lw=0.8))
    axes.text(x, y, text, ha="center", va="center", fontsize=fontsize, color="#222222")


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure, in inches, with axes that fill it and show nothing."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    return figure, axes


def pipeline() -> Figure:
    """Return the path of the data as boxes and arrows, with the workers that do each step."""
    figure, axes = blank(9.2, 2.2)
    axes.set(xlim=(-0.5, 6.5), ylim=(-1.55, 0.95))
    for first, last in ARROWS:
        _arrow(axes, (BOXES[first][1] + 0.44, 0.0), (BOXES[last][1] - 0.44, 0.0))
    _arrow(axes, (0.44, -1.1), (2.0, -0.44), connectionstyle="angle,angleA=0,angleB=90,rad=6")
    for text, x, y, colour in BOXES:
        box(axes, x, y, (0.8, 0.8), text, colour, fontsize=8.5)
    for name, left, right in WORKERS:
        axes.plot([left - 0.4, right + 0.4], [0.58, 0.58], color="#888888", lw=1.5)
        axes.text((left + right) / 2, 0.77, name, ha="center", va="center", fontsize=8, color="#555555")
    return figure


def _arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], **style: str) -> None:
    axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=9, color="#555555", lw=0.9, **style))


def row() -> Figure:
    """Return the path of one row: each step with its file, and what it hands to the next."""
    figure, axes = blank(8.4, 0.4 * len(PATH) + 0.4)
    axes.set(xlim=(0, 8.4), ylim=(-len(PATH) + 0.4, 1.2))
    for i, (role, colour) in enumerate(ROLES):
        box(axes, 0.75 + 1.3 * i, 0.85, (1.1, 0.4), role, colour)
    for i, step in enumerate(PATH):
        _draw_step(axes, step, -float(i), is_last=step is PATH[-1])
    return figure


def _draw_step(axes: Axes, step: Step, y: float, is_last: bool) -> None:
    box(axes, 0.75, y, (1.1, 0.6), step.title, dict(ROLES)[step.role])
    axes.text(1.5, y + 0.13, step.file, va="center", fontsize=8, family="monospace", color="#222222")
    axes.text(1.5, y - 0.17, step.name, va="center", fontsize=7.5, family="monospace", color="#666666")
    axes.text(4.4, y, step.result, va="center", fontsize=8, color="#222222")
    if not is_last:
        _arrow(axes, (0.75, y - 0.28), (0.75, y - 0.72))


def package_order() -> list[str]:
    """Return the packages of skyclass from the highest to the lowest, as import-linter enforces it."""
    settings = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"]
    layers = next(c["layers"] for c in settings["contracts"] if c.get("containers") == ["skyclass"])
    names = [name.strip() for layer in layers for name in layer.split("|")]
    return [name for name in names if (CHECKOUT / "skyclass" / name).is_dir()]


def packages() -> Figure:
    """Return the packages as a stack: each imports only from those below it."""
    order = package_order()
    figure, axes = blank(7.0, 0.34 * len(order) + 0.3)
    axes.set(xlim=(0, 7), ylim=(-len(order) + 0.3, 1.0))
    for row, name in enumerate(order):
        box(axes, 0.9, -row + 0.15, (1.3, 0.66), name, STEPS)
        axes.text(1.8, -row + 0.15, PURPOSES[name], va="center", fontsize=8, color="#222222")
    arrow = FancyArrowPatch((6.6, 0.5), (6.6, -len(order) + 0.8), arrowstyle="-|>", mutation_scale=11, color="#888888")
    axes.add_patch(arrow)
    axes.text(6.45, -len(order) / 2 + 0.6, "imports", rotation=90, va="center", ha="right", fontsize=8, color="#888888")
    return figure


def picture(page: Path, target: Path) -> None:
    """Write a picture of the first screen of an HTML page."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no Chromium found: install chromium to take the picture of a report")
    with tempfile.TemporaryDirectory() as profile:
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--force-color-profile=srgb"]
        size = ["--window-size=1100,1255", f"--user-data-dir={profile}", f"--screenshot={target.absolute()}"]
        subprocess.run([browser, *options, *size, page.absolute().as_uri()], check=True, capture_output=True)


FIGURES = {"pipeline": pipeline, "row": row, "packages": packages}


def main() -> None:
    """Write all figures."""
    FOLDER.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, figure in FIGURES.items():
            figure().savefig(FOLDER / f"{name}.svg", metadata=SVG_METADATA)


if __name__ == "__main__":
    main()
