"""The path of one row through the code, in order: what the architecture page and its figure show."""

from __future__ import annotations

from dataclasses import dataclass
from functools import reduce
from importlib import import_module


@dataclass(frozen=True)
class Step:
    """One step on the path: a function and its caller, both as "module:function" below `skyclass`, and the result."""

    title: str
    role: str
    function: str
    caller: str
    result: str

    @property
    def file(self) -> str:
        """The file below the checkout."""
        return f"skyclass/{self.function.partition(':')[0].replace('.', '/')}.py"

    @property
    def name(self) -> str:
        """The function, or Class.method."""
        return self.function.partition(":")[2]


def thing(reference: str) -> object:
    """Return the function of "module:function"; `AttributeError` if it no longer exists."""
    module, _, name = reference.partition(":")
    return reduce(getattr, name.split("."), import_module(f"skyclass.{module}"))


STEPS = """
configure      | driver | cli.options:read_config            | cli.run:classify                 | RunConfig: every key checked
plan           | driver | run.prepare:plan_run               | run.pipeline:classify            | Plan: tiles, their sources and partitions
list           | driver | sources.opening:open_sources       | run.prepare:plan_run             | the partitions of the region
count          | worker | run.stages:count_partition         | run.prepare:count_here           | number of sources by tile
open           | driver | run.prepare:open_run               | run.pipeline:classify            | the run folder, new or resumed
cut strip      | worker | run.stages:cut_strip               | run.pipeline:classify_tile       | CutStrip: the next eleven steps, for one strip
tile           | worker | images.archive:AtlasArchive.tile   | run.stages:open_tile             | Tile: WCS, zero points, files
read           | worker | sources.partitions:PartitionedSources.read | sources.by_tile:sources_of_tile | rows with clean values: id, position, photometry
clean          | worker | schema:conform_sources             | sources.partitions:PartitionedSources.read | values that cannot be right are null, and counted
assign         | worker | sources.assign:assign_tiles        | sources.by_tile:_with_tiles      | a tile for each source without coadd_id
order          | worker | run.tile_sources:tile_sources      | run.stages:cut_strip             | sources of a tile, ordered by pixel row
pixels         | worker | sky.tile_wcs:tile_pixels           | run.stages:cut_strip             | x, y (N,): FITS pixels of the sources
rows           | worker | images.cutouts:read_bands          | run.stages:cut_image_sets        | pixel rows of each band, read once
cut            | worker | images.cutouts:Cutter.cut          | run.stages:cut_and_composite     | cutouts (N, 3, 37, 37) float32 in DN
composite      | worker | images.composite:composite         | run.stages:cut_and_composite     | composites (N, 3, 37, 37) float16
measure        | worker | images.aperture:measure_centres    | run.stages:cut_and_composite     | W1 in an aperture, source or none, neighbour, halo
features       | worker | model.photometry:features          | run.stages:cut_strip             | photometry (N, F) float32, if the model takes any
infer strip    | worker | run.stages:infer_strip             | run.pipeline:classify_tile       | StripResult: the next two steps, for one strip
infer          | worker | model.classifier:NetworkClassifier.predict_and_embed | run.stages:infer_strip | probabilities (N, 3), embedding (N, 64) float32
score          | worker | model.outliers:OutlierStatistics.scores | run.stages:infer_strip      | scores of outliers (N,) float32, if the model has any
commit strips  | worker | run.stages:commit_strips           | run.pipeline:classify_tile       | the next three steps, for all strips of a tile
join           | worker | run.class_rows:class_rows          | run.stages:commit_strips         | the columns of the class catalogue
conform        | worker | schema:conform                     | run.commits:commit_tile          | the same, in the types and order of the schema
commit         | worker | run.commits:commit_tile            | run.stages:commit_strips         | tiles/COADD_ID.parquet, written exactly once
record         | driver | run.state:RunState.record_commit   | run.pipeline:classify_tile       | a line of the journal, progress
publish run    | driver | run.finish:publish_run             | run.pipeline:publish_and_report  | rows in = rows out, or an error
publish        | driver | catalog.publish:publish_catalog    | run.finish:publish_run           | catalogs/N, with a manifest
write pixel    | worker | catalog.publish:write_pixel        | catalog.publish:publish_catalog  | one file for each HEALPix pixel of order 5
query          | reader | catalog.query:open_catalog         | cli.catalogue:query              | the rows of a region that meet a condition
"""  # noqa: E501
PATH = tuple(Step(*map(str.strip, line.split("|"))) for line in STEPS.strip().splitlines())
"""In the order in which a row passes them; `skyclass.run.pipeline.classify` does the steps from `plan` to `publish`."""
