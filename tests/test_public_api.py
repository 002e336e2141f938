"""The public names: documented in numpydoc, with examples that run, and short in a notebook."""

from __future__ import annotations

import doctest
import inspect
import pydoc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from numpydoc.validate import validate

import skyclass as sc
from skyclass.run.progress import no_progress

NAMES = sorted(name for name in sc.__all__ if name != "__version__")
CONSTANTS = {"BANDS", "Flag"}
ERRORS = {name for name in NAMES if isinstance(getattr(sc, name), type) and issubclass(getattr(sc, name), Exception)}
NOT_REQUIRED = {
    "GL01",  # text begins in the line of the quotes
    "ES01",  # an extended summary
    "SA01",  # a section See Also
    "GL08",  # methods without a docstring: `methods` names those that need one
    "EX01",  # an example: `test_every_function_has_an_example` names those that need one
}


def methods(name: str) -> Iterator[str]:
    """Yield the documented public methods of a class."""
    cls = getattr(sc, name)
    for method, function in vars(cls).items() if inspect.isclass(cls) else ():
        if inspect.isfunction(function) and not method.startswith("_") and inspect.getdoc(function):
            yield method


DOCUMENTED = [name for name in NAMES if name not in CONSTANTS | ERRORS]
METHODS = [f"{name}.{method}" for name in ("ClassCatalog", "RunReport") for method in methods(name)]


def test_dir_lists_the_public_names() -> None:
    assert dir(sc) == sorted(sc.__all__)


@pytest.mark.parametrize("name", sorted({*DOCUMENTED, *METHODS, "SourceTable.to_dask"} - {"SourceTable"}))
def test_docstrings_follow_numpydoc(name: str) -> None:
    errors = [f"{code}: {text}" for code, text in validate(f"skyclass.{name}")["errors"] if code not in NOT_REQUIRED]
    assert not errors


@pytest.mark.parametrize("name", sorted(ERRORS | {"Flag"}))
def test_errors_and_flags_have_a_summary(name: str) -> None:
    summary = (inspect.getdoc(getattr(sc, name)) or "").splitlines()[0]
    assert summary.endswith((".", ":")) and len(summary) > 20


def object_of(name: str) -> Any:
    thing: Any = sc
    for part in name.split("."):
        thing = getattr(thing, part)
    return thing


WITH_EXAMPLES = [
    name
    for name in [*DOCUMENTED, *METHODS, "SourceTable.to_dask"]
    if name not in {"Moc", "PlanReport", "RunReport", "RunReport.to_dict", "SourceTable", "VerifyReport"}
]


@pytest.mark.integration
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name: str, tutorial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tutorial)
    thing = object_of(name)
    examples = doctest.DocTestParser().get_doctest(pydoc.getdoc(thing), {name: thing}, name, None, 0)
    assert examples.examples
    assert doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(examples).failed == 0


def test_every_field_of_a_run_has_a_text_in_its_help() -> None:
    text = pydoc.render_doc(sc.RunConfig, renderer=pydoc.plaintext)
    described = sc.RunConfig.__doc__ or ""
    for field in sc.RunConfig.__dataclass_fields__:
        after = described.split(f"\n{field} : ", 1)[1].splitlines()[1]
        assert after.strip() and after.strip() in text, field


@pytest.mark.integration
def test_results_are_short_in_a_notebook(tutorial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tutorial)
    run = sc.RunConfig(catalog="sky/catalog", images="sky/images", out="classes", cluster="none")
    report = sc.classify(run, watch=no_progress)
    classes = sc.open_catalog("classes").where("w1mpro < 99 AND flags >= 0")
    for thing in (report, classes, sc.open_sources("sky/catalog"), sc.plan(run)):
        assert repr(thing).startswith(f"<{type(thing).__name__}") and len(repr(thing)) < 400
        html = thing._repr_html_()
        assert html.startswith("<table><caption>") and html.count("<tr>") == html.count("</tr>") > 3
    assert "(w1mpro &lt; 99 AND flags &gt;= 0)" in classes._repr_html_()
    assert report.tiles_resumed == report.tiles == 1
