"""A training run that is ready to step: its data, its network, what decides its weights, and what its bundle says.

TrainConfig, Dataset -> prepare -> Job -> train.py steps it -> bundle_fields
"""

from __future__ import annotations

import json
import math
import platform
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ... import __version__
from ...errors import ConfigError
from ...images.composite import CompositeSettings
from ...model.bundle import Preprocessing, load_bundle, load_weights
from ...model.classifier import Preprocess, resolve_precision
from ...model.photometry import PhotometrySettings, features, scale_of, standardise
from ...networks import build, channels_last
from ...networks.fusion import FusionNet
from ...types import CLASSES, Float16, Float32, Int64
from ..data.classes import label_counts
from ..data.dataset import Dataset, rows_digest
from .ddp import Group, synced
from .recipe import TrainConfig, changed_composite

LISTEN_STEPS = 8
STATISTICS_ROWS = 8192
"""Images that give the mean and scatter of the network's input: enough for three digits."""
NEUTRAL = (
    *("out", "dataset", "label", "device", "checkpoint_minutes", "start_from"),
    *("cluster", "nodes", "ranks_per_node"),
)
"""Settings that do not change the weights: a training may be resumed with others."""


@dataclass(frozen=True)
class Job:
    """A training run that is ready to step: data, network, and what moves it."""

    run: TrainConfig
    group: Group
    dataset: Dataset
    images: Float16 | None
    photometry: Float32 | None
    train_rows: Int64
    val_rows: Int64
    precision: str
    settings: CompositeSettings
    preprocessing: Preprocessing
    preprocess: Preprocess
    photometry_settings: PhotometrySettings | None
    network: nn.Module
    wrapped: nn.Module
    """The network as the ranks share it."""
    class_weights: Tensor
    optimiser: torch.optim.Optimizer
    fingerprint: dict[str, Any]

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return math.ceil(len(self.train_rows) / self.run.batch_size)

    @property
    def listen(self) -> int:
        """Steps between two looks at what signals ask for: ranks must agree on it, and GPUs would wait for that."""
        return min(LISTEN_STEPS, self.steps) if self.group.world > 1 and self.group.device != "cpu" else 1

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return Path(f"{self.run.out}.checkpoints")


@dataclass
class Position:
    """How far a training run has come: `step` steps into `epoch` (from 1), what was seen, what was best."""

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    best: float = math.inf
    history: list[dict[str, Any]] = field(default_factory=list)

    def since_best(self) -> int:
        """Return the number of epochs since the best one."""
        bests = [record["epoch"] for record in self.history if record["best"]]
        return len(self.history) - (bests[-1] if bests else 0)


def composite_settings(run: TrainConfig) -> CompositeSettings:
    """Return the composite settings of a run: those of Atlas images with its changes."""
    return changed_composite(run.bands, run.composite)


def prepare(
    run: TrainConfig, dataset: Dataset, images: Float16 | None, settings: CompositeSettings, group: Group | None = None
) -> Job:
    """Return the run with its inputs measured and its network initialised from the seed or from `start_from`."""
    group = group or Group()
    train_rows, val_rows = dataset.split("train"), dataset.split("val")
    check_rows(run, dataset, train_rows, val_rows, group)
    precision = resolve_precision(group.device, run.precision)
    preprocessing = input_statistics(images, train_rows, run)
    raw = features(dataset.rows, run.features) if run.features else None
    photometry_settings = photometry_statistics(raw, train_rows, run.features) if raw is not None else None
    photometry = standardise(raw, photometry_settings) if raw is not None and photometry_settings else None
    torch.manual_seed(run.seed)
    network = initial_network(run)
    freeze(network, run.frozen)
    network = channels_last(synced(network, group).to(group.device))
    return Job(
        run,
        group,
        dataset,
        images,
        photometry,
        train_rows,
        val_rows,
        precision,
        settings,
        preprocessing,
        Preprocess(preprocessing).to(group.device),
        photometry_settings,
        network,
        group.wrap(network),
        class_weights(dataset.labels[train_rows], run.balanced).to(group.device),
        optimiser_of(run, network),
        fingerprint(run, dataset, settings, preprocessing, photometry_settings, precision),
    )


