"""skyclass classifies whole infrared catalogues from their images.

Importing it loads neither torch nor Dask; each public name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "RunConfig": "run.config",
    "Cone": "sky.regions",
    "Box": "sky.regions",
    "Polygon": "sky.regions",
    "Pixels": "sky.regions",
    "Flag": "types",
    "BANDS": "types",
    "CLASSES": "types",
    "SkyclassError": "errors",
    "connect": "engine.cluster",
    "classify": "engine.engine",
    "verify": "run.finish",
    "open_catalog": "catalog.query",
}

__all__ = [
    "BANDS",
    "CLASSES",
    "Box",
    "Cone",
    "Flag",
    "Pixels",
    "Polygon",
    "RunConfig",
    "SkyclassError",
    "__version__",
    "classify",
    "connect",
    "open_catalog",
    "verify",
]

if TYPE_CHECKING:
    from .catalog.query import open_catalog
    from .engine.cluster import connect
    from .engine.engine import classify
    from .errors import SkyclassError
    from .run.config import RunConfig
    from .run.finish import verify
    from .sky.regions import Box, Cone, Pixels, Polygon
    from .types import BANDS, CLASSES, Flag


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)
