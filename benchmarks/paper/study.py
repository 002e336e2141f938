"""The study: its presets, skies and datasets, and the files of its models and records. All sources are SIMULATED."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from skyclass.mock import write_mock
from skyclass.training.data.build import build_dataset
from skyclass.training.data.config import DatasetConfig
from skyclass.training.data.dataset import Dataset, load_dataset, pixels_digest

from .limit import TimeLimit

BANDS = ("w1", "w2", "w3")
BASELINES = ("vgg16", "googlenet", "resnet34", "mobilenet", "efficientnetv2", "repvgg")
SIZES = tuple(range(64, 129, 8))


@dataclass(frozen=True)
class Preset:
    """How much of the study a machine does. Epochs and rows of training; the test set is always whole."""

    name: str
    tiles: int
    sources_per_tile: int
    counts: dict[str, int]
    epochs: int
    """Of the networks that Table 2, Fig. 17 and the controls compare."""
    small_epochs: int
    """Of the networks of Table 3 and the sweeps, which are many."""
    small_rows: int | None
    """Their training rows; None: all."""
    small_batch: int = 64
    """Their images in one step: with few rows, more and smaller steps teach more."""
    recipe: str = "modern"
    tile_px: int = 4095
    seeds: tuple[int, ...] = (1, 2, 3)
    """Of the experiments in `SEEDED`."""
    other_seeds: tuple[int, ...] = (1,)
    """Of all other experiments."""


PAPER_COUNTS = {"galaxy": 7298, "quasar": 7215, "star": 7223}
PRESETS = {
    "quick": Preset("quick", 2, 250, dict.fromkeys(PAPER_COUNTS, 60), 1, 1, 60, tile_px=700, seeds=(1,)),
    "cpu": Preset("cpu", 4, 14_000, PAPER_COUNTS, 4, 3, 4_000, 16),
    "full": Preset("full", 4, 14_000, PAPER_COUNTS, 200, 200, None, recipe="paper", other_seeds=(1, 2, 3)),
}
"""quick: a test of the harness. cpu: some hours on two cores, epochs and rows reduced. full: the paper's recipe and
epochs on all rows, three seeds of everything; for a GPU."""

SKIES: dict[str, dict[str, Any]] = {
    "dataset": {"seed": 7, "mix": "balanced", "config": {"min_w1snr": 5.0, "min_w2snr": 5.0}},
    "natural": {"seed": 2027, "mix": "natural", "config": {"split": (1.0, 0.0, 1.0)}},
    "held-out": {"seed": 8, "mix": "balanced", "config": {"min_w1snr": 5.0, "min_w2snr": 5.0}},
}
"""The simulated skies, by the name of their dataset."""


@dataclass(frozen=True)
class Study:
    """A preset with the folder where its sky, dataset and models lie (`work`) and that of its records."""

    preset: Preset
    work: Path
    results: Path
    real: Path | None = None
    """Folder of the real tables, which are not part of the project."""
    device: str = "auto"
    """Where networks train and are measured: auto (a GPU if there is one), cpu or cuda."""
    limit: TimeLimit = field(default_factory=TimeLimit)

    @cached_property
    def dataset(self) -> Dataset:
        """The simulated paper set: 7,298 galaxies, 7,215 quasars, 7,223 stars in four bands."""
        return load_dataset(self.work / "dataset")

    @cached_property
    def natural(self) -> Dataset:
        """A held-out simulated sky with natural class shares."""
        return load_dataset(self.work / "natural")

    @cached_property
    def held_out(self) -> Dataset:
        """A simulated sky of another seed, chosen as the paper set is: ten times its test rows, for small margins."""
        return load_dataset(self.work / "held-out")

    @cached_property
    def sky(self) -> str:
        """Version of the simulated paper set: the first digits of the digest of its pixels."""
        return str(pixels_digest(self.dataset))[:8]

    def prepare(self, names: Iterable[str] = SKIES) -> None:
        """Make simulated skies and cut their datasets, where they are not there."""
        for name in names:
            if not (self.work / name).exists():
                self._make(name, **SKIES[name])

    def _make(self, name: str, seed: int, mix: Any, config: dict[str, Any]) -> None:
        p, sky, is_paper_set = self.preset, self.work / f"{name}-sky", name == "dataset"
        made = write_mock(
            sky, n_tiles=p.tiles if is_paper_set else 2, seed=seed, sources_per_tile=p.sources_per_tile,
            size_px=p.tile_px, mix=mix, bands=("w1", "w2", "w3", "w4"),
        )  # fmt: skip
        changes: dict[str, Any] = config | ({"counts": p.counts} if is_paper_set else {})
        settings = DatasetConfig(
            out=str(self.work / name), labels=str(made.truth), catalog=str(made.catalog), images=str(made.images),
            seed=1, **changes,
        )  # fmt: skip
        build_dataset(settings)

    def model(self, name: str, seed: int) -> Path:
        """Folder of a trained bundle."""
        return self.work / "models" / f"{name}-{seed}"

    def record(self, name: str, seed: int) -> Path:
        """File of a record."""
        return self.results / f"{name}-{seed}.json"


def effort_of(preset: Preset, name: str) -> dict[str, Any]:
    """Return what of a preset an experiment depends on: its record stands as long as that is the same."""
    small = SMALL.fullmatch(name) is not None
    other = ("epochs",) if small else ("small_epochs", "small_rows", "small_batch")
    facts: dict[str, Any] = json.loads(json.dumps(asdict(preset)))
    return {key: value for key, value in facts.items() if key not in ("seeds", "other_seeds", *other)}


SMALL = re.compile(r"(equal|size|kernel|without|stretched)-.*|shuffled|self-supervised")
"""Experiments with the effort of Table 3."""
