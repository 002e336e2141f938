"""The state of a run while it runs, and its report at the end."""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..errors import RowsLost
from ..schema import UNCLASSIFIED
from ..types import NO_TILE, Flag, Strip
from .commits import Commit, journal_commit
from .context import RunContext
from .lease import Lease
from .plan import Plan
from .progress import NullReporter, ProgressReporter
from .strips import STAGES, Timing

REMEDY = "correct the faults, then run the same command with --retry-quarantined"


@dataclass(frozen=True)
class RunReport:
    """The result of a run. `sources_in` is the sum of `classified` and `without_class`."""

    run_id: str
    model_id: str
    sources_in: int
    classified: int
    without_class: int
    flagged: int
    class_counts: dict[str, int]
    flag_counts: dict[str, int]
    """Flag -> number of sources that have it, without flags that no source has."""
    bad_values: dict[str, int]
    """Column -> number of values read as missing: outside the physical range, or no possible name of a tile."""
    without_tile: int
    """Number of sources that no tile covers, or whose `coadd_id` is no possible name of a tile."""
    tiles: int
    tiles_resumed: int
    quarantined: dict[str, str]
    """Tile -> why it was quarantined, and the remedy."""
    remedy: str
    tile_bytes: int
    tile_bytes_read: int
    wall_seconds: float
    sources_per_second: float
    stage_seconds: dict[str, float]
    """Stage -> seconds, summed over all workers."""
    pool_busy: dict[str, float]
    """Pool of workers -> fraction of the wall time in which its threads were busy."""
    bound_by: str
    """The stage that took most of the time of the busiest pool, and limits the speed of the run."""
    simulated_model: bool

    @property
    def model_faults(self) -> int:
        """Number of sources with an image for which the model gave no probabilities."""
        return self.flag_counts.get(str(Flag.MODEL_FAULT.name), 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the report in types of JSON."""
        return asdict(self)


@dataclass
class RunState:
    """Running counts of one driver."""

    context: RunContext
    plan: Plan
    lease: Lease
    reporter: ProgressReporter = field(default_factory=lambda: NullReporter())
    began: float = field(default_factory=time.perf_counter)
    commits: dict[str, Commit] = field(default_factory=dict)
    resumed: frozenset[str] = frozenset()
    """Tiles that an earlier driver committed."""
    n_classified_now: int = 0
    seen: defaultdict[str, dict[int, int]] = field(default_factory=lambda: defaultdict(dict))
    """Tile -> start of each finished strip -> number of its sources."""
    bytes_read: int = 0
    bytes_of_tiles: int = 0
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    pools: Mapping[str, tuple[int, tuple[str, ...]]] = field(default_factory=lambda: {"this process": (1, STAGES)})
    """Pool of workers -> number of its threads, and the stages that run there."""

    def resume(self, commits: dict[str, Commit]) -> int:
        """Take over the commits of earlier drivers, and return the number of sources that are left."""
        self.commits |= commits
        self.resumed = frozenset(commits)
        return self.plan.n_sources - sum(c.rows for c in commits.values())

    def strip(self, strip: Strip) -> None:
        """Count a finished strip, once however often it is repeated."""
        tile, n_sources = strip.tile.coadd_id, strip.stop - strip.start
        if tile in self.commits or strip.start in self.seen[tile]:  # a commit counts all rows of its tile
            return
        self.seen[tile][strip.start] = n_sources
        self._advance(n_sources)

    def again(self, coadd_id: str) -> None:
        """Subtract the finished strips of a tile that is repeated."""
        self._advance(-sum(self.seen.pop(coadd_id, {}).values()))

    def _advance(self, n_sources: int) -> None:
        if n_sources:
            self.n_classified_now += n_sources
            self.reporter.advance(n_sources)

    def time(self, timing: Timing) -> None:
        """Add the seconds and bytes of a timing."""
        self.seconds[timing.stage] += timing.seconds
        self.bytes_read += timing.bytes_read
        self.bytes_of_tiles += timing.bytes_of_tile

    def commit(self, commit: Commit, timings: Iterable[Timing]) -> None:
        """Journal a commit and count its sources that are not counted yet.

        Raises `LeaseLost` when another driver has taken over.
        """
        self.lease.check()
        journal_commit(self.context.folder, commit)
        self.commits[commit.coadd_id] = replace(commit, images={})  # for the whole sky, the records take many megabytes
        self._advance(commit.rows - sum(self.seen.pop(commit.coadd_id, {}).values()))
        for timing in timings:
            self.time(timing)

    @property
    def is_new(self) -> bool:
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
        commits = self.commits.values()
        rows_out = sum(c.rows for c in commits)
        if rows_out != self.plan.n_sources:
            raise RowsLost(f"{self.plan.n_sources} sources in, {rows_out} rows out in {self.context.out}")
        classes, flags, bad_values = Counter[str](), Counter[str](), Counter[str]()
        for c in commits:
            classes.update(c.classes)
            flags.update(c.flags)
            bad_values.update(c.bad_values)
        without_class = classes.pop(UNCLASSIFIED, 0)
        wall = time.perf_counter() - self.began
        pool_busy, bound_by = self.busy(wall)
        return RunReport(
            run_id=self.context.run_id,
            model_id=self.context.bundle.model_id,
            sources_in=self.plan.n_sources,
            classified=classes.total(),
            without_class=without_class,
            flagged=sum(c.n_flagged for c in commits),
            class_counts=dict(sorted(classes.items())),
            flag_counts=dict(sorted(flags.items())),
            bad_values=dict(sorted(bad_values.items())),
            without_tile=self.plan.without_tile,
            tiles=len(self.commits.keys() - {NO_TILE}),
            tiles_resumed=len(self.resumed - {NO_TILE}),
            quarantined={c.coadd_id: c.fault for c in sorted(commits, key=lambda c: c.coadd_id) if c.fault},
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
