"""Text for terminals, logs and shells: ids, file names and messages of services may hold any character."""

from __future__ import annotations

import html
import re
import shlex
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

DIGEST = re.compile("[0-9a-f]{16,}")


def printable(text: object) -> str:
    """Return text in one line without control characters: a terminal shows each of them as an escape such as \\x1b.

    Line breaks, terminal sequences, marks that change the direction of writing and bytes that are no UTF-8 are escaped.
    """
    return "".join(c if c.isprintable() else _escaped(c) for c in str(text))


def counted(n: int, noun: str) -> str:
    """Return a number with its noun, such as "1 tile" and "2,000 tiles".

    >>> counted(1, "tile"), counted(2000, "tile")
    ('1 tile', '2,000 tiles')
    """
    return f"{n:,} {one_or_many(n, noun, noun + 's')}"


def named(noun: str, names: Collection[str]) -> str:
    """Return names after their noun, such as "column ra" and "columns ra, dec".

    >>> named("column", ["ra"]), named("column", ["ra", "dec"])
    ('column ra', 'columns ra, dec')
    """
    return f"{one_or_many(len(names), noun, noun + 's')} {', '.join(names)}"


def one_or_many(n: int, one: str, many: str) -> str:
    """Return the form of a word or phrase that fits a number.

    >>> one_or_many(1, "is", "are"), one_or_many(2, "is", "are")
    ('is', 'are')
    """
    return one if n == 1 else many


def short_digest(value: object) -> str:
    """Return a value as text, and of a digest, which has 16 hexadecimal digits or more, the first 12 digits.

    >>> short_digest("303e179eec556190e7b4"), short_digest("fp32")
    ('303e179eec55', 'fp32')
    """
    text = str(value)
    return text[:12] if DIGEST.fullmatch(text) else text


def shell_command(words: Iterable[object]) -> str:
    """Return a command in one line that a POSIX shell reads as exactly these words.

    >>> print(shell_command(["skyclass", "verify", "my run/catalog"]))
    skyclass verify 'my run/catalog'
    """
    return " ".join(map(_quoted, map(str, words)))


def table_text(frame: pd.DataFrame) -> str:
    """Return a table as lines for a terminal, one a row; only its column names where it has no rows."""
    shown = frame.rename(columns=printable)
    if not len(shown):
        return "  ".join(shown.columns)
    return str(shown.apply(_printable_column).to_string(index=False))


def html_table(caption: str, rows: Mapping[str, object]) -> str:
    """Return names and values as a small HTML table, for notebooks.

    >>> html_table("Plan", {"tiles": "<2>"})
    '<table><caption>Plan</caption><tr><th>tiles</th><td>&lt;2&gt;</td></tr></table>'
    """
    lines = (f"<tr><th>{_escaped_html(name)}</th><td>{_escaped_html(value)}</td></tr>" for name, value in rows.items())
    return f"<table><caption>{_escaped_html(caption)}</caption>{''.join(lines)}</table>"


def _escaped_html(text: object) -> str:
    return html.escape(printable(text))


def _printable_column(column: pd.Series) -> pd.Series:
    if column.dtype.kind in "biufcmM":
        return column
    return column.map(lambda value: value if value is None or isinstance(value, int | float) else printable(value))


def _escaped(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name that is no UTF-8, as Python keeps it
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x80:
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}.get(character, f"\\x{code:02x}")
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def _quoted(word: str) -> str:
    if word.isprintable():
        return shlex.quote(word)
    return "$'" + printable(word.replace("\\", "\\\\").replace("'", "\\'")) + "'"
