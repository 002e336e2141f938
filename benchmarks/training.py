"""`python -m benchmarks.training`: images/s of a training, compared with the forward and backward pass alone.

The two alternate in one process, so that other work on the machine slows both. The result is their ratio, in one JSON
line.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np
import pyarrow as pa
import torch
from torch.nn import functional as F

from skyclass.images.composite import ATLAS_ZERO_POINT_MAG, composite
from skyclass.model.bundle import Cut
from skyclass.model.devices import resolve_device, set_threads
from skyclass.training.data.dataset import Dataset
from skyclass.training.fit.ddp import Group
from skyclass.training.fit.initial import composite_settings
from skyclass.training.fit.job import Job, Position, prepare
from skyclass.training.fit.log import StopRequest, TrainingLog
from skyclass.training.fit.recipe import train_config
from skyclass.training.fit.train import train_epoch
from skyclass.training.progress import no_progress

from .timing import commit, cores, cpu_model

BANDS = ("w1", "w2", "w3")


@click.command()
@click.option("--network", default="iicnet", show_default=True)
@click.option("--steps", default=24, show_default=True, help="Steps of one measurement.")
@click.option("--repeats", default=5, show_default=True)
@click.option("--batch-size", default=64, show_default=True)
@click.option("--threads", default=torch.get_num_threads(), show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Append the line to this file.")
def main(network: str, steps: int, repeats: int, batch_size: int, threads: int, output: Path | None) -> None:
    """Measure a whole training, and the passes alone on one batch in memory."""
    set_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        job = job_of(network, steps, batch_size, folder)
        ways: dict[str, Callable[[], None]] = {"bare": lambda: bare(job), "training": lambda: whole(job)}
        for way in ways.values():
            way()
        turns = [{name: timed(way) for name, way in ways.items()} for _ in range(repeats)]
    seconds = {name: [turn[name] for turn in turns] for name in ways}
    rate = {name: round(steps * batch_size / median(times), 1) for name, times in seconds.items()}
    ratio = round(median(b / t for b, t in zip(seconds["bare"], seconds["training"], strict=True)), 3)
    facts = {"stage": "train", "network": network, "batch_size": batch_size, "threads": threads}
    where = {"device": job.group.device, "precision": job.precision, "cpu": cpu_model(), "cores": cores()}
    what = {"commit": commit(), "torch": torch.__version__, "images": "noise"}
    line = json.dumps(facts | {"images_per_s": rate, "ratio": ratio} | where | what)
    click.echo(line)
    if output:
        with output.open("a") as file:
            file.write(line + "\n")


def timed(way: Callable[[], None]) -> float:
    """Return the seconds of a call."""
    began = time.perf_counter()
    way()
    return time.perf_counter() - began


def job_of(network: str, steps: int, batch_size: int, folder: str) -> Job:
    """Return a training on noise, with the images of an epoch of `steps` steps."""
    n = steps * batch_size * 5 // 4
    rng = np.random.default_rng(0)
    pixels = rng.normal(0, 0.1, (n, 3, 37, 37)).astype(np.float32)
    split = ["train"] * (steps * batch_size) + ["val"] * (n - steps * batch_size)
    rows: dict[str, Any] = {"source_id": [str(i) for i in range(n)], "split": split}
    rows |= {name: np.zeros(n) for name in ("ra", "dec")}
    zero_points = tuple(ATLAS_ZERO_POINT_MAG[b] for b in BANDS)
    data = Dataset(
        pixels, rng.integers(0, 3, n), pa.table(rows), Cut(37, BANDS), zero_points, {"simulated": True}, None
    )
    keys = {"out": f"{folder}/model", "dataset": "-", "recipe": "modern", "network": network, "batch_size": batch_size}
    run = train_config(keys | {"checkpoint_minutes": 0.0})
    settings = composite_settings(run)
    group = Group(device=resolve_device(run.device))
    return prepare(run, data, composite(pixels, zero_points, settings), settings, group)


def whole(job: Job) -> None:
    """Train for an epoch: reading, augmentation, passes, optimiser, log."""
    train_epoch(job, Position(), TrainingLog(job, no_progress), StopRequest())
    synchronise(job)


def bare(job: Job) -> None:
    """Run the passes and the optimiser for the steps of an epoch, on one preprocessed batch on the device."""
    device = torch.device(job.group.device)
    images = torch.randn(job.run.batch_size, 3, 80, 80, device=device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(job.run.batch_size, dtype=torch.int64, device=device)
    job.network.train()
    for _ in range(job.steps):
        with torch.autocast(device.type, torch.bfloat16, enabled=job.precision == "bf16"):
            logits = job.network(images)
        job.optimiser.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        job.optimiser.step()
    synchronise(job)


def synchronise(job: Job) -> None:
    """Wait for the device."""
    if job.group.device.startswith("cuda"):
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
