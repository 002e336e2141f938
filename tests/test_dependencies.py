"""Every library that the package imports is declared, and not merely brought by another library."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def canonical(name: str) -> str:
    """Return the normalised name of a distribution."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(*extras: str) -> set[str]:
    """Return the declared distributions; an extra such as dask[distributed] declares the distribution of its name."""
    groups = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][extra] for extra in extras)]
    found: set[str] = set()
    for requirement in (requirement for group in groups for requirement in group):
        match = re.match(r"([A-Za-z0-9._-]+)(?:\[([^\]]*)\])?", requirement)
        assert match, requirement
        found |= {canonical(name) for name in (match[1], *(match[2] or "").split(",")) if name}
    return found


def imported(folder: Path) -> dict[str, str]:
    """Return top-level module -> a file that imports it, of the absolute imports below a folder."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                names = [node.module]
            for name in names:
                found.setdefault(name.partition(".")[0], str(path.relative_to(ROOT)))
    return found


IMPORTED = {
    module: path
    for module, path in imported(ROOT / "skyclass").items()
    if module not in sys.stdlib_module_names | {"skyclass", "__future__"}
}
DISTRIBUTIONS = packages_distributions()
CORE = declared()
EXTRAS = declared("cuda", "cloud", "train")


@pytest.mark.parametrize("module", sorted(IMPORTED))
def test_an_imported_library_is_declared(module: str) -> None:
    owners = {canonical(name) for name in DISTRIBUTIONS.get(module, [module.replace("_", "-")])}
    assert owners & (CORE | EXTRAS), f"{IMPORTED[module]} imports {module} of {', '.join(owners)}: declare it"


@pytest.mark.integration
def test_no_declared_library_is_unused() -> None:
    extras = {"dataframe"}
    owners = {canonical(name) for module in IMPORTED for name in DISTRIBUTIONS.get(module, [module])}
    assert CORE - owners <= extras
