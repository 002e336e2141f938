"""The state of a run while it runs: its commits, its finished strips, and the time that each stage takes."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ..errors import RowsLost
from ..schema import UNCLASSIFIED
from ..text import counted, one_or_many
from ..types import NO_TILE, Strip, TilePlan
from .commits import Commit, journal_commit
from .context import RunContext
from .lease import Lease
from .plan import Plan
from .progress import NullReporter, ProgressReporter
from .report import REMEDY, RunReport
from .strips import TIMED_STAGES, Timing


@dataclass
class RunState:
    """The commits of a run, and the counts of its current driver."""

    context: RunContext
    plan: Plan
    lease: Lease
    reporter: ProgressReporter = field(default_factory=lambda: NullReporter())
    began: float = field(default_factory=time.perf_counter)
    commits: dict[str, Commit] = field(default_factory=dict)
    resumed: frozenset[str] = frozenset()
    """Tiles that an earlier driver committed."""
    n_classified_now: int = 0
    counted: defaultdict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """Tile -> start of each finished strip -> number of its sources."""
    bytes_read: int = 0
    bytes_of_tiles: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    pools: Mapping[str, tuple[int, tuple[str, ...]]] = field(
        default_factory=lambda: {"this process": (1, TIMED_STAGES)}
    )
    """Pool of workers -> number of its threads, and the stages that run there."""

    def resume(self, commits: dict[str, Commit]) -> int:
        """Take over the commits of earlier drivers, and return the number of sources that are left."""
        self.commits |= commits
        self.resumed = frozenset(commits)
        return self.plan.n_sources - sum(c.rows for c in commits.values())

    @property
    def pending(self) -> list[TilePlan]:
        """The tiles that are not committed yet, those with most sources first."""
        return [tile for tile in self.plan.tiles if tile.coadd_id not in self.commits]

    def count_strip(self, strip: Strip) -> None:
        """Count a finished strip. A strip that is repeated counts once."""
        tile, n_sources = strip.tile.coadd_id, strip.stop - strip.start
        if tile in self.commits or strip.start in self.counted[tile]:  # a commit counts all rows of its tile
            return
        self.counted[tile][strip.start] = n_sources
        self._advance(n_sources)

    def uncount_tile(self, coadd_id: str) -> None:
        """Subtract the finished strips of a tile that is repeated."""
        self._advance(-sum(self.counted.pop(coadd_id, {}).values()))

    def _advance(self, n_sources: int) -> None:
        if n_sources:
            self.n_classified_now += n_sources
            self.reporter.advance(n_sources)

    def add_timing(self, timing: Timing) -> None:
        """Add the seconds and bytes of a timing."""
        self.seconds[timing.stage] += timing.seconds
        self.bytes_read += timing.bytes_read
        self.bytes_of_tiles += timing.bytes_of_tile

    def record_commit(self, commit: Commit, timings: Iterable[Timing]) -> None:
        """Journal a commit and count its sources that are not counted yet.

        Raises `LeaseLost` when another driver has taken over.
        """
        self.lease.check()
        journal_commit(self.context.folder, commit)
        self.commits[commit.coadd_id] = replace(commit, images={})  # for the whole sky, the records take many megabytes
        self._advance(commit.rows - sum(self.counted.pop(commit.coadd_id, {}).values()))
        for timing in timings:
            self.add_timing(timing)

    @contextmanager
    def noting_commits(self) -> Iterator[None]:
        """Add to a `KeyboardInterrupt` of the block the number of sources that are committed then."""
        try:
            yield
        except KeyboardInterrupt as stop:
            n = sum(commit.rows for commit in self.commits.values())
            total = self.plan.n_sources
            stop.add_note(f"{n:,} of {counted(total, 'source')} {one_or_many(total, 'is', 'are')} committed")
            raise

    @property
    def has_new_commits(self) -> bool:
        """Whether this driver has committed a tile."""
        return len(self.commits) > len(self.resumed)

    def busy(self, wall: float) -> tuple[dict[str, float], str]:
        """Return the fraction of `wall` seconds in which each pool was busy, and the busiest pool's longest stage."""
        spent = {pool: {s: self.seconds.get(s, 0.0) for s in stages} for pool, (_, stages) in self.pools.items()}
        shares = {pool: sum(spent[pool].values()) / (slots * wall) for pool, (slots, _) in self.pools.items()}
        busiest = spent[max(shares, key=shares.__getitem__)]
        return {pool: round(share, 3) for pool, share in shares.items()}, max(busiest, key=busiest.__getitem__)

    def report(self) -> RunReport:
        """Return the report; raise `RowsLost` unless the commits have exactly the planned rows."""
        commits = sorted(self.commits.values(), key=lambda commit: commit.coadd_id)
        rows_out = sum(c.rows for c in commits)
        if rows_out != self.plan.n_sources:
            raise RowsLost(f"{self.plan.n_sources} sources in, {rows_out} rows out in {self.context.out}")
        classes = total(c.classes for c in commits)
        without_class = classes.pop(UNCLASSIFIED, 0)
        wall = time.perf_counter() - self.began
        pool_busy, bound_by = self.busy(wall)
        return RunReport(
            run_id=self.context.run_id,
            model_id=self.context.bundle.model_id,
            sources_in=self.plan.n_sources,
            classified=sum(classes.values()),
            without_class=without_class,
            flagged=sum(c.n_flagged for c in commits),
            class_counts=classes,
            flag_counts=total(c.flags for c in commits),
            bad_values=total(c.bad_values for c in commits),
            without_tile=self.plan.without_tile,
            tiles=len(self.commits.keys() - {NO_TILE}),
            tiles_resumed=len(self.resumed - {NO_TILE}),
            quarantined={c.coadd_id: c.fault for c in commits if c.fault},
            remedy=REMEDY if any(c.fault for c in commits) else "",
            tile_bytes=self.bytes_of_tiles,
            tile_bytes_read=self.bytes_read,
            wall_seconds=round(wall, 3),
            sources_per_second=round(self.n_classified_now / wall, 1),
            stage_seconds={k: round(v, 3) for k, v in self.seconds.items()},
            pool_busy=pool_busy,
            bound_by=bound_by,
            simulated_model=bool(self.context.bundle.training.get("simulated", False)),
        )


def total(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sum of counts, sorted by name."""
    sums = Counter[str]()
    for count in counts:
        sums.update(count)
    return dict(sorted(sums.items()))
