"""The plain pipeline: catalogue -> cutouts -> composites -> network -> class catalogue, in one process without Dask.

Every parallel run gives the same rows: the engine places the same functions of `stages.py` on workers.
"""

from __future__ import annotations

from itertools import starmap

from ..catalog.versions import restore_link
from ..errors import TileFault
from ..files import write_json
from ..types import ParallelMap, TilePlan
from .config import RunConfig
from .context import Line, strips_of
from .finish import is_published, publish_run
from .lease import hold_lease
from .plan import Plan
from .prepare import begin, count_here, earlier, settle_network, survey, warm_here
from .progress import Watch, quiet
from .report import RunReport, Tally
from .stages import TILE_ATTEMPTS, commit_fault, commit_strips, cut_strip, infer_strip, kept_changing, next_attempt


def classify(run: RunConfig, watch: Watch = quiet) -> RunReport:
    """Return the report of a whole run in this process: planned, classified, committed and published."""
    line, plan, table = survey(run, count_here)
    line = settle_network(run, line, plan, warm_here)
    with hold_lease(line.folder) as lease:
        line = begin(run, line, plan, table)
        tally = Tally(line, plan, lease)
        with watch(tally.resume(earlier(run, line))) as tally.watcher:
            for tile in pending(plan, tally):
                classify_tile(line, tile, run.strip_sources, tally)
        return finish(line, tally)


def classify_tile(line: Line, tile: TilePlan, strip_sources: int, tally: Tally) -> None:
    """Take one tile down the line and commit it; again, as a whole, if its files changed meanwhile."""
    results = []
    for strip in strips_of(tile, strip_sources):
        composites = cut_strip(line, strip)
        results.append(infer_strip(line, composites))
        tally.strip(strip)
    try:
        commit = commit_strips(line, tile, results)
    except TileFault as fault:
        tally.again(tile.coadd_id)
        if tile.attempt < TILE_ATTEMPTS:
            return classify_tile(line, next_attempt(tile), strip_sources, tally)
        commit = commit_fault(line, tile, kept_changing(fault))
    tally.commit(*commit)


def pending(plan: Plan, tally: Tally) -> list[TilePlan]:
    """Return the tiles that nobody has committed yet, longest first."""
    return [tile for tile in plan.tiles if tile.coadd_id not in tally.commits]


def finish(line: Line, tally: Tally, parallel_map: ParallelMap = starmap) -> RunReport:
    """Return the report after the row check; publish what is new, its files written through `parallel_map`."""
    report = tally.report()
    tally.lease.check()
    if tally.is_new or not is_published(line.folder):
        write_json(line.folder.report_path, report.to_dict())
        publish_run(line.folder, parallel_map=parallel_map, fence=tally.lease.check)
    restore_link(line.folder.path)
    return report
