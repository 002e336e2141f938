"""The report of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..types import Flag

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
