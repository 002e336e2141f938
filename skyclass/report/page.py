"""Tables of text, and the templates that show them: HTML pages that need no other file, and Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import __version__


@dataclass(frozen=True)
class Table:
    """A table of a report. Every cell is text; the note is the paragraph below the table."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    @property
    def text_columns(self) -> frozenset[int]:
        """Columns, counted from 0, with a letter in a cell. A page aligns them to the left, numbers to the right."""
        return frozenset(i for row in self.rows for i, cell in enumerate(row) if re.search("[A-Za-z]", cell))


def format_number(value: float | None) -> str:
    """Return a number with four decimals, "-" for None."""
    return "-" if value is None else f"{value:.4f}"


def render(template: str, **fields: Any) -> str:
    """Return a file of `templates/` with its fields filled in; values are escaped in HTML, not in Markdown."""
    from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

    environment = Environment(
        loader=PackageLoader("skyclass.report"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"base64": _base64, "markdown_row": _markdown_row}
    return environment.get_template(template).render(version=__version__, **fields)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _markdown_row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
