"""The simulated sky: an archive of real layout and known truth, for tests, benchmarks and `skyclass demo`."""

from __future__ import annotations

from .write import MockReport, write_mock

__all__ = ["MockReport", "write_mock"]
