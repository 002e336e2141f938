"""Train a network on a dataset and write its bundle, on one device or as one of many ranks.

The same code runs alone, under torchrun, under srun, and under `launch.py` on a Dask cluster. All random numbers depend
only on (seed, epoch, step). So a training that is stopped at any step resumes from its checkpoint and ends with exactly
the weights of an uninterrupted one.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, Interrupted
from ...model.bundle import Bundle, read_bundle, save_bundle
from ...model.bundle_files import check_target
from ...model.compile import compile_errors
from ...model.photometry import PhotometrySettings, columns_of, features, standardise
from ...types import Float32, FloatArray, Int64
from ..data.composites import composites
from ..data.dataset import Dataset, load_dataset
from ..evaluation.calibration import fit_temperature
from ..evaluation.metrics import balanced_accuracy, calibration_error, confusion
from ..progress import Progress, no_progress
from .augment import Augmentation, augment, draw_augmentation
from .ddp import joined
from .forest import fit_forest
from .initial import composite_settings
from .job import Job, Position, bundle_fields, check_columns, folder_of, prepare
from .log import StopRequest, TrainingLog, stop_signals
from .recipe import FOREST, TrainConfig, rate_factor
from .resume import finish_bundle, finished_bundle, load_position, save_position

VALIDATION_BATCH = 256
ORDER, AUGMENTATION = 1, 2
"""Streams of random numbers: the order of the rows, and their augmentation."""


def train(run: TrainConfig, progress: Progress = no_progress, dataset: Dataset | None = None) -> Bundle:
    """Train a network and return the bundle of the epoch with the least calibrated validation loss.

    The bundle is written after every epoch that is the best so far, so an interrupted training leaves a valid bundle.
    The same configuration again resumes the training, or returns the finished bundle.

    Parameters
    ----------
    run : TrainConfig
        The training.
    progress : callable
        Receives one dict at the start, with network, start_from, recipe, epochs, patience, inputs, n_train, steps (in
        an epoch), finished_epochs and finished_steps; the record of each epoch, with its losses, rates and speed; and
        within an epoch a dict with epoch, epochs, step, steps and images_per_s. Only rank 0 calls it.
    dataset : Dataset, optional
        The dataset, if it is in memory; by default that of `run.dataset`.

    Returns
    -------
    Bundle
        The finished bundle, which is also in the folder `run.out`.

    Raises
    ------
    ConfigError
        Settings and data do not fit each other. Raised before the first step.
    CannotCompile
        The run compiles its network, and there is no compiler or torch fails.
    Interrupted
        A signal has requested a stop. The same call resumes.
    """
    check_target(run.out)
    run = replace(run, epochs=1) if run.network == FOREST else run
    dataset = dataset or load_dataset(run.dataset)
    check_columns(run, dataset)
    settings = composite_settings(run)
    images = composites(dataset, run.bands, settings) if "images" in run.inputs else None
    compiling = compile_errors() if run.compile else nullcontext()
    with joined(run.device) as group, deterministic(group.device), stop_signals() as request, compiling:
        job = prepare(run, dataset, images, settings, group)
        if job.group.any(group.is_first and finished_bundle(job) is not None)[0]:
            return read_bundle(folder_of(run))
        position = load_position(job)
        training_log = TrainingLog(job, progress)
        training_log.start(position)
        while position.epoch <= run.epochs and not (run.patience and position.since_best() >= run.patience):
            is_forest = run.network == FOREST
            record = fit_forest(job) if is_forest else train_epoch(job, position, training_log, request)
            refuse_divergence(job, position, record["loss"])
            record |= validate(job)
            close_epoch(job, position, record)
            training_log.epoch(record)
        return finish_bundle(job, position)


@contextmanager
def deterministic(device: str) -> Iterator[None]:
    """Make CUDA deterministic during the block, so that a resumed training equals an uninterrupted one.

    torch warns about an operation that has no deterministic form.
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


