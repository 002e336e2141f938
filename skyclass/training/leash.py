"""Hold torchrun on a leash: when the process that holds the other end is gone, so are torchrun and all of its ranks.

`python -m skyclass.training.leash LOG_DIR GRACE_S COMMAND ...` runs the command until it ends, or until standard input
does, and standard input ends when its writer dies, however it dies. Neither torch nor Dask is imported here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading

import psutil

MARK = "SKYCLASS_NODE"
"""Environment variable by which the processes of one node's training are found again. A rank is in a session of its
own and outlives a torchrun that is killed, so neither process group nor parent would do."""

POLL_S = 0.2
SWEEPS = 5


def main(arguments: list[str]) -> int:
    """Return the exit code of the command after `LOG_DIR GRACE_S`, and leave nothing of it behind."""
    log_dir, grace_s, *command = arguments
    slipped = threading.Event()
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, lambda *_: slipped.set())
    threading.Thread(target=_await_end, args=(slipped,), daemon=True).start()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        return _hold(child, slipped, float(grace_s))
    finally:
        sweep(os.environ.get(MARK, ""))
        child.wait()
        shutil.rmtree(log_dir, ignore_errors=True)


def _await_end(slipped: threading.Event) -> None:
    while os.read(0, 4096):
        pass
    slipped.set()


def _hold(child: subprocess.Popen[bytes], slipped: threading.Event, grace_s: float) -> int:
    """Return the exit code of the child; once let go of, it has `grace_s` to end by itself."""
    while child.poll() is None and not slipped.wait(POLL_S):
        pass
    if child.poll() is None:
        child.terminate()
    try:
        return child.wait(grace_s)
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL


def sweep(mark: str) -> None:
    """Kill every process that carries the mark, but this one."""
    for _ in range(SWEEPS if mark else 0):
        if not (found := marked(mark)):
            return
        for process in found:
            try:
                process.kill()
            except psutil.Error:  # gone meanwhile
                continue
        psutil.wait_procs(found, timeout=5)


def marked(mark: str) -> list[psutil.Process]:
    """Return the processes of this machine, other than this one, whose environment carries the mark."""
    return [p for p in psutil.process_iter() if p.pid != os.getpid() and _mark_of(p) == mark]


def _mark_of(process: psutil.Process) -> str | None:
    try:
        environment: dict[str, str] = process.environ()
    except (psutil.Error, OSError):  # ended meanwhile, or somebody else's
        return None
    return environment.get(MARK)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.exit(code if code >= 0 else 128 - code)
