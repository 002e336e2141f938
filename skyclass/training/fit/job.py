"""A training that is ready for its first step: data, network, optimiser, fingerprint and the fields of its bundle.

TrainConfig, Dataset -> prepare -> Job -> steps of train.py -> bundle_fields
"""

from __future__ import annotations

import json
import logging
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
from ...import_path import is_import_path, source_sha256
from ...model.bundle import Preprocessing, read_bundle
from ...model.compile import compiled_for_training
from ...model.devices import resolve_precision
from ...model.photometry import PhotometrySettings, columns_of, features, scale_of, standardise
from ...model.preprocess import Preprocess
from ...networks import channels_last
from ...text import counted, named, one_or_many
from ...types import Float16, Float32, Int64
from ..data.classes import label_counts
from ..data.dataset import Dataset, rows_digest
from .batchnorm import sync_batchnorm
from .ddp import Group
from .initial import freeze, initial_network, make_optimiser, with_start_options
from .recipe import TrainConfig

log = logging.getLogger(__name__)

FEW_VAL_ROWS = 50
"""With fewer validation rows of a class, its recall is uncertain by 7 percent points or more."""
SIGNAL_STEPS = 8
"""Steps on GPUs between two checks for signals, which make the GPUs wait."""
STATISTICS_ROWS = 8192
"""Images for the mean and scatter of the input of the network: enough for three digits."""
IMAGES_SHARE = 0.2
"""Largest part of the free memory of a GPU that the images may take: several trainings may share it."""
NEUTRAL = (
    *("out", "dataset", "label", "device", "checkpoint_minutes", "start_from"),
    *("cluster", "nodes", "ranks_per_node"),
)
"""Settings that do not change the weights. A training may be resumed with other values of them."""


@dataclass(frozen=True)
class Job:
    """A training that is ready for its first step."""

    run: TrainConfig
    group: Group
    dataset: Dataset
    images: Float16 | Tensor | None
    """Composites (N, C, S, S) of all rows: in host memory, or as a tensor on the GPU."""
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
    """The network with gradients averaged over the ranks; compiled if the run says so."""
    class_weights: Tensor
    optimiser: torch.optim.Optimizer
    fingerprint: dict[str, Any]

    @property
    def steps(self) -> int:
        """Number of steps in an epoch."""
        return math.ceil(len(self.train_rows) / self.run.batch_size)

    @property
    def signal_interval(self) -> int:
        """Number of steps between two checks for signals, at which all ranks agree whether to stop."""
        return min(SIGNAL_STEPS, self.steps) if self.group.world > 1 and self.group.device != "cpu" else 1

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return Path(f"{self.run.out}.checkpoints")


@dataclass
class Position:
    """The position of a training: `step` steps into `epoch` (from 1), with the loss and the records so far."""

    epoch: int = 1
    step: int = 0
    loss_sum: float = 0.0
    best: float = math.inf
    history: list[dict[str, Any]] = field(default_factory=list)

    def since_best(self) -> int:
        """Return the number of epochs since the best one."""
        best_epochs = [record["epoch"] for record in self.history if record["best"]]
        return len(self.history) - (best_epochs[-1] if best_epochs else 0)


def prepare(
    run: TrainConfig, dataset: Dataset, images: Float16 | None, settings: CompositeSettings, group: Group | None = None
) -> Job:
    """Return a job: the statistics of its input, and its network initialised from the seed or from `start_from`."""
    group, run = group or Group(), with_start_options(run)
    train_rows, val_rows = dataset.split("train"), dataset.split("val")
    check_rows(run, dataset, train_rows, val_rows, group)
    if group.is_first:
        warn_of_few_rows(dataset, val_rows)
    precision = resolve_precision(group.device, run.precision)
    if run.compile and group.device == "cpu" and precision == "bf16":
        raise ConfigError(
            "compile = true with bf16 on a CPU is not supported, because a training of iicnet diverged: "
            'set precision = "fp32", or compile = false'
        )
    preprocessing = input_statistics(images, train_rows, run)
    raw = features(dataset.rows, run.features) if run.features else None
    photometry_settings = photometry_statistics(raw, train_rows, run.features) if raw is not None else None
    photometry = standardise(raw, photometry_settings) if raw is not None and photometry_settings else None
    torch.manual_seed(run.seed)
    network = initial_network(run, dataset.classes, dataset.cut)
    freeze(network, run.frozen)
    network = channels_last(sync_batchnorm(network, group).to(group.device))
    return Job(
        run,
        group,
        dataset,
        on_device(images, group.device),
        photometry,
        train_rows,
        val_rows,
        precision,
        settings,
        preprocessing,
        Preprocess(preprocessing).to(group.device),
        photometry_settings,
        network,
        trainable(network, run, group),
        class_weights(dataset.labels[train_rows], len(dataset.classes), run.balanced).to(group.device),
        make_optimiser(run, network),
        fingerprint(run, dataset, settings, preprocessing, photometry_settings, precision),
    )


