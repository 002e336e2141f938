"""Compilation of a network for the processor or the GPU that runs it.

On a CPU, AOTInductor of PyTorch writes the network as C++ and compiles it. This needs a C++ compiler and takes a
quarter of a minute. The program is kept in a cache and loaded from there later. It is valid for one network, batch
shape, type of processor and release of torch; the name of its file depends on all of these.

On a GPU, torch.compile compiles the network in each process that infers, and the result is captured as a CUDA graph.

A training compiles its network with torch.compile on both kinds of device.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import stat
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from threading import Lock
from typing import cast

import torch
from filelock import FileLock
from torch import Tensor, nn

from ..errors import CannotCompile
from ..version import code_version

Network = Callable[..., Tensor]

TOLERANCE = 0.02
"""Largest accepted difference of a probability between the compiled and the uncompiled network."""
CHECKED = 32
"""Number of rows of the trial batch that are compared."""

OPTIONS = {"freezing": True, "cpp.dynamic_threads": True}
"""The weights are constants of the program. The process that runs it decides the number of threads."""


def compiled(network: nn.Module, example: Sequence[Tensor], name: str) -> Network:
    """Return `network` compiled for the device of `example`, as a function of inputs of the same shapes and types.

    `name` identifies weights and precision. Raises `CannotCompile` if there is no compiler, the compilation fails, or a
    probability of a trial batch differs by more than `TOLERANCE`; torch.OutOfMemoryError if a batch does not fit a GPU.
    """
    use_private_cache()
    program = on_gpu(network, example) if example[0].is_cuda else on_cpu(network, example, name)
    check(network, program, example)
    return program


def compiled_for_training(network: nn.Module, device: str) -> nn.Module:
    """Return `network` with forward and backward passes that torch compiles at the first batch of each shape.

    Raises `CannotCompile` if there is no compiler. Call the result within `compile_errors`.
    """
    use_private_cache()
    if device == "cpu":
        check_compiler()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of its own code
        return cast(nn.Module, torch.compile(network, dynamic=False))


@contextmanager
def compile_errors() -> Iterator[None]:
    """Raise `CannotCompile` for an error of torch.compile during the block."""
    from torch._dynamo.exc import TorchDynamoException  # takes a second to import

    try:
        yield
    except TorchDynamoException as error:
        cause = getattr(error, "inner_exception", error)
        reason = str(cause).strip().partition("\n")[0]
        raise CannotCompile(
            f"torch cannot compile this network: {type(cause).__name__}: {reason}; set compile = false"
        ) from error


def use_private_cache() -> None:
    """Let torch keep its programs in the user's cache.

    By default they are in /tmp, in a folder that another user may create first.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(private_folder(inductor_cache()))


def check_compiler() -> None:
    """Raise `CannotCompile` if there is no C++ compiler."""
    compiler = os.environ.get("CXX", "clang++" if platform.system() == "Darwin" else "g++")
    if not shutil.which(compiler):
        raise CannotCompile(f"no C++ compiler: {compiler} is not installed (or set CXX)")


def on_cpu(network: nn.Module, example: Sequence[Tensor], name: str) -> Network:
    """Return a network compiled for this processor, loaded from the cache if it is there."""
    path = cache_folder() / f"{file_name(name, example)}.pt2"
    with FileLock(path.with_suffix(".lock")):  # one process of a machine compiles, the others wait for its file
        if not path.exists() or writable_by_others(path):
            build(network, example, path)
        try:
            program: Network = torch._inductor.aoti_load_package(str(path))  # as in the tutorial of AOTInductor
        except RuntimeError as error:
            path.unlink()
            raise CannotCompile(f"{path} cannot be loaded ({error}); it was removed: try again") from error
    return program


TORCH_FAILS = (RuntimeError, ValueError, TypeError, AttributeError, AssertionError, LookupError, OSError, ImportError)
"""Errors of export and compilation. Most are subclasses of RuntimeError."""