def check_rows(run: TrainConfig, dataset: Dataset, train_rows: Int64, val_rows: Int64, group: Group) -> None:
    """Raise `ConfigError` unless every class is there to train and to validate on; all problems in one message."""
    problems = []
    for side, rows in (("train", train_rows), ("val", val_rows)):
        lost = [name for name, n in label_counts(dataset.labels[rows]).items() if not n]
        if lost:
            problems.append(f"no {', '.join(lost)} in its split {side!r} ({len(rows)} rows): label more of the sky")
    steps = max(1, math.ceil(len(train_rows) / run.batch_size))
    if len(train_rows) // steps < max(2, group.world):
        problems.append(
            f"{len(train_rows)} training rows in {steps} batches are too few for {group.world} ranks; "
            f"batch_size = {run.batch_size} must give each rank a row, and BatchNorm two in all"
        )
    if problems:
        raise ConfigError(f"dataset {run.dataset}: " + "; ".join(problems))


def initial_network(run: TrainConfig) -> nn.Module:
    """Return the network before the first step: random, or with the weights of `start_from`."""
    try:
        network = build(run.network, **run.network_options)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"options = {run.options} do not make a {run.network}: {error}") from error
    if not run.start_from:
        return network
    start = load_bundle(run.start_from)
    ours = run.network_options
    if isinstance(network, FusionNet) and start.network == "iicnet":
        ours = {k: v for k, v in ours.items() if k not in ("features", "colour_hidden")}
    elif start.network != run.network:
        raise ConfigError(f"start_from = {run.start_from!r} holds {start.network}, this run trains {run.network}")
    here = (run.bands, composite_settings(run), run.input_px)
    if (there := (start.bands, start.composite, start.preprocessing.input_px)) != here:
        raise ConfigError(f"start_from = {run.start_from!r} was trained on other images: {there}, this run on {here}")
    seen = start.photometry.features if start.photometry else ()
    if seen and seen != run.features:
        raise ConfigError(
            f"start_from = {run.start_from!r} looks at {', '.join(seen)}, this run at {', '.join(run.features)}"
        )
    if start.network_options != ours:
        raise ConfigError(f"start_from = {run.start_from!r} has options {start.network_options}, this run {ours}")
    if isinstance(network, FusionNet) and start.network == "iicnet":
        network.begin_with(load_weights(start))
    else:
        network.load_state_dict(load_weights(start))
    return network


def freeze(network: nn.Module, names: tuple[str, ...]) -> None:
    """Let the parts of a network keep their weights; `ConfigError` for a part that it has not."""
    parts = dict(network.named_children())
    if unknown := [name for name in names if name not in parts]:
        raise ConfigError(f"frozen: the network has no part {', '.join(unknown)}; its parts are {', '.join(parts)}")
    for name in names:
        parts[name].requires_grad_(False)


