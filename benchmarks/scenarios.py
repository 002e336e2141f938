"""The named scenarios: how large a simulated sky, which model, how often."""

from __future__ import annotations

from dataclasses import dataclass

from skyclass.errors import ConfigError


@dataclass(frozen=True)
class Scenario:
    """A simulated sky and how it is timed: `warmups` runs are thrown away, `repeats` are kept.

    One or two tiles: the stages are timed on what is held in memory, and a worker remembers two tiles.
    """

    name: str
    n_tiles: int
    sources_per_tile: int
    size_px: int
    repeats: int
    warmups: int = 1
    seed: int = 7
    model: str = "iicnet-mock"
    device: str = "auto"
    precision: str = "auto"
    engine_workers: tuple[int, ...] = (1, 2)


SCENARIOS = {
    s.name: s
    for s in (
        Scenario("tiny", n_tiles=1, sources_per_tile=150, size_px=600, repeats=1),
        Scenario("laptop", n_tiles=1, sources_per_tile=8_000, size_px=4_095, repeats=3),
    )
}


def find(name: str) -> Scenario:
    """Return the scenario of a name; `ConfigError` lists the names there are."""
    if name not in SCENARIOS:
        raise ConfigError(f"no benchmark scenario {name!r}: choose one of {', '.join(SCENARIOS)}")
    return SCENARIOS[name]
