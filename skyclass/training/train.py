"""Train a network on a dataset and write its bundle: one file, top to bottom, one device."""

from __future__ import annotations

import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import __version__, config
from ..bundle import Bundle, Preprocessing, check_target, save_bundle
from ..composite import CompositeSettings, atlas_settings
from ..errors import ConfigError
from ..infer import Preprocess, resolve_device, resolve_precision
from ..networks import NETWORKS, build, channels_last
from ..types import BANDS, CLASSES, Float16, Float32, Int64
from .dataset import Dataset, build_dataset, class_counts, load_dataset, split_sky
from .evaluate import balanced_accuracy, calibration_error, confusion

SCHEDULES = ("cosine", "paper")
WARM_UP = 0.1
"""Share of the steps in which the rate rises, before it falls along a cosine (one cycle)."""
PAPER_HALVING_EPOCH = 50
STATISTICS_ROWS = 8192
"""Images that give the mean and scatter of the network's input: enough for three digits."""

PROVENANCE = (
    "simulated epochs batch_size learning_rate weight_decay schedule balanced flips shift_px val_fraction seed"
).split()
"""The settings of a run that its bundle remembers."""

Progress = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Field names are the keys of TRAIN.toml."""

    out: str
    """Folder of the model bundle; the log of the epochs is written beside it, as OUT.jsonl."""
    dataset: str
    """Dataset folder; if absent it is made from `catalog`, `images` and `labels`."""
    simulated: bool
    """Whether the training images are simulated. Required: it is written into the bundle."""
    label: str = ""
    """Provenance for people, such as "simulated sky, seed 1" or "SDSS DR17 on AllWISE"."""
    name: str = "iicnet"
    """Name of the model, the first part of `model_id`."""
    catalog: str | None = None
    images: str | None = None
    labels: str | None = None
    """Parquet or CSV table with `source_id` and `class`."""
    bands: tuple[str, ...] = ("w1", "w2", "w3")
    size_px: int = 37
    """Native pixels on a side of a cutout: 37 are 51 arcsec."""
    composite: dict[str, Any] = field(default_factory=dict)
    """Changes to the default composite settings of Atlas images."""
    input_px: int = 80
    network: str = "iicnet"
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the network, such as {bn = "all"}."""
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 1e-3
    """Highest rate of the cosine cycle; the schedule "paper" has its own 1e-4."""
    weight_decay: float = 1e-2
    schedule: str = "cosine"
    """cosine: AdamW, one cycle. paper: Adam at 1e-4, halved after 50 epochs (Zhao et al. 2023)."""
    balanced: bool = True
    """Weigh the classes equally in the loss and in the calibration, whatever their numbers."""
    flips: bool = True
    """Show each image in a random one of its eight flips and quarter turns."""
    shift_px: int = 1
    """Move each cutout by up to so many native pixels; what moves in from outside is missing."""
    val_fraction: float = 0.15
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if problems := list(_problems(self)):
            raise ConfigError("training: " + "; ".join(problems))


def _problems(run: TrainConfig) -> Iterator[str]:
    if unknown := sorted(set(run.bands) - set(BANDS)):
        yield f"bands: {', '.join(unknown)} unknown (known: {', '.join(BANDS)})"
    if run.network not in NETWORKS:
        yield f"network = {run.network!r}: choose {', '.join(NETWORKS)}"
    if run.schedule not in SCHEDULES:
        yield f"schedule = {run.schedule!r}: choose {', '.join(SCHEDULES)}"
    for name in ("size_px", "input_px", "epochs", "batch_size", "learning_rate"):
        if getattr(run, name) <= 0:
            yield f"{name} = {getattr(run, name)}: must be positive"
    if not 0 < run.val_fraction < 1:
        yield f"val_fraction = {run.val_fraction}: must lie between 0 and 1"
    if run.shift_px < 0:
        yield f"shift_px = {run.shift_px}: must not be negative"


