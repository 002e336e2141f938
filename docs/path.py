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
    result: str
    role: str = "worker"

    @property
    def file(self) -> str:
        """The file below the checkout."""
        return f"{self.module.replace('.', '/')}.py"

    def thing(self) -> object:
        """Return the function or class; `AttributeError` if it no longer exists."""
        return getattr(import_module(self.module), self.name)


PATH = (
    Step("configure", "skyclass.cli.options", "read_config", "RunConfig: every key checked", "driver"),
    Step("list", "skyclass.sources.opening", "open_sources", "the partitions of the region", "driver"),
    Step("count", "skyclass.run.stages", "count_partition", "number of sources by tile"),
    Step("plan", "skyclass.run.prepare", "plan_run", "Plan: tiles with their sources and partitions", "driver"),
    Step("open", "skyclass.run.prepare", "open_run", "the run folder, new or resumed", "driver"),
    Step("read", "skyclass.sources.by_tile", "sources_of_tile", "rows of one tile: id, position, photometry"),
    Step("tile", "skyclass.images.archive", "AtlasArchive", "Tile: WCS, zero points, files; then its pixel rows"),
    Step("pixels", "skyclass.sky.tile_wcs", "tile_pixels", "x, y (N,): FITS pixels of the sources"),
    Step("cut", "skyclass.images.cutouts", "Cutter", "cutouts (N, 3, 37, 37) float32 in DN, flags, valid_frac"),
    Step("composite", "skyclass.images.composite", "composite", "composites (N, 3, 37, 37) float16"),
    Step("infer", "skyclass.model.classifier", "NetworkClassifier", "probabilities (N, 3) float32"),
    Step("rows", "skyclass.run.class_rows", "class_rows", "a table with the columns of the class catalogue"),
    Step("conform", "skyclass.schema", "conform", "the same, in the types and order of the schema"),
    Step("commit", "skyclass.run.commits", "commit_tile", "tiles/COADD_ID.parquet, written exactly once"),
    Step("check", "skyclass.run.finish", "publish_run", "rows in = rows out, or an error", "driver"),
    Step(
        "publish",
        "skyclass.catalog.publish",
        "publish_catalog",
        "catalogs/N: one file for each HEALPix pixel",
        "driver",
    ),
    Step("query", "skyclass.catalog.query", "ClassCatalog", "the rows of a region that meet a condition", "reader"),
)
"""In this order: `skyclass.run.pipeline.classify` calls the steps from `plan` to `publish`."""
