"""Figures and one HTML page, from an evaluation or from a published class catalogue.

    drawing              colours, empty panels, PNG
    page, templates/     tables of text; Jinja2 templates for HTML and Markdown
    evaluation_results   evaluation.json: its metrics, facts and title
    evaluation_plots     its figures
    evaluation           its tables, Markdown and page
    catalogue_counts     ClassCatalog -> SQL aggregates
    catalogue_plots      their figures
    expectations         expected purity and completeness of a catalogue with a prior
    catalogue            their tables and page

Every figure and page of simulated data carries a warning. Figures need matplotlib: `pip install 'skyclass[train]'`.
"""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from .catalogue import catalogue_page
from .drawing import save_figure
from .evaluation import evaluation_page, markdown, selection_csv
from .evaluation_plots import EVALUATION_FIGURES, evaluation_figures
from .evaluation_results import RESULTS, SELECTION, read_evaluation

__all__ = [
    "EVALUATION_FIGURES",
    "RESULTS",
    "SELECTION",
    "evaluation_figures",
    "markdown",
    "save_figure",
    "selection_csv",
    "write_html",
]

PAGE_ENDINGS = (".html", ".htm")


def write_html(folder: str | Path, out: str | Path | None = None, overwrite: bool = False) -> Path:
    """Write the report of an evaluation folder or a class catalogue as one HTML page, and return its path.

    Parameters
    ----------
    folder : str or Path
        Folder of an evaluation, of a class catalogue, or of the run that published it.
    out : str or Path, optional
        The page, .html or .htm; by default report.html in the folder of an evaluation, or in the working folder for a
        catalogue.
    overwrite : bool
        Replace an existing page.

    Raises
    ------
    ConfigError
        The evaluation is of another version, the page has another ending, or it exists and `overwrite` is False.
    NotPublished
        The folder holds neither an evaluation nor a class catalogue.
    """
    from ..catalog.query import open_catalog
    from ..files import write_bytes

    source = Path(folder)
    if (source / RESULTS).is_file():
        results = read_evaluation(source)
        target = _checked_page(out or source / "report.html", overwrite)
        page = evaluation_page(source, results)
    else:
        classes = open_catalog(source)
        target = _checked_page(out or "report.html", overwrite)
        page = catalogue_page(classes)
    write_bytes(target, page.encode())
    return target


def _checked_page(out: str | Path, overwrite: bool) -> Path:
    """Return the path of a page; raise `ConfigError` on another ending and on a path that is taken."""
    from ..catalog.export import refuse_existing

    target = Path(out)
    if target.suffix.lower() not in PAGE_ENDINGS:
        raise ConfigError(
            f"a report is an HTML page, and {target.name!r} is not: end it in {' or '.join(PAGE_ENDINGS)}"
        )
    refuse_existing(target, overwrite)
    return target
