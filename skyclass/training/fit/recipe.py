"""What TRAIN.toml says: the settings of one training run, and the two recipes that fill in what it leaves out."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ... import settings
from ...errors import ConfigError
from ...model.photometry import FEATURES
from ...networks import INPUTS, NETWORKS
from ...types import BANDS

SIDES_PX = (32, 512)
"""Least and largest input of a network: below, five halvings leave nothing; above, memory ends first."""
HIGHEST_RATE = 1.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {"epochs": 200, "learning_rate": 1e-4, "weight_decay": 0.0, "schedule": "halve", "shift_px": 0.0},
    "modern": {"epochs": 30, "learning_rate": 1e-3, "weight_decay": 1e-2, "schedule": "cosine", "shift_px": 1.0},
}
"""paper: Adam at 1e-4, halved after 50 epochs, 200 epochs (Zhao et al. 2023); its batch size and augmentation are not
stated. modern: AdamW and one cosine cycle (Smith & Topin 2019, arXiv:1708.07120): as good in a sixth of the time."""

SCHEDULES = ("halve", "cosine")
HALVING_EPOCH = 50
WARM_UP = 0.1
"""Share of the steps in which the rate of a cosine cycle rises."""


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Field names are the keys of TRAIN.toml; the defaults are the recipe "paper".

    `recipe` only names a recipe here: `train_config` is what fills in its values.
    """

    out: str
    """Folder of the model bundle. Beside it: OUT.jsonl (a record an epoch), OUT.tensorboard and OUT.checkpoints."""
    dataset: str
    """Dataset folder, as `skyclass dataset` makes it."""
    recipe: str = "paper"
    """paper or modern: the values of the keys that TRAIN.toml does not name."""
    name: str = "iicnet"
    """Name of the model, the first part of `model_id`."""
    label: str = ""
    """Provenance for people, such as "simulated sky, seed 1" or "SDSS DR17 on AllWISE"."""
    network: str = "iicnet"
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the network, such as {bn = "all"}."""
    bands: tuple[str, ...] = ("w1", "w2", "w3")
    features: tuple[str, ...] = ()
    """What of the photometry the networks colour and fusion see, such as ["w1-w2", "w2-w3"]."""
    composite: dict[str, Any] = field(default_factory=dict)
    """Changes to the default composite settings of Atlas images."""
    input_px: int = 80
    start_from: str = ""
    """Bundle whose weights to start from, instead of random ones; fusion may start from iicnet. A shipped name, or a
    folder: write ./iicnet-mock for the folder of that name."""
    frozen: tuple[str, ...] = ()
    """Parts of the network that keep the weights of `start_from`, such as ["images"] of fusion."""
    epochs: int = 200
    batch_size: int = 64
    """Images in one step, on all devices together."""
    learning_rate: float = 1e-4
    """Highest rate of the schedule."""
    weight_decay: float = 0.0
    """0: Adam; more: AdamW."""
    schedule: str = "halve"
    """halve: constant, half of it after 50 epochs. cosine: one cycle with a linear rise."""
    balanced: bool = True
    """Weigh the classes equally in the loss and in the calibration, whatever their numbers."""
    flips: bool = True
    """Show each image in a random one of its eight flips and quarter turns."""
    rotate_deg: float = 0.0
    """Turn each image by up to this angle besides."""
    shift_px: float = 0.0
    """Move each image by up to so many native pixels, fractions included, along each axis."""
    noise: float = 0.0
    """Scatter of the noise added to each native pixel of a composite: 1 is about that of an Atlas image."""
    hide_photometry: float = 0.0
    """Share of the sources shown without photometry, so that images alone suffice where a catalogue has none."""
    patience: int = 0
    """Stop after so many epochs without a better validation loss; 0: never."""
    checkpoint_minutes: float = 10.0
    """Time between two checkpoints within an epoch; there is always one at its end."""
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):
            raise ConfigError("training: " + "; ".join(problems))

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the network takes: images, photometry, or both."""
        return INPUTS[self.network]

    @property
    def augments(self) -> bool:
        """True when an image is shown otherwise than it is."""
        return bool(self.flips or self.rotate_deg or self.shift_px or self.noise)

    @property
    def network_options(self) -> dict[str, Any]:
        """The options of the network, those included that follow from bands and features."""
        follows: dict[str, Any] = {}
        if "images" in self.inputs and len(self.bands) != 3:
            follows["in_channels"] = len(self.bands)
        if "photometry" in self.inputs:
            follows["features"] = len(self.features)
        return follows | self.options


