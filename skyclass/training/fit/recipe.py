"""The configuration of a training run, and the two recipes that supply the defaults of some keys."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo

from ...errors import ConfigError
from ...images.composite import CompositeSettings, atlas_settings
from ...import_path import is_import_path
from ...run.config import MAX_WORKERS, Cluster, Device, Precision
from ...settings import FROM_LIST, MAX_INTEGER, build, configuration
from ...types import BANDS
from ..data.config import Bands

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

FOREST = "forest"
"""The network that is fitted in one step, without gradients."""
HALVING_EPOCH = 50
WARM_UP = 0.1
"""Share of the steps in which the rate of a cosine cycle rises."""


def _check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise ValueError("use letters, digits, '.', '_' and '-'; the name becomes part of model_id")
    return name


def _check_network(network: str) -> str:
    from ...networks import NETWORKS, network_class  # torch takes long to import, and help texts need no network

    if network not in NETWORKS and not is_import_path(network):
        raise ValueError(f"choose {', '.join(NETWORKS)}, or an import path such as package.module:Class")
    try:
        network_class(network)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return network


def _inputs(network: str) -> tuple[str, ...]:
    from ...networks import network_inputs

    return network_inputs(network)


def _check_features(features: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    from ...model.photometry import CHOICES, feature_problems

    network = info.data.get("network")
    takes_photometry = network is not None and "photometry" in _inputs(network)
    if features and (problems := feature_problems(features)):
        raise ValueError("; ".join(problems))
    if takes_photometry and not features:
        raise ValueError(f'network {network!r} needs features, such as ["w1-w2", "w2-w3"]: name {CHOICES}')
    if features and network is not None and not takes_photometry:
        raise ValueError(
            f"network {network!r} takes no features: leave them out, or choose a network that takes photometry, "
            "such as fusion"
        )
    return features


def _check_composite(changes: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    try:
        changed_composite(info.data.get("bands", BANDS), changes)
    except (ConfigError, TypeError, ValueError, IndexError) as error:
        raise ValueError(str(error)) from error
    return changes


def _check_frozen(frozen: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
    if frozen and not info.data.get("start_from", "unknown"):
        raise ValueError("random weights would stay as they are: set start_from")
    return frozen


def _check_hidden_share(share: float, info: ValidationInfo) -> float:
    network = info.data.get("network")
    if share and network is not None and "photometry" not in _inputs(network):
        raise ValueError(f"network {network!r} sees no photometry to hide")
    return share


def _check_gradients(value: Any, info: ValidationInfo) -> Any:
    if info.data.get("network") == FOREST and value and value != "none":
        raise ValueError("network 'forest' is fitted at once, by one process and without gradients: leave it out")
    return value


def _check_needs_cluster(number: int | None, info: ValidationInfo) -> int | None:
    if number is not None and info.data.get("cluster") == "none":
        raise ValueError("this needs a cluster: set cluster to local or to an address")
    return number


def changed_composite(bands: tuple[str, ...], changes: dict[str, Any]) -> CompositeSettings:
    """Return the composite settings of Atlas images in some bands, changed; `ConfigError` where changes do not fit."""
    return CompositeSettings.from_dict(atlas_settings(bands).to_dict() | changes)


NotNegative = Annotated[float, Field(ge=0)]


@configuration(
    "training",
    {
        "out": "Input and output",
        "recipe": "Recipe and provenance",
        "network": "Network and its input",
        "start_from": "Initial weights",
        "epochs": "Optimisation",
        "flips": "Augmentation",
        "patience": "Stopping and resuming",
        "device": "Where and how it runs",
    },
)
class TrainConfig:
    """One training run: the keys of TRAIN.toml, and with dashes the options of `skyclass train`.

    The defaults are those of the recipe "paper". `train_config` replaces them by the defaults of another recipe; here
    `recipe` is only a name.
    """

    out: Annotated[str, Field(examples=["model"])]
    """Folder of the model bundle. Beside it: OUT.jsonl (one record for each epoch), OUT.tensorboard and
    OUT.checkpoints."""
    dataset: Annotated[str, Field(examples=["dataset"])]
    """Dataset folder that skyclass dataset has made."""
    recipe: Literal["paper", "modern"] = "paper"
    """Defaults of epochs, learning_rate, weight_decay, schedule and shift_px. paper: those of Zhao et al. 2023. modern:
    30 epochs of one learning-rate cycle."""
    name: Annotated[str, AfterValidator(_check_name)] = "iicnet"
    """Name of the model, the first part of model_id."""
    label: str = ""
    """Description of the training data for readers, such as "SDSS DR17 on AllWISE"."""
    network: Annotated[str, AfterValidator(_check_network)] = "iicnet"
    """Network: iicnet, vgg16, googlenet, resnet34, mobilenet, efficientnetv2, repvgg, colour, forest, fusion, or an
    import path such as package.module:Class. forest is fitted at once: epochs and other keys of gradients do not apply
    to it."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the network, such as bn = "all". A model of start_from brings its own, which cannot change."""
    bands: Bands = ("w1", "w2", "w3")
    """Bands of the images that the network sees."""
    features: Annotated[tuple[str, ...], FROM_LIST, AfterValidator(_check_features)] = ()
    """Photometry for a network that takes it, such as colour or fusion: magnitudes (w1 to w4, j, h, k), colours such as
    w1-w2, w1_snr to w4_snr, w1_limit to w4_limit, and numeric columns of the catalogue, such as pmra."""
    composite: Annotated[dict[str, Any], AfterValidator(_check_composite)] = field(default_factory=dict)
    """Changes to the composite settings of Atlas images, such as stretch = "linear"."""
    input_px: Annotated[int, Field(ge=SIDES_PX[0], le=SIDES_PX[1])] = 80
    """Pixels on a side of the network's input."""
    start_from: Annotated[str, AfterValidator(_check_gradients)] = ""
    """Bundle whose weights replace the random ones at the start: a shipped name, or a folder (write ./iicnet-mock for
    the folder of that name). fusion may start from iicnet."""
    frozen: Annotated[tuple[str, ...], FROM_LIST, AfterValidator(_check_frozen)] = ()
    """Parts of the network that keep the weights of start_from, such as images of fusion."""
    epochs: Annotated[int, Field(ge=1, le=MAX_INTEGER)] = 200
    """Number of passes over the training set."""
    batch_size: Annotated[int, Field(ge=1, le=MAX_INTEGER)] = 64
    """Images in one step, on all devices together."""
    learning_rate: Annotated[float, Field(gt=0, le=HIGHEST_RATE)] = 1e-4
    """Highest learning rate of the schedule."""
    weight_decay: NotNegative = 0.0
    """Weight decay of AdamW; the optimiser is Adam where it is 0."""
    schedule: Literal["halve", "cosine"] = "halve"
    """halve: constant, and half after 50 epochs. cosine: one cycle with a linear rise."""
    balanced: bool = True
    """Give the classes equal weight in the loss and in the calibration, independent of their numbers of sources."""
    flips: bool = True
    """Show each image in a random one of its eight flips and quarter turns."""
    rotate_deg: NotNegative = 0.0
    """Rotate each image by up to this angle in degrees."""
    shift_px: NotNegative = 0.0
    """Shift each image by up to this many native pixels, fractions included, along each axis."""
    noise: NotNegative = 0.0
    """Scatter of the noise added to each native pixel of a composite: 1 is about that of an Atlas image."""
    hide_photometry: Annotated[
        float, Field(ge=0, lt=1), AfterValidator(_check_hidden_share), AfterValidator(_check_gradients)
    ] = 0.0
    """Share of the sources shown without photometry, so that images alone suffice where a catalogue has none."""
    patience: Annotated[int, Field(ge=0, le=MAX_INTEGER)] = 0
    """Stop after this many epochs without a lower validation loss; 0: never."""
    checkpoint_minutes: NotNegative = 10.0
    """Minutes between two checkpoints within an epoch. Each epoch ends with a checkpoint."""
    seed: Annotated[int, Field(ge=0, le=MAX_INTEGER)] = 0
    """Seed of the initial weights, the order of the sources and the augmentation."""
    device: Device = "auto"
    """Device of each rank: auto, cpu or cuda."""
    precision: Precision = "auto"
    """Arithmetic of the network: fp32, bf16, or auto: bf16 where the hardware multiplies it."""
    compile: Annotated[bool, AfterValidator(_check_gradients)] = False
    """Compile the network with torch.compile, which takes minutes: for long trainings on GPUs; on CPUs in fp32 only."""
    cluster: Annotated[Cluster, AfterValidator(_check_gradients)] = "none"
    """none: this process, or the ranks that torchrun or srun start. local: processes on this machine. Else the address
    of a Dask scheduler, such as tcp://127.0.0.1:8786: ranks on its machines."""
    nodes: Annotated[int | None, Field(ge=1, le=MAX_WORKERS, examples=[2]), AfterValidator(_check_needs_cluster)] = None
    """Number of machines of the cluster to use; all when absent."""
    ranks_per_node: Annotated[
        int | None, Field(ge=1, le=MAX_WORKERS, examples=[4]), AfterValidator(_check_needs_cluster)
    ] = None
    """Processes on each machine of the cluster; its number of GPUs, or 1, when absent."""

    @property
    def inputs(self) -> tuple[str, ...]:
        """What the network takes: images, photometry, or both."""
        return _inputs(self.network)

    @property
    def augments(self) -> bool:
        """True when training changes the images that it shows."""
        return bool(self.flips or self.rotate_deg or self.shift_px or self.noise)

    def network_options(self, n_classes: int) -> dict[str, Any]:
        """Return the options of the network, and those derived from `bands`, `features` and the number of classes.

        Networks have three bands and three classes by default, so other networks need not have these options.
        """
        derived: dict[str, Any] = {} if n_classes == 3 else {"classes": n_classes}
        if "images" in self.inputs and len(self.bands) != 3:
            derived["in_channels"] = len(self.bands)
        if "photometry" in self.inputs:
            derived["features"] = len(self.features)
        return derived | self.options


def train_config(data: Mapping[str, Any]) -> TrainConfig:
    """Return the training run that a mapping (TRAIN.toml) describes; `ConfigError` lists every problem."""
    defaults = RECIPES.get(str(data.get("recipe", "paper")), {})
    return build(TrainConfig, {**defaults, **data})


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
