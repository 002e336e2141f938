"""The named scenarios: size of the simulated sky, model and number of runs."""

from __future__ import annotations

from dataclasses import dataclass

from skyclass.errors import ConfigError


@dataclass(frozen=True)
class Scenario:
    """A simulated sky and its measurement: `repeats` runs after `warmups` runs that do not count.

    It has one or two tiles, because the inputs of the stages are in memory and a worker caches two tiles.
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
    """Return the scenario of a name; `ConfigError` for an unknown name lists the known ones."""
    if name not in SCENARIOS:
        raise ConfigError(f"no benchmark scenario {name!r}: choose one of {', '.join(SCENARIOS)}")
    return SCENARIOS[name]
