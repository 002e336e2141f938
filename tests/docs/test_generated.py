"""Generated parts of the documentation are those that the code gives now."""

from __future__ import annotations

import inspect
import re
from html import unescape
from pathlib import Path

import pytest

import skyclass
from docs import make_examples, make_figures, make_tables
from docs.path import PATH, thing

CHECKOUT = Path(__file__).parents[2]
MAKE = "run `make examples`, or `python -m docs.make_tables` and `python -m docs.make_figures` for all but the examples"


@pytest.mark.parametrize("file", make_tables.FILES, ids=lambda file: file.name)
def test_tables_and_help_are_those_of_the_code(file: Path) -> None:
    assert file.read_text("utf-8") == make_tables.FILES[file](), MAKE


def test_the_api_page_has_every_public_name_by_subject() -> None:
    grouped = {name for group in make_tables.SUBJECTS.values() for name in group}
    others = [getattr(skyclass, name) for name in {*skyclass.__all__} - grouped - {"__version__"}]
    assert grouped < {*skyclass.__all__} and all(issubclass(error, skyclass.SkyclassError) for error in others)


def labels(name: str) -> list[str]:
    """Return the lines of text of a figure, from top to bottom as they are drawn."""
    svg = (CHECKOUT / "docs" / "_static" / f"{name}.svg").read_text("utf-8")
    return [unescape(text) for text in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]


def test_the_figure_of_a_row_names_the_files_and_functions_of_its_path() -> None:
    shown = labels("row")
    steps = [text for step in PATH for text in (step.title, step.file, step.name, step.result)]
    assert [text for text in shown if text not in dict(make_figures.ROLES)] == steps, MAKE


@pytest.mark.parametrize("step", PATH, ids=lambda step: step.title)
def test_each_step_of_the_path_is_called_where_the_page_says(step) -> None:
    caller = thing(step.caller)
    called = step.name.rpartition(".")[2]
    assert re.search(rf"\b{called}\b", inspect.getsource(getattr(caller, "callback", caller)))
    assert inspect.getdoc(thing(step.function))


def test_the_figure_of_the_packages_has_the_order_that_is_enforced() -> None:
    order = make_figures.package_order()
    assert [text for text in labels("packages") if text in order] == order, MAKE
    assert set(make_figures.PURPOSES) == set(order)


def test_every_example_of_the_pages_is_made_by_the_script_and_shown() -> None:
    made = {*make_examples.EXAMPLES, *make_examples.REAL_FIELDS, *make_examples.DEMO}
    pages = "".join(page.read_text("utf-8") for page in (CHECKOUT / "docs").glob("*.md"))
    assert {path.stem for path in make_examples.FOLDER.glob("*.txt")} == made
    assert set(re.findall(r"\{literalinclude\} examples/([\w-]+)\.txt", pages)) == made


def test_lines_of_examples_may_differ_in_times_and_rounding_only() -> None:
    old = "489 sources in 5.5 s, 90 sources/s; p 0.978296, model a-303e179eec55"
    assert not list(
        make_examples.differences(old, "489 sources in 7.1 s, 80 sources/s; p 0.978301, model a-43624c5575e1")
    )
    assert list(make_examples.differences(old, old.replace("0.978296", "0.878296")))
    assert list(make_examples.differences(old, old.replace("489", "589")))
    assert list(make_examples.differences(old, old + "\nmore"))


@pytest.mark.integration
@pytest.mark.parametrize("name", ["init", "config"])
def test_examples_without_a_sky_print_what_the_pages_show(name: str, tmp_path: Path) -> None:
    shown = (make_examples.FOLDER / f"{name}.txt").read_text("utf-8")
    assert make_examples.run_example(make_examples.EXAMPLES[name], tmp_path) == shown, MAKE


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_examples_print_what_the_pages_show(tmp_path: Path) -> None:
    for name, commands in make_examples.EXAMPLES.items():
        shown = (make_examples.FOLDER / f"{name}.txt").read_text("utf-8")
        assert not list(make_examples.differences(shown, make_examples.run_example(commands, tmp_path))), MAKE