def check_columns(run: TrainConfig, dataset: Dataset) -> None:
    """Raise `ConfigError` for columns of the features that a dataset lacks."""
    needed = columns_of(run.features) if run.features else ()
    if absent := [column for column in needed if column not in dataset.rows.column_names]:
        raise ConfigError(
            f"dataset {run.dataset}: no {named('column', absent)} for the features {', '.join(run.features)}: make the "
            f"dataset with --columns {','.join(absent)}, or choose features without it"
        )


def trainable(network: nn.Module, run: TrainConfig, group: Group) -> nn.Module:
    """Return the network with gradients averaged over the ranks, compiled if the run says so."""
    wrapped = group.wrap(network)
    return compiled_for_training(wrapped, group.device) if run.compile else wrapped


def on_device(images: Float16 | None, device: str) -> Float16 | Tensor | None:
    """Return images as a tensor on a GPU that has memory for them, so that no batch waits for its copy; else as is."""
    if images is None or not device.startswith("cuda"):
        return images
    free_bytes, _ = torch.cuda.mem_get_info(device)
    if images.nbytes > IMAGES_SHARE * free_bytes:
        return images
    return torch.from_numpy(np.array(images)).to(device)  # a copy: torch takes no read-only memory map


def check_rows(run: TrainConfig, dataset: Dataset, train_rows: Int64, val_rows: Int64, group: Group) -> None:
    """Raise `ConfigError` with all problems unless every class has training and validation rows."""
    problems = []
    for split, rows in (("train", train_rows), ("val", val_rows)):
        missing = [name for name, n in label_counts(dataset.labels[rows], dataset.classes).items() if not n]
        if missing:
            problems.append(
                f"no {', '.join(missing)} in its split {split!r} ({counted(len(rows), 'row')}): label more of the sky"
            )
    steps = max(1, math.ceil(len(train_rows) / run.batch_size))
    if len(train_rows) // steps < max(2, group.world):
        problems.append(
            f"{counted(len(train_rows), 'training row')} in {one_or_many(steps, 'one batch', f'{steps:,} batches')} "
            f"{one_or_many(len(train_rows), 'is', 'are')} too few for {counted(group.world, 'rank')}; "
            f"batch_size = {run.batch_size} must give each rank a row, and BatchNorm two in all"
        )
    if problems:
        raise ConfigError(f"dataset {run.dataset}: " + "; ".join(problems))


def warn_of_few_rows(dataset: Dataset, val_rows: Int64) -> None:
    """Warn of classes with so few validation rows that the best epoch and the temperature are a matter of chance."""
    counts = label_counts(dataset.labels[val_rows], dataset.classes)
    if few := [f"{n:,} {name}" for name, n in counts.items() if n < FEW_VAL_ROWS]:
        log.warning(
            "few validation rows (%s, fewer than %d of a class): the best epoch and the calibration are uncertain; "
            "label more sources, or give validation a larger share with --split",
            ", ".join(few),
            FEW_VAL_ROWS,
        )


