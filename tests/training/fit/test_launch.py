"""Training launched on a Dask cluster: real workers, real ranks, most of which add numbers instead of training."""

from __future__ import annotations

import ast
import errno
import io
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from distributed import Client

from skyclass.engine.cluster import connect
from skyclass.errors import ClusterLost, ConfigError, Interrupted, SkyclassError
from skyclass.model.bundle import load_bundle
from skyclass.training.data.dataset import save_dataset
from skyclass.training.fit import launch as launch_module
from skyclass.training.fit.launch import launch, private_folder, raise_unless_done
from skyclass.training.fit.machines import (
    Machine,
    all_devices,
    is_locked,
    make_nodes,
    select_workers,
    workers_by_host,
)
from skyclass.training.fit.node import (
    RENDEZVOUS,
    RENDEZVOUS_HOST,
    Inbox,
    LaunchSpec,
    Outcome,
    combined_outcome,
    rank_environment,
    read_text,
)
from skyclass.training.locks import file_lock
from tests.support.datasets import blobs, written

pytestmark = pytest.mark.integration

RANK = """
import json, os, signal, sys, time
from pathlib import Path
from skyclass.training.fit.rank import crash_hook, exit_now, reporter, start_heartbeat

report = reporter(int(sys.argv[1]))
start_heartbeat(report)
sys.excepthook = crash_hook(report)
file = Path(sys.argv[2]).with_name("plan.json")
plan = json.loads(file.read_text())
rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
def once():
    try:
        file.with_suffix(".once").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
def take_steps():
    for step in range(plan["steps"]):
        total = torch.tensor([rank + 1.0]) if plan["sum"] else None
        if plan["sum"]:
            dist.all_reduce(total)
        print("step", step, "total", total, flush=True)
        if plan["signal"] and rank == world - 1 and step == 1 and once():
            os.kill(os.getpid(), plan["signal"])
        if plan["fails"] == rank:
            report({"error": "class star is empty"})
            exit_now(plan["code"])
        time.sleep(plan["pause_s"])
if plan["sum"]:
    import torch, torch.distributed as dist
    from skyclass.errors import PeerLost
    from skyclass.training.fit.ddp import joined
    try:
        with joined("cpu"):
            take_steps()
    except PeerLost as error:
        report({"error": str(error), "lost_peer": True})
        exit_now(error.exit_code)
else:
    take_steps()
exit_now(0)
"""
PLAN = {"sum": False, "steps": 3, "signal": 0, "fails": None, "code": 2, "pause_s": 0.1}
Lines = list[str]
Go = Callable[..., None]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "")  # gloo on every machine, as many ranks as the test says
        with connect(workers=2, gpus=0) as client:
            yield client


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled") / "data"
    save_dataset(folder, blobs(200))
    return folder


@pytest.fixture
def go(client: Client, data: Path, tmp_path: Path) -> Iterator[Go]:
    """Launch ranks that follow a plan; afterwards no process of theirs is left, nor the folder of the rendezvous."""
    toml, script = written(tmp_path, "model", data), tmp_path / "rank.py"
    script.write_text(RANK)

    def start(lines: Lines, act: Callable[[str], object] = lambda line: None, nodes: int = 1, **plan: object) -> None:
        (tmp_path / "plan.json").write_text(json.dumps(PLAN | plan))
        client.wait_for_workers(2, timeout=60)
        limits: dict[str, Any] = {"silent_s": 10, "grace_s": 10, "command": (str(script),)}
        launch(toml, client, nodes, print_line=lambda line: (lines.append(line), act(line)), **limits)

    yield start
    assert await_none_left(str(toml), 20) == []
    assert not (tmp_path / "model.rendezvous").exists()


def await_none_left(word: str, seconds: float) -> list[psutil.Process]:
    """Return the ranks with a word in their command line that are left after some time."""
    until = time.monotonic() + seconds
    while (left := ranks_with(word)) and time.monotonic() < until:
        time.sleep(0.2)
    return left


def ranks_with(word: str) -> list[psutil.Process]:
    """Return the ranks, living or stopped, that have a word in their command line: their path of TRAIN.toml."""
    ranks = []
    for process in psutil.process_iter(["cmdline", "status"]):
        line = process.info["cmdline"] or []
        if word in line and "train" not in line and process.info["status"] != psutil.STATUS_ZOMBIE:
            ranks.append(process)
    return ranks


