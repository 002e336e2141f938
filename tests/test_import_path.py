"""Classes named by an import path: found, missing, and changed after this process imported them."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skyclass.errors import ConfigError
from skyclass.import_path import import_class, is_import_path, source_sha256

WriteModule = Callable[[str], str]


@pytest.fixture
def write_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteModule:
    """Return a function that writes the source of a module which this test alone has, and returns its name."""
    name = f"written_by_{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, name, raising=False)

    def write(source: str) -> str:
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        return name

    return write


def test_a_class_is_found_and_its_source_has_the_digest_of_the_file(write_module: WriteModule) -> None:
    source = "class Network:\n    pass\n"
    module = write_module(source)
    assert import_class(f"{module}:Network").__name__ == "Network"
    assert source_sha256(f"{module}:Network") == hashlib.sha256(source.encode()).hexdigest()
    assert is_import_path(f"{module}:Network") and not is_import_path("iicnet")


def test_the_digest_is_found_without_running_the_module(write_module: WriteModule) -> None:
    module = write_module("raise RuntimeError('this module was run')\n")
    assert len(source_sha256(f"{module}:Network")) == 64
    with pytest.raises(RuntimeError, match="this module was run"):
        import_class(f"{module}:Network")


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("no_such_module:Network", "no module no_such_module here: install its package .* PYTHONPATH"),
        ("no_such_package.module:Network", "no module no_such_package.module here"),
        ("skyclass.text:Network", "module skyclass.text has no class Network"),
        ("skyclass.text:counted", "module skyclass.text has no class counted"),
        ("sys:Network", "module sys has no source file"),
        ("skyclass.text:", "write package.module:Class"),
        ("skyclass/text.py:Network", "write package.module:Class"),
    ],
)
def test_what_is_missing_is_named(path: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        import_class(path)


def test_a_module_that_cannot_be_imported_is_named(write_module: WriteModule) -> None:
    module = write_module("import no_such_module\n")
    with pytest.raises(ConfigError, match=f"module {module} cannot be imported .No module named 'no_such_module'"):
        import_class(f"{module}:Network")
    module = write_module("class Network\n")
    with pytest.raises(ConfigError, match=f"module {module} cannot be imported"):
        import_class(f"{module}:Network")


def test_a_change_after_the_import_is_refused(write_module: WriteModule) -> None:
    """This process runs the first source, and the file has the second."""
    module = write_module("class Network:\n    size = 1\n")
    import_class(f"{module}:Network")
    write_module("class Network:\n    size = 2\n")
    with pytest.raises(ConfigError, match=f"module {module} was changed after .* restart the process"):
        import_class(f"{module}:Network")