def fingerprint(
    run: TrainConfig,
    dataset: Dataset,
    settings: CompositeSettings,
    preprocessing: Preprocessing,
    photometry: PhotometrySettings | None,
    precision: str,
) -> dict[str, Any]:
    """Return everything that decides the weights. A training is resumed only if all of it is unchanged.

    Digests and statistics represent the pixels and the photometry, so that the dataset may move to another folder.
    """
    settings_of_weights = {k: v for k, v in asdict(run).items() if k not in NEUTRAL}
    content = settings_of_weights | {
        "start": read_bundle(run.start_from).model_id if run.start_from else "",
        "precision": precision,
        "classes": list(dataset.classes),
        "rows": rows_digest(dataset),
        "pixels": dataset.provenance.get("digests", {}).get("pixels", "in memory"),
        "cut": asdict(dataset.cut),
        "composite": settings.to_dict(),
        "preprocessing": asdict(preprocessing),
        "photometry": photometry.to_dict() if photometry else None,
        "simulated": bool(dataset.provenance["simulated"]),
        "version": __version__,
    }
    if is_import_path(run.network):
        content["source"] = source_sha256(run.network)
    plain: dict[str, Any] = json.loads(json.dumps(content))
    return plain


def folder_of(run: TrainConfig) -> Path:
    """Return the folder of the bundle as an absolute path, which is never the name of a shipped model."""
    return Path(run.out).absolute()


def input_statistics(images: Float16 | None, rows: Int64, run: TrainConfig) -> Preprocessing:
    """Return the preprocessing with the mean and std of the resized training images, channel by channel."""
    if images is None:
        return Preprocessing(run.input_px, (0.0,) * len(run.bands), (1.0,) * len(run.bands))
    sample = rows[:: max(1, len(rows) // STATISTICS_ROWS)]
    channels = images.shape[1]
    resize = Preprocess(Preprocessing(run.input_px, (0.0,) * channels, (1.0,) * channels))
    moments = np.zeros((2, channels))
    for part in np.array_split(sample, math.ceil(len(sample) / 256)):
        x = resize(torch.from_numpy(images[part])).double()
        share = len(part) / len(sample)
        moments += share * np.stack([x.mean((0, 2, 3)).numpy(), (x**2).mean((0, 2, 3)).numpy()])
    mean, square = moments
    std = np.sqrt(np.maximum(square - mean**2, 1e-12))
    return Preprocessing(run.input_px, tuple(np.round(mean, 6).tolist()), tuple(np.round(std, 6).tolist()))


def photometry_statistics(values: Float32, rows: Int64, names: tuple[str, ...]) -> PhotometrySettings:
    """Return the features with their mean and std over the training rows, without NaN."""
    known = values[rows]
    if empty := [name for name, column in zip(names, known.T, strict=True) if not np.isfinite(column).any()]:
        raise ConfigError(f"features {', '.join(empty)}: no training row has a value; leave them out")
    mean, std = (tuple(np.round(part, 6).tolist()) for part in scale_of(known))
    return PhotometrySettings(names, mean, std)


def class_weights(labels: Int64, n_classes: int, balanced: bool) -> Tensor:
    """Return the weight (K,) of each class in the loss: inverse to its number of rows if `balanced`, otherwise 1."""
    counts = np.bincount(labels, minlength=n_classes)
    if not balanced:
        return torch.ones(n_classes)
    weights = np.divide(len(labels), counts * np.count_nonzero(counts), out=np.zeros(len(counts)), where=counts > 0)
    return torch.tensor(weights, dtype=torch.float32)


def bundle_fields(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of the bundle of an epoch."""
    run = job.run
    return {
        "name": run.name,
        "network": run.network,
        "network_options": run.network_options(len(job.dataset.classes)),
        "source_sha256": job.fingerprint.get("source", ""),
        "cut": replace(job.dataset.cut, bands=run.bands),
        "composite": job.settings,
        "preprocessing": job.preprocessing,
        "photometry": job.photometry_settings,
        "classes": job.dataset.classes,
        "temperature": record["temperature"],
        "training": provenance(job, record),
    }


def provenance(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    """Return the provenance of the weights, with the mark of simulated data."""
    run, simulated = job.run, bool(job.dataset.provenance["simulated"])
    labels, classes = job.dataset.labels, job.dataset.classes
    return {
        "simulated": simulated,
        "label": run.label or ("trained on a SIMULATED sky only" if simulated else "observed images"),
        "fingerprint": job.fingerprint,
        "train_counts": label_counts(labels[job.train_rows], classes),
        "val_counts": label_counts(labels[job.val_rows], classes),
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
