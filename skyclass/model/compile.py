"""A network compiled for the processor or the GPU that runs it.

On a CPU AOTInductor (PyTorch) writes the network as C++, which takes a C++ compiler and a quarter of a minute, once:
what it makes is kept, and then loaded at once. It fits one network, one shape of batch, one processor and one release
of torch; all of these are in the name of the file.

On a GPU the network is compiled by torch.compile and captured as one CUDA graph, in each process that infers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import uuid
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from threading import Lock

import torch
from filelock import FileLock
from torch import Tensor, nn

from ..errors import CannotCompile
from ..version import code_version

Network = Callable[..., Tensor]

TOLERANCE = 0.02
"""Largest difference in a probability between the network as it is and as it was compiled."""
CHECKED = 32
"""Rows of the trial batch that are compared."""

OPTIONS = {"freezing": True, "cpp.dynamic_threads": True}
"""Weights are constants of the program, and the threads those of the process that runs it."""


def compiled(network: nn.Module, example: Sequence[Tensor], name: str) -> Network:
    """Return `network` as a function of inputs like `example` (same shapes), compiled for the device they are on.

    `name` says which weights and precision these are. Raises `CannotCompile` where there is no compiler, where
    compiling fails, and where the probabilities of a trial batch are further than `TOLERANCE` from those of `network`;
    torch.OutOfMemoryError where a batch is too large for a GPU.
    """
    # torch keeps what it compiles in /tmp otherwise, under a name that another user may take first
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(private_folder(inductor_cache()))
    made = on_gpu(network, example) if example[0].is_cuda else on_cpu(network, example, name)
    check(network, made, example)
    return made


def on_cpu(network: nn.Module, example: Sequence[Tensor], name: str) -> Network:
    """Return a network compiled for this processor, from its file if that is there already."""
    path = cache_folder() / f"{file_name(name, example)}.pt2"
    with FileLock(path.with_suffix(".lock")):  # one process of a machine makes the file, the others find it made
        if not path.exists() or writable_by_others(path):
            build(network, example, path)
        try:
            made: Network = torch._inductor.aoti_load_package(str(path))  # as the tutorial of AOTInductor has it
        except RuntimeError as error:
            path.unlink()
            raise CannotCompile(f"{path} cannot be loaded ({error}); it was removed: try again") from error
    return made


TORCH_FAILS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, OSError, ImportError)
"""What exporting and compiling raise, most of them as subclasses of RuntimeError."""


def build(network: nn.Module, example: Sequence[Tensor], path: Path) -> None:
    """Compile a network into a file; `CannotCompile` with the reason when that fails."""
    compiler = os.environ.get("CXX", "clang++" if platform.system() == "Darwin" else "g++")
    if not shutil.which(compiler):
        raise CannotCompile(f"no C++ compiler: {compiler} is not installed (or set CXX)")
    making = path.with_suffix(f".{uuid.uuid4().hex}.pt2")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch's own, about itself
            program = torch.export.export(network, tuple(example), strict=False)
            torch._inductor.aoti_compile_and_package(program, package_path=str(making), inductor_configs=dict(OPTIONS))
        making.chmod(0o600)
        making.replace(path)
    except TORCH_FAILS as error:
        raise CannotCompile(f"torch cannot compile this network: {type(error).__name__}: {error}") from error
    finally:
        making.unlink(missing_ok=True)


WARM_UPS = 3
"""Passes before a capture: they compile, choose algorithms and allocate, which a capture does not bear."""


def on_gpu(network: nn.Module, example: Sequence[Tensor]) -> Network:
    """Return a network compiled for the GPU that the example is on, as one CUDA graph."""
    from torch._dynamo.exc import FailOnRecompileLimitHit  # takes a second to import

    try:
        return Captured(torch.compile(network, dynamic=False, fullgraph=True), example)
    except torch.OutOfMemoryError:
        raise
    except (*TORCH_FAILS, FailOnRecompileLimitHit) as error:
        cause = error.__context__ or error  # a capture that fails ends in an error of its own
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause from None
        raise CannotCompile(f"torch cannot compile this network: {type(cause).__name__}: {cause}") from error


class Captured:
    """A network on a GPU as one CUDA graph: all its kernels are launched at once, and Python has no part in it.

    A graph reads and writes where it was captured. A batch, from the GPU or from pinned memory, is copied to where the
    graph reads, and what it wrote is copied away; threads take turns at that, and the GPU's stream keeps their order.
    """

    def __init__(self, network: Network, example: Sequence[Tensor]) -> None:
        self.network = network  # the graph reads its weights
        self.read_from = [x.clone() for x in example]
        self.graph, self.turn = torch.cuda.CUDAGraph(), Lock()
        with torch.inference_mode(), torch.cuda.device(example[0].device):
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(WARM_UPS):
                    network(*self.read_from)
                aside.synchronize()
                with torch.cuda.graph(self.graph, stream=aside, capture_error_mode="thread_local"):
                    self.written_to = network(*self.read_from)

    def __call__(self, *batch: Tensor) -> Tensor:
        """Return what the network makes of a batch, in memory of its own."""
        with self.turn:
            for place, given in zip(self.read_from, batch, strict=True):
                place.copy_(given, non_blocking=True)
            self.graph.replay()
            return self.written_to.clone()


def check(network: nn.Module, made: Network, example: Sequence[Tensor]) -> None:
    """Raise `CannotCompile` when a compiled network says something else than the network does."""
    noise = torch.Generator().manual_seed(0)
    given = [torch.randn(x.shape, generator=noise).mul(2).to(x.device, x.dtype) for x in example]
    with torch.inference_mode():
        said, wanted = made(*given)[:CHECKED], network(*(x[:CHECKED] for x in given))
        apart = (said.softmax(1) - wanted.softmax(1)).abs().max().item()
    if not apart <= TOLERANCE:
        raise CannotCompile(f"the compiled network is off by {apart:.3f} in a probability")


def file_name(name: str, example: Sequence[Tensor]) -> str:
    """Return a name that only the same network, shapes, processor, code and torch have."""
    shapes = [(tuple(x.shape), str(x.dtype)) for x in example]
    facts = (name, shapes, OPTIONS, torch.__version__, code_version(), processor())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


@cache
def processor() -> str:
    """Return what a program compiled here asks of a processor: its model and instructions, as Linux tells them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() + platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


