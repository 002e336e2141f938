"""cluster/slurm on a real Slurm of two nodes on this machine: `make slurm`."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch

from skyclass.model.bundle import load_bundle, load_weights
from skyclass.training.data.dataset import save_dataset
from tests.support.datasets import blobs, written
from tests.support.one_machine_slurm import missing, slurm
from tests.support.paths import CHECKOUT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200), pytest.mark.skipif(bool(missing()), reason=missing())]

SCRIPT = CHECKOUT / "cluster" / "slurm" / "train.sbatch"
TWO_NODES = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=0", "--cpus-per-task=1", "--time=10")
LONG = {"epochs": 6, "batch_size": 4, "checkpoint_minutes": 0.0001}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with slurm(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment | {"PYTHON": sys.executable, "MASTER_ADDR": "127.0.0.1"}  # virtual nodes have no names


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "data"
    save_dataset(folder, blobs(200))
    return folder


@pytest.fixture(scope="module")
def undisturbed(data: Path, cluster: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of two ranks on two nodes that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    job = submit(cluster, folder, written(folder, "model", data, **LONG))
    assert state_of(cluster, job, wait=True) == "COMPLETED", log_of(folder, job)
    return folder / "model"


def submit(cluster: dict[str, str], folder: Path, toml: Path) -> int:
    command = ["sbatch", "--parsable", *TWO_NODES, str(SCRIPT), str(toml)]
    done = subprocess.run(command, env=cluster, cwd=folder, capture_output=True, text=True, check=True)
    return int(done.stdout)


def facts_of(cluster: dict[str, str], job: int) -> dict[str, str]:
    command = ["scontrol", "show", "job", str(job)]
    text = subprocess.run(command, env=cluster, capture_output=True, text=True, check=True).stdout
    return dict(re.findall(r"(\w+)=(\S*)", text))


def state_of(cluster: dict[str, str], job: int, wait: bool = False) -> str:
    return until(lambda: state if (state := facts_of(cluster, job)["JobState"]) in ENDED or not wait else None)


def until(ask: Callable[[], str | None], seconds: float = 500) -> str:
    """Return the first answer that is not None."""
    last = time.monotonic() + seconds
    while (answer := ask()) is None:
        assert time.monotonic() < last, "no answer in time"
        time.sleep(0.2)
    return answer


def log_of(folder: Path, job: int) -> str:
    return (folder / f"skyclass-train-{job}.log").read_text()


def epochs_done(folder: Path) -> int:
    log = folder / "model.jsonl"
    return len(log.read_text().splitlines()) if log.is_file() else 0


def await_epoch(folder: Path, number: int) -> None:
    until(lambda: "yes" if epochs_done(folder) >= number else None)


def ranks_of(toml: Path) -> list[int]:
    words = [p.info for p in psutil.process_iter(["pid", "cmdline"])]
    return [w["pid"] for w in words if (line := w["cmdline"]) and "skyclass" in line and line[-1] == str(toml)
            and line[0].endswith("python")]  # fmt: skip


def same_weights(one: Path, other: Path) -> bool:
    a, b = (load_weights(load_bundle(path)) for path in (one, other))
    return all(torch.equal(a[name], b[name]) for name in a)


def test_two_nodes_train_as_two_ranks(undisturbed: Path) -> None:
    bundle = load_bundle(undisturbed)
    assert bundle.training["ranks"] == 2 and bundle.training["epochs_run"] == LONG["epochs"]
    assert not Path(f"{undisturbed}.checkpoints").exists()


def test_a_killed_rank_is_started_again_and_ends_with_the_same_weights(
    cluster: dict[str, str], data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    toml = written(tmp_path, "model", data, **LONG)
    job = submit(cluster, tmp_path, toml)
    await_epoch(tmp_path, 2)
    os.kill(ranks_of(toml)[-1], signal.SIGKILL)
    assert state_of(cluster, job, wait=True) == "COMPLETED", log_of(tmp_path, job)
    assert "attempt 1: 2 ranks" in log_of(tmp_path, job)
    assert same_weights(tmp_path / "model", undisturbed)


def test_the_word_before_the_time_limit_queues_the_job_again_and_it_resumes(
    cluster: dict[str, str], data: Path, tmp_path: Path, undisturbed: Path
) -> None:
    job = submit(cluster, tmp_path, written(tmp_path, "model", data, **LONG))
    await_epoch(tmp_path, 2)
    subprocess.run(["scancel", "--batch", "--signal=TERM", str(job)], env=cluster, check=True)
    until(lambda: "queued" if facts_of(cluster, job)["Restarts"] == "1" else None)
    assert state_of(cluster, job, wait=True) == "COMPLETED", log_of(tmp_path, job)
    assert "stopped before the time limit; queued again" in log_of(tmp_path, job)
    assert same_weights(tmp_path / "model", undisturbed)


def test_input_that_cannot_be_used_ends_the_job_at_once(cluster: dict[str, str], tmp_path: Path) -> None:
    toml = tmp_path / "bad.toml"
    toml.write_text(f'out = "{tmp_path}/model"\ndataset = {json.dumps(str(tmp_path / "nowhere"))}\n')
    job = submit(cluster, tmp_path, toml)
    assert state_of(cluster, job, wait=True) == "FAILED"
    assert facts_of(cluster, job)["ExitCode"] == "2:0"
    text = log_of(tmp_path, job)
    assert "is not a dataset" in text and "attempt 1" not in text and "queued again" not in text
