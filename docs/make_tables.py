"""Write the parts of the documentation that follow from the code or from records of measurements.

`python -m docs.make_tables` writes `docs/generated/` (tables, help texts, templates, public names, benchmarks), the
output of the demo in README.md, and the prior table "counts". A test compares the committed files with what the
functions here return.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

import click
import pyarrow as pa

import skyclass
from benchmarks.report import report
from docs.path import PATH, Step, thing
from skyclass import errors
from skyclass.catalog.prior_files import SHIPPED
from skyclass.cli.main import cli
from skyclass.cli.templates import template
from skyclass.cli.tools import TEMPLATES
from skyclass.mock.counts import counts_prior
from skyclass.schema import class_schema
from skyclass.types import DEFAULT_CLASSES, Flag

DOCS = Path(__file__).parent
README = DOCS.parent / "README.md"
RESULTS = DOCS.parent / "benchmarks" / "results"
DEMO_BEGIN, DEMO_END = "<!-- What `skyclass demo` prints: docs/examples/demo.txt -->\n", "<!-- end -->\n"
SUBJECTS: dict[str, tuple[str, ...]] = {
    "Runs": ("RunConfig", "classify", "plan", "RunReport", "PlanReport", "connect"),
    "Regions": ("Cone", "Box", "Polygon", "Pixels", "Moc", "read_moc"),
    "Sources": ("open_sources", "SourceTable"),
    "Class catalogues": (
        "open_catalog",
        "ClassCatalog",
        "verify",
        "VerifyReport",
        "recalibrate",
        "undo_recalibration",
        "Flag",
    ),
    "Models": ("load_classifier",),
    "Constants": ("BANDS",),
}
"""Subject -> the public names that belong to it; the others are errors."""
HELP_WIDTH = 80


def markdown_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in Markdown."""
    header = tuple(header)
    lines = [header, tuple("---" for _ in header), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def columns() -> str:
    """Return the columns of the class catalogue with type, unit, UCD and meaning."""
    return markdown_table(
        ("column", "type", "unit", "UCD", "meaning"), map(_column, class_schema(DEFAULT_CLASSES, True))
    )


def _column(field: pa.Field) -> tuple[str, ...]:
    unit, ucd, description = (field.metadata[key].decode() for key in (b"unit", b"ucd", b"description"))
    return f"`{field.name}`", str(field.type), unit or "-", f"`{ucd}`", description


def flags() -> str:
    """Return the bits of `flags` with name and meaning."""
    rows = ((str(int(flag)), f"`{flag.name}`", flag.meaning) for flag in Flag)
    return markdown_table(("bit", "name", "meaning"), rows)


def error_tree() -> str:
    """Return the errors of skyclass, each below its base, with exit code and meaning."""
    rows = ((f"{'&emsp;' * depth}`{cls.__name__}`", str(cls.exit_code), first_line(cls)) for depth, cls in _tree())
    return markdown_table(("error", "exit code", "meaning"), rows)


def _tree(cls: type[errors.SkyclassError] = errors.SkyclassError, depth: int = 0) -> Iterator[tuple[int, type]]:
    """Yield an error and those derived from it in `skyclass.errors`, with their depth."""
    yield depth, cls
    for child in cls.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _tree(child, depth + 1)


def first_line(thing: object) -> str:
    """Return the first paragraph of a docstring as one line."""
    return " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())


def path() -> str:
    """Return the functions that a row passes, with their files."""
    return markdown_table(("step", "file and name", "what it does"), map(_step, PATH))


def _step(step: Step) -> tuple[str, ...]:
    caller = step.caller.replace(":", ".")
    return step.title, f"`{step.file}`<br>`{step.name}`<br>called by `{caller}`", first_line(thing(step.function))


def api() -> str:
    """Return the directives that document each public name, by subject."""
    names = [name for name in skyclass.__all__ if not name.startswith("__")]
    grouped = [name for group in SUBJECTS.values() for name in group]
    groups = SUBJECTS | {"Errors": tuple(name for name in names if name not in grouped)}
    return "".join(f"## {title}\n\n" + "".join(map(_directive, group)) for title, group in groups.items())


def _directive(name: str) -> str:
    """Return the autodoc directive for a public name."""
    thing = getattr(skyclass, name)
    if isinstance(thing, tuple):
        directive = f".. autodata:: skyclass.types.{name}"  # there its description is
    elif not inspect.isclass(thing):
        directive = f".. autofunction:: skyclass.{name}"
    else:
        directive = f".. autoclass:: skyclass.{name}{_members(thing)}"
    return f"```{{eval-rst}}\n{directive}\n```\n\n"


def _members(cls: type) -> str:
    """Return the option that documents members: none of errors, and of a class with described parameters no fields."""
    if issubclass(cls, Exception):
        return ""
    has_parameters = "\nParameters\n" in (inspect.getdoc(cls) or "")
    methods = [name for name, value in vars(cls).items() if inspect.isroutine(value) or isinstance(value, property)]
    public = [name for name in methods if not name.startswith("_")]
    return f"\n   :members: {', '.join(public) if has_parameters else ''}".rstrip()


def commands() -> str:
    """Return the help of each command as a section."""
    return "".join(f"### {name}\n\n```text\n{_help(name, command)}\n```\n\n" for name, command in cli.commands.items())


def _help(name: str, command: click.Command) -> str:
    group = click.Context(cli, info_name="skyclass", **cli.context_settings)
    context = click.Context(command, group, name, terminal_width=HELP_WIDTH, max_content_width=HELP_WIDTH)
    return command.get_help(context)


def readme() -> str:
    """Return README.md with the present output of the demo."""
    before, _, rest = README.read_text("utf-8").partition(DEMO_BEGIN)
    output = (DOCS / "examples" / "demo.txt").read_text("utf-8")
    return f"{before}{DEMO_BEGIN}```text\n{output}```\n{DEMO_END}{rest.partition(DEMO_END)[2]}"


def prior_of_counts() -> str:
    """Return the prior table "counts", which ships with skyclass."""
    return json.dumps(counts_prior().to_dict(), indent=1) + "\n"


GENERATED: dict[str, Callable[[], str]] = {
    "columns.md": columns,
    "flags.md": flags,
    "errors.md": error_tree,
    "path.md": path,
    "api.md": api,
    "commands.md": commands,
    **{f"{kind.upper()}.toml": partial(template, *arguments) for kind, arguments in TEMPLATES.items()},
    **{f"{name}.md": partial(report, RESULTS / f"{name}.jsonl") for name in ("laptop", "rivals", "scale")},
}
FILES = {
    README: readme,
    SHIPPED / "counts.json": prior_of_counts,
    **{DOCS / "generated" / name: make for name, make in GENERATED.items()},
}
"""File -> the function that returns its text."""


def main() -> None:
    """Write all files."""
    for file, text in FILES.items():
        file.parent.mkdir(exist_ok=True)
        file.write_text(text(), "utf-8")


if __name__ == "__main__":
    main()
