"""Start, resume and finish a training: its bundle and its checkpoints."""

from __future__ import annotations

import logging
import shutil
from dataclasses import asdict
from typing import Any

from ...errors import ConfigError
from ...model.bundle import Bundle, load_weights, read_bundle, save_bundle
from ...text import short_digest
from .checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from .job import Job, Position, bundle_fields, folder_of

log = logging.getLogger(__name__)


def finish_bundle(job: Job, position: Position) -> Bundle:
    """Mark the bundle as finished, remove the checkpoints, and return the bundle."""
    best = next(record for record in reversed(position.history) if record["best"])
    if job.group.is_first:
        written = read_bundle(folder_of(job.run))
        if (written_epoch := written.training["best_epoch"]) != best["epoch"]:
            raise ConfigError(
                f"{job.run.out} holds epoch {written_epoch}, but the best epoch of the log is {best['epoch']}: remove "
                f"it and {job.checkpoints}, and train again"
            )
        fields, weights = bundle_fields(job, best), load_weights(written)
        fields["training"]["epochs_run"] = len(position.history)
        save_bundle(job.run.out, fields, weights)
        shutil.rmtree(job.checkpoints)
    job.group.any()  # the other ranks wait for the bundle that rank 0 writes
    return read_bundle(folder_of(job.run))


def finished_bundle(job: Job) -> Bundle | None:
    """Return the bundle of a finished training, None for an unfinished one; `ConfigError` for another's bundle."""
    folder = folder_of(job.run)
    if not folder.is_dir():
        return None
    bundle = read_bundle(folder)
    if bundle.training.get("fingerprint") == job.fingerprint:
        return bundle if "epochs_run" in bundle.training else None
    if job.checkpoints.exists():
        return None  # `load_position` reports the settings that differ
    raise ConfigError(f"{job.run.out} holds another model, {bundle.model_id}: choose another out, or remove it")


def save_position(job: Job, position: Position) -> None:
    """Write a checkpoint on rank 0. All ranks have the same state, except for the loss so far."""
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


def _shown(value: Any) -> str:
    """Return a value of a fingerprint as Python writes it, with a digest in short."""
    return repr(short_digest(value) if isinstance(value, str) else value)


def load_position(job: Job) -> Position:
    """Load the newest checkpoint on every rank and return its position; the start without a checkpoint."""
    newest = (latest_checkpoint(job.checkpoints) or 0) if job.group.is_first else 0  # 0: none
    number = int(job.group.gather(newest)[0])
    if number == 0:
        return Position()
    state = load_checkpoint(job.checkpoints, number)
    there, here = state["fingerprint"], job.fingerprint
    if there != here:
        changed = [
            f"{k} {_shown(there.get(k))} there, {_shown(here.get(k))} here" for k in here if there.get(k) != here[k]
        ]
        raise ConfigError(
            f"{job.checkpoints} belongs to another training ({'; '.join(changed)}): "
            "choose another out, or remove that folder to start again"
        )
    job.network.load_state_dict(state["network"])
    job.optimiser.load_state_dict(state["optimiser"])
    position, sums = Position(**state["position"]), state["loss_sums"]
    if len(sums) != job.group.world:  # the same number of ranks resumes with exactly the same sums
        sums = [sum(sums)] + [0.0] * (job.group.world - 1)
    position.loss_sum = sums[job.group.rank]
    log.info("resuming in epoch %d, step %d", position.epoch, position.step)
    return position
