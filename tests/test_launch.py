"""Training launched on a Dask cluster: real workers, real torchrun, ranks that add numbers instead of training."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from distributed import Client

from skyclass.cluster import connect
from skyclass.errors import ConfigError, Interrupted, SkyclassError
from skyclass.training.launch import all_devices, by_machine, choose_workers, launch, make_nodes, raise_failures
from skyclass.training.leash import MARK
from skyclass.training.node import Ending, Limits, Log, Machine, NodeJob, ending_of, rank_environment, torchrun_command

RANK = """
import json, os, signal, sys, time
from pathlib import Path

file = Path(sys.argv[1])
plan = json.loads(file.read_text())
rank = int(os.environ["RANK"])
if plan["fails"] == rank:
    time.sleep(2)  # what a rank needs to import torch
if plan["sum"]:
    import torch, torch.distributed as dist
    from datetime import timedelta
    dist.init_process_group("gloo", timeout=timedelta(seconds=20))
for step in range(plan["steps"]):
    total = torch.tensor([rank + 1.0]) if plan["sum"] else None
    if plan["sum"]:
        dist.all_reduce(total)
    print("step", step, "total", total, flush=True)
    if plan["dies"] == rank and not file.with_suffix(".died").exists():
        file.with_suffix(".died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if plan["fails"] == rank:
        print("skyclass: class star is empty", file=sys.stderr, flush=True)
        os._exit(plan["code"])
    time.sleep(plan["pause_s"])
"""
PLAN = {"sum": False, "steps": 3, "dies": None, "fails": None, "code": 2, "pause_s": 0.0}
Lines = list[str]
Go = Callable[..., Lines]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # gloo on every machine, as many ranks as the test says
    with connect(workers=2, gpus=0) as client:
        yield client
    if before is None:
        del os.environ["CUDA_VISIBLE_DEVICES"]
    else:
        os.environ["CUDA_VISIBLE_DEVICES"] = before


@pytest.fixture
def go(client: Client, tmp_path: Path) -> Iterator[Go]:
    """Launch ranks that follow a plan; afterwards no process of theirs is left."""
    script, file = tmp_path / "rank.py", tmp_path / "plan.json"
    script.write_text(RANK)

    def start(lines: Lines, act: Callable[[str], object] = lambda line: None, nodes: int = 1, **plan: object) -> None:
        file.write_text(json.dumps(PLAN | plan))
        client.wait_for_workers(2, timeout=60)
        options = {"limits": Limits(silent_s=20, grace_s=10), "module": (str(script),)}
        launch(file, client, nodes, echo=lambda line: (lines.append(line), act(line)), **options)

    yield start
    until = time.monotonic() + 20  # torchrun of a worker that was killed has `grace_s` to end
    while (left := processes_of(script)) and time.monotonic() < until:
        time.sleep(0.2)
    assert not left


def processes_of(script: Path) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            found.append(" ".join(process.cmdline()))
        except psutil.Error:
            continue
    return [command for command in found if str(script) in command]


@pytest.mark.fault(27)
def test_a_killed_rank_is_restarted_and_the_job_ends_well(go: Go, tmp_path: Path) -> None:
    lines: Lines = []
    go(lines, nodes=2, sum=True, dies=1)
    assert (tmp_path / "plan.died").exists()
    assert any("failed (exitcode: -9)" in line for line in lines)
    for rank in range(2):
        ends = [line for line in lines if line.startswith(f"[rank {rank}] step 2 total")]
        assert ends == [f"[rank {rank}] step 2 total tensor([3.])"], lines


@pytest.mark.fault(27)
def test_a_dead_node_is_named_and_nothing_of_it_is_left(go: Go, client: Client) -> None:
    """Only the worker process is killed: torchrun and its rank must notice by themselves."""
    pids = client.run(os.getpid)
    victim = min(pids)
    killed: list[float] = []

    def kill(line: str) -> None:
        if "step 3 " in line and not killed:
            killed.append(time.monotonic())
            os.kill(pids[victim], signal.SIGKILL)

    with pytest.raises(SkyclassError, match=f"node {victim} is lost: its Dask worker .* has left the cluster"):
        go([], kill, nodes=2, sum=True, steps=100_000, pause_s=0.1)
    assert time.monotonic() - killed[0] < 60


def test_a_rank_that_refuses_its_input_is_heard_and_not_started_again(go: Go) -> None:
    lines: Lines = []
    with pytest.raises(ConfigError, match="rank 0 on .*: skyclass: class star is empty"):
        go(lines, fails=0)
    assert sum("class star is empty" in line for line in lines) <= 2  # it may have been restarting already


def test_ctrl_c_at_the_driver_stops_the_ranks(go: Go) -> None:
    with pytest.raises(KeyboardInterrupt):
        go([], lambda line: signal.raise_signal(signal.SIGINT) if "step 0" in line else None, pause_s=60)


def test_input_is_checked_before_anything_starts(tmp_path: Path) -> None:
    file = tmp_path / "train.toml"
    file.write_text('out = "model"\nnetwork = "nonsense"\ndataset = "absent"\n')
    with pytest.raises(ConfigError, match="nonsense"):
        launch(file, None)  # type: ignore[arg-type]
    file.write_text(f'out = "model"\ndataset = "{tmp_path}/absent"\n')
    with pytest.raises(ConfigError, match="absent"):
        launch(file, None)  # type: ignore[arg-type]


def test_one_worker_a_machine_and_several_only_on_a_single_one() -> None:
    gpu = {"resources": {"GPU": 1}}
    cpu = {"resources": {}}
    workers = {"tcp://10.0.0.6:1": gpu, "tcp://10.0.0.6:2": cpu, "tcp://10.0.0.5:9": gpu}
    hosts = by_machine(workers)
    assert choose_workers(hosts, None) == ["tcp://10.0.0.5:9", "tcp://10.0.0.6:2"]
    assert choose_workers(hosts, 1) == ["tcp://10.0.0.5:9"]
    with pytest.raises(ConfigError, match="nodes = 3: the cluster is 2 machines"):
        choose_workers(hosts, 3)
    alone = {"10.0.0.6": hosts["10.0.0.6"]}
    assert choose_workers(alone, None) == ["tcp://10.0.0.6:2"]
    assert choose_workers(alone, 2) == ["tcp://10.0.0.6:2", "tcp://10.0.0.6:1"]
    with pytest.raises(ConfigError, match="one machine with 2 worker"):
        choose_workers(alone, 3)
    with pytest.raises(ConfigError, match="no workers"):
        choose_workers({}, None)


@pytest.mark.parametrize(
    ("visible", "devices"),
    [
        (("2,3,0,1", "0,1,2,3"), ("0", "1", "2", "3")),  # as dask-cuda turns them
        (("1", "0", "10"), ("0", "1", "10")),  # one each
        ((None, "1,0"), ("0", "1")),
        ((None, None), ("0", "1")),  # the driver's list
        (("", ""), ()),
        (("GPU-b,GPU-a", None), ("GPU-a", "GPU-b")),
    ],
)
def test_ranks_see_all_devices_of_the_machine(visible: tuple[str | None, ...], devices: tuple[str, ...]) -> None:
    assert all_devices([Machine(text, 2, 8) for text in visible]) == devices


def test_nodes_share_devices_and_cores_of_one_machine() -> None:
    answers = {"tcp://10.0.0.5:1": Machine("0,1,2,3", 4, 16), "tcp://10.0.0.5:2": Machine("1,2,3,0", 4, 16)}
    one, two = make_nodes(list(answers), answers, None, False)
    assert (one.devices, two.devices) == (("0", "2"), ("1", "3"))
    assert (one.ranks, one.threads, one.name) == (2, 4, "tcp://10.0.0.5:1")
    (alone,) = make_nodes(["tcp://10.0.0.5:1"], answers, None, on_cpu=True)
    assert (alone.ranks, alone.threads, alone.devices, alone.name) == (1, 16, (), "10.0.0.5")
    with pytest.raises(ConfigError, match="5 ranks on 10.0.0.5, which has 4"):
        make_nodes(["tcp://10.0.0.5:1"], answers, 5, False)
    single = {"tcp://10.0.0.5:1": Machine(None, 1, 4), "tcp://10.0.0.5:2": Machine(None, 1, 4)}
    with pytest.raises(ConfigError, match="no GPU of 10.0.0.5 is left for tcp://10.0.0.5:2"):
        make_nodes(list(single), single, None, False)
    answers = {"tcp://10.0.0.5:1": Machine(None, 0, 4)}
    (plain,) = make_nodes(list(answers), answers, 8, False)
    assert (plain.ranks, plain.threads, plain.devices) == (8, 1, None)


def test_nodes_meet_on_the_first_at_addresses_that_dask_knows() -> None:
    answers = {"tls://10.0.0.5:1": Machine("0", 1, 4), "tls://10.0.0.6:1": Machine("0", 1, 4)}
    nodes = make_nodes(list(answers), answers, None, False)
    job = NodeJob("job", ("-m", "skyclass", "train", "/a.toml"), (), "/", nodes, 4321, 3, Limits())
    first, second = (" ".join(torchrun_command(job, node, "python", "/logs")) for node in nodes)
    assert "--nnodes 2 --nproc-per-node 1" in first
    assert "--rdzv-endpoint 10.0.0.5:4321" in first and "--rdzv-endpoint 10.0.0.5:4321" in second
    assert "is_host=true" in first and "is_host=false" in second and "--local-addr 10.0.0.6" in second
    assert second.endswith("-m skyclass train /a.toml")
    own = {"GLOO_SOCKET_IFNAME": "ib0", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "7"}
    environment = rank_environment(job, nodes[1], own, "eth0")
    assert environment["GLOO_SOCKET_IFNAME"] == "ib0" and environment["NCCL_SOCKET_IFNAME"] == "=eth0"
    assert (
        environment["OMP_NUM_THREADS"] == environment["MKL_NUM_THREADS"] == "4"
        and environment["CUDA_VISIBLE_DEVICES"] == "0"
    )
    assert environment[MARK] == "job-1"
    lone = replace(nodes[0], devices=None)
    assert rank_environment(replace(job, nodes=(lone,)), lone, own, None)["CUDA_VISIBLE_DEVICES"] == "7"


SUMMARY = "Root Cause (first observed failure):\n[0]:\n  rank      : {} (local_rank: 0)\n  exitcode  : {} (pid: 9)"
PEER = "[rank 0] [rank0]: RuntimeError: gloo: Connection closed by peer [10.0.0.6]"


@pytest.mark.parametrize(
    ("lines", "code", "ending"),
    [
        ((PEER,), 0, Ending("done")),
        ((SUMMARY.format(3, -9),), 1, Ending("failed", "rank 3 on here was killed by SIGKILL")),
        (
            ("[rank 1] skyclass: no star", "[rank 0] ValueError: odd", SUMMARY.format(1, 1)),
            *(1, Ending("failed", "rank 1 on here: skyclass: no star")),
        ),
        (
            ("[rank 1] skyclass: no star", PEER, "[rank 1] skyclass: training stopped", SUMMARY.format(0, 1)),
            *(1, Ending("failed", "rank 1 on here: skyclass: no star")),
        ),
        (
            (PEER,),
            1,
            Ending("failed", "rank 0 on here: RuntimeError: gloo: Connection closed by peer [10.0.0.6]", True),
        ),
        (("[rank 0] step 1",), 137, Ending("failed", "torchrun on here was killed by SIGKILL")),
        (
            ("python: No module named torch",),
            1,
            Ending("failed", "torchrun on here ended with code 1: python: No module named torch"),
        ),
    ],
)
def test_the_cause_is_found_in_the_last_words(lines: tuple[str, ...], code: int, ending: Ending) -> None:
    assert ending_of("\n".join(lines).split("\n"), code, False, "here") == ending


def test_causes_are_told_and_what_followed_from_them_is_not() -> None:
    peer, cause = Ending("failed", "rank 0 on a: peer", peer=True), Ending("failed", "rank 1 on b: no star")
    raise_failures([Ending("done"), Ending("done")])
    with pytest.raises(Interrupted, match="stopped before the training was done"):
        raise_failures([Ending("stopped"), Ending("stopped")])
    with pytest.raises(SkyclassError, match="^training failed: rank 1 on b: no star$"):
        raise_failures([peer, cause])
    with pytest.raises(SkyclassError, match="rank 1 on b: no star$"):
        raise_failures([peer, replace(cause, how="stopped")])
    with pytest.raises(SkyclassError, match="rank 0 on a: peer$"):
        raise_failures([peer, Ending("stopped")])
    with pytest.raises(ConfigError, match="no star"):
        raise_failures([peer, replace(cause, how="refused")])


def test_a_flood_of_lines_is_bounded_and_counted() -> None:
    log = Log()
    for i in range(5_000):
        log.add(f"[rank 0] {i}")
    log.add("  File torch/distributed/run.py, line 1032, in main")
    sent: Lines = []
    while lines := log.take():
        assert len(lines) <= 201
        sent += lines
    assert sent[0] == "... 3000 lines left out" and len(sent) == 2_001
    assert list(log.tail)[-1].startswith("  File")
