"""The simulated sky: an archive in the layout of the real one, with known classes, for tests and demonstrations."""

from __future__ import annotations

from .write import MockReport, write_mock

__all__ = ["MockReport", "write_mock"]