def train_config(data: Mapping[str, Any]) -> TrainConfig:
    """Return the training run that a mapping (TRAIN.toml) describes; `ConfigError` tells all mistakes."""
    return config.build(TrainConfig, data, "training")


def train(run: TrainConfig, progress: Progress | None = None) -> Bundle:
    """Train, and return the bundle of the epoch with the least calibrated loss on the validation sky.

    The bundle is written whenever an epoch is the best so far, so a run that is stopped leaves a working one.
    `progress` gets what the log gets: one record an epoch with loss, rates of the validation set and speed.
    """
    check_target(run.out)
    job = prepare(run, open_dataset(run, progress))
    log = Path(f"{run.out}.jsonl")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("")
    best = math.inf
    for epoch in range(1, run.epochs + 1):
        record = {"epoch": epoch} | train_epoch(job) | validate(job)
        record["best"] = record["val_loss"] < best
        if record["best"]:
            best = record["val_loss"]
            bundle = save_bundle(run.out, _bundle_fields(job, record), job.network.state_dict())
        with log.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if progress:
            progress(record)
    if best == math.inf:
        raise ConfigError(f"training diverged in the first epoch: lower learning_rate = {run.learning_rate}")
    return bundle


@dataclass(frozen=True)
class Job:
    """A training run in progress: its data, its network and what moves it."""

    run: TrainConfig
    dataset: Dataset
    train_rows: Int64
    val_rows: Int64
    device: str
    precision: str
    preprocessing: Preprocessing
    preprocess: Preprocess
    network: nn.Module
    class_weights: Tensor
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    generator: np.random.Generator

    @property
    def steps(self) -> int:
        """Steps an epoch."""
        return math.ceil(len(self.train_rows) / self.run.batch_size)


def prepare(run: TrainConfig, dataset: Dataset) -> Job:
    """Return the run with its sky split, preprocessing measured and network initialised from the seed."""
    device = resolve_device(run.device)
    train_rows, val_rows = split_sky(dataset, run.val_fraction)
    preprocessing = input_statistics(dataset.images, train_rows, run.input_px)
    torch.manual_seed(run.seed)
    network = channels_last(build(run.network, **_network_options(run)).to(device))
    optimiser = _optimiser(run, network)
    steps = math.ceil(len(train_rows) / run.batch_size)
    return Job(
        run,
        dataset,
        train_rows,
        val_rows,
        device,
        resolve_precision(device, run.precision),
        preprocessing,
        Preprocess(preprocessing).to(device),
        network,
        class_weights(dataset.labels[train_rows], run.balanced).to(device),
        optimiser,
        torch.optim.lr_scheduler.LambdaLR(optimiser, rate_factor(run, steps)),
        np.random.default_rng(run.seed),
    )


def train_epoch(job: Job) -> dict[str, float]:
    """Show every training image once; return the mean loss, the last learning rate and the speed."""
    began, run = time.monotonic(), job.run
    job.network.train()
    total = torch.zeros((), device=job.device)
    for chosen in np.array_split(job.generator.permutation(job.train_rows), job.steps):
        rows = np.sort(chosen)  # the images are memory-mapped: read them in the order of the file
        images = augment(job.dataset.images[rows], job.generator, run.flips, run.shift_px)
        labels = torch.from_numpy(job.dataset.labels[rows]).to(job.device)
        loss = F.cross_entropy(logits_of(job, images), labels, weight=job.class_weights)
        job.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        job.optimiser.step()
        job.schedule.step()
        total += loss.detach() * len(rows)
    return {
        "loss": float(total) / len(job.train_rows),
        "learning_rate": float(job.schedule.get_last_lr()[0]),
        "images_per_s": len(job.train_rows) / (time.monotonic() - began),
    }


