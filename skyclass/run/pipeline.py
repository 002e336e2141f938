"""The plain pipeline: catalogue -> cutouts -> composites -> network -> class catalogue, in one process without Dask.

The engine gives the same rows, because it runs the same functions of `stages.py` on workers.
"""

from __future__ import annotations

from itertools import starmap

from ..catalog.versions import restore_link
from ..errors import TileFault
from ..files import write_json
from ..types import ParallelMap, TilePlan
from .config import RunConfig
from .context import RunContext, strips_of
from .finish import is_published, publish_run
from .lease import hold_lease
from .prepare import choose_compilation, count_here, load_committed, open_run, plan_run, warm_up_local
from .progress import StartProgress, no_progress
from .report import RunReport
from .stages import TILE_ATTEMPTS, commit_fault, commit_strips, cut_strip, infer_strip, kept_changing, next_attempt
from .state import RunState


def classify(run: RunConfig, watch: StartProgress = no_progress) -> RunReport:
    """Plan a run, classify its tiles, publish the catalogue, all in this process, and return the report."""
    context, plan, table = plan_run(run, count_here)
    context = choose_compilation(run, context, plan, warm_up_local)
    with hold_lease(context.folder) as lease:
        context = open_run(run, context, plan, table)
        state = RunState(context, plan, lease)
        with watch(state.resume(load_committed(run, context))) as state.reporter, state.noting_commits():
            for tile in state.pending:
                classify_tile(context, tile, run.strip_sources, state)
        return publish_and_report(run, context, state)


def classify_tile(context: RunContext, tile: TilePlan, strip_sources: int, state: RunState) -> None:
    """Classify a tile and commit it; start again with its first strip if its files changed meanwhile."""
    results = []
    for strip in strips_of(tile, strip_sources):
        composites = cut_strip(context, strip)
        results.append(infer_strip(context, composites))
        state.count_strip(strip)
    try:
        commit = commit_strips(context, tile, results)
    except TileFault as fault:
        state.uncount_tile(tile.coadd_id)
        if tile.n_file_changes + 1 < TILE_ATTEMPTS:
            return classify_tile(context, next_attempt(tile), strip_sources, state)
        commit = commit_fault(context, tile, kept_changing(fault))
    state.record_commit(*commit)


def publish_and_report(
    run: RunConfig, context: RunContext, state: RunState, parallel_map: ParallelMap = starmap
) -> RunReport:
    """Check the rows, publish them if anything is new, and return the report; `parallel_map` writes the files."""
    report = state.report()
    state.lease.check()
    if state.has_new_commits or not is_published(context.folder, run.prior):
        write_json(context.folder.report_path, report.to_dict())
        publish_run(context.folder, parallel_map=parallel_map, fence=state.lease.check, prior=run.prior)
    restore_link(context.folder.path)
    return report