def train_epoch(job: Job, position: Position, training_log: TrainingLog, request: StopRequest) -> dict[str, Any]:
    """Train on every image once, from the position on, and return the mean loss, the learning rate and the speed."""
    started, saved, n_images = time.monotonic(), time.monotonic(), 0
    run, factor, first_step = job.run, rate_factor(job.run, job.steps), (position.epoch - 1) * job.steps
    total = torch.tensor(position.loss_sum, dtype=torch.float64, device=job.group.device)
    job.wrapped.train()
    for name in run.frozen:  # the running statistics of BatchNorm are frozen, too
        job.network.get_submodule(name).eval()
    for rows, inputs, augmentation in prefetched(batches(job, position.epoch, position.step)):
        torch.manual_seed(hash((run.seed, position.epoch, position.step, job.group.rank)))  # dropout
        rate = run.learning_rate * factor(first_step + position.step)
        total += take_step(job, rows, inputs, augmentation, rate)
        position.step += 1
        n_images += len(rows)
        training_log.step(position, n_images / (time.monotonic() - started))
        if position.step % job.signal_interval:
            continue
        minutes = (time.monotonic() - saved) / 60
        stop, save = job.group.any(request.stop, request.checkpoint or 0 < run.checkpoint_minutes <= minutes)
        if stop or save:
            position.loss_sum = float(total)
            save_position(job, position)
            saved, request.checkpoint = time.monotonic(), False
        if stop:
            job.group.any()  # wait for rank 0 to write: launchers kill all ranks once one has ended
            raise Interrupted(
                f"training stopped in epoch {position.epoch}, step {position.step} of {job.steps}; "
                "run the same command again to resume there"
            )
    job.group.sum(total)
    return {
        "epoch": position.epoch,
        "loss": float(total) / len(job.train_rows),
        "learning_rate": run.learning_rate * factor(first_step + job.steps - 1),
        "images_per_s": round(n_images / (time.monotonic() - started), 1),
    }


def batches(job: Job, epoch: int, first: int) -> Iterator[tuple[Int64, list[Tensor], Augmentation | None]]:
    """Yield (rows of the global batch, inputs of this rank, their augmentation) from step `first` on."""
    order = np.random.default_rng([ORDER, job.run.seed, epoch]).permutation(job.train_rows)
    for number, batch in enumerate(np.array_split(order, job.steps)):
        if number < first:
            continue
        rows = np.sort(batch)  # the images are memory-mapped: read them in the order of the file
        share = job.group.share(len(rows))
        generator = np.random.default_rng([AUGMENTATION, job.run.seed, epoch, number])
        hidden = generator.random(len(rows)) < job.run.hide_photometry
        augmentation = None
        if job.images is not None and job.run.augments:
            augmentation = draw_augmentation(job.run, generator, (len(rows), *job.images.shape[1:])).part(share)
        inputs = inputs_of(job, rows[share])
        if job.photometry_settings and hidden.any():
            inputs[-1][torch.from_numpy(hidden[share])] = missing_photometry(job.photometry_settings)
        yield rows, inputs, augmentation


@cache
def missing_photometry(settings: PhotometrySettings) -> Tensor:
    """Return the standardised features (F,) of a source without photometry, as in inference."""
    empty = pa.table({name: pa.nulls(1, pa.float32()) for name in columns_of(settings.features)})
    return torch.from_numpy(standardise(features(empty, settings.features), settings))[0]


def inputs_of(job: Job, rows: Int64) -> list[Tensor]:
    """Return the input of the network for some rows: composites, standardised photometry, or both.

    It is where the arrays of the job are: on the host, or on the GPU.
    """
    arrays = {"images": job.images, "photometry": job.photometry}
    return [taken(array, rows) for k in job.run.inputs if (array := arrays[k]) is not None]


def taken(array: FloatArray | Tensor, rows: Int64) -> Tensor:
    """Return some rows of an array as a tensor, on the device of the array."""
    if isinstance(array, Tensor):
        return array[torch.from_numpy(rows).to(array.device)]
    return torch.from_numpy(np.asarray(array[rows]))


