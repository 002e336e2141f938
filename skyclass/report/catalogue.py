"""The report of a published class catalogue: its tables and its page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from ..text import counted
from ..types import Flag
from .catalogue_counts import catalogue_statistics
from .catalogue_plots import CATALOGUE_FIGURES, catalogue_figures
from .drawing import Json, png
from .expectations import EXPECTATION_CAPTION, expectation_figure, expectation_tables, expectations
from .page import Table, format_number, render

if TYPE_CHECKING:
    from ..catalog.query import ClassCatalog


def catalogue_page(classes: ClassCatalog) -> str:
    """Return the page of a published class catalogue."""
    statistics, expected = catalogue_statistics(classes), expectations(classes)
    warning = "classes of a model trained on a SIMULATED sky" if statistics["simulated"] else ""
    return render(
        "page.html",
        title="Class catalogue" + (f" ({warning})" if warning else ""),
        warning=warning,
        caveats=[],
        facts=[f"{counted(statistics['rows'], 'source')}, run {statistics['run_id']}", f"Model: {statistics['label']}"],
        tables=[*catalogue_tables(statistics), *(expectation_tables(expected) if expected else [])],
        pictures={CATALOGUE_FIGURES[name]: png(figure) for name, figure in catalogue_figures(statistics).items()}
        | ({EXPECTATION_CAPTION: png(expectation_figure(expected, warning))} if expected else {}),
        provenance=json.dumps(dict(classes.manifest.provenance), indent=1, default=str),
    )


def catalogue_tables(statistics: Json) -> list[Table]:
    """Return the tables of a catalogue: sources by class, and by flag."""
    return [_class_table(statistics), _flag_table(statistics["flags"])]


def _class_table(statistics: Json) -> Table:
    n_sources = max(1, statistics["rows"])
    rows = [
        (
            row["class"],
            f"{row['n']:,}",
            f"{100 * row['n'] / n_sources:.2f} %",
            format_number(row["confidence"]),
            f"{row['confident']:,}",
            f"{row['clean']:,}",
            "-" if row["w1mpro"] is None else f"{row['w1mpro']:.2f}",
        )
        for row in statistics["summary"]
    ]
    return Table(
        "Classes",
        ("class", "sources", "share", "mean highest probability", "above 0.9", "without a flag", "median W1 (mag)"),
        tuple(rows),
        "The class is that of the highest probability. It is not a pure sample: rare classes hold many contaminants.",
    )


def _flag_table(counts: Json) -> Table:
    clean = ("0", "clean", f"{counts['clean']:,}", "no problem with the image or the measurements")
    rows = [(str(flag.value), str(flag.name), f"{counts[str(flag.name)]:,}", flag.meaning) for flag in Flag]
    return Table("Flags", ("bit", "name", "sources", "meaning"), (clean, *rows), "A source may have several flags.")