def optimiser_of(run: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Return Adam (Kingma & Ba 2015), or AdamW (Loshchilov & Hutter 2019) when weights decay."""
    learning = [p for p in network.parameters() if p.requires_grad]
    if run.weight_decay:
        return torch.optim.AdamW(learning, run.learning_rate, weight_decay=run.weight_decay, fused=True)
    return torch.optim.Adam(learning, run.learning_rate, fused=True)


def fingerprint(
    run: TrainConfig,
    dataset: Dataset,
    settings: CompositeSettings,
    preprocessing: Preprocessing,
    photometry: PhotometrySettings | None,
    precision: str,
) -> dict[str, Any]:
    """Return what decides the weights: a training is resumed only where all of it is the same.

    The mean and scatter of the inputs stand for pixels and photometry, whatever folder they lie in.
    """
    kept = {k: v for k, v in asdict(run).items() if k not in NEUTRAL}
    content = kept | {
        "start": load_bundle(run.start_from).model_id if run.start_from else "",
        "precision": precision,
        "rows": rows_digest(dataset),
        "pixels": dataset.provenance.get("digests", {}).get("pixels", "in memory"),
        "cut": asdict(dataset.cut),
        "composite": settings.to_dict(),
        "preprocessing": asdict(preprocessing),
        "photometry": photometry.to_dict() if photometry else None,
        "simulated": bool(dataset.provenance["simulated"]),
        "version": __version__,
    }
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def folder_of(run: TrainConfig) -> Path:
    """Return the folder of the bundle as a path that cannot be taken for the name of a shipped model."""
    return Path(run.out).absolute()


def input_statistics(images: Float16 | None, rows: Int64, run: TrainConfig) -> Preprocessing:
    """Return the preprocessing with the mean and std of the resized training images, channel by channel."""
    if images is None:
        return Preprocessing(run.input_px, (0.0,) * len(run.bands), (1.0,) * len(run.bands))
    chosen = rows[:: max(1, len(rows) // STATISTICS_ROWS)]
    channels = images.shape[1]
    plain = Preprocess(Preprocessing(run.input_px, (0.0,) * channels, (1.0,) * channels))
    moments = np.zeros((2, channels))
    for part in np.array_split(chosen, math.ceil(len(chosen) / 256)):
        x = plain(torch.from_numpy(images[part])).double()
        share = len(part) / len(chosen)
        moments += share * np.stack([x.mean((0, 2, 3)).numpy(), (x**2).mean((0, 2, 3)).numpy()])
    mean, square = moments
    std = np.sqrt(np.maximum(square - mean**2, 1e-12))
    return Preprocessing(run.input_px, tuple(np.round(mean, 6).tolist()), tuple(np.round(std, 6).tolist()))


def photometry_statistics(values: Float32, rows: Int64, names: tuple[str, ...]) -> PhotometrySettings:
    """Return the features with their mean and std over the training rows; NaN does not count."""
    known = values[rows]
    if empty := [name for name, column in zip(names, known.T, strict=True) if not np.isfinite(column).any()]:
        raise ConfigError(f"features {', '.join(empty)}: no training row has a value; leave them out")
    mean, std = (tuple(np.round(part, 6).tolist()) for part in scale_of(known))
    return PhotometrySettings(names, mean, std)


def class_weights(labels: Int64, balanced: bool) -> Tensor:
    """Return the weight (3,) of each class in the loss: so that all count alike, or all 1."""
    counts = np.bincount(labels, minlength=len(CLASSES))
    if not balanced:
        return torch.ones(len(CLASSES))
    weights = np.divide(len(labels), counts * np.count_nonzero(counts), out=np.zeros(len(counts)), where=counts > 0)
    return torch.tensor(weights, dtype=torch.float32)


def bundle_fields(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the bundle after an epoch."""
    run = job.run
    return {
        "name": run.name,
        "network": run.network,
        "network_options": run.network_options,
        "cut": replace(job.dataset.cut, bands=run.bands),
        "composite": job.settings,
        "preprocessing": job.preprocessing,
        "photometry": job.photometry_settings,
        "temperature": record["temperature"],
        "training": provenance(job, record),
    }


def provenance(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    """Return where the weights come from; it always says whether the data were simulated."""
    run, simulated = job.run, bool(job.dataset.provenance["simulated"])
    return {
        "simulated": simulated,
        "label": run.label or ("trained on a SIMULATED sky only" if simulated else "observed images"),
        "fingerprint": job.fingerprint,
        "train_counts": label_counts(job.dataset.labels[job.train_rows]),
        "val_counts": label_counts(job.dataset.labels[job.val_rows]),
        "best_epoch": record["epoch"],
        **{k: round(record[k], 6) for k in ("loss", "val_loss", "val_balanced_accuracy", "val_ece")},
        "prior": "equal classes" if run.balanced else "classes as counted",
        "precision": job.precision,
        "device": torch.device(job.group.device).type,
        "ranks": job.group.world,
        "versions": {
            "skyclass": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