def logits_of(job: Job, images: Float16) -> Tensor:
    """Return logits (N, 3) float32 for composites; the preprocessing stays in float32 even with bf16."""
    x = job.preprocess(torch.from_numpy(images).to(job.device))
    with torch.autocast(torch.device(job.device).type, torch.bfloat16, enabled=job.precision == "bf16"):
        logits: Tensor = job.network(x)
    return logits.float()


@torch.inference_mode()
def validate(job: Job) -> dict[str, float]:
    """Return calibrated loss, balanced accuracy, calibration error and temperature on the validation rows."""
    job.network.eval()
    parts = np.array_split(job.val_rows, math.ceil(len(job.val_rows) / 256))
    logits = torch.cat([logits_of(job, job.dataset.images[rows]).cpu() for rows in parts])
    labels, weights = job.dataset.labels[job.val_rows], job.class_weights.cpu()
    y = torch.from_numpy(labels)
    temperature = fit_temperature(logits, y, weights)
    probabilities: Float32 = torch.softmax(logits / temperature, 1).numpy()
    return {
        "val_loss": float(F.cross_entropy(logits / temperature, y, weight=weights)),
        "val_balanced_accuracy": balanced_accuracy(confusion(labels, probabilities.argmax(1))),
        "val_ece": calibration_error(labels, probabilities),
        "temperature": temperature,
    }


def open_dataset(run: TrainConfig, progress: Progress | None = None) -> Dataset:
    """Return the dataset of a training run, made if its folder is absent; `ConfigError` if it is another."""
    settings = CompositeSettings.from_dict(atlas_settings(run.bands).to_dict() | run.composite)
    if not Path(run.dataset).exists():
        if not (run.catalog and run.images and run.labels):
            raise ConfigError(f"no dataset at {run.dataset}: give catalog, images and labels to make it")
        return build_dataset(
            run.catalog, run.images, run.labels, run.bands, run.size_px, settings, run.dataset, progress
        )
    dataset = load_dataset(run.dataset)
    made = (dataset.cut.bands, dataset.cut.size_px, dataset.composite)
    if made != (run.bands, run.size_px, settings):
        raise ConfigError(
            f"the dataset {run.dataset} was made with other settings: {made}, this run asks for "
            f"{(run.bands, run.size_px, settings)}; choose another dataset folder or the same settings"
        )
    return dataset