def take_step(job: Job, rows: Int64, inputs: list[Tensor], augmentation: Augmentation | None, rate: float) -> Tensor:
    """Take one step of the optimiser on a global batch, and return the part of this rank in the summed loss.

    The loss is the mean over the global batch, weighted by class. The factor `world` cancels the average of the
    gradients over the ranks.
    """
    labels = torch.from_numpy(job.dataset.labels[rows]).to(job.group.device)
    weight = job.class_weights[labels].sum()
    rank_labels = labels[job.group.share(len(rows))]
    logits = logits_of(job, job.wrapped, inputs, augmentation)
    loss = F.cross_entropy(logits, rank_labels, job.class_weights, reduction="sum")
    for settings in job.optimiser.param_groups:
        settings["lr"] = rate
    job.optimiser.zero_grad()
    (loss * job.group.world / weight).backward()  # type: ignore[no-untyped-call]
    job.optimiser.step()
    return loss.detach() * len(rows) / weight


def logits_of(job: Job, network: nn.Module, inputs: list[Tensor], augmentation: Augmentation | None = None) -> Tensor:
    """Return logits (N, K) float32. The preprocessing is in float32, even if the network runs in bf16."""
    device = job.group.device
    tensors = dict(zip(job.run.inputs, (x.to(device, non_blocking=True) for x in inputs), strict=True))
    if "images" in tensors:
        images = tensors["images"]
        tensors["images"] = augment(job.preprocess, images, augmentation) if augmentation else job.preprocess(images)
    with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=job.precision == "bf16"):
        logits: Tensor = network(*tensors.values())
    return logits.float()


@torch.inference_mode()
def validate(job: Job) -> dict[str, Any]:
    """Return calibrated loss, balanced accuracy, calibration error and temperature on the validation rows."""
    job.network.eval()
    share = job.group.share(len(job.val_rows))
    rank_rows = job.val_rows[share]
    parts = np.array_split(rank_rows, math.ceil(len(rank_rows) / VALIDATION_BATCH)) if len(rank_rows) else []
    logits = torch.zeros((len(job.val_rows), len(job.dataset.classes)), device=job.group.device)
    if parts:
        logits[share] = torch.cat([logits_of(job, job.network, inputs_of(job, rows)) for rows in parts])
    z = job.group.sum(logits).cpu()  # exact, because all other ranks have zeros in the rows of a rank
    if not torch.isfinite(z).all():
        return {"val_loss": math.nan}
    labels, weights = job.dataset.labels[job.val_rows], job.class_weights.cpu()
    y = torch.from_numpy(labels)
    temperature = fit_temperature(z, y, weights)
    probabilities: Float32 = torch.softmax(z / temperature, 1).numpy()
    return {
        "val_loss": float(F.cross_entropy(z / temperature, y, weight=weights)),
        "val_balanced_accuracy": balanced_accuracy(confusion(labels, probabilities.argmax(1), probabilities.shape[1])),
        "val_ece": calibration_error(labels, probabilities),
        "temperature": temperature,
    }


def refuse_divergence(job: Job, position: Position, loss: float) -> None:
    """Raise `ConfigError` for a loss that is not finite."""
    if not math.isfinite(loss):
        raise ConfigError(f"training diverged in epoch {position.epoch}: lower learning_rate = {job.run.learning_rate}")


def close_epoch(job: Job, position: Position, record: dict[str, Any]) -> None:
    """Write the bundle if this epoch is the best so far. Then save a checkpoint at the start of the next epoch.

    `position` moves to the next epoch. Raises `ConfigError` for a validation loss that is not finite.
    """
    refuse_divergence(job, position, record["val_loss"])
    record["best"] = record["val_loss"] < position.best
    if record["best"]:
        position.best = record["val_loss"]
        if job.group.is_first:
            save_bundle(job.run.out, bundle_fields(job, record), job.network.state_dict())
    position.history.append(record)
    position.epoch, position.step, position.loss_sum = position.epoch + 1, 0, 0.0
    save_position(job, position)


def prefetched(items: Iterable[Any], depth: int = 2) -> Iterator[Any]:
    """Yield items that a thread makes ahead, so that reading and augmentation overlap with the network."""
    with ThreadPoolExecutor(1) as pool:
        source = iter(items)
        pending = [pool.submit(next, source, None) for _ in range(depth)]
        while (item := pending.pop(0).result()) is not None:
            pending.append(pool.submit(next, source, None))
            yield item
