"""The version of the code that makes rows, and of the libraries that it uses: equal on the driver and its workers."""

from __future__ import annotations

import ast
import hashlib
import platform
from collections.abc import Iterable, Iterator
from functools import cache
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from itertools import chain

from . import __version__

PACKAGE = __package__
ROW_ROOTS = ("run.stages",)
"""The modules whose functions count, cut, infer and commit. What they import, directly or not, decides rows."""
ROW_LIBRARIES = ("numpy", "pyarrow", "astropy", "torch", "dask", "distributed")


@cache
def code_version() -> str:
    """Return the version with a digest of the code that makes rows, such as 0.1.0+1f3a9c02."""
    digest = hashlib.sha256()
    for name, source in sorted(row_sources().items()):
        digest.update(f"{name} {len(source)}\n".encode() + source)
    return f"{__version__}+{digest.hexdigest()[:8]}"


def versions() -> dict[str, str]:
    """Return what must be the same on the driver and its workers: code, Python, and the libraries that make rows."""
    libraries = {name: metadata.version(name) for name in ROW_LIBRARIES}
    return {"skyclass": code_version(), "python": ".".join(platform.python_version_tuple()[:2])} | libraries


def row_sources(roots: Iterable[str] = ROW_ROOTS) -> dict[str, bytes]:
    """Return module -> source of the import closure of `roots` within this package, with imports inside functions.

    Nothing is imported. Blocks under `if TYPE_CHECKING:` are left out, because they never run. Raises
    `ModuleNotFoundError` for a root that is no module.
    """
    sources: dict[str, bytes] = {}
    waiting = [f"{PACKAGE}.{root}" for root in roots]
    if absent := [root for root in waiting if not _source_file(root)]:
        raise ModuleNotFoundError(f"no module {', '.join(absent)}")
    while waiting:
        name = waiting.pop()
        file = None if name in sources else _source_file(name)
        if file is None:  # seen already, or a name that is not a module
            continue
        sources[name] = file.read_bytes()
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting += [package, name.rpartition(".")[0], *_imported(ast.parse(sources[name]).body, package)]
    return sources


def _source_file(name: str) -> Traversable | None:
    """Return the source file of a module or package of this package, None for any other name."""
    first, *rest = name.split(".")
    if first != PACKAGE:
        return None
    entry = resources.files(PACKAGE).joinpath(*rest)
    files = (entry.joinpath("__init__.py"), resources.files(PACKAGE).joinpath(*rest[:-1], f"{(rest or [''])[-1]}.py"))
    return next((file for file in files if file.is_file()), None)


def _imported(statements: Iterable[ast.AST], package: str) -> Iterator[str]:
    """Yield the absolute names that statements of `package` import; a name may be a module or a part of one."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.rsplit(".", node.level - 1)[0] if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))
        else:
            blocks = BLOCKS[1:] if _is_type_checking(node) else BLOCKS
            yield from _imported(chain.from_iterable(getattr(node, block, ()) for block in blocks), package)


BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")
"""Where the statements of a compound statement are. Expressions import nothing."""


def _is_type_checking(node: ast.AST) -> bool:
    if not isinstance(node, ast.If):
        return False
    return getattr(node.test, "id", getattr(node.test, "attr", "")) == "TYPE_CHECKING"
