"""skyclass classifies whole infrared catalogues from their images.

Importing it loads neither torch nor Dask; each public name is loaded when it is first used.

    classify, plan, RunConfig                run a classification, or predict what it takes
    Cone, Box, Polygon, Pixels, read_moc     regions of the sky
    open_sources                             catalogues to classify, as Dask DataFrames
    open_catalog, verify, recalibrate        class catalogues
    load_classifier                          a model bundle, for images of your own
    connect                                  a Dask cluster
    SkyclassError and its subclasses         every error that skyclass raises on purpose
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "ArchiveError": "errors",
    "BANDS": "types",
    "Box": "sky.regions",
    "BundleError": "errors",
    "CatalogError": "errors",
    "ClassCatalog": "catalog.query",
    "Cone": "sky.regions",
    "ConfigError": "errors",
    "Flag": "types",
    "Interrupted": "errors",
    "Moc": "sky.moc",
    "NotPublished": "errors",
    "Pixels": "sky.regions",
    "PlanReport": "run.plan_report",
    "Polygon": "sky.regions",
    "RunConfig": "run.config",
    "RunMismatch": "errors",
    "RunReport": "run.report",
    "SkyclassError": "errors",
    "SourceTable": "sources.source_table",
    "StoreError": "errors",
    "VerifyReport": "catalog.verify",
    "classify": "api",
    "connect": "engine.cluster",
    "load_classifier": "model.classifier",
    "open_catalog": "catalog.query",
    "open_sources": "sources.opening",
    "plan": "api",
    "recalibrate": "run.recalibrate",
    "read_moc": "sky.moc",
    "undo_recalibration": "run.recalibrate",
    "verify": "run.finish",
}
"""Public name -> module below this package that defines it."""

__all__ = [
    "ArchiveError",
    "BANDS",
    "Box",
    "BundleError",
    "CatalogError",
    "ClassCatalog",
    "Cone",
    "ConfigError",
    "Flag",
    "Interrupted",
    "Moc",
    "NotPublished",
    "Pixels",
    "PlanReport",
    "Polygon",
    "RunConfig",
    "RunMismatch",
    "RunReport",
    "SkyclassError",
    "SourceTable",
    "StoreError",
    "VerifyReport",
    "__version__",
    "classify",
    "connect",
    "load_classifier",
    "open_catalog",
    "open_sources",
    "plan",
    "read_moc",
    "recalibrate",
    "undo_recalibration",
    "verify",
]

if TYPE_CHECKING:
    from .api import classify, plan
    from .catalog.query import ClassCatalog, open_catalog
    from .catalog.verify import VerifyReport
    from .engine.cluster import connect
    from .errors import (
        ArchiveError,
        BundleError,
        CatalogError,
        ConfigError,
        Interrupted,
        NotPublished,
        RunMismatch,
        SkyclassError,
        StoreError,
    )
    from .model.classifier import load_classifier
    from .run.config import RunConfig
    from .run.finish import verify
    from .run.plan_report import PlanReport
    from .run.recalibrate import recalibrate, undo_recalibration
    from .run.report import RunReport
    from .sky.moc import Moc, read_moc
    from .sky.regions import Box, Cone, Pixels, Polygon
    from .sources.opening import open_sources
    from .sources.source_table import SourceTable
    from .types import BANDS, Flag


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return __all__
