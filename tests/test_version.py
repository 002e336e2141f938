"""The code version: it covers all code that makes rows, and no other code."""

from __future__ import annotations

import shutil
import subprocess
import sys
from modulefinder import ModuleFinder
from pathlib import Path

import pytest

import skyclass
from skyclass.version import code_version, row_sources

PACKAGE = Path(skyclass.__file__).parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Return a copy of the package, to be changed."""
    shutil.copytree(PACKAGE, tmp_path / "skyclass", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "skyclass"


def python(code: str, path: Path, *args: object) -> str:
    """Return what code prints in a fresh process that imports skyclass from `path`."""
    command = [sys.executable, "-c", code, *map(str, args)]
    done = subprocess.run(command, env={"PYTHONPATH": str(path)}, cwd=path.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def version_of(path: Path) -> str:
    return python("from skyclass.version import code_version; print(code_version())", path)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, path
    path.write_text(text.replace(old, new))


def test_the_closure_is_what_the_byte_code_imports(copy: Path) -> None:
    """`modulefinder` reads byte code, with functions. Only the root of the package has imports for type checkers."""
    root = (copy / "__init__.py").read_text()
    (copy / "__init__.py").write_text(root[: root.index("if TYPE_CHECKING:")])
    finder = ModuleFinder(path=[str(copy.parent)])
    finder.import_hook("skyclass.run.stages")
    assert set(row_sources()) == {name for name in finder.modules if name.split(".")[0] == "skyclass"}


CLASSIFY = """
import sys
from skyclass.model.bundle import load_bundle
from skyclass.run.context import RunContext
from skyclass.run.stages import classify_whole, count_partition
from skyclass.types import TilePlan
catalog, images, model, out = sys.argv[1:]
context = RunContext(catalog, None, images, model, load_bundle(model).digest, "fp32", "cpu", out, "a session", "a run")
context.folder.make()
counts = count_partition(context, 0).to_pylist()[0]
name, partition, n = counts["coadd_id"], counts["partition"], counts["n"]
commit, _ = classify_whole(context, TilePlan(name, n, (partition,)), n)
assert commit.rows == n and commit.classes["unclassified"] < n, commit
print(*[name for name in sys.modules if name.split(".")[0] == "skyclass"])
"""


@pytest.mark.integration
def test_what_is_loaded_while_a_tile_is_classified_is_in_the_closure(sky, bundle, tmp_path: Path) -> None:
    loaded = python(CLASSIFY, PACKAGE.parent, sky.catalog, sky.images, bundle, tmp_path / "out").split()
    assert {"skyclass.schema", "skyclass.run.commits", "skyclass.networks.iicnet"} < set(loaded) <= set(row_sources())


@pytest.mark.integration
def test_changed_row_code_is_another_version_and_a_changed_message_of_progress_is_not(copy: Path) -> None:
    assert version_of(copy.parent) == code_version()
    edit(copy / "run" / "report.py", "correct the faults", "correct all faults")
    edit(copy / "cli" / "run.py", "nothing was left to do", "nothing is left to do")
    (copy / "unused.py").write_text("x = 1\n")
    assert version_of(copy.parent) == code_version()
    seen = {code_version()}
    changes = {
        "schema.py": "def conform(",
        "run/commits.py": "def commit_tile(",
        "sources/tables.py": "def read_table(",
    }
    for module, old in changes.items():
        edit(copy / module, old, f"# another comment\n{old}")
        seen.add(version_of(copy.parent))
    assert len(seen) == 4


def test_a_root_that_is_no_module_is_an_error() -> None:
    with pytest.raises(ModuleNotFoundError, match="no module skyclass.stages"):
        row_sources(("stages",))


@pytest.mark.integration
def test_the_version_is_the_same_from_an_archive(copy: Path, tmp_path: Path) -> None:
    """Sources are read as resources of the package: from a wheel, a folder or a zip file."""
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path, "skyclass")
    shutil.rmtree(copy)
    assert version_of(Path(archive)) == code_version()
