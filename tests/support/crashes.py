"""A whole run in a child process that is killed before its n-th call that reaches the disk.

    python crashes.py RUN.toml STRIDE       prints, a JSON line each: {"step": n, "call": ..., "ended": signal or 0}

Forked children start from imported modules, so a run takes a second. Each crashed run is resumed by another child.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path

from skyclass.model.devices import set_threads
from skyclass.run.config import run_config
from skyclass.run.pipeline import classify
from skyclass.settings import read_toml

CALLS = ("fsync", "link", "symlink", "replace", "rename", "unlink")
"""What a commit, a publication and a lease are made of; a kill between two of them is a kill at the later one."""


def die_at(step: int) -> list[str]:
    """Count this process's calls that reach the disk, and kill it before the one numbered `step`; 0: never."""
    seen: list[str] = []

    def counted(name: str, call: Callable[..., object]) -> Callable[..., object]:
        def wrapper(*args: object, **kwargs: object) -> object:
            seen.append(name)
            if len(seen) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*args, **kwargs)

        return wrapper

    for name in CALLS:
        setattr(os, name, counted(name, getattr(os, name)))
    return seen


def child(work: Callable[[], object], step: int) -> tuple[int, list[str]]:
    """Do some work in a child; return the signal that ended it (0: none) and its calls, empty where it was killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            seen = die_at(step)
            work()
            os.write(writer, json.dumps(seen).encode())
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writer)
    said = b"".join(iter(lambda: os.read(reader, 65536), b""))
    os.close(reader)
    _, status = os.waitpid(pid, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit(f"step {step}: the run failed")
    return (os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0), json.loads(said or b"[]")


def main() -> None:
    """Crash at every `stride`-th call, resume, and print what the catalogue then is."""
    toml, stride = Path(sys.argv[1]), int(sys.argv[2])
    out = Path(read_toml(str(toml))["out"])
    set_threads(1)
    work = partial(classify, run_config(read_toml(str(toml))))
    _, calls = child(work, 0)
    print(json.dumps({"step": 0, "calls": len(calls), "manifest": manifest(out)}), flush=True)
    for step in range(1, len(calls) + 1, stride):
        shutil.rmtree(out)
        ended, _ = child(work, step)
        resumed, _ = child(work, 0)
        facts = {"step": step, "call": calls[step - 1], "ended": ended, "resumed": resumed, "manifest": manifest(out)}
        print(json.dumps(facts), flush=True)


def manifest(out: Path) -> dict[str, str]:
    """Return the published files by name with their SHA-256: what a reader trusts."""
    found = json.loads((out / "catalog" / "manifest.json").read_text())
    return {record["path"]: record["sha256"] for record in found["files"]}


if __name__ == "__main__":
    main()
