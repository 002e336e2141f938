"""Classes named by an import path, "package.module:Class": code outside of skyclass."""

from __future__ import annotations

import hashlib
import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec

from .errors import ConfigError

PATTERN = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*)")
REMEDY = "install its package in this environment, or add its folder to PYTHONPATH"


def is_import_path(name: str) -> bool:
    """Return whether a name is meant as an import path: whether it has a colon.

    >>> is_import_path("mypackage.networks:Deep"), is_import_path("iicnet")
    (True, False)
    """
    return ":" in name


def import_class(path: str) -> type:
    """Return the class that an import path names. This runs the code of its module.

    Raises `ConfigError` if the module or the class is missing, and if the source of the module has changed since this
    process imported it.
    """
    module_name, class_name = _parts(path)
    imported, now = _import(module_name), _sha256_of_module(module_name)
    if imported != now:
        raise ConfigError(
            f"module {module_name} was changed after this process imported it (SHA-256 {imported[:12]} then, "
            f"{now[:12]} now): restart the process"
        )
    found = getattr(import_module(module_name), class_name, None)
    if not isinstance(found, type):
        raise ConfigError(f"module {module_name} has no class {class_name}: correct the import path {path!r}")
    return found


def source_sha256(path: str) -> str:
    """Return the SHA-256 of the source file of the module that an import path names.

    The module is not imported; the packages that contain it are. Other modules that it imports are not covered. Raises
    `ConfigError` if there is no such module or no source.
    """
    return _sha256_of_module(_parts(path)[0])


def _parts(path: str) -> tuple[str, str]:
    match = PATTERN.fullmatch(path)
    if match is None:
        raise ConfigError(f"{path!r} is not an import path: write package.module:Class")
    return match[1], match[2]


@cache
def _import(module_name: str) -> str:
    """Import a module; return the SHA-256 that its source has at that time."""
    sha256 = _sha256_of_module(module_name)
    try:
        import_module(module_name)
    except (ImportError, SyntaxError) as error:
        raise ConfigError(f"module {module_name} cannot be imported ({error}): correct it") from error
    return sha256


def _sha256_of_module(module_name: str) -> str:
    try:
        spec = find_spec(module_name)
    except (ImportError, SyntaxError, ValueError) as error:
        raise ConfigError(f"there is no module {module_name} here ({error}): {REMEDY}") from error
    if spec is None:
        raise ConfigError(f"there is no module {module_name} here: {REMEDY}")
    read = getattr(spec.loader, "get_data", None)
    if read is None or not (spec.origin or "").endswith(".py"):
        raise ConfigError(f"module {module_name} has no source file: name a module that is a Python file")
    try:
        source: bytes = read(spec.origin)
    except OSError as error:
        raise ConfigError(f"{spec.origin} cannot be read ({error.strerror or error}): {REMEDY}") from error
    return hashlib.sha256(source).hexdigest()
