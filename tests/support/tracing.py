"""Preload of test workers: write down each strip that is begun, and make it last, so that kills find it at work.

dask worker ... --preload tracing.py      with TRACE (a file) and LINGER_S in the environment
"""

from __future__ import annotations

import os
import time
from typing import Any

import numpy as np


def dask_setup(worker: Any) -> None:
    """Wrap CUT on this worker; appends of a line are whole."""
    from skyclass.run import stages

    cut, linger_s = stages.cut_strip, float(os.environ.get("LINGER_S", "0"))

    def traced(context, strip):
        with open(os.environ["TRACE"], "a") as file:
            file.write(f"{time.time():.3f} {os.getpid()} {strip.tile.coadd_id} {strip.start}\n")
        time.sleep(linger_s)
        return cut(context, strip)

    stages.cut_strip = traced
    if os.environ.get("NULL_STAGES"):
        without_pixels_and_network()


def without_pixels_and_network() -> None:
    from skyclass.images.archive import AtlasArchive
    from skyclass.model.classifier import NetworkClassifier, NullClassifier

    AtlasArchive.read_rows = lambda self, tile, band, a, b: np.ones((b - a, tile.shape[1]), np.float32)
    NetworkClassifier.predict = lambda self, *given: NullClassifier().predict(*given)
    NetworkClassifier.predict_and_embed = lambda self, *given: NullClassifier().predict_and_embed(*given)