# --- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault(27)
def test_a_killed_rank_ends_the_attempt_and_all_start_again(go: Go, tmp_path: Path) -> None:
    lines: Lines = []
    go(lines, nodes=2, sum=True, signal=signal.SIGKILL)
    assert any("rank 1 on tls://" in line or "rank 1 on tcp://" in line for line in lines), lines
    assert any("was killed by SIGKILL; all ranks start again" in line and "(1 of 3)" in line for line in lines)
    for rank in range(2):
        ends = [line for line in lines if line.startswith(f"[rank {rank}] step 2 total")]
        assert ends == [f"[rank {rank}] step 2 total tensor([3.])"], lines


@pytest.mark.slow
@pytest.mark.fault(27)
def test_a_stopped_rank_is_reported_killed_and_started_again(go: Go) -> None:
    lines: Lines = []
    go(lines, nodes=2, sum=True, signal=signal.SIGSTOP)
    assert any("rank 1 on" in line and "it is stopped or frozen; all ranks start again" in line for line in lines)
    assert [line for line in lines if "step 2" in line and "[rank 1]" in line] == ["[rank 1] step 2 total tensor([3.])"]


def test_a_rank_that_keeps_dying_ends_the_job_after_the_restarts(go: Go) -> None:
    lines: Lines = []
    with pytest.raises(SkyclassError, match="training failed: rank 0 on .*: class star is empty") as caught:
        go(lines, fails=0, code=1)
    assert caught.value.exit_code == 1
    assert sum("all ranks start again" in line for line in lines) == 3
    assert sum("step 0" in line for line in lines) == 4


def test_a_rank_that_refuses_its_input_is_not_started_again(go: Go) -> None:
    lines: Lines = []
    with pytest.raises(ConfigError, match="training failed: rank 0 on .*: class star is empty"):
        go(lines, fails=0)
    assert sum("step 0" in line for line in lines) == 1


def test_ranks_that_were_told_to_stop_are_not_started_again(go: Go) -> None:
    lines: Lines = []
    with pytest.raises(Interrupted, match="training stopped: rank 0 on .*: class star is empty"):
        go(lines, fails=0, code=4)
    assert sum("step 0" in line for line in lines) == 1


@pytest.mark.fault(27)
def test_a_dead_node_is_named_and_nothing_of_it_is_left(go: Go, client: Client) -> None:
    pids = client.run(os.getpid)
    victim = min(pids)
    alive = [pids[victim]]

    def kill(line: str) -> None:
        if "step 3 " in line and alive:  # Both ranks print the line; by the second one the worker may be gone.
            os.kill(alive.pop(), signal.SIGKILL)

    with pytest.raises(ClusterLost, match=f"node {victim} is lost: its Dask worker .* has left the cluster"):
        go([], kill, nodes=2, sum=True, steps=100_000)


@pytest.mark.slow
@pytest.mark.fault(27)
def test_a_frozen_node_is_named(go: Go, client: Client) -> None:
    pids = client.run(os.getpid)
    victim = min(pids)
    try:
        with pytest.raises(ClusterLost, match=f"node {victim} is lost: its Dask worker .* is silent for [0-9]+ s"):
            go([], lambda line: "step 3 " in line and os.kill(pids[victim], signal.SIGSTOP), nodes=2, steps=100_000)
    finally:
        os.kill(pids[victim], signal.SIGCONT)


def test_ctrl_c_at_the_driver_stops_the_ranks(go: Go) -> None:
    with pytest.raises(KeyboardInterrupt):
        go([], lambda line: signal.raise_signal(signal.SIGINT) if "step 0" in line else None, pause_s=60)


# --- the command ----------------------------------------------------------------------------------------------------


def train_on_cluster(toml: Path, *options: str) -> subprocess.Popen[str]:
    """Start `skyclass train --cluster local` on two nodes."""
    command = [sys.executable, "-m", "skyclass", "train", str(toml), "--cluster", "local", "--nodes", "2", *options]
    return subprocess.Popen(command, text=True, stderr=subprocess.STDOUT, stdout=subprocess.PIPE)


