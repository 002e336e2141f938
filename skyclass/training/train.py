"""Train a network on a dataset and write its bundle: on one device, or as one of many ranks.

The same file runs bare, under torchrun, under srun, and where `launch.py` starts it on a Dask cluster. All that is
random follows from (seed, epoch, step), so a run that was stopped anywhere goes on from its checkpoint to the
very weights of an undisturbed one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import __version__
from ..bundle import Bundle, Preprocessing, check_target, load_bundle, load_weights, save_bundle
from ..composite import CompositeSettings, atlas_settings
from ..errors import ConfigError, Interrupted
from ..infer import Preprocess, resolve_precision
from ..networks import build, channels_last
from ..networks.fusion import FusionNet
from ..photometry import COLUMNS, PhotometrySettings, features, standardise
from ..types import CLASSES, Float16, Float32, Int64
from .augment import Draw, augment, draw
from .calibration import fit_temperature
from .checkpoint import latest_checkpoint, save_checkpoint
from .dataset import Dataset, class_counts, composites, load_dataset
from .parallel import Group, joined, synced
from .recipe import TrainConfig, rate_factor
from .scores import balanced_accuracy, calibration_error, confusion

log = logging.getLogger(__name__)

STATISTICS_ROWS = 8192
"""Images that give the mean and scatter of the network's input: enough for three digits."""
VALIDATION_BATCH = 256
LISTEN_STEPS = 8
ORDER, AUGMENTATION = 1, 2
"""Streams of random numbers."""
NEUTRAL = ("out", "dataset", "label", "device", "checkpoint_minutes", "start_from")
"""Settings that do not change the weights: a training may be resumed with others."""

Watch = Callable[[dict[str, Any]], None]


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
        """Steps between two looks at what signals ask for: ranks must agree on it, and that costs a message."""
        return 1 if self.group.world == 1 else min(LISTEN_STEPS, self.steps)

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


def train(run: TrainConfig, watch: Watch | None = None, dataset: Dataset | None = None) -> Bundle:
    """Train, and return the bundle of the epoch with the least calibrated loss on the validation sky.

    The bundle is written whenever an epoch is the best so far, so a run that is stopped leaves a working one. Running
    the same configuration again resumes, or returns the finished bundle. `watch` gets what the log gets, one record an
    epoch with losses, rates and speed, and {"epoch", "step", "steps", "images_per_s"} within it. Raises
    `ConfigError` before the first step for settings or data that do not fit, `Interrupted` when asked to stop.
    """
    check_target(run.out)
    dataset = dataset or load_dataset(run.dataset)
    settings = composite_settings(run)
    images = composites(dataset, run.bands, settings) if "images" in run.inputs else None
    with joined(run.device) as group, same_digits(group.device), stop_signals() as asked:
        job = prepare(run, dataset, images, settings, group)
        if job.group.from_first(lambda: finished(job) is not None):
            return load_bundle(folder_of(run))
        position = resumed(job)
        journal = Journal(job, watch)
        journal.restart(position.history)
        while position.epoch <= run.epochs and not (run.patience and position.since_best() >= run.patience):
            record = train_epoch(job, position, journal, asked)
            refuse_divergence(job, position, record["loss"])
            record |= validate(job)
            close_epoch(job, position, record)
            journal.epoch(record)
        return finish(job, position)


@contextmanager
def same_digits(device: str) -> Iterator[None]:
    """Make CUDA give the same digits for the same input, so that a resumed training is the undisturbed one.

    Where an operation has no such form torch warns and goes on.
    """
    if device == "cpu":
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def composite_settings(run: TrainConfig) -> CompositeSettings:
    """Return the composite settings of a run: those of Atlas images with its changes."""
    return CompositeSettings.from_dict(atlas_settings(run.bands).to_dict() | run.composite)


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
        lost = [name for name, n in class_counts(dataset.labels[rows]).items() if not n]
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
    network = build(run.network, **run.network_options)
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
    if start.network_options != ours:
        raise ConfigError(f"start_from = {run.start_from!r} has options {start.network_options}, this run {ours}")
    if isinstance(network, FusionNet) and start.network == "iicnet":
        network.begin_with(load_weights(start))
    else:
        network.load_state_dict(load_weights(start))
    return network


