"""What the pages tell a reader to type is what the program takes."""

from __future__ import annotations

import re
import shlex
import tomllib
from dataclasses import fields
from itertools import takewhile
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

import skyclass
from skyclass.cli.main import cli
from skyclass.images.export import write_cutouts
from skyclass.run import pipeline
from skyclass.run.config import RunConfig
from skyclass.settings import build
from skyclass.sky.regions import region_from_dict
from skyclass.training.fit.recipe import TrainConfig, train_config

CHECKOUT = Path(__file__).parents[2]
README = CHECKOUT / "README.md"
PAGES = (README, *sorted((CHECKOUT / "docs").glob("*.md")), CHECKOUT / "CONTRIBUTING.md")


def blocks(page: Path, *languages: str) -> list[str]:
    """Return the code blocks of a page in some languages."""
    fences = re.findall(r"^```(?:\{code-block\} )?(\w+)\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    return [text for language, text in fences if language in languages]


def commands(page: Path) -> list[list[str]]:
    """Return the words of the commands of a page that call skyclass, up to a redirection, a pipe or a comment."""
    lines = "\n".join(blocks(page, "sh", "console", "text")).replace("\\\n", " ").splitlines()
    inline = re.findall(r"`(skyclass [^`]+)`", page.read_text("utf-8"))
    typed = [line.removeprefix("$ ").strip() for line in lines] + inline
    return [words(line) for line in typed if re.match(r"skyclass [a-z]", line)]


def words(command: str) -> list[str]:
    lexer = shlex.shlex(command, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    return list(takewhile(lambda word: word[0] not in "|<>;", lexer))[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_have_the_options_that_the_pages_name(page: Path) -> None:
    for name, *arguments in commands(page):
        assert name in cli.commands, page.name
        parameters = [p for p in cli.commands[name].params if isinstance(p, click.Option)]
        known = {option for p in parameters for option in (*p.opts, *p.secondary_opts)}
        options = {word.partition("=")[0] for word in arguments if re.match(r"--?[a-z]", word)}
        assert options <= known | {"--help"}, f"{page.name}: skyclass {name}: {sorted(options - known)}"


def test_every_command_is_shown_with_its_output_or_named_in_a_page() -> None:
    examples = "".join(file.read_text("utf-8") for file in (CHECKOUT / "docs" / "examples").glob("*.txt"))
    named = {name for page in PAGES for name, *_ in commands(page)}
    assert named | set(re.findall(r"^\$ skyclass (\w+)", examples, re.MULTILINE)) == set(cli.commands)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configurations_in_the_pages_have_keys_that_exist(page: Path) -> None:
    for text in blocks(page, "toml"):
        values = tomllib.loads(text)
        if "project" in values:  # of somebody else's package
            continue
        assert set(values) <= {field.name for field in fields(RunConfig if "catalog" in values else TrainConfig)}
        if "catalog" in values:
            build(RunConfig, values)
        else:
            train_config({"dataset": "dataset", "name": "x", "out": "x"} | values)


def test_regions_of_the_pages_are_regions() -> None:
    page = (CHECKOUT / "docs" / "commands.md").read_text("utf-8")
    shown = [tomllib.loads(f"region = {text}")["region"] for text in re.findall(r"`(\{kind[^`]*\})`", page)]
    assert [region_from_dict(values).to_dict()["kind"] for values in shown if values["kind"] != "moc"] == [
        "cone",
        "box",
        "polygon",
        "pixels",
    ]


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = README.read_text("utf-8")
    assert len(text.encode()) <= 7_000
    links = re.findall(r"\]\(([^)#]+)", text)
    assert links and all((CHECKOUT / link).exists() for link in links if "://" not in link)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    folders = "skyclass|tests|benchmarks|docs|cluster"
    named = re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text("utf-8"))
    assert not [path for path in named if not (CHECKOUT / path).exists() and "docs/_build" not in path]


def test_names_that_the_pages_use_are_public() -> None:
    for page in PAGES:
        text = "\n".join(blocks(page, "python", "ipython3"))
        assert set(re.findall(r"\bsc\.(\w+)", text)) <= set(skyclass.__all__), page.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_that_uses_skyclass_imports_it(page: Path) -> None:
    lacking = [
        text for text in blocks(page, "python") if re.search(r"\bsc\.", text) and "import skyclass as sc" not in text
    ]
    assert not lacking, lacking[0]


@pytest.mark.integration
def test_the_python_of_the_readme_runs(tutorial: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tutorial)
    code = blocks(README, "python")[0]
    for shown, small in {
        '"skyclass-demo/mock"': '"sky"',
        "15arcmin": "1deg",
        'out="mine"': 'out="mine", cluster="none"',
    }.items():
        assert shown in code
        code = code.replace(shown, small)
    names: dict[str, object] = {"__name__": "__main__"}
    exec(code, names)
    assert sum(names["counts"]["n"]) == names["report"].sources_in > 0


@pytest.mark.integration
def test_the_cutouts_of_a_file_get_the_probabilities_of_a_run(
    run: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The code of the page on your own sources, with the small model of the tests."""
    monkeypatch.chdir(tmp_path)
    code = next(
        block for block in blocks(CHECKOUT / "docs" / "your-own-sources.md", "python") if "cutouts.npz" in block
    )
    write_cutouts(run.catalog, run.images, "cutouts.npz", "37px", ("w1", "w2", "w3"))
    assert '"iicnet-mock"' in code
    names: dict[str, Any] = {}
    exec(code.replace('"iicnet-mock"', repr(run.model)), names)
    pipeline.classify(run)
    rows = skyclass.open_catalog(run.out).to_pandas().set_index("source_id")
    rows = rows.loc[names["file"]["source_id"][names["has_image"]]]
    assert len(rows) == rows["class"].notna().sum() > 500
    # The sums of some processors depend on the size of the batch.
    expected = rows[["p_galaxy", "p_quasar", "p_star"]].to_numpy(np.float32)
    np.testing.assert_allclose(names["probabilities"], expected, atol=1e-5)
