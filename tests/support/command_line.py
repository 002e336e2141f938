"""The command line in a process of its own, forked from one that has imported everything: it starts in milliseconds."""

from __future__ import annotations

import os
import resource
import signal
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from subprocess import CompletedProcess, TimeoutExpired

from .fork_server import FORKS
from .paths import CHECKOUT


def skyclass(
    *words: object, limit_bytes: int | None = None, timeout_s: float = 240, env: Mapping[str, str] | None = None
) -> CompletedProcess[str]:
    """Return exit code and output of a command; `limit_bytes` is the size at which writing a file fails.

    Only for commands without a cluster: the workers of a cluster import the main module of the driver.
    """
    arguments, environment = list(map(str, words)), dict(os.environ if env is None else env)
    with tempfile.TemporaryDirectory() as folder:
        child = FORKS.Process(target=_run, args=(arguments, environment, os.getcwd(), folder, limit_bytes))
        child.start()
        child.join(timeout_s)
        if child.exitcode is None:
            child.kill()
            raise TimeoutExpired(["skyclass", *arguments], timeout_s)
        output = [(Path(folder) / name).read_text(errors="replace") for name in ("stdout", "stderr")]
    return CompletedProcess(["skyclass", *arguments], child.exitcode, *output)


def _run(words: list[str], environment: dict[str, str], cwd: str, folder: str, limit_bytes: int | None) -> None:
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder) / name, os.O_WRONLY | os.O_CREAT), descriptor)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    sys.path.insert(0, str(CHECKOUT))
    sys.argv = ["skyclass", *words]
    if limit_bytes is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))
    from skyclass.__main__ import main

    main()