def optimiser_of(run: TrainConfig, network: nn.Module) -> torch.optim.Optimizer:
    """Return Adam (Kingma & Ba 2015), or AdamW (Loshchilov & Hutter 2019) when weights decay."""
    if run.weight_decay:
        return torch.optim.AdamW(network.parameters(), run.learning_rate, weight_decay=run.weight_decay, fused=True)
    return torch.optim.Adam(network.parameters(), run.learning_rate, fused=True)


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
    rows = hashlib.sha256(dataset.labels.tobytes())
    for name in ("source_id", "split"):
        rows.update("\n".join(dataset.rows[name].to_pylist()).encode())
    kept = {k: v for k, v in asdict(run).items() if k not in NEUTRAL}
    content = kept | {
        "start": load_bundle(run.start_from).model_id if run.start_from else "",
        "precision": precision,
        "rows": rows.hexdigest()[:16],
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


def train_epoch(job: Job, position: Position, journal: Journal, asked: Asked) -> dict[str, Any]:
    """Show every training image once, from the position on; return the mean loss, learning rate and speed."""
    began, checked, shown = time.monotonic(), time.monotonic(), 0
    run, factor, done = job.run, rate_factor(job.run, job.steps), (position.epoch - 1) * job.steps
    total = torch.tensor(position.loss_sum, dtype=torch.float64, device=job.group.device)
    job.wrapped.train()
    for rows, inputs, drawn in prefetched(batches(job, position.epoch, position.step)):
        torch.manual_seed(hash((run.seed, position.epoch, position.step, job.group.rank)))  # dropout
        rate = run.learning_rate * factor(done + position.step)
        total += step(job, rows, inputs, drawn, rate)
        position.step += 1
        shown += len(rows)
        journal.step(position, shown / (time.monotonic() - began))
        if position.step % job.listen:
            continue
        minutes = (time.monotonic() - checked) / 60
        stop, save = job.group.any(asked.stop, asked.checkpoint or 0 < run.checkpoint_minutes <= minutes)
        if stop or save:
            position.loss_sum = float(total)
            save_position(job, position)
            checked, asked.checkpoint = time.monotonic(), False
        if stop:
            raise Interrupted(
                f"training stopped in epoch {position.epoch}, step {position.step} of {job.steps}; "
                "run the same command again to resume there"
            )
    job.group.sum(total)
    return {
        "epoch": position.epoch,
        "loss": float(total) / len(job.train_rows),
        "learning_rate": run.learning_rate * factor(done + job.steps - 1),
        "images_per_s": round(shown / (time.monotonic() - began), 1),
    }


def batches(job: Job, epoch: int, first: int) -> Iterator[tuple[Int64, list[Tensor], Draw | None]]:
    """Yield (rows of the global batch, this rank's inputs, what happens to its images) from step `first` on."""
    order = np.random.default_rng([ORDER, job.run.seed, epoch]).permutation(job.train_rows)
    for number, chosen in enumerate(np.array_split(order, job.steps)):
        if number < first:
            continue
        rows = np.sort(chosen)  # the images are memory-mapped: read them in the order of the file
        own = job.group.share(len(rows))
        generator = np.random.default_rng([AUGMENTATION, job.run.seed, epoch, number])
        hidden = generator.random(len(rows)) < job.run.hide_photometry
        drawn = None
        if job.images is not None and job.run.augments:
            drawn = draw(job.run, generator, (len(rows), *job.images.shape[1:])).part(own)
        inputs = inputs_of(job, rows[own])
        if job.photometry_settings and hidden.any():
            inputs[-1][torch.from_numpy(hidden[own])] = unknown(job.photometry_settings)
        yield rows, inputs, drawn


def unknown(settings: PhotometrySettings) -> Tensor:
    """Return the standardised features (F,) of a source of which the catalogue has no photometry, as in inference."""
    nothing = pa.table({name: pa.nulls(1, pa.float32()) for name in COLUMNS})
    return torch.from_numpy(standardise(features(nothing, settings.features), settings))[0]


def inputs_of(job: Job, rows: Int64) -> list[Tensor]:
    """Return what the network takes of some rows, on the host: composites, standardised photometry, or both."""
    arrays = {"images": job.images, "photometry": job.photometry}
    return [torch.from_numpy(np.asarray(array[rows])) for k in job.run.inputs if (array := arrays[k]) is not None]


def step(job: Job, rows: Int64, inputs: list[Tensor], drawn: Draw | None, rate: float) -> Tensor:
    """Take one step down the loss of a global batch; return this rank's part of the loss, summed over images.

    The loss is the mean over the global batch, weighted by class; the ranks' gradients are averaged, hence `world`.
    """
    labels = torch.from_numpy(job.dataset.labels[rows]).to(job.group.device)
    weight = job.class_weights[labels].sum()
    own = labels[job.group.share(len(rows))]
    loss = F.cross_entropy(logits_of(job, job.wrapped, inputs, drawn), own, job.class_weights, reduction="sum")
    for settings in job.optimiser.param_groups:
        settings["lr"] = rate
    job.optimiser.zero_grad()
    (loss * job.group.world / weight).backward()  # type: ignore[no-untyped-call]
    job.optimiser.step()
    return loss.detach() * len(rows) / weight


def logits_of(job: Job, network: nn.Module, inputs: list[Tensor], drawn: Draw | None = None) -> Tensor:
    """Return logits (N, 3) float32; the preprocessing stays in float32 even with bf16."""
    device = job.group.device
    tensors = dict(zip(job.run.inputs, (x.to(device, non_blocking=True) for x in inputs), strict=True))
    if "images" in tensors:
        images = tensors["images"]
        tensors["images"] = augment(job.preprocess, images, drawn) if drawn else job.preprocess(images)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=job.precision == "bf16"):
        logits: Tensor = network(*tensors.values())
    return logits.float()


