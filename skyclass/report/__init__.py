"""Figures and one HTML page, from an evaluation or from a published class catalogue.

    drawing              colours, empty panels, PNG
    page, templates/     tables of text; Jinja2 templates for HTML and Markdown
    evaluation_results   evaluation.json: its metrics, facts and title
    evaluation_plots     its figures
    evaluation           its tables, Markdown and page
    catalogue_counts     ClassCatalog -> SQL aggregates
    catalogue_plots      their figures
    catalogue            their tables and page

Every figure and page of simulated data carries a warning. Figures need matplotlib: `pip install 'skyclass[train]'`.
"""

from __future__ import annotations

from pathlib import Path

from .catalogue import catalogue_page
from .drawing import save_figure
from .evaluation import evaluation_page, markdown
from .evaluation_plots import EVALUATION_FIGURES, evaluation_figures
from .evaluation_results import RESULTS

__all__ = [
    "EVALUATION_FIGURES",
    "RESULTS",
    "evaluation_figures",
    "markdown",
    "save_figure",
    "write_html",
]


def write_html(folder: str | Path, out: str | Path | None = None, overwrite: bool = False) -> Path:
    """Write the report of an evaluation folder or a class catalogue as one HTML page, and return its path.

    Parameters
    ----------
    folder : str or Path
        Folder of an evaluation, of a class catalogue, or of the run that published it.
    out : str or Path, optional
        The page; by default report.html in the folder of an evaluation, or in the working folder for a catalogue.
    overwrite : bool
        Replace an existing page.

    Raises
    ------
    ConfigError
        The evaluation is of another version, or the page exists and `overwrite` is False.
    NotPublished
        The folder holds neither an evaluation nor a class catalogue.
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
