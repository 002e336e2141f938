"""The compiled network: the same classes, made once, refused where it cannot be had."""

import dataclasses
import logging
import os
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from skyclass.engine import engine
from skyclass.engine.cluster import connect
from skyclass.engine.tls import tls_environment
from skyclass.errors import CannotCompile, ConfigError, RunMismatch
from skyclass.model import classifier as infer
from skyclass.model import compile as compiled
from skyclass.model.compile_policy import COMPILE_FROM, compiled_kinds
from skyclass.model.devices import set_threads
from skyclass.run import context, pipeline, prepare
from skyclass.run.progress import no_progress
from tests.support.cudalike import cuda_graphs
from tests.support.runs import rows_of

pytestmark = [pytest.mark.spawn, pytest.mark.integration]

__all__ = ["cuda_graphs"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A cache of compiled networks for these tests alone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKYCLASS_CACHE", str(folder))
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
        yield folder


@pytest.fixture(scope="module")
def pair(bundle, cache):
    """The classifier of a bundle as it is, and compiled."""
    return tuple(infer.load_classifier(bundle, "cpu", "fp32", compile=on) for on in (False, True))


def images(n: int = 70) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, 2, (n, 3, 37, 37)).astype(np.float16)
    noise[0, 0] = np.nan
    return noise


def test_it_says_what_the_network_says(pair):
    eager, fast = (classifier.predict(images()) for classifier in pair)
    assert pair[1].is_compiled and not pair[0].is_compiled
    np.testing.assert_allclose(fast, eager, atol=1e-5)


def test_a_row_does_not_depend_on_its_neighbours_or_on_threads(pair):
    all_of_them, threads = pair[1].predict(images()), torch.get_num_threads()
    np.testing.assert_array_equal(pair[1].predict(images()[40:]), all_of_them[40:])
    try:
        set_threads(1 if threads > 1 else 2)
        np.testing.assert_array_equal(pair[1].predict(images()), all_of_them)
    finally:
        set_threads(threads)


def test_it_is_made_once_and_loaded_afterwards(pair, bundle, cache, monkeypatch):
    assert len(list(cache.glob("*.pt2"))) == 1
    monkeypatch.setattr(compiled, "build", lambda *_: pytest.fail("built again"))
    again = infer.load_classifier(bundle, "cpu", "fp32", compile=True)
    np.testing.assert_array_equal(again.predict(images()), pair[1].predict(images()))


def test_a_damaged_file_is_removed(pair, bundle, cache, monkeypatch):
    (file,) = cache.glob("*.pt2")
    monkeypatch.setattr(compiled, "cache_folder", lambda: cache / "other")
    (cache / "other").mkdir()
    damaged = cache / "other" / file.name
    damaged.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(CannotCompile, match="cannot be loaded .* it was removed"):
        infer.load_classifier(bundle, "cpu", "fp32", compile=True)
    assert not damaged.exists()


def test_a_program_that_says_something_else_is_refused():
    network = torch.nn.Linear(4, 3)
    with pytest.raises(CannotCompile, match=r"off by 0\.\d+ in a probability"):
        compiled.check(network, lambda x: 3 * network(x), [torch.zeros(8, 4)])
    with pytest.raises(CannotCompile, match="off by nan"):
        compiled.check(network, lambda x: network(x) * torch.nan, [torch.zeros(8, 4)])


def test_the_name_of_a_file_says_all_that_it_depends_on(monkeypatch):
    name = compiled.file_name("a", [torch.zeros(8, 4)])
    others = [compiled.file_name("b", [torch.zeros(8, 4)]), compiled.file_name("a", [torch.zeros(4, 4)])]
    others.append(compiled.file_name("a", [torch.zeros(8, 4, dtype=torch.bfloat16)]))
    monkeypatch.setattr(compiled, "processor", lambda: "another")
    others.append(compiled.file_name("a", [torch.zeros(8, 4)]))
    assert len({name, *others}) == 5


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder to another user")