def input_statistics(images: Float16, rows: Int64, input_px: int) -> Preprocessing:
    """Return the preprocessing with the mean and std of the resized training images, channel by channel."""
    chosen = rows[:: max(1, len(rows) // STATISTICS_ROWS)]
    channels = images.shape[1]
    plain = Preprocess(Preprocessing(input_px, (0.0,) * channels, (1.0,) * channels))
    moments = np.zeros((2, channels))
    for part in np.array_split(chosen, math.ceil(len(chosen) / 256)):
        x = plain(torch.from_numpy(images[part])).double()
        share = len(part) / len(chosen)
        moments += share * np.stack([x.mean((0, 2, 3)).numpy(), (x**2).mean((0, 2, 3)).numpy()])
    mean, square = moments
    std = np.sqrt(np.maximum(square - mean**2, 1e-12))
    return Preprocessing(input_px, tuple(np.round(mean, 6).tolist()), tuple(np.round(std, 6).tolist()))


def augment(images: Float16, generator: np.random.Generator, flips: bool, shift_px: int) -> Float16:
    """Return composites (N, C, S, S), each flipped, turned and shifted at random; NaN moves in."""
    if flips:
        images = turn(images, generator.integers(0, 8, len(images)))
    if shift_px:
        images = shift(images, generator.integers(-shift_px, shift_px + 1, (len(images), 2)))
    return images


def turn(images: Float16, code: Int64) -> Float16:
    """Return each image (N, C, S, S) in one of its eight flips and quarter turns: `code` (N,) from 0 to 7."""
    out = np.empty_like(images)
    for k in range(8):
        turned = np.rot90(images[code == k], k % 4, axes=(2, 3))
        out[code == k] = turned if k < 4 else turned[..., ::-1]
    return out


def shift(images: Float16, step_px: Int64) -> Float16:
    """Return each image (N, C, S, S) moved by its (rows, columns) in `step_px` (N, 2); NaN moves in."""
    reach, size = int(np.abs(step_px).max(initial=0)), images.shape[-1]
    margin = ((0, 0), (0, 0), (reach, reach), (reach, reach))
    padded = np.pad(images, margin, constant_values=np.nan)
    rows = (reach - step_px[:, 0])[:, None] + np.arange(size)
    columns = (reach - step_px[:, 1])[:, None] + np.arange(size)
    n, c = np.arange(len(images))[:, None, None, None], np.arange(images.shape[1])[:, None, None]
    moved: Float16 = padded[n, c, rows[:, None, :, None], columns[:, None, None, :]]
    return moved


def class_weights(labels: Int64, balanced: bool) -> Tensor:
    """Return the weight of each class in the loss: inverse to its number if `balanced`, 0 without rows."""
    counts = np.bincount(labels, minlength=len(CLASSES))
    even = len(labels) / ((counts > 0).sum() * np.maximum(counts, 1))
    weights = even if balanced else np.ones(len(CLASSES))
    return torch.tensor(np.where(counts > 0, weights, 0.0), dtype=torch.float32)


def rate_factor(run: TrainConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """Return the factor on the learning rate as a function of the step."""
    total = run.epochs * steps_per_epoch
    rise = max(1, int(WARM_UP * total))

    def cosine(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        return max(1e-3, 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise))))

    def paper(step: int) -> float:
        return 1.0 if step < PAPER_HALVING_EPOCH * steps_per_epoch else 0.5

    return paper if run.schedule == "paper" else cosine


def fit_temperature(logits: Tensor, labels: Tensor, weights: Tensor) -> float:
    """Return the temperature that makes the validation loss least (Guo et al. 2017, arXiv:1706.04599).

    Golden-section search of log T between 0.05 and 20; the loss has one minimum there.
    """
    low, high = math.log(0.05), math.log(20.0)
    golden = (math.sqrt(5) - 1) / 2

    def loss(log_temperature: float) -> float:
        return float(F.cross_entropy(logits / math.exp(log_temperature), labels, weight=weights))

    for _ in range(40):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if loss(a) < loss(b) else (a, high)
    return round(math.exp((low + high) / 2), 6)


def _network_options(run: TrainConfig) -> dict[str, Any]:
    channels = {} if len(run.bands) == 3 else {"in_channels": len(run.bands)}
    return channels | run.options


def _optimiser(run: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    if run.schedule == "paper":
        return torch.optim.Adam(network.parameters(), lr=1e-4)
    return torch.optim.AdamW(network.parameters(), lr=run.learning_rate, weight_decay=run.weight_decay, fused=True)


def _bundle_fields(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    run = job.run
    return {
        "name": run.name,
        "network": run.network,
        "network_options": _network_options(run),
        "cut": job.dataset.cut,
        "composite": job.dataset.composite,
        "preprocessing": job.preprocessing,
        "temperature": record["temperature"],
        "training": _provenance(job, record),
    }


def _provenance(job: Job, record: dict[str, Any]) -> dict[str, Any]:
    run = job.run
    kind = "simulated" if run.simulated else "observed"
    return {name: getattr(run, name) for name in PROVENANCE} | {
        "label": run.label or f"{kind} images",
        "train_counts": class_counts(job.dataset.labels[job.train_rows]),
        "val_counts": class_counts(job.dataset.labels[job.val_rows]),
        "best_epoch": record["epoch"],
        **{k: round(record[k], 6) for k in ("loss", "val_loss", "val_balanced_accuracy", "val_ece")},
        "prior": "equal classes" if run.balanced else "classes as counted",
        "precision": job.precision,
        "device": torch.device(job.device).type,
        "versions": {
            "skyclass": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