@torch.inference_mode()
def validate(job: Job) -> dict[str, Any]:
    """Return calibrated loss, balanced accuracy, calibration error and temperature on the validation rows."""
    job.network.eval()
    own = job.val_rows[job.group.share(len(job.val_rows))]
    parts = np.array_split(own, math.ceil(len(own) / VALIDATION_BATCH)) if len(own) else []
    logits = [logits_of(job, job.network, inputs_of(job, rows)).cpu() for rows in parts]
    table = np.concatenate(job.group.gather(torch.cat(logits).numpy() if logits else np.empty((0, len(CLASSES)))))
    labels, weights = job.dataset.labels[job.val_rows], job.class_weights.cpu()
    y, z = torch.from_numpy(labels), torch.from_numpy(table).float()
    temperature = fit_temperature(z, y, weights)
    probabilities: Float32 = torch.softmax(z / temperature, 1).numpy()
    return {
        "val_loss": float(F.cross_entropy(z / temperature, y, weight=weights)),
        "val_balanced_accuracy": balanced_accuracy(confusion(labels, probabilities.argmax(1))),
        "val_ece": calibration_error(labels, probabilities),
        "temperature": temperature,
    }


def refuse_divergence(job: Job, position: Position, loss: float) -> None:
    """Raise `ConfigError` for a loss that is no number."""
    if not math.isfinite(loss):
        raise ConfigError(f"training diverged in epoch {position.epoch}: lower learning_rate = {job.run.learning_rate}")


def close_epoch(job: Job, position: Position, record: dict[str, Any]) -> None:
    """Write the bundle if the epoch is the best so far, and a checkpoint that begins the next one."""
    refuse_divergence(job, position, record["val_loss"])
    record["best"] = record["val_loss"] < position.best
    if record["best"]:
        position.best = record["val_loss"]
        if job.group.is_first:
            save_bundle(job.run.out, bundle_fields(job, record), job.network.state_dict())
    position.history.append(record)
    position.epoch, position.step, position.loss_sum = position.epoch + 1, 0, 0.0
    save_position(job, position)


def finish(job: Job, position: Position) -> Bundle:
    """Mark the bundle as finished, remove the checkpoints, and return the bundle."""
    best = next(record for record in reversed(position.history) if record["best"])
    if job.group.is_first:
        fields, weights = bundle_fields(job, best), load_weights(load_bundle(folder_of(job.run)))
        fields["training"]["epochs_run"] = len(position.history)
        save_bundle(job.run.out, fields, weights)
        shutil.rmtree(job.checkpoints)
    job.group.any()  # the other ranks read what the first has written
    return load_bundle(folder_of(job.run))


def finished(job: Job) -> Bundle | None:
    """Return the bundle of a run that is already done, None when there is work; `ConfigError` for another's bundle."""
    folder = folder_of(job.run)
    if not folder.is_dir():
        return None
    bundle = load_bundle(folder)
    if bundle.training.get("fingerprint") == job.fingerprint:
        return bundle if "epochs_run" in bundle.training else None
    if job.checkpoints.exists():
        return None  # they tell better what differs
    raise ConfigError(f"{job.run.out} holds another model, {bundle.model_id}: choose another out, or remove it")


def folder_of(run: TrainConfig) -> Path:
    """Return the folder of the bundle as a path that cannot be taken for the name of a shipped model."""
    return Path(run.out).absolute()


