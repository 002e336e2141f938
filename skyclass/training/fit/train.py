"""Train a network on a dataset and write its bundle: on one device, or as one of many ranks.

The same file runs bare, under torchrun, under srun, and where `launch.py` starts it on a Dask cluster. All that is
random follows from (seed, epoch, step), so a run that was stopped anywhere goes on from its checkpoint to the
very weights of an undisturbed one.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import ConfigError, Interrupted
from ...model.bundle import Bundle, check_target, load_bundle, load_weights, save_bundle
from ...model.photometry import COLUMNS, PhotometrySettings, features, standardise
from ...types import CLASSES, Float32, Int64
from ..data.composites import composites
from ..data.dataset import Dataset, load_dataset
from ..evaluation.calibration import fit_temperature
from ..evaluation.metrics import balanced_accuracy, calibration_error, confusion
from .augment import Draw, augment, draw
from .checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from .ddp import joined
from .job import Job, Position, bundle_fields, composite_settings, folder_of, prepare
from .log import Asked, Journal, Watch, stop_signals
from .recipe import TrainConfig, rate_factor

log = logging.getLogger(__name__)
VALIDATION_BATCH = 256
ORDER, AUGMENTATION = 1, 2
"""Streams of random numbers."""


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
        if job.group.any(group.is_first and finished(job) is not None)[0]:
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


def train_epoch(job: Job, position: Position, journal: Journal, asked: Asked) -> dict[str, Any]:
    """Show every training image once, from the position on; return the mean loss, learning rate and speed."""
    began, checked, shown = time.monotonic(), time.monotonic(), 0
    run, factor, done = job.run, rate_factor(job.run, job.steps), (position.epoch - 1) * job.steps
    total = torch.tensor(position.loss_sum, dtype=torch.float64, device=job.group.device)
    job.wrapped.train()
    for name in run.frozen:  # whose running statistics stay too
        job.network.get_submodule(name).eval()
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
            job.group.any()  # the first rank still writes: who leaves earlier may have it killed
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


@cache
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
    logits = torch.zeros((len(job.val_rows), len(CLASSES)), device=job.group.device)
    if parts:
        logits[job.group.share(len(job.val_rows))] = torch.cat(
            [logits_of(job, job.network, inputs_of(job, rows)) for rows in parts]
        )
    z = job.group.sum(logits).cpu()  # every rank has filled its own rows of zeros: the sum is exact
    if not torch.isfinite(z).all():
        return {"val_loss": math.nan}
    labels, weights = job.dataset.labels[job.val_rows], job.class_weights.cpu()
    y = torch.from_numpy(labels)
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
        written = load_bundle(folder_of(job.run))
        if (found := written.training["best_epoch"]) != best["epoch"]:
            raise ConfigError(
                f"{job.run.out} holds epoch {found}, and by the log epoch {best['epoch']} is the best: remove it and "
                f"{job.checkpoints}, and train again"
            )
        fields, weights = bundle_fields(job, best), load_weights(written)
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
    newest = (latest_checkpoint(job.checkpoints) or 0) if job.group.is_first else 0  # 0: none
    number = int(job.group.gather(newest)[0])
    if number == 0:
        return Position()
    state = load_checkpoint(job.checkpoints, number)
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


def prefetched(items: Iterable[Any], depth: int = 2) -> Iterator[Any]:
    """Yield the items, made ahead by a thread, so that reading and drawing hide behind the network."""
    with ThreadPoolExecutor(1) as pool:
        source = iter(items)
        ahead = [pool.submit(next, source, None) for _ in range(depth)]
        while (item := ahead.pop(0).result()) is not None:
            ahead.append(pool.submit(next, source, None))
            yield item
