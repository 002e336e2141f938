"""A publication in a child process that is killed before its n-th call that reaches the disk.

python publish_crashes.py RUN       prints a JSON line for the undisturbed publication and one for each crash
"""

from __future__ import annotations

import json
import shutil
import sys
from functools import partial
from pathlib import Path

from skyclass.catalog.query import open_catalog
from skyclass.run import folder
from skyclass.run.finish import publish_run, verify
from skyclass.run.folder import RunFolder
from tests.support.crashes import child

SWITCH_CALLS = 12
"""Of so many calls at the end each is tried, of those before, which write file after file, every fourth."""


def main() -> None:
    """Crash at a call, look at what readers find, publish again, and look once more."""
    run = Path(sys.argv[1])
    copy = run.with_name("copy")
    ended, calls = attempt(run, copy, 0)
    print(json.dumps({"step": 0, "ended": ended, "calls": calls}), flush=True)
    first = len(calls) - SWITCH_CALLS
    for step in [*range(1, first, 4), *range(first, len(calls) + 1)]:
        ended, _ = attempt(run, copy, step)
        facts = {"step": step, "call": calls[step - 1], "ended": ended, "problems": verify(copy).problems}
        facts |= {"current": open_catalog(copy).root.name, "p_star": p_star(copy)}
        facts["resumed"], _ = child(partial(publish_run, copy), 0)
        facts |= {"then": p_star(copy), "leftovers": [path.suffix for path in folder.leftover_files(RunFolder(copy))]}
        print(json.dumps(facts), flush=True)


def attempt(run: Path, copy: Path, step: int) -> tuple[int, list[str]]:
    """Publish a fresh copy of the run in a child that dies at a step."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy, symlinks=True)
    return child(partial(publish_run, copy), step)


def p_star(run: Path) -> float:
    """Return a sum over all rows that a reader finds."""
    return float(open_catalog(run).sql("SELECT sum(p_star) AS s FROM classes")["s"][0])


if __name__ == "__main__":
    main()
