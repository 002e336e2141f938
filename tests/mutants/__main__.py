"""Change the source in a seeded sample of places, and run the tests of the package that reach each place.

A mutant is killed when a test fails, and survives when all of them pass. Prints the survivors; the exit code is 1 when
more than a given share survives.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from coverage import CoverageData

from tests.support.paths import CHECKOUT

from .lines import SECONDS
from .mutate import Mutant, sample

PACKAGES = ("images", "catalog", "run")
COPIED = ("skyclass", "tests", "docs", "benchmarks", "cluster", "pyproject.toml", "README.md", "Makefile")
TIME_LIMIT_S = 300.0
"""A mutant whose tests take longer is killed: it does not end."""
TESTS_AT_MOST = 60
"""Tests of one mutant, the fastest first."""


@dataclass(frozen=True)
class Verdict:
    """What the tests said of a mutant: "killed", "survived", or "not reached" by any test."""

    mutant: Mutant
    outcome: str


def main() -> int:
    """Return 0 where few mutants survive."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--n", type=int, default=200, help="number of mutants")
    parser.add_argument("--packages", nargs="+", default=PACKAGES)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--most", type=float, default=0.2, help="largest share that may survive")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/skyclass-mutants"), help="scratch folder")
    options = parser.parse_args()
    began = time.monotonic()
    copies = [copy_checkout(options.folder / str(i)) for i in range(options.jobs)]
    reached, seconds = run_all(copies[0], options.packages)
    print(f"{len(seconds)} tests in {(time.monotonic() - began) / 60:.1f} min", flush=True)
    mutants = sample(CHECKOUT, options.packages, options.n, options.seed)
    verdicts = list(try_mutants(mutants, copies, reached, seconds))
    counts = Counter(verdict.outcome for verdict in verdicts)
    share = 1 - counts["killed"] / len(verdicts)
    print(
        f"seed {options.seed}: {len(verdicts)} mutants in {(time.monotonic() - began) / 60:.0f} min: "
        f"{dict(counts)}; {share:.1%} not killed"
    )
    return int(share > options.most)


def copy_checkout(folder: Path) -> Path:
    """Return a copy of the files that the tests need."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in COPIED:
        source, target = CHECKOUT / name, folder / "checkout" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "work", "results"))
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    (folder / "shared").symlink_to(CHECKOUT.parent / "shared")
    return folder / "checkout"


def pytest(checkout: Path, words: Iterable[str], before: Iterable[str] = (), **environment: str) -> int:
    """Return the exit code of pytest in a checkout; 1 when it does not end."""
    command = [
        sys.executable,
        *before,
        "-m",
        "pytest",
        "-q",
        "-x",
        "--no-header",
        "-p",
        "no:cacheprovider",
        "-m",
        "not slow",
        *words,
    ]
    process = subprocess.Popen(
        command,
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout), "PYTHONDONTWRITEBYTECODE": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        return process.wait(None if before else TIME_LIMIT_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        process.wait()
        return 1


def run_all(checkout: Path, packages: Iterable[str]) -> tuple[dict[str, dict[int, set[str]]], dict[str, float]]:
    """Return the tests that reach each line of each file (file -> line -> tests), and the seconds of each test."""
    reached: dict[str, dict[int, set[str]]] = {}
    seconds: dict[str, float] = {}
    for package in packages:
        data, times = checkout / f".coverage.{package}", checkout / f"{package}.json"
        before = ("-m", "coverage", "run", f"--data-file={data}", f"--source=skyclass/{package}")
        code = pytest(checkout, ["-p", "tests.mutants.lines", f"tests/{package}"], before, **{SECONDS: str(times)})
        if code:
            raise SystemExit(f"tests/{package} must pass before they can judge mutants: pytest ended with {code}")
        seconds |= json.loads(times.read_text())
        coverage = CoverageData(str(data))
        coverage.read()
        for file in coverage.measured_files():
            lines = coverage.contexts_by_lineno(file)
            reached[str(Path(file).relative_to(checkout))] = {n: set(tests) - {""} for n, tests in lines.items()}
    return reached, seconds


def try_mutants(
    mutants: list[Mutant], copies: list[Path], reached: dict[str, dict[int, set[str]]], seconds: dict[str, float]
) -> Iterable[Verdict]:
    """Yield the verdict of each mutant, several at a time, each in a copy of the checkout."""
    idle: SimpleQueue[Path] = SimpleQueue()
    for copy in copies:
        idle.put(copy)

    def judge(mutant: Mutant) -> Verdict:
        checkout = idle.get()
        try:
            return Verdict(mutant, outcome_of(mutant, checkout, tests_of(mutant, reached, seconds)))
        finally:
            idle.put(checkout)

    with ThreadPoolExecutor(len(copies)) as pool:
        for n, verdict in enumerate(pool.map(judge, mutants), 1):
            if verdict.outcome != "killed":
                mutant = verdict.mutant
                print(f"{n} {verdict.outcome}: {mutant.file}:{mutant.first_line}: {mutant.old!r} -> {mutant.new!r}")
                sys.stdout.flush()
            yield verdict


def tests_of(mutant: Mutant, reached: dict[str, dict[int, set[str]]], seconds: dict[str, float]) -> list[str]:
    """Return the tests that reach the lines of a mutant, the fastest first.

    A line that runs at import has no test of its own: all tests that reach the file are its tests.
    """
    lines = reached.get(mutant.file, {})
    own = set[str]().union(*(lines.get(n, set()) for n in range(mutant.first_line, mutant.last_line + 1)))
    is_at_import = not own and any(n in lines for n in range(mutant.first_line, mutant.last_line + 1))
    tests = set[str]().union(*lines.values()) if is_at_import else own
    return sorted(tests, key=lambda test: seconds[test])[:TESTS_AT_MOST]


def outcome_of(mutant: Mutant, checkout: Path, tests: list[str]) -> str:
    """Return what the tests say of a mutant."""
    if not tests:
        return "not reached"
    path = checkout / mutant.file
    source = path.read_text()
    path.write_text(mutant.apply(source))
    try:
        return "killed" if pytest(checkout, tests) else "survived"
    finally:
        path.write_text(source)


if __name__ == "__main__":
    sys.exit(main())