def stopped_ranks(process: subprocess.Popen[str], toml: Path) -> list[psutil.Process]:
    """Return the ranks in their order, stopped by SIGSTOP as soon as there is a whole checkpoint."""
    checkpoints = toml.with_suffix(".checkpoints")
    while not list(checkpoints.glob("[0-9]*.ckpt")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    ranks = ranks_with(str(toml))
    for rank in ranks:
        rank.suspend()
    return sorted(ranks, key=lambda rank: int(rank.environ()["RANK"]))


def listening(processes: list[psutil.Process]) -> list[tuple[str, str]]:
    """Return (address and port, owner) of each TCP and UDP socket on which one of some processes listens."""
    pids = [f"pid={process.pid}," for process in processes]
    lines = subprocess.run(["ss", "-ltunpH"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [(line.split()[4], line.split()[-1]) for line in lines if any(pid in line for pid in pids)]


QUICK = {"network": "colour", "features": ["w1-w2", "w2-w3"], "batch_size": 10, "checkpoint_minutes": 0.0001}
"""A network of three layers: fourteen steps an epoch, a checkpoint after each."""
EPOCHS = 3


@pytest.fixture(scope="module")
def undisturbed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest of the weights that two ranks reach that nobody disturbs."""
    folder = tmp_path_factory.mktemp("undisturbed")
    process = train_on_cluster(written(folder, "model", data, **QUICK, epochs=EPOCHS))
    output = process.communicate(timeout=500)[0]
    assert process.returncode == 0, output
    bundle = load_bundle(folder / "model")
    assert bundle.training["ranks"] == 2 and bundle.training["epochs_run"] == EPOCHS
    assert output.count("balanced accuracy") == EPOCHS and f"{bundle.model_id} written to {folder}/model" in output
    return bundle.weights_sha256


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.fault(27)
def test_a_rank_killed_in_mid_epoch_changes_no_bit_and_all_listen_on_loopback_only(
    data: Path, tmp_path: Path, undisturbed: str
) -> None:
    toml = written(tmp_path, "model", data, **QUICK, epochs=EPOCHS)
    process = train_on_cluster(toml)
    ranks = stopped_ranks(process, toml)
    driver = psutil.Process(process.pid)
    sockets = listening([driver, *driver.children(recursive=True)])
    environments = [rank.environ() for rank in ranks]
    folder = tmp_path / "model.rendezvous"
    mode = stat.S_IMODE(folder.stat().st_mode)
    ranks[-1].kill()
    ranks[0].resume()
    output = process.communicate(timeout=500)[0]
    assert process.returncode == 0, output
    assert "was killed by SIGKILL; all ranks start again" in output
    assert load_bundle(tmp_path / "model").weights_sha256 == undisturbed

    assert mode == 0o700 and not folder.exists()
    assert {owner.split("pid=")[1].split(",")[0] for _, owner in sockets} >= {str(rank.pid) for rank in ranks}
    outside = [socket for socket in sockets if not socket[0].startswith(("127.", "[::1]"))]
    assert len(ranks) == 2 and not outside, sockets
    assert [environment["RANK"] for environment in environments] == ["0", "1"]
    for environment in environments:
        assert environment["GLOO_SOCKET_IFNAME"] == "lo" and environment["NCCL_SOCKET_IFNAME"] == "=lo"
        assert environment[RENDEZVOUS] == str(folder / "ranks-0")
        assert not [name for name in environment if name.startswith(("MASTER_", "DASK_"))]


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["driver", "worker"])
@pytest.mark.timeout(600)
@pytest.mark.fault(27)
def test_no_rank_outlives_a_killed_driver_or_worker(data: Path, tmp_path: Path, victim: str) -> None:
    toml = written(tmp_path, "model", data, **QUICK, epochs=100_000)
    process = train_on_cluster(toml)
    try:
        ranks = stopped_ranks(process, toml)  # not even stopped ranks are left
        (process if victim == "driver" else psutil.Process(ranks[0].ppid())).kill()
        assert await_none_left(str(toml), 60) == []
        output = process.communicate(timeout=60)[0]
        assert victim == "driver" or process.returncode == 4 and "has left the cluster" in output, output
    finally:
        process.kill()


@contextmanager
def own_cluster(folder: Path) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    """Give the scheduler and the nanny of the only worker of a cluster, whose address is in `scheduler.json`."""
    file, python = folder / "scheduler.json", [sys.executable, "-m"]
    options = ["--host", "127.0.0.1", "--no-dashboard", "--scheduler-file", str(file)]
    scheduler = subprocess.Popen([*python, "distributed.cli.dask_scheduler", "--port", "0", *options])
    while not file.is_file():
        time.sleep(0.1)
    nanny = subprocess.Popen([*python, "distributed.cli.dask_worker", "--nthreads", "1", *options])
    try:
        yield {"scheduler": scheduler, "nanny": nanny}
    finally:
        for process in (nanny, scheduler):
            process.terminate()
            process.wait()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.fault(27)
@pytest.mark.parametrize("name", ["driver", "nanny", "scheduler"])
def test_no_rank_outlives_a_part_of_a_cluster_that_the_driver_has_joined(data: Path, tmp_path: Path, name: str) -> None:
    toml = written(tmp_path, "model", data, **QUICK, epochs=100_000)
    with own_cluster(tmp_path) as parts:
        address = json.loads((tmp_path / "scheduler.json").read_text())["address"]
        command = [sys.executable, "-m", "skyclass", "train", str(toml), "--cluster", address]
        driver = subprocess.Popen(command, text=True, stderr=subprocess.STDOUT, stdout=subprocess.PIPE)
        while not ranks_with(str(toml)):
            assert driver.poll() is None, driver.communicate()[0]
            time.sleep(0.1)
        (parts | {"driver": driver})[name].kill()
        assert await_none_left(str(toml), 60) == []
        output = driver.communicate(timeout=200)[0]
    expected = {"driver": "", "nanny": "has left the cluster", "scheduler": "the Dask scheduler does not answer"}
    assert expected[name] in output and "Traceback" not in output, output
    assert driver.returncode == (-signal.SIGKILL if name == "driver" else 4)


# --- rendezvous -----------------------------------------------------------------------------------------------------


def test_where_locks_are_missing_rank_0_listens_on_the_address_of_the_cluster(
    go: Go, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_module, "file_lock", lambda path, wait: nullcontext("unsupported"))
    sockets: list[tuple[str, str]] = []
    lines: Lines = []

    def look(line: str) -> None:
        if line.startswith("[rank 0] step 1 "):
            sockets.extend(listening(ranks_with(str(tmp_path / "model.toml"))))

    go(lines, look, nodes=2, sum=True, pause_s=1)
    assert [line for line in lines if "[rank 1] step 2" in line] == ["[rank 1] step 2 total tensor([3.])"]
    assert len(sockets) >= 3, "the store of rank 0, and gloo of both"
    assert all(address.startswith("127.0.0.1:") for address, _ in sockets)


def test_the_folder_of_the_rendezvous_is_private_and_of_one_driver(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "model.rendezvous"
    folder.mkdir(parents=True, mode=0o777)
    (folder / "left-by-a-killed-driver").touch()
    before = os.umask(0)
    try:
        with private_folder(folder) as usable:
            assert usable and stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert [path.name for path in folder.iterdir()] == ["lock"]
            with pytest.raises(ConfigError, match="another driver is training here"), private_folder(folder):
                pass
            assert is_locked(folder / "lock")
    finally:
        os.umask(before)
    assert not folder.exists()
    (tmp_path / "lock").touch()
    assert not is_locked(tmp_path / "lock"), "a lock that only the machine of the driver sees is of no use"


def test_a_file_system_without_locks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(file: object, operation: int) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with file_lock(tmp_path / "lock", wait=False) as state:
        assert state == "unsupported"
    assert not is_locked(tmp_path / "lock")
    with private_folder(tmp_path / "ranks") as usable:
        assert not usable


FORBIDDEN = ("pickle", "_object", "elastic")
"""torch's object collectives and its elastic rendezvous unpickle what peers write."""


def test_training_never_unpickles_what_peers_send() -> None:
    training = Path(launch_module.__file__).parent
    for path in training.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [getattr(node, kind, None) for kind in ("attr", "id", "module", "name")]
            for name in filter(None, names):
                assert not any(word in str(name) for word in FORBIDDEN), f"{path.name}: {name}"
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "attr", "") == "load"
                and "torch" in ast.unparse(node.func)
            ):
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), path.name


