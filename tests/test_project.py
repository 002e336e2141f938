"""Project files: versions agree, the workflow runs what must pass, and the README stays short."""

from __future__ import annotations

import re
import tomllib

import yaml

import skyclass
from tests.support.paths import CHECKOUT

PROJECT = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]


def test_the_citation_has_the_version_and_licence_of_the_package() -> None:
    citation = yaml.safe_load((CHECKOUT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (skyclass.__version__, PROJECT["license"])


def test_the_workflow_runs_ci_on_every_python_that_the_package_names() -> None:
    job = yaml.safe_load((CHECKOUT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["test"]
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if re.search(r"Python :: 3\.\d+$", c)]
    assert job["strategy"]["matrix"]["python"] == named
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert job["steps"][-1]["run"] == ".ci/run"


def test_the_changelog_has_the_version_and_dates_newest_first() -> None:
    headings = re.findall(r"^##+ (.*)$", (CHECKOUT / "CHANGELOG.md").read_text(), re.MULTILINE)
    dates = [text for text in headings if re.fullmatch(r"\d{4}-\d\d-\d\d", text)]
    assert headings[0].startswith(skyclass.__version__)
    assert dates and dates == sorted(dates, reverse=True)


def test_every_hook_runs_a_tool_of_the_environment_or_of_make() -> None:
    config = yaml.safe_load((CHECKOUT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    makefile = (CHECKOUT / "Makefile").read_text()
    for hook in hooks:
        program, first, *_ = [*hook["entry"].split(), ""]
        assert program.startswith(".venv/bin/") or (program == "make" and f"\n{first}:" in makefile)
