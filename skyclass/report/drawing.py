"""Parts of every figure: colours, empty panels with a title, the PNG file."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Json = Mapping[str, Any]

CLASS_COLOURS = {"galaxy": "#0072B2", "quasar": "#D55E00", "star": "#009E73", "unclassified": "#999999"}
OTHER_COLOURS = ("#CC79A7", "#E69F00", "#56B4E9", "#F0E442", "#000000")
"""Colours of Okabe & Ito (2008), distinct for every kind of colour vision: of known classes, then of other ones."""
FEW_ROWS = 5
"""A mean or share of fewer rows is not drawn."""
DPI = 130
PANEL_IN = 3.1
"""Side of a small panel in inches."""


def class_colours(classes: Iterable[str]) -> dict[str, str]:
    """Return the colour of each class; other classes than those of the shipped models take the others in turn."""
    unknown = [name for name in classes if name not in CLASS_COLOURS]
    return CLASS_COLOURS | {name: OTHER_COLOURS[i % len(OTHER_COLOURS)] for i, name in enumerate(unknown)}


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG and return the path."""
    Path(path).write_bytes(png(figure))
    return Path(path)


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(width_in: float, height_in: float, title: str, warning: str) -> Figure:
    """Return an empty figure with a title; a warning follows the title and turns it red."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("figures need matplotlib: pip install 'skyclass[train]'") from error
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    figure.suptitle(f"{title} - {warning}" if warning else title, fontsize=11, color="#A33F00" if warning else "black")
    return figure


def new_panels(
    n: int, title: str, warning: str, height: float = PANEL_IN, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure of n small panels, at most four in a row."""
    columns = min(n, 4)
    rows = math.ceil(n / columns)
    figure = new_figure(max(2, columns) * (PANEL_IN + 0.15), rows * height + 0.35, title, warning)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for unused in grid[n:]:
        unused.remove()
    return figure, list(grid[:n])


def legend(axes: Axes, loc: Literal["best", "upper center", "lower right"] = "best") -> None:
    """Add a legend to axes that have labels."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, labels, fontsize=7, loc=loc)
