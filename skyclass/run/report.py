"""The report of a run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ..text import counted, html_table
from ..types import Flag

REMEDY = "correct the faults, then run the same command with --retry-quarantined"


@dataclass(frozen=True, repr=False)
class RunReport:
    """Result of a run; `sources_in` equals `classified` plus `without_class`, which is checked.

    Parameters
    ----------
    run_id, model_id : str
        Names of the run and of the model bundle.
    sources_in, classified, without_class, flagged : int
        Sources of the catalogue, with a class, without one, and with any flag.
    class_counts : dict of str to int
        Class -> sources.
    flag_counts : dict of str to int
        Flag -> sources that carry it; flags that no source carries are absent.
    bad_values : dict of str to int
        Column -> values that are text or outside its physical range, and impossible names of tiles, which were read
        as missing.
    without_tile : int
        Sources that no tile covers, or with an impossible name of a tile.
    tiles, tiles_resumed : int
        Tiles of the run, and those of them that an earlier call classified.
    quarantined : dict of str to str
        Tile that could not be used -> reason and remedy.
    remedy : str
        What to do about quarantined tiles; empty without any.
    tile_bytes, tile_bytes_read : int
        Bytes of the pixels of all tiles of this call, and bytes read. Each strip reads the rows that its cutouts need,
        so rows near a border of strips are read twice, and a dense tile can have more bytes read than it holds.
    wall_seconds, sources_per_second : float
        Duration and rate of this call.
    stage_seconds : dict of str to float
        Stage -> seconds of work of all workers.
    pool_busy : dict of str to float
        Pool of workers -> share of its time at work; otherwise it waited for other pools or for the start of the run.
    bound_by : str
        Stage that took most of the busiest pool's time: the one to make faster, or to give more workers.
    simulated_model : bool
        Whether the model was trained on a simulated sky only.
    """

    run_id: str
    model_id: str
    sources_in: int
    classified: int
    without_class: int
    flagged: int
    class_counts: dict[str, int]
    flag_counts: dict[str, int]
    bad_values: dict[str, int]
    without_tile: int
    tiles: int
    tiles_resumed: int
    quarantined: dict[str, str]
    remedy: str
    tile_bytes: int
    tile_bytes_read: int
    wall_seconds: float
    sources_per_second: float
    stage_seconds: dict[str, float]
    pool_busy: dict[str, float]
    bound_by: str
    simulated_model: bool

    @property
    def model_faults(self) -> int:
        """Number of sources with an image for which the model gave no probabilities."""
        return self.flag_counts.get(str(Flag.MODEL_FAULT.name), 0)

    def to_dict(self) -> dict[str, Any]:
        """Return the report in types of JSON.

        Returns
        -------
        dict
            The fields of the report.
        """
        return asdict(self)

    def __repr__(self) -> str:
        sources = f"{counted(self.sources_in, 'source')} in, {self.classified:,} classified"
        quarantined = f", {len(self.quarantined):,} quarantined" if self.quarantined else ""
        return f"<RunReport {self.run_id}: {sources}; {counted(self.tiles, 'tile')}{quarantined}>"

    def _repr_html_(self) -> str:
        rows = {name: value for name, value in self.to_dict().items() if value not in ("", {})}
        for name in ("class_counts", "flag_counts", "bad_values", "stage_seconds", "pool_busy", "quarantined"):
            if name in rows:
                rows[name] = ", ".join(f"{key} {value}" for key, value in rows[name].items())
        return html_table("RunReport", rows)