def _problems(run: TrainConfig) -> Iterator[str]:
    choices = {
        "recipe": RECIPES,
        "schedule": SCHEDULES,
        "network": NETWORKS,
    }
    for name, known in choices.items():
        if getattr(run, name) not in known:
            yield f"{name} = {getattr(run, name)!r}: choose {', '.join(known)}"
    for name, known in {"bands": BANDS, "features": FEATURES}.items():
        if unknown := [value for value in getattr(run, name) if not isinstance(value, str) or value not in known]:
            yield f"{name}: {', '.join(map(str, unknown))} unknown (known: {', '.join(known)})"
        elif len(set(getattr(run, name))) < len(getattr(run, name)):
            yield f"{name} = {list(getattr(run, name))}: one stands there twice"
    if not run.bands:
        yield f"bands = []: give one or more of {', '.join(BANDS)}"
    if not NAME.fullmatch(run.name):
        yield f"name = {run.name!r}: use letters, digits, '.', '_' and '-'; it becomes part of model_id"
    if not SIDES_PX[0] <= run.input_px <= SIDES_PX[1]:
        yield f"input_px = {run.input_px}: choose {SIDES_PX[0]} to {SIDES_PX[1]}"
    for name in ("epochs", "batch_size"):
        if getattr(run, name) <= 0:
            yield f"{name} = {getattr(run, name)}: must be positive"
    if not 0 < run.learning_rate <= HIGHEST_RATE:
        yield f"learning_rate = {run.learning_rate:g}: must lie above 0 and not above {HIGHEST_RATE:g}"
    for name in ("weight_decay", "rotate_deg", "shift_px", "noise", "patience", "checkpoint_minutes", "seed"):
        if not 0 <= getattr(run, name) < math.inf:
            yield f"{name} = {getattr(run, name)}: must be a number and not negative"
    if not 0 <= run.hide_photometry < 1:
        yield f"hide_photometry = {run.hide_photometry}: must lie from 0 to below 1"
    if run.frozen and not run.start_from:
        yield f"frozen = {list(run.frozen)}: random weights would stay as they are; say start_from"
    takes_photometry = "photometry" in INPUTS.get(run.network, ())
    if takes_photometry and not run.features:
        yield f'network = {run.network!r} needs features, such as ["w1-w2", "w2-w3"] (known: {", ".join(FEATURES)})'
    if run.hide_photometry and not takes_photometry:
        yield f"network = {run.network!r} sees no photometry to hide"
    if run.features and not takes_photometry:
        yield f"network = {run.network!r} takes no features: choose colour or fusion, or leave them out"


def train_config(data: Mapping[str, Any]) -> TrainConfig:
    """Return the training run that a mapping (TRAIN.toml) describes; `ConfigError` tells all mistakes."""
    defaults = RECIPES.get(str(data.get("recipe", "paper")), {})
    return settings.build(TrainConfig, {**defaults, **data}, "training")


def rate_factor(run: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the step, counted over all epochs."""
    total = run.epochs * steps_per_epoch
    rise = max(1, int(WARM_UP * total))

    def cosine(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return max(1e-3, 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise))))

    def halve(step: int) -> float:
        return 1.0 if step < HALVING_EPOCH * steps_per_epoch else 0.5

    return cosine if run.schedule == "cosine" else halve
