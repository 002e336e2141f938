"""Figures and one HTML page, from an evaluation or from a published class catalogue.

    drawing      colours, empty figures, PNG
    page         one HTML page that needs no other file
    evaluation   evaluation.json -> tables, figures, Markdown, page
    catalogue    ClassCatalog -> SQL aggregates -> tables, figures, page

What was simulated is called so on every figure and page. Figures need matplotlib: `pip install 'skyclass[train]'`.
"""

from __future__ import annotations

from pathlib import Path

from .catalogue import (
    CATALOGUE_FIGURES,
    all_sky_figure,
    catalogue_figures,
    catalogue_page,
    catalogue_statistics,
    catalogue_tables,
)
from .drawing import Table, png, save_figure
from .evaluation import (
    BY_CLASS,
    EVALUATION_FIGURES,
    RESULTS,
    evaluation_figures,
    evaluation_page,
    evaluation_tables,
    markdown,
    read_evaluation,
    scores_figure,
    stamp,
    wilson,
)

__all__ = [
    "BY_CLASS",
    "CATALOGUE_FIGURES",
    "EVALUATION_FIGURES",
    "RESULTS",
    "Table",
    "all_sky_figure",
    "catalogue_figures",
    "catalogue_page",
    "catalogue_statistics",
    "catalogue_tables",
    "evaluation_figures",
    "evaluation_page",
    "evaluation_tables",
    "markdown",
    "png",
    "read_evaluation",
    "save_figure",
    "scores_figure",
    "stamp",
    "wilson",
    "write_html",
]


def write_html(folder: str | Path, out: str | Path | None = None, overwrite: bool = False) -> Path:
    """Return the path of one HTML page, which needs no other file, on an evaluation folder or a class catalogue.

    Written to `out`; by default to report.html in the folder of an evaluation, or here for a catalogue. Raises
    `ConfigError` where the evaluation is of another version or the page exists (without `overwrite`), and
    `NotPublished` where there is neither.
    """
    from ..catalog.export import refuse_existing
    from ..catalog.query import open_catalog
    from ..files import write_bytes

    source = Path(folder)
    is_evaluation = (source / RESULTS).is_file()
    target = Path(out or (source / "report.html" if is_evaluation else "report.html"))
    refuse_existing(target, overwrite)
    page = evaluation_page(source) if is_evaluation else catalogue_page(open_catalog(source))
    write_bytes(target, page.encode())
    return target
