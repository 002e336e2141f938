"""What tables and figures share: colours, an empty figure with its title, a PNG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


Json = Mapping[str, Any]

CLASS_COLOURS = {"galaxy": "#0072B2", "quasar": "#D55E00", "star": "#009E73", "unclassified": "#999999"}
"""Okabe & Ito (2008): told apart with any kind of colour vision."""
FEW_ROWS = 5
"""Below this no line is drawn through a mean or share."""
DPI = 130
PANEL_IN = 3.1
"""Side of a small panel in inches."""


@dataclass(frozen=True)
class Table:
    """A table for people: cells are text already; `note` stands under it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""


def number_words(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Write a figure as PNG and return the path."""
    Path(path).write_bytes(png(figure))
    return Path(path)


def png(figure: Figure) -> bytes:
    """Return a figure as the bytes of a PNG; equal figures give equal bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def new_figure(width_in: float, height_in: float, title: str, words: str) -> Figure:
    """Return an empty figure with its title; `words` stand beside it in the colour of a warning."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("figures need matplotlib: pip install 'skyclass[train]'") from error
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    figure.suptitle(f"{title} - {words}" if words else title, fontsize=11, color="#A33F00" if words else "black")
    return figure


def new_panels(
    n: int, title: str, words: str, height: float = PANEL_IN, share: bool = False
) -> tuple[Figure, list[Axes]]:
    """Return a figure of n small panels, at most four in a row."""
    columns = min(n, 4)
    rows = math.ceil(n / columns)
    figure = new_figure(max(2, columns) * (PANEL_IN + 0.15), rows * height + 0.35, title, words)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel()
    for spare in grid[n:]:
        spare.remove()
    return figure, list(grid[:n])


def legend(axes: Axes, loc: Literal["best", "upper center", "lower right"] = "best") -> None:
    """Add a legend where there is something to explain."""
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        axes.legend(handles, labels, fontsize=7, loc=loc)
