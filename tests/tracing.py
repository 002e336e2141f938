"""Preload of test workers: write down each strip that is begun, and make it last, so that kills find it at work.

dask worker ... --preload tracing.py      with TRACE (a file) and LINGER_S in the environment
"""

from __future__ import annotations

import os
import time
from typing import Any


def dask_setup(worker: Any) -> None:
    """Wrap CUT on this worker; appends of a line are whole."""
    from skyclass import stages

    cut, linger_s = stages.cut_strip, float(os.environ.get("LINGER_S", "0"))

    def traced(line, strip):
        with open(os.environ["TRACE"], "a") as file:
            file.write(f"{time.time():.3f} {os.getpid()} {strip.tile.coadd_id} {strip.start}\n")
        time.sleep(linger_s)
        return cut(line, strip)

    stages.cut_strip = traced