def cache_folder() -> Path:
    """Return the folder of compiled networks, made if need be: $SKYCLASS_CACHE, or skyclass in the user's cache.

    Raises `CannotCompile` where it cannot be made, and where another user could put programs into it.
    """
    return private_folder(Path(os.environ.get("SKYCLASS_CACHE") or user_cache() / "skyclass"))


def inductor_cache() -> Path:
    """Return the folder in which torch keeps its own programs."""
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or cache_folder() / "inductor")


def user_cache() -> Path:
    """Return the folder for caches of the user; `CannotCompile` for a user without a home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise CannotCompile("the user has no home folder: set SKYCLASS_CACHE to a folder of your own") from error


def private_folder(folder: Path) -> Path:
    """Return an absolute path in which only this user writes, made with mode 0700 if need be."""
    folder = folder.absolute()
    try:
        for path in (*reversed(folder.parents), folder):
            path.mkdir(mode=0o700, exist_ok=True)
        faults = [words for path in (folder, *folder.parents) if (words := writable_by_others(path))]
        faults += [] if folder.stat().st_uid == os.geteuid() else [f"{folder} does not belong to you"]
    except OSError as error:
        raise CannotCompile(
            f"the cache of compiled networks {folder} cannot be used ({error.strerror}): set SKYCLASS_CACHE to a folder"
        ) from error
    if faults:
        raise CannotCompile(
            f"the cache of compiled networks {folder} is not used, for programs are loaded from it: {faults[0]}; set "
            "SKYCLASS_CACHE to a folder in which only you can write (mode 0700)"
        )
    return folder


def writable_by_others(path: Path) -> str:
    """Return in words who else may replace what is at a path or in it; empty where nobody but the user and root can."""
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to user {status.st_uid}"
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if shared and not (path.is_dir() and status.st_mode & stat.S_ISVTX):
        return f"other users may write to {path} (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""
