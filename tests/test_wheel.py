"""The wheel: it holds every file of the package, and works outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.support.paths import CHECKOUT

BUILD_INPUTS = ("pyproject.toml", "README.md", "LICENSE")


def run(*arguments: str | Path, cwd: Path, **environment: str) -> str:
    """Return what a Python process prints."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=cwd, env=os.environ | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel that is built from a copy of the sources, without a look at any index."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(CHECKOUT / "skyclass", source / "skyclass", ignore=shutil.ignore_patterns("__pycache__"))
    for name in BUILD_INPUTS:
        shutil.copy(CHECKOUT / name, source)
    build = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index")
    run(*build, "--wheel-dir", target, source, cwd=source)
    (path,) = target.glob("skyclass-*.whl")
    return path


@pytest.mark.integration
def test_the_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    package = CHECKOUT / "skyclass"
    files = {f.relative_to(CHECKOUT).as_posix() for f in package.rglob("*") if f.is_file() and f.suffix != ".pyc"}
    with ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.startswith("skyclass-")}
    assert packed == files
    assert {"skyclass/py.typed", "skyclass/models/iicnet-mock/weights.safetensors"} <= packed


@pytest.mark.integration
def test_the_wheel_classifies_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with ZipFile(wheel) as archive:
        archive.extractall(site)
    path = {"PYTHONPATH": str(site)}
    assert run("-c", "import skyclass; print(skyclass.__file__)", cwd=tmp_path, **path).startswith(str(site))
    skyclass = ("-m", "skyclass")
    run(*skyclass, "mock", "sky", "--tiles", "1", "--size", "300", "--sources-per-tile", "30", cwd=tmp_path, **path)
    inputs = ("--catalog", "sky/catalog", "--images", "sky/images")
    run(*skyclass, "classify", *inputs, "--out", "classes", "--cluster", "none", cwd=tmp_path, **path)
    assert "nothing lost" in run(*skyclass, "verify", "classes", cwd=tmp_path, **path)
    run(*skyclass, "report", "classes", "-o", "report.html", cwd=tmp_path, **path)
    assert "SIMULATED" in (tmp_path / "report.html").read_text().upper()
