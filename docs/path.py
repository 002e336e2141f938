"""The path of one row through the code, in order: what the architecture page and its figure show."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Step:
    """A function or class that a row passes, and what it hands on."""

    title: str
    module: str
    name: str
    caller: str
    """Module and function that calls it, or that makes the object, below the package."""
    result: str
    role: str = "worker"

    @property
    def file(self) -> str:
        """The file below the checkout."""
        return f"{self.module.replace('.', '/')}.py"

    def thing(self) -> object:
        """Return the function or class; `AttributeError` if it no longer exists."""
        return getattr(import_module(self.module), self.name)

    def calling(self) -> object:
        """Return the caller; `AttributeError` if it no longer exists."""
        module, name = self.caller.split(":")
        return getattr(import_module(f"skyclass.{module}"), name)


PATH = (
    Step(
        "configure", "skyclass.cli.options", "read_config", "cli.run:classify", "RunConfig: every key checked", "driver"
    ),
    Step(
        "plan",
        "skyclass.run.prepare",
        "plan_run",
        "run.pipeline:classify",
        "Plan: tiles with their sources and partitions",
        "driver",
    ),
    Step(
        "list",
        "skyclass.sources.opening",
        "open_sources",
        "run.prepare:plan_run",
        "the partitions of the region",
        "driver",
    ),
    Step("count", "skyclass.run.stages", "count_partition", "run.prepare:count_here", "number of sources by tile"),
    Step(
        "open", "skyclass.run.prepare", "open_run", "run.pipeline:classify", "the run folder, new or resumed", "driver"
    ),
    Step(
        "cut strip",
        "skyclass.run.stages",
        "cut_strip",
        "run.pipeline:classify_tile",
        "the next six steps, for one strip of a tile",
    ),
    Step(
        "tile",
        "skyclass.images.archive",
        "AtlasArchive",
        "images.archive:open_archive",
        "Tile: WCS, zero points, files; then its pixel rows",
    ),
    Step(
        "read",
        "skyclass.sources.by_tile",
        "sources_of_tile",
        "run.tile_sources:read_unchanged",
        "rows of one tile: id, position, photometry",
    ),
    Step(
        "pixels",
        "skyclass.sky.tile_wcs",
        "tile_pixels",
        "run.stages:cut_strip",
        "x, y (N,): FITS pixels of the sources",
    ),
    Step(
        "cut",
        "skyclass.images.cutouts",
        "Cutter",
        "run.stages:cut_and_composite",
        "cutouts (N, 3, 37, 37) float32 in DN, flags, valid_frac",
    ),
    Step(
        "composite",
        "skyclass.images.composite",
        "composite",
        "run.stages:cut_and_composite",
        "composites (N, 3, 37, 37) float16",
    ),
    Step(
        "infer strip",
        "skyclass.run.stages",
        "infer_strip",
        "run.pipeline:classify_tile",
        "the next step, for one strip",
    ),
    Step(
        "infer",
        "skyclass.model.classifier",
        "NetworkClassifier",
        "model.classifier:load_classifier",
        "probabilities (N, 3) float32",
    ),
    Step(
        "commit strips",
        "skyclass.run.stages",
        "commit_strips",
        "run.pipeline:classify_tile",
        "the next three steps, for all strips of a tile",
    ),
    Step(
        "rows",
        "skyclass.run.class_rows",
        "class_rows",
        "run.stages:commit_strips",
        "a table with the columns of the class catalogue",
    ),
    Step(
        "conform",
        "skyclass.schema",
        "conform",
        "run.commits:commit_tile",
        "the same, in the types and order of the schema",
    ),
    Step(
        "commit",
        "skyclass.run.commits",
        "commit_tile",
        "run.stages:commit_strips",
        "tiles/COADD_ID.parquet, written exactly once",
    ),
    Step(
        "check",
        "skyclass.run.finish",
        "publish_run",
        "run.pipeline:publish_and_report",
        "rows in = rows out, or an error",
        "driver",
    ),
    Step(
        "publish",
        "skyclass.catalog.publish",
        "publish_catalog",
        "run.finish:publish_run",
        "catalogs/N: one file for each HEALPix pixel",
        "driver",
    ),
    Step(
        "query",
        "skyclass.catalog.query",
        "ClassCatalog",
        "catalog.query:open_catalog",
        "the rows of a region that meet a condition",
        "reader",
    ),
)
"""In the order in which a row passes them; `skyclass.run.pipeline.classify` does the steps from `plan` to `publish`."""