# --- planning -------------------------------------------------------------------------------------------------------


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
    hosts = workers_by_host(workers)
    assert select_workers(hosts, None) == ["tcp://10.0.0.5:9", "tcp://10.0.0.6:2"]
    assert select_workers(hosts, 1) == ["tcp://10.0.0.5:9"]
    with pytest.raises(ConfigError, match="nodes = 3: the cluster is 2 machines"):
        select_workers(hosts, 3)
    alone = {"10.0.0.6": hosts["10.0.0.6"]}
    assert select_workers(alone, None) == ["tcp://10.0.0.6:2"]
    assert select_workers(alone, 2) == ["tcp://10.0.0.6:2", "tcp://10.0.0.6:1"]
    with pytest.raises(ConfigError, match="one machine with 2 worker"):
        select_workers(alone, 3)
    with pytest.raises(ConfigError, match="no workers"):
        select_workers({}, None)


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


def test_a_machine_that_cannot_take_part_is_named() -> None:
    machine = Machine(None, 0, 4)
    for change, message in (
        ({"absent": ("/data", "/model")}, "10.0.0.5 cannot read /data, /model: use a folder that all nodes share"),
        ({"interface": None}, "no network interface of 10.0.0.5 has this address: .* --host"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_nodes(["tls://10.0.0.5:1"], {"tls://10.0.0.5:1": replace(machine, **change)}, None, False)


def test_ranks_use_the_interface_of_the_cluster_and_their_own_devices() -> None:
    machines = {"tls://10.0.0.5:1": Machine("0,1", 2, 8, "ib0"), "tls://10.0.0.6:1": Machine("0,1", 2, 8, "eth1")}
    nodes = make_nodes(list(machines), machines, None, False)
    spec = LaunchSpec(("-m", "rank"), "/a.toml", "/", nodes, None, 60, 30, "/shared/ranks-1")
    worker = {
        "PATH": "/bin",
        "MASTER_ADDR": "0.0.0.0",
        "MASTER_PORT": "1",
        "DASK_DISTRIBUTED__COMM__TLS__KEY": "secret",
    }
    worker |= {
        "GLOO_SOCKET_IFNAME": "eth0",
        "CUDA_VISIBLE_DEVICES": "1,0",
        "OMP_NUM_THREADS": "1",
        RENDEZVOUS_HOST: "x",
    }
    assert rank_environment(spec, nodes[1], 1, worker) == {
        "PATH": "/bin",
        "RANK": "3",
        "WORLD_SIZE": "4",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "CUDA_VISIBLE_DEVICES": "0,1",
        "GLOO_SOCKET_IFNAME": "eth1",
        "NCCL_SOCKET_IFNAME": "=eth1",
        "OMP_NUM_THREADS": "4",
        "MKL_NUM_THREADS": "4",
        "OPENBLAS_NUM_THREADS": "4",
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONUNBUFFERED": "1",
        RENDEZVOUS: "/shared/ranks-1",
    }
    lone = replace(nodes[0], devices=None)
    environment = rank_environment(replace(spec, nodes=(lone,), rendezvous_host="10.0.0.5"), lone, 0, worker)
    assert environment["CUDA_VISIBLE_DEVICES"] == "1,0" and environment[RENDEZVOUS_HOST] == "10.0.0.5"


# --- outcomes --------------------------------------------------------------------------------------------------------


def test_causes_are_named_and_what_followed_from_them_is_not() -> None:
    done, peer = Outcome("done"), Outcome("failed", "rank 0 on a: another rank is gone", lost_peer=True)
    cause, stopped = Outcome("failed", "rank 1 on b: no star"), Outcome("interrupted", "rank 2 on c: stopped")
    refused = Outcome("refused", "rank 3 on d: no such file")
    assert combined_outcome([done, done]) == done
    assert combined_outcome([done, stopped]) == stopped
    assert combined_outcome([peer, stopped, cause]) == cause
    assert combined_outcome([peer, stopped, done]) == peer
    assert combined_outcome([cause, refused]) == Outcome("refused", "rank 1 on b: no star; rank 3 on d: no such file")
    raise_unless_done(done)
    for outcome, kind in ((cause, SkyclassError), (refused, ConfigError), (stopped, Interrupted)):
        with pytest.raises(kind, match=outcome.reason) as caught:
            raise_unless_done(outcome)
        assert type(caught.value) is kind


def test_a_flood_of_lines_is_bounded_and_counted() -> None:
    inbox = Inbox()
    read_text(io.BytesIO(b"".join(b"line %d\n" % i for i in range(5_000))), 3, inbox)
    assert inbox.qsize() == 200 and inbox.get() == (3, {"text": "line 0"})
    while not inbox.empty():
        inbox.get()

    class Slow(io.BytesIO):
        emptied = False

        def readline(self, size: int | None = -1) -> bytes:
            while not self.emptied and self.tell() > 3_000 and not inbox.empty():
                inbox.get()
            self.emptied = self.tell() > 3_000
            return super().readline(size)

    read_text(Slow(b"".join(b"line %d\n" % i for i in range(1_000))), 3, inbox)
    texts = [inbox.get()[1]["text"] for _ in range(inbox.qsize())]
    first_kept = int(texts[1].split()[1])
    assert texts[0] == f"... {first_kept - 200} lines left out"
