"""Each case in a process forked from this one, in which everything is imported: time, memory and words are watched."""

from __future__ import annotations

import io
import os
import re
import resource
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from .answers import serve
from .cases import CATEGORIES, Case, Words, category_of
from .seeds import make_seeds, sky_rng

LIMIT_S = 30.0
LIMIT_BYTES = 2e9
LIMIT_ADDRESS_SPACE = 16 * 2**30
"""A last resort: what a process maps is far more than what it holds."""
CRASHED = 99
"""Exit code of a child whose command line raised."""
POLL_S = 0.05
MAY_FAIL = {"run folders": {1}, "options": {1}}
"""Categories in which exit code 1 is right as well: the run folder itself, or the target, cannot be read or written."""


@dataclass(frozen=True)
class Outcome:
    """What came of a case; `fault` says why that is wrong, and is empty where nothing is."""

    index: int
    category: str
    notes: str
    command: str
    code: int
    seconds: float
    peak_bytes: int
    fault: str
    output: str


def preload() -> None:
    """Import what the command line may import, so that a fork starts with it; no thread may run yet."""
    os.environ |= {"OMP_NUM_THREADS": "1", "SKYCLASS_CACHE": "/nonexistent", "OMP_WAIT_POLICY": "PASSIVE"}
    os.environ |= {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    import skyclass.images.remote
    import skyclass.model.classifier
    import skyclass.run.lease
    from tests.support import preloaded  # noqa: F401

    skyclass.run.lease.SILENT_S = 1.0  # a lease without a sound holder is passed over after half a minute
    skyclass.model.classifier.MICRO_BATCH["cpu"] = 8
    remote = skyclass.images.remote
    remote.ATTEMPTS, remote.FIRST_WAIT_S, remote.LONGEST_WAIT_S = 3, 0.05, 0.1
    remote.READ_TIMEOUT_S, remote.ANSWER_TIMEOUT_S = 1.0, 4.0


def in_child(work: object, *arguments: object) -> int:
    """Run a function in a fork and return the exit code; for what must not leave threads here."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    code = CRASHED
    try:
        work(*arguments)  # type: ignore[operator]
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


@contextmanager
def lying_server(root: Path) -> Iterator[str]:
    """Give the URL of a server in a process of its own."""
    server = serve(root)
    if not (pid := os.fork()):
        threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()
        server.serve_forever()
    server.socket.close()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


@dataclass
class Running:
    """A case at work."""

    index: int
    pid: int
    folder: Path
    began: float
    peak_bytes: int = 0
    killed: str = ""


def run_cases(seed: int, indices: list[int], folder: Path, jobs: int, patience: float) -> Iterator[Outcome]:
    """Yield the outcome of each case as it ends, `jobs` at a time; folders of faulty cases stay."""
    seeds = folder / "seeds"
    if not (seeds / "toml" / "train.toml").exists():
        shutil.rmtree(seeds, ignore_errors=True)
        seeds.mkdir(parents=True)
        if in_child(make_seeds, seeds):
            raise RuntimeError("the sound inputs could not be made")
    with lying_server(seeds / "sky" / "images") as url:
        waiting, running = list(reversed(indices)), list[Running]()
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(start(seed, waiting.pop(), seeds, folder, url))
            time.sleep(POLL_S)
            for case in list(running):
                watch(case, patience)
                pid, status, usage = os.wait4(case.pid, os.WNOHANG)
                if pid:
                    running.remove(case)
                    outcome = judge(case, os.waitstatus_to_exitcode(status), usage.ru_maxrss * 1024)
                    if not outcome.fault:
                        remove(case.folder)
                    yield outcome


def start(seed: int, index: int, seeds: Path, folder: Path, url: str) -> Running:
    """Return a case at work in a fork."""
    scratch = folder / "cases" / f"{index:05d}" / "a" / "b"
    remove(scratch.parents[1])
    scratch.mkdir(parents=True)
    if pid := os.fork():
        return Running(index, pid, scratch, time.monotonic())
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (LIMIT_ADDRESS_SPACE, LIMIT_ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    code = CRASHED
    try:
        case = Case(seeds, scratch, sky_rng(seed, index), url)
        words = CATEGORIES[category_of(index)][1](case)
        (scratch.parent / "case").write_text(
            "\n".join(["; ".join(case.notes), ascii(words)]), encoding="utf-8", errors="backslashreplace"
        )
        os.chdir(scratch)
        redirect(scratch.parent)
        code = command_line(words)
    except BaseException:
        (scratch.parent / "broken").write_text(traceback.format_exc(), errors="backslashreplace")
    os._exit(code)


def redirect(folder: Path) -> None:
    """Send output to files, as text streams over the same descriptors."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        handle = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
        raw = os.fdopen(number, "wb", buffering=0, closefd=False)
        setattr(sys, name, io.TextIOWrapper(raw, encoding="utf-8", write_through=True))  # type: ignore[type-var]


def command_line(words: Words) -> int:
    """Return the exit code of the command line."""
    from skyclass.cli import main as cli

    sys.argv = ["skyclass", *words]
    try:
        cli.main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else CRASHED
    except BaseException:
        traceback.print_exc()
    return CRASHED


def watch(case: Running, patience: float) -> None:
    """End a case that takes too long or too much memory."""
    with suppress(OSError, IndexError, ValueError):
        resident = int(Path(f"/proc/{case.pid}/statm").read_text().split()[1]) * resource.getpagesize()
        case.peak_bytes = max(case.peak_bytes, resident)
    too_long = time.monotonic() - case.began > LIMIT_S * patience
    if (too_long or case.peak_bytes > LIMIT_BYTES) and not case.killed:
        case.killed = f"longer than {LIMIT_S:g} s" if too_long else "more than 2 GB of memory"
        os.kill(case.pid, signal.SIGKILL)


def judge(case: Running, code: int, peak_bytes: int) -> Outcome:
    """Return the outcome of a case that has ended."""
    parent = case.folder.parent
    texts = {name: (parent / name).read_text(errors="replace") if (parent / name).exists() else "" for name in
             ("case", "stdout", "stderr", "broken")}  # fmt: skip
    notes, _, command = texts["case"].partition("\n")
    category, peak = category_of(case.index), max(peak_bytes, case.peak_bytes)
    fault = case.killed or fault_of(category, command, code, texts["stdout"], texts["stderr"], peak)
    if texts["broken"]:
        fault = "the case itself is broken: " + texts["broken"].strip().splitlines()[-1]
    seconds = time.monotonic() - case.began
    output = texts["stderr"] + texts["broken"]
    return Outcome(case.index, category, notes, command, code, round(seconds, 2), peak, fault, output)


def fault_of(category: str, command: str, code: int, stdout: str, stderr: str, peak_bytes: int) -> str:
    """Return what is wrong with how a command ended, or nothing."""
    if "Traceback (most recent call last)" in stderr or code == CRASHED:
        lines = [line for line in stderr.splitlines() if line.strip()]
        return f"traceback: {lines[-1][:200] if lines else ''}"
    if code < 0:
        return f"ended by signal {-code}"
    if peak_bytes > LIMIT_BYTES:
        return "more than 2 GB of memory"
    is_check = re.match(r"\['(verify|evaluate)'", command) is not None and "problems" in stdout
    if code not in {0, 2, 3, 4} | MAY_FAIL.get(category, set()) and not is_check:
        return f"exit code {code}: {_messages(stderr)[:1]}"
    if code in (1, 2, 4) and not is_check and (n := len(_messages(stderr))) != 1:
        return f"{n} messages"
    if code in (0, 3) and _messages(stderr):
        return f"exit code {code} and a message"
    if odd := next((c for c in stdout + stderr if not c.isprintable() and c not in "\n"), ""):
        return f"prints the control character {odd!a}"
    if warned := next((line for line in stderr.splitlines() if re.search(r"\.py:\d+: \w*Warning", line)), ""):
        return f"warning of a library: {warned[:200]}"
    return ""


def _messages(stderr: str) -> list[str]:
    """Return the messages of a command that failed: of skyclass, and of click about its options. Warnings are none."""
    return [line for line in stderr.splitlines() if re.match(r"skyclass: (?!warning: )|Error: ", line)]


def remove(folder: Path) -> None:
    """Remove the folder of a case."""
    folder = folder.parents[1] if folder.name == "b" else folder
    shutil.rmtree(folder, ignore_errors=True)
