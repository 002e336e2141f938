"""Which packages may import which libraries. Imports inside the package are contracts of import-linter: `make lint`."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support.paths import CHECKOUT

PACKAGE = CHECKOUT / "skyclass"

FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py" or p.parent != PACKAGE)

ALLOWED_IMPORTERS = {
    "dask_cuda": {"engine"},
    "distributed": {
        "engine",
        "cli",
        "training",
        "api.py",
    },  # training: the ranks of each node; api.py: a type only
    "astropy.io.fits": {"images", "sources", "catalog"},
    "obstore": {"images"},
    "torch": {
        "networks",
        "model",
        "images",
        "training",
    },  # images/composite.py: float32 -> float16
    "duckdb": {"catalog"},
    "sklearn": {"training"},
    "matplotlib": {"report", "training"},
}
"""Library -> the only modules or packages that may import it (the simulated sky writes its own FITS)."""


def package_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@cache
def imports(path: Path) -> list[tuple[str, int]]:
    """Return the absolute dotted names that a file imports anywhere, and their lines."""
    found = []
    package = ("skyclass", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found += [(f"{module}.{alias.name}", node.lineno) for alias in node.names]
    return found


@pytest.mark.parametrize("library", ALLOWED_IMPORTERS)
def test_only_some_packages_import_a_library(library):
    for path in FILES:
        where = path.relative_to(PACKAGE).parts[0]
        if where == "mock":
            continue
        used = [line for name, line in imports(path) if f"{name}.".startswith(f"{library}.")]
        assert not used or where in ALLOWED_IMPORTERS[library], f"{path.name}:{used[0]} imports {library}"


def test_nothing_of_the_pipeline_imports_training_or_the_simulated_sky():
    for path in FILES:
        if package_of(path) in ("training", "mock", "cli"):
            continue
        assert not [n for n, _ in imports(path) if n.startswith(("skyclass.training", "skyclass.mock"))], path


def test_importing_skyclass_loads_neither_torch_nor_dask():
    code = "import skyclass, sys; print([m for m in ('torch', 'distributed', 'dask', 'duckdb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_public_name_can_be_had():
    import skyclass

    assert all(getattr(skyclass, name) is not None for name in skyclass.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = skyclass.nonsense


def test_the_pipeline_fits_one_screen():
    assert len((PACKAGE / "run" / "pipeline.py").read_text().splitlines()) <= 68


@pytest.mark.integration
def test_no_quiet_catch_all():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                names = {n.id for n in ast.walk(node.type) if isinstance(n, ast.Name)} if node.type else {"bare"}
                assert not names & {"bare", "Exception", "BaseException"}, f"{path.name}:{node.lineno}"


MUTABLE_DATACLASSES = {
    "Attempt", "JsonLines", "Position", "RankProcess", "RunState", "StopRequest", "TileAttempt", "_Bar",
}  # fmt: skip
"""Counters and processes that one owner changes."""


def test_dataclasses_are_frozen():
    mutable = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            for decorator in getattr(node, "decorator_list", []):
                text = ast.unparse(decorator)
                if text.split("(")[0] == "dataclass" and "frozen=True" not in text:
                    mutable.add(node.name)
    assert mutable == MUTABLE_DATACLASSES