def test_the_cache_is_made_for_this_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("SKYCLASS_CACHE", str(tmp_path / "deep" / "cache"))
    old = os.umask(0)
    try:
        folder = compiled.cache_folder()
    finally:
        os.umask(old)
    assert folder == tmp_path / "deep" / "cache" and stat.S_IMODE(folder.stat().st_mode) == 0o700


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
@pytest.mark.parametrize("where", ["cache", "."])
def test_a_cache_in_which_others_may_write_is_not_used(tmp_path, monkeypatch, mode, where):
    monkeypatch.setenv("SKYCLASS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir(mode=0o700)
    (tmp_path / where).chmod(mode)
    with pytest.raises(CannotCompile, match=f"other users may write to {tmp_path / where} .mode {mode:04o}.*0700"):
        compiled.cache_folder()
    (tmp_path / where).chmod(0o1777)  # as /tmp is: nobody may replace what belongs to others
    if where == ".":
        assert compiled.cache_folder() == tmp_path / "cache"


@needs_root
@pytest.mark.parametrize("where", ["cache", "."])
def test_a_cache_of_another_user_is_not_used(tmp_path, monkeypatch, where):
    monkeypatch.setenv("SKYCLASS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir(mode=0o700)
    os.chown(tmp_path / where, 65534, 65534)
    with pytest.raises(CannotCompile, match=f"{tmp_path / where} belongs to user 65534; set SKYCLASS_CACHE"):
        compiled.cache_folder()


def test_a_user_without_a_home_is_told(monkeypatch):
    for name in ("SKYCLASS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(compiled.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(CannotCompile, match="no home folder: set SKYCLASS_CACHE"):
        compiled.cache_folder()


def test_a_program_that_others_may_write_is_made_anew(pair, bundle, cache, monkeypatch):
    (file,) = cache.glob("*.pt2")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    monkeypatch.setattr(compiled, "build", lambda *_: pytest.fail("built again"))
    infer.load_classifier(bundle, "cpu", "fp32", compile=True)
    file.chmod(0o666)
    with pytest.raises(pytest.fail.Exception, match="built again"):
        infer.load_classifier(bundle, "cpu", "fp32", compile=True)
    file.chmod(0o600)


def test_torch_keeps_its_programs_in_the_cache(pair, cache):
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache / "inductor")


@pytest.mark.slow
def test_a_run_with_a_shared_cache_goes_on_uncompiled(run, tmp_path, monkeypatch, caplog):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    monkeypatch.setenv("SKYCLASS_CACHE", str(tmp_path / "shared"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    monkeypatch.setitem(COMPILE_FROM, "cpu", 1)
    infer.cached_classifier.cache_clear()
    with caplog.at_level(logging.WARNING):
        pipeline.classify(run)
    assert f"other users may write to {tmp_path / 'shared'}" in caplog.text
    with pytest.raises(ConfigError, match="other users may write to"):
        pipeline.classify(dataclasses.replace(run, compile="on", out=str(tmp_path / "never")))
    assert not list((tmp_path / "shared").iterdir()) and not (tmp_path / "never").exists()


@pytest.fixture
def no_compiler(tmp_path, monkeypatch):
    """A machine without C++ and without anything compiled before."""
    monkeypatch.setenv("SKYCLASS_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("CXX", "no-such-compiler")
    infer.cached_classifier.cache_clear()


@pytest.mark.slow
def test_without_a_compiler_a_large_run_goes_on_uncompiled(run, no_compiler, monkeypatch, caplog):
    plain = pipeline.classify(run)
    monkeypatch.setitem(COMPILE_FROM, "cpu", 1)
    other = dataclasses.replace(run, out=f"{run.out}-auto")
    with caplog.at_level(logging.WARNING):
        report = pipeline.classify(other)
    assert "no C++ compiler: no-such-compiler is not installed" in caplog.text
    assert report.class_counts == plain.class_counts and rows_of(other).equals(rows_of(run))


@pytest.mark.slow
def test_without_a_compiler_a_run_that_insists_is_refused_before_it_begins(run, no_compiler, tmp_path):
    insists = dataclasses.replace(run, compile="on", out=str(tmp_path / "never"))
    with pytest.raises(ConfigError, match="compile = 'on', but .*no C\\+\\+ compiler"):
        pipeline.classify(insists)
    with connect("local", workers=2) as client, pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
        engine.classify(insists, client, no_progress)
    assert not (tmp_path / "never").exists()


@pytest.mark.slow
def test_compiled_on_workers_and_here_gives_the_same_rows(pair, run, tmp_path):
    here = dataclasses.replace(run, compile="on")
    there = dataclasses.replace(here, out=str(tmp_path / "there"))
    pipeline.classify(here)
    with connect("local", workers=2) as client:
        engine.classify(there, client, no_progress)
    assert rows_of(there).equals(rows_of(here))
    with pytest.raises(RunMismatch, match="precision: fp32, compiled there, fp32 now"):
        pipeline.classify(dataclasses.replace(here, compile="off"))


@pytest.mark.slow
def test_a_late_worker_that_cannot_compile_leaves(pair, run, tmp_path):
    here = dataclasses.replace(run, compile="on")
    with connect("local", workers=1) as client:
        engine.classify(here, client, no_progress)
        (own,) = client.scheduler_info()["workers"]
        command = [sys.executable, "-m", "distributed.cli.dask_worker", client.scheduler.address, "--nthreads", "1"]
        late = subprocess.run(
            [*command, "--no-dashboard", "--host", "127.0.0.1"], capture_output=True, text=True, timeout=120,
            env=os.environ
            | tls_environment(client.security)
            | {"SKYCLASS_CACHE": str(tmp_path / "empty"), "CXX": "no-such-compiler"},
        )  # fmt: skip
        assert "this worker leaves the run: no C++ compiler" in late.stderr, late.stderr
        assert list(client.scheduler_info()["workers"]) == [own]


@pytest.mark.slow
def test_a_pool_labelled_cpu_that_also_infers_is_asked_first(run, no_compiler, tmp_path):
    """Without a GPU worker, workers labelled CPU infer: what they cannot do is told before anything is begun."""
    insists = dataclasses.replace(run, compile="on", out=str(tmp_path / "never"))
    options = {"threads_per_worker": 1, "dashboard_address": "127.0.0.1:0", "host": "127.0.0.1"}
    with LocalCluster(n_workers=1, resources={"CPU": 1}, **options) as pool, Client(pool) as client:
        with pytest.raises(ConfigError, match="no C\\+\\+ compiler"):
            engine.classify(insists, client, no_progress)
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("mode", "n_sources", "devices"),
    [
        ("off", 10**9, ()),
        ("on", 1, ("cpu", "cuda")),
        ("auto", 49_999, ()),
        ("auto", 50_000, ("cpu",)),
        ("auto", 4_999_999, ("cpu",)),
        ("auto", 5_000_000, ("cpu", "cuda")),
    ],
)
def test_a_run_is_compiled_on_request_or_where_it_is_large_enough(mode, n_sources, devices):
    assert compiled_kinds(mode, n_sources) == devices


def test_on_cuda_it_runs_as_it_is_unless_a_run_insists(run, monkeypatch, caplog):
    run_context, counted, _ = prepare.plan_run(run, prepare.count_here)
    monkeypatch.setitem(COMPILE_FROM, "cpu", 1)
    monkeypatch.setattr(prepare, "resolve_device", lambda device: "cuda:1")
    assert (
        prepare.choose_compilation(run, run_context, counted, prepare.warm_up_local) == run_context and not caplog.text
    )
    asked = []
    many = dataclasses.replace(counted, tiles=(dataclasses.replace(counted.tiles[0], n_sources=6_000_000),))
    monkeypatch.setattr(context, "cached_classifier", lambda *args: asked.append(args[4]))
    insists = prepare.choose_compilation(
        dataclasses.replace(run, compile="on"), run_context, counted, prepare.warm_up_local
    )
    assert asked == [True] and insists == dataclasses.replace(run_context, compile_on=("cpu", "cuda"))
    assert prepare.choose_compilation(run, run_context, many, prepare.warm_up_local) == insists, "of so many it pays"


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_captured_network_says_what_the_network_says_to_every_thread(bundle, cuda_graphs, monkeypatch, precision):
    plain = infer.load_classifier(bundle, "cpu", precision)
    monkeypatch.setattr(infer, "compiled", lambda network, example, _: compiled.Captured(network, example))
    captured = infer.load_classifier(bundle, "cpu", precision, compile=True)
    batches = [images(n) * scale for n, scale in [(70, 1), (1, 3), (32, 0.5), (45, 2)]]
    expected = [plain.predict(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(captured.predict, batches * 3))
    for given, wanted in zip(said, expected * 3, strict=True):
        np.testing.assert_array_equal(given, wanted)


def test_what_a_gpu_cannot_compile_or_capture_is_told(cuda_graphs, monkeypatch):
    class Asks(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) * (2 if x.sum().item() > 0 else 1)

    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    with pytest.raises(CannotCompile, match="waits for the GPU"):
        compiled.on_gpu(Asks(4, 3), [torch.zeros(8, 4)])
    with pytest.raises(torch.OutOfMemoryError):  # not a fault of the network: the batch is halved
        compiled.on_gpu(lambda x: (_ for _ in ()).throw(torch.OutOfMemoryError("pretended")), [torch.zeros(8, 4)])
