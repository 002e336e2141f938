"""The table of failures: what was injected, how often, and what was lost. `make chaos` prints it.

A test that injects the real fault carries `@pytest.mark.fault(row)`, and tells `chaos` how often it did and what it
found missing at the end. One without is a single injection.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

ROWS = {
    1: "a worker is killed while it cuts or infers",
    2: "a tile ends every process that touches it",
    3: "a worker needs more memory than it has",
    4: "the device is out of memory",
    5: "a task hangs",
    6: "a worker is frozen",
    7: "the network to a worker is cut, and heals",
    8: "the scheduler is killed",
    9: "the driver is killed at each step that reaches the disk",
    10: "two drivers want one run folder",
    11: "a run is resumed with another model, region, catalogue, images, precision or code",
    12: "a tile or band is not there",
    13: "a tile is truncated, empty, an HTML page, gzip or no FITS file",
    14: "pixels are zeroed or flipped without a word",
    15: "a tile has the wrong shape, band, WCS or zero point",
    16: "the image archive answers 503, tears or stalls a body, or is gone",
    17: "the disk is full",
    18: "the catalogue has bad files, positions off the images, or a source twice",
    19: "a cutout leaves its tile",
    20: "one tile has forty times as many sources as the others",
    21: "one pool is much slower than the other",
    22: "no GPU worker joins, or all of them leave",
    24: "workers have other code or libraries than the driver",
    25: "weights are corrupt",
    26: "a peer without a certificate",
    27: "a rank of a training is killed, or its node",
    28: "a checkpoint is torn",
    29: "two attempts at a tile give different rows",
    30: "the driver sleeps longer than its lease",
    31: "a tile or a partition is replaced while the run reads it",
}
"""By their numbers in the design; 23, jobs that the batch system kills, is what `make slurm` tries."""

HEAD = "| # | what was injected | how often | rows lost | tests |\n|---:|---|---:|---:|---|\n"


@dataclass
class Chaos:
    """What one test tells the table."""

    item: pytest.Item

    def injected(self, times: int) -> None:
        """Count the faults of this test; without a word it is one."""
        self.item.user_properties.append(("injected", times))

    def same_rows(self, found: pa.Table, expected: pa.Table) -> None:
        """Fail unless the rows are the expected ones to the bit; what is missing stands in the table.

        The run's name may be another one: it stands for where the images lie, too.
        """
        lost = set(expected["source_id"].to_pylist()) - set(found["source_id"].to_pylist())
        self.item.user_properties.append(("lost", len(lost)))
        assert not lost and found.drop("run_id").equals(expected.drop("run_id"))

    def note(self, words: str) -> None:
        """Say something of this test below the table."""
        self.item.user_properties.append(("note", words))


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Chaos:
    """Tells the table of failures what this test did."""
    return Chaos(request.node)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="Write the table of failures to this file.")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let reports carry the row: with several processes the markers stay behind."""
    for item in items:
        for marker in item.iter_markers("fault"):
            unknown = set(marker.args) - set(ROWS)
            assert marker.args and not unknown, f"{item.nodeid}: no such row of failures: {unknown or marker.args}"
            item.user_properties.append(("fault", sorted(marker.args)))


def pytest_terminal_summary(terminalreporter, config: pytest.Config) -> None:
    """Print the table of failures, and write it where it was asked for."""
    if not (path := config.getoption("fault_table")):
        return
    reports = [r for kind in ("passed", "failed", "skipped", "error") for r in terminalreporter.stats.get(kind, ())]
    text = table([r for r in reports if r.when == "call" or r.outcome != "passed"])
    terminalreporter.write_line("\n" + text)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def table(reports: list[pytest.TestReport]) -> str:
    """Return the failures in Markdown, a row each, and the notes of the tests below."""
    lines, notes = [], []
    for row, words in ROWS.items():
        mine = [r for r in reports if row in dict(r.user_properties).get("fault", ())]
        lost = sum(value for r in mine for key, value in r.user_properties if key == "lost")
        times = sum(dict(r.user_properties).get("injected", 1) for r in mine if r.outcome == "passed")
        outcome = ", ".join(sorted(f"{name_of(r)} {r.outcome}" for r in mine if r.outcome != "passed"))
        good = sum(r.outcome == "passed" for r in mine)
        lines.append(f"| {row} | {words} | {times} | {lost} | {good} passed{', ' + outcome if outcome else ''} |")
        notes += [f"- {row}: {value}" for r in mine for key, value in r.user_properties if key == "note"]
    return HEAD + "\n".join(lines) + "\n" + ("\n" + "\n".join(notes) + "\n" if notes else "")


def name_of(report: pytest.TestReport) -> str:
    return report.nodeid.rpartition("::")[2]