def build(network: nn.Module, example: Sequence[Tensor], path: Path) -> None:
    """Compile a network into a file; raise `CannotCompile` with the reason of a failure."""
    check_compiler()
    unfinished = path.with_suffix(f".{uuid.uuid4().hex}.pt2")
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # torch warns of its own code
            program = torch.export.export(network, tuple(example), strict=False)
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(unfinished), inductor_configs=dict(OPTIONS)
            )
        unfinished.chmod(0o600)
        unfinished.replace(path)
    except TORCH_FAILS as error:
        raise CannotCompile(f"torch cannot compile this network: {type(error).__name__}: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


WARM_UPS = 3
"""Passes before a capture: they compile, choose algorithms and allocate memory, which a capture must not do."""


def on_gpu(network: nn.Module, example: Sequence[Tensor]) -> Network:
    """Return a network compiled for the GPU of the example and captured as one CUDA graph."""
    from torch._dynamo.exc import FailOnRecompileLimitHit  # takes a second to import

    try:
        return Captured(torch.compile(network, dynamic=False, fullgraph=True), example)
    except torch.OutOfMemoryError:
        raise
    except (*TORCH_FAILS, FailOnRecompileLimitHit) as error:
        cause = error.__context__ or error  # a failed capture raises another error while it ends
        if isinstance(cause, torch.OutOfMemoryError):
            raise cause from None
        raise CannotCompile(f"torch cannot compile this network: {type(cause).__name__}: {cause}") from error


class Captured:
    """A network on a GPU as one CUDA graph, whose kernels are launched together, without Python between them.

    A graph reads its input from fixed memory and writes its output to fixed memory. A call copies its batch, from the
    GPU or from pinned memory, to the input, and copies the output. One thread at a time does this; the stream of the
    GPU keeps the order of the copies.
    """

    def __init__(self, network: Network, example: Sequence[Tensor]) -> None:
        self.network = network  # the graph reads its weights
        self.inputs = [x.clone() for x in example]
        self.graph, self.lock = torch.cuda.CUDAGraph(), Lock()
        with torch.inference_mode(), torch.cuda.device(example[0].device):
            stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UPS):
                    network(*self.inputs)
                stream.synchronize()
                with torch.cuda.graph(self.graph, stream=stream, capture_error_mode="thread_local"):
                    self.output = network(*self.inputs)

    def __call__(self, *batch: Tensor) -> Tensor:
        """Return the output of the network for a batch, as a copy."""
        with self.lock:
            for target, x in zip(self.inputs, batch, strict=True):
                target.copy_(x, non_blocking=True)
            self.graph.replay()
            return self.output.clone()


def check(network: nn.Module, program: Network, example: Sequence[Tensor]) -> None:
    """Raise `CannotCompile` if a compiled network gives other probabilities than the network for random input."""
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(x.shape, generator=generator).mul(2).to(x.device, x.dtype) for x in example]
    with torch.inference_mode():
        logits, expected = program(*noise)[:CHECKED], network(*(x[:CHECKED] for x in noise))
        difference = (logits.softmax(1) - expected.softmax(1)).abs().max().item()
    if not difference <= TOLERANCE:  # also for NaN
        raise CannotCompile(f"the compiled network is off by {difference:.3f} in a probability")


def file_name(name: str, example: Sequence[Tensor]) -> str:
    """Return the name of a program: a digest of network, shapes, processor, code and release of torch."""
    shapes = [(tuple(x.shape), str(x.dtype)) for x in example]
    facts = (name, shapes, OPTIONS, torch.__version__, code_version(), processor())
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:32]


@cache
def processor() -> str:
    """Return the type of the processor and its instructions, which a program compiled here needs."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:  # not Linux
        return platform.processor() + platform.machine()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}))


def cache_folder() -> Path:
    """Return the folder of compiled networks, $SKYCLASS_CACHE or skyclass in the user's cache; create it if necessary.

    Raises `CannotCompile` if it cannot be created, or if another user could put programs into it.
    """
    return private_folder(Path(os.environ.get("SKYCLASS_CACHE") or user_cache() / "skyclass"))


def inductor_cache() -> Path:
    """Return the folder in which torch keeps the programs that it compiles."""
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or cache_folder() / "inductor")


def user_cache() -> Path:
    """Return the user's folder for caches; raise `CannotCompile` for a user without a home folder."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:
        raise CannotCompile("the user has no home folder: set SKYCLASS_CACHE to one of your folders") from error


def private_folder(folder: Path) -> Path:
    """Return the absolute path of a folder that only this user can write; create it with mode 0700 if necessary."""
    folder = folder.absolute()
    try:
        for path in (*reversed(folder.parents), folder):
            path.mkdir(mode=0o700, exist_ok=True)
        faults = [fault for path in (folder, *folder.parents) if (fault := writable_by_others(path))]
        faults += [] if folder.stat().st_uid == os.geteuid() else [f"{folder} does not belong to you"]
    except OSError as error:
        raise CannotCompile(
            f"the cache of compiled networks {folder} cannot be used ({error.strerror}): set SKYCLASS_CACHE to a folder"
        ) from error
    if faults:
        raise CannotCompile(
            f"the cache of compiled networks {folder} is not used, because programs are loaded from it: {faults[0]}; "
            "set SKYCLASS_CACHE to a folder in which only you can write (mode 0700)"
        )
    return folder


def writable_by_others(path: Path) -> str:
    """Return why another user can replace a path or its content; empty if only this user and root can."""
    status = path.stat()
    if status.st_uid not in (0, os.geteuid()):
        return f"{path} belongs to user {status.st_uid}"
    shared = status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    if shared and not (path.is_dir() and status.st_mode & stat.S_ISVTX):
        return f"other users may write to {path} (mode {stat.S_IMODE(status.st_mode):04o})"
    return ""
