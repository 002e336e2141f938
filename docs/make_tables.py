"""Write the tables of the documentation that follow from the code: columns, flags, errors, public names.

`python -m docs.make_tables` writes `docs/generated/`. A test compares the committed files with the code.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa

import skyclass
from skyclass import errors
from skyclass.schema import CLASS_SCHEMA, FLAG_MEANINGS

FOLDER = Path(__file__).parent / "generated"
EXTRA_NAMES = ("skyclass.catalog.query.ClassCatalog",)
"""Classes that public functions return, which are not public names themselves."""


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    header = tuple(header)
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def columns() -> str:
    """Return the columns of the class catalogue with type, unit, UCD and meaning."""
    return markdown_table(("column", "type", "unit", "UCD", "meaning"), map(column_row, CLASS_SCHEMA))


def column_row(field: pa.Field) -> tuple[str, ...]:
    words = {key: field.metadata[key.encode()].decode() for key in ("unit", "ucd", "description")}
    return f"`{field.name}`", str(field.type), words["unit"] or "-", f"`{words['ucd']}`", words["description"]


def flags() -> str:
    """Return the bits of `flags` with name and meaning."""
    rows = ((str(int(flag)), f"`{flag.name}`", meaning) for flag, meaning in FLAG_MEANINGS.items())
    return markdown_table(("bit", "name", "meaning"), rows)


def error_tree() -> str:
    """Return the errors of skyclass, each below its base, with exit code and meaning."""
    rows = ((f"{'&emsp;' * depth}`{cls.__name__}`", str(cls.exit_code), meaning(cls)) for depth, cls in tree())
    return markdown_table(("error", "exit code", "meaning"), rows)


def meaning(cls: type) -> str:
    """Return the first paragraph of a docstring as one line, without the backquotes of code."""
    return " ".join((inspect.getdoc(cls) or "").split("\n\n")[0].split())


def tree(cls: type[errors.SkyclassError] = errors.SkyclassError, depth: int = 0) -> Iterator[tuple[int, type]]:
    """Yield an error and those derived from it in `skyclass.errors`, with their depth."""
    yield depth, cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from tree(child, depth + 1)


def api() -> str:
    """Return the directives that document each public name."""
    names = [f"skyclass.{name}" for name in skyclass.__all__ if not name.startswith("__")] + list(EXTRA_NAMES)
    return "".join(f"```{{eval-rst}}\n{directive(name)}\n```\n\n" for name in names)


def directive(name: str) -> str:
    """Return the autodoc directive for a public name."""
    module, _, attribute = name.rpartition(".")
    thing = getattr(__import__(module, fromlist=[attribute]), attribute)
    if not inspect.isclass(thing):
        return f".. auto{'function' if callable(thing) else 'data'}:: {name}"
    options = "" if issubclass(thing, Exception) else "\n   :members:"
    return f".. autoclass:: {name}{options}"


TABLES = {"columns": columns, "flags": flags, "errors": error_tree, "api": api}


def main() -> None:
    """Write all tables."""
    FOLDER.mkdir(exist_ok=True)
    for name, table in TABLES.items():
        (FOLDER / f"{name}.md").write_text(table())


if __name__ == "__main__":
    main()
