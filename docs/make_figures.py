"""Draw the figures of the documentation: `python -m docs.make_figures [REPORT.html]`.

`_static/pipeline.svg` shows the path of the data, `_static/packages.svg` the packages in their import order, which
is read from pyproject.toml. With a report of `skyclass report`, `_static/report.png` is a picture of its first screen,
which takes a Chromium.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

FOLDER = Path(__file__).parent / "_static"
CHECKOUT = Path(__file__).parents[1]
STYLE = {"svg.hashsalt": "skyclass", "svg.fonttype": "none", "font.family": "sans-serif"}
SVG_METADATA = {"Date": None, "Creator": None}

INPUTS, STEPS, OUTPUTS = "#dbe9f6", "#e4f1df", "#fbe8d3"
STAGES = (
    ("catalogue partitions\nor a table", 0, 1.0, INPUTS),
    ("Atlas tiles\nW1 W2 W3", 0, -1.0, INPUTS),
    ("plan\nsources by tile", 1, 0.0, STEPS),
    ("cut\nnative cutouts", 2, 0.0, STEPS),
    ("composite\nsky, zero point,\nstretch", 3, 0.0, STEPS),
    ("infer\nIICnet, softmax", 4, 0.0, STEPS),
    ("commit\none file a tile", 5, 0.0, STEPS),
    ("publish\nHATS class\ncatalogue", 6, 0.0, OUTPUTS),
    ("query, report,\nexport", 7, 0.0, OUTPUTS),
)
"""Text, column, row and colour of each box of the pipeline."""
ARROWS = ((0, 2), (1, 2), (1, 3), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8))
WORKERS = (
    ("driver", 0.62, 1.38),
    ("CPU workers", 1.62, 3.38),
    ("GPU workers, or CPU", 3.62, 4.38),
    ("workers", 4.62, 6.38),
)

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


def box(axes: Axes, x: float, y: float, size: tuple[float, float], text: str, colour: str) -> None:
    """Draw a box with centred text."""
    width, height = size
    style = "round,pad=0.02,rounding_size=0.06"
    corner = (x - width / 2, y - height / 2)
    axes.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, facecolor=colour, edgecolor="#555555", lw=0.8))
    axes.text(x, y, text, ha="center", va="center", fontsize=7.5, color="#222222")


def blank(width: float, height: float) -> tuple[Figure, Axes]:
    """Return a figure, in inches, with axes that fill it and show nothing."""
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    return figure, axes


def pipeline() -> Figure:
    """Return the path of the data as boxes and arrows, with the workers that do each step."""
    figure, axes = blank(11.0, 2.5)
    axes.set(xlim=(-0.55, 7.55), ylim=(-1.75, 1.55))
    for first, last in ARROWS:
        (_, x0, y0, _), (_, x1, y1, _) = STAGES[first], STAGES[last]
        ends = ((x0 + 0.4 * (x1 > x0), y0), (x1 - 0.42, y1 - 0.12 * (y0 < y1) + 0.12 * (y0 > y1)))
        axes.add_patch(FancyArrowPatch(*ends, arrowstyle="-|>", mutation_scale=9, color="#555555", lw=0.9))
    for text, x, y, colour in STAGES:
        box(axes, x, y, (0.76, 0.72), text, colour)
    for name, left, right in WORKERS:
        axes.plot([left, right], [-1.15, -1.15], color="#888888", lw=1.5)
        axes.text((left + right) / 2, -1.4, name, ha="center", va="center", fontsize=7.5, color="#555555")
    return figure


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


FIGURES = {"pipeline": pipeline, "packages": packages}


def main() -> None:
    """Write all figures; a report page may be given."""
    FOLDER.mkdir(exist_ok=True)
    with matplotlib.rc_context(STYLE):
        for name, figure in FIGURES.items():
            figure().savefig(FOLDER / f"{name}.svg", metadata=SVG_METADATA)
    if len(sys.argv) > 1:
        picture(Path(sys.argv[1]), FOLDER / "report.png")


if __name__ == "__main__":
    main()
