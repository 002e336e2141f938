"""What tests of whole runs share: a run on a simulated sky, and its rows."""

from __future__ import annotations

import pyarrow as pa

from skyclass.catalog.query import open_catalog
from skyclass.run.config import RunConfig


def run_on(sky, bundle, out, strip_sources: int) -> RunConfig:
    """Return a run over all of a simulated sky, in fp32 on the CPU."""
    places = (str(sky.catalog), str(sky.images), str(out), str(bundle))
    return RunConfig(*places, None, "fp32", "cpu", strip_sources=strip_sources)


def rows_of(run: RunConfig) -> pa.Table:
    """Return the published rows of a run."""
    return open_catalog(run.out).to_arrow()