def save_position(job: Job, position: Position) -> None:
    """Write a checkpoint. The first rank's state is that of all, but for the loss so far."""
    loss_sums = job.group.gather(position.loss_sum)
    if not job.group.is_first:
        return
    state = {
        "fingerprint": job.fingerprint,
        "position": asdict(position),
        "loss_sums": loss_sums,
        "network": job.network.state_dict(),
        "optimiser": job.optimiser.state_dict(),
    }
    save_checkpoint(job.checkpoints, (position.epoch - 1) * job.steps + position.step, state)


def resumed(job: Job) -> Position:
    """Return where the newest checkpoint left off, its state loaded on every rank; the start without one."""
    state = job.group.from_first(lambda: latest_checkpoint(job.checkpoints))
    if state is None:
        return Position()
    there, here = state["fingerprint"], job.fingerprint
    if there != here:
        changed = [f"{k} {there.get(k)!r} there, {here.get(k)!r} here" for k in here if there.get(k) != here[k]]
        raise ConfigError(
            f"{job.checkpoints} belongs to another training ({'; '.join(changed)}): "
            "choose another out, or remove that folder to begin anew"
        )
    job.network.load_state_dict(state["network"])
    job.optimiser.load_state_dict(state["optimiser"])
    position, sums = Position(**state["position"]), state["loss_sums"]
    if len(sums) != job.group.world:  # as many ranks as before go on to the very same digits
        sums = [sum(sums)] + [0.0] * (job.group.world - 1)
    position.loss_sum = sums[job.group.rank]
    log.info("resuming in epoch %d, step %d", position.epoch, position.step)
    return position


class Journal:
    """The log of a run: OUT.jsonl, TensorBoard where it is installed, and whoever watches. Only rank 0 writes."""

    def __init__(self, job: Job, watch: Watch | None) -> None:
        self.job, self.watch = job, watch if job.group.is_first else None
        self.path = Path(f"{job.run.out}.jsonl")
        self.board = tensorboard(f"{job.run.out}.tensorboard") if job.group.is_first else None

    def restart(self, history: list[dict[str, Any]]) -> None:
        """Write the epochs that are done; what an interrupted epoch logged is gone."""
        if self.job.group.is_first:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("".join(json.dumps(record) + "\n" for record in history))

    def step(self, position: Position, images_per_s: float) -> None:
        """Tell who watches how far an epoch has come."""
        if self.watch:
            facts = {"epoch": position.epoch, "step": position.step, "steps": self.job.steps}
            self.watch(facts | {"epochs": self.job.run.epochs, "images_per_s": images_per_s})

    def epoch(self, record: dict[str, Any]) -> None:
        """Log a finished epoch."""
        if not self.job.group.is_first:
            return
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
        if self.board:
            for name in record.keys() - {"epoch", "best"}:
                self.board.add_scalar(name, record[name], record["epoch"])
            self.board.flush()
        if self.watch:
            self.watch(record)


def tensorboard(folder: str) -> Any:
    """Return a TensorBoard writer, None where TensorBoard is not installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("no TensorBoard log: pip install 'skyclass[train]'")
        return None
    return SummaryWriter(folder)


@dataclass
class Asked:
    """What signals have asked for."""

    stop: bool = False
    checkpoint: bool = False


@contextmanager
def stop_signals() -> Iterator[Asked]:
    """Give what signals ask for: SIGINT and SIGTERM to stop after a checkpoint, SIGUSR1 for a checkpoint.

    A second SIGINT or SIGTERM ends the process at once. Outside the main thread signals are left alone.
    """
    asked = Asked()

    def stop(number: int, frame: object) -> None:
        asked.stop = True
        signal.signal(number, signal.default_int_handler)

    def checkpoint(number: int, frame: object) -> None:
        asked.checkpoint = True

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGUSR1: checkpoint}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def prefetched(items: Iterable[Any], depth: int = 2) -> Iterator[Any]:
    """Yield the items, made ahead by a thread, so that reading and drawing hide behind the network."""
    with ThreadPoolExecutor(1) as pool:
        source = iter(items)
        ahead = [pool.submit(next, source, None) for _ in range(depth)]
        while (item := ahead.pop(0).result()) is not None:
            ahead.append(pool.submit(next, source, None))
            yield item


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
    mean, std = np.nanmean(known, axis=0, dtype=np.float64), np.nanstd(known, axis=0, dtype=np.float64)
    safe = np.where(std > 0, std, 1.0)
    return PhotometrySettings(names, tuple(np.round(mean, 6).tolist()), tuple(np.round(safe, 6).tolist()))


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
        "train_counts": class_counts(job.dataset.labels[job.train_rows]),
        "val_counts": class_counts(job.dataset.labels[job.val_rows]),
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
