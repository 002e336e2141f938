"""Configuration of a run: frozen, inert, from TOML, a dict or keywords."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import ConfigError
from ..locations import refuse_logins
from ..settings import build
from ..sky.regions import Region


@dataclass(frozen=True)
class RunConfig:
    """One classification run. Field names are the keys of RUN.toml and, with dashes, the flags of `classify`.

    What changes a row is in the fingerprint; how fast it is computed is not.
    """

    catalog: str
    """AllWISE partitions (hive folder), a HATS catalogue, or a table of positions with `ra`, `dec` in degrees."""
    images: str
    """Folder of Atlas tiles: the archive's layout, or any folder of Atlas FITS files."""
    out: str
    """Run folder; the same command on it resumes."""
    model: str = "iicnet-mock"
    """Name of a shipped model bundle, or the folder of one."""
    region: Region | None = None
    """Classify only sources inside; partitions outside are never opened."""
    precision: str = "auto"
    """auto, fp32 or bf16."""
    device: str = "auto"
    """auto, cpu or cuda, for each worker."""
    compile: str = "auto"
    """Whether the network is compiled for what infers: on, off, or auto, where it pays."""
    cluster: str = "local"
    """local, none (plain Python, no Dask), or the address of a scheduler, such as tcp://127.0.0.1:8786."""
    workers: int | None = None
    """CPU worker processes of a local cluster; the number of cores when absent."""
    memory_limit: str = "3GB"
    """Memory of each local worker, after which it is restarted."""
    strip_sources: int = 16_384
    """Most sources of one strip: one unit of work."""
    allow_truncated: bool = False
    """Accept a VOTable that a service cut at its row limit (QUERY_STATUS OVERFLOW)."""
    retry_quarantined: bool = False
    """Do tiles again that an earlier call has quarantined, as when damaged images were fetched anew."""

    def __post_init__(self) -> None:
        refuse_logins(vars(self))
        problems = [f"{name} is empty" for name in ("catalog", "images", "out", "model") if not getattr(self, name)]
        if self.precision not in ("auto", "fp32", "bf16"):
            problems.append(f"precision = {self.precision!r}: choose auto, fp32 or bf16")
        if self.compile not in ("auto", "on", "off"):
            problems.append(f"compile = {self.compile!r}: choose auto, on or off")
        if self.device.split(":")[0] not in ("auto", "cpu", "cuda"):
            problems.append(f"device = {self.device!r}: choose auto, cpu or cuda")
        if self.cluster not in ("local", "none") and "://" not in self.cluster:
            problems.append(f"cluster = {self.cluster!r}: choose local, none or an address like tcp://HOST:8786")
        if "://" in self.out:
            problems.append(f"out = {self.out!r}: runs are written to a folder of a shared or local disk")
        if self.workers is not None and not 1 <= self.workers <= MOST_WORKERS:
            problems.append(f"workers = {self.workers}: must be from 1 to {MOST_WORKERS}")
        if self.strip_sources < 1:
            problems.append(f"strip_sources = {self.strip_sources}: must be at least 1")
        if problems:
            raise ConfigError("; ".join(problems))

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self) | {"region": self.region.to_dict() if self.region else None}


def run_config(data: Mapping[str, Any]) -> RunConfig:
    """Return the run that a mapping describes; a `region` may be a dict such as {kind = "cone", ...}."""
    return build(RunConfig, data, "run")


MOST_WORKERS = 10_000
