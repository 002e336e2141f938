"""Run the cases, print each fault as it comes and a table at the end; exit code 1 where there was one."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from .cases import CATEGORIES, category_of
from .harness import Outcome, preload, run_cases


def main() -> int:
    """Return 0 where no case has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--n", type=int, default=2000, help="number of cases")
    parser.add_argument("--first", type=int, default=0, help="index of the first case")
    parser.add_argument(
        "--only", type=int, nargs="+", help="these cases alone; their output is shown, their folders stay"
    )
    parser.add_argument("--category", choices=list(CATEGORIES), help="cases of one category alone")
    parser.add_argument("--folder", type=Path, default=Path("/tmp/skyclass-fuzz"), help="scratch folder")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--patience", type=float, default=1.0, help="factor on the time limit, for a busy machine")
    options = parser.parse_args()
    indices = options.only or [
        i for i in range(options.first, options.first + options.n) if options.category in (None, category_of(i))
    ]
    preload()
    began, outcomes = time.monotonic(), list[Outcome]()
    options.folder.mkdir(parents=True, exist_ok=True)
    with open(options.folder / f"seed{options.seed}.jsonl", "a") as log:
        for outcome in run_cases(options.seed, indices, options.folder, options.jobs, options.patience):
            outcomes.append(outcome)
            log.write(json.dumps(asdict(outcome)) + "\n")
            if outcome.fault or options.only:
                show(outcome, options.seed, bool(options.only))
    print(
        f"\nseed {options.seed}, {len(outcomes)} cases in {(time.monotonic() - began) / 60:.1f} min\n{table(outcomes)}"
    )
    return int(any(outcome.fault for outcome in outcomes))


def show(outcome: Outcome, seed: int, whole: bool) -> None:
    """Print a case, with all its output when it is replayed."""
    print(
        f"{outcome.index} [{outcome.category}] {outcome.fault or 'sound'} (exit code {outcome.code}); {outcome.notes}"
    )
    print(f"    replay: python -m tests.fuzz --seed {seed} --only {outcome.index}")
    if whole:
        print(f"    {outcome.command}\n{outcome.output}")
    sys.stdout.flush()


def table(outcomes: Iterable[Outcome]) -> str:
    """Return a Markdown table by category: cases, exit codes, faults, peak memory and longest time."""
    lines = ["| category | cases | exit codes | faults | peak memory | longest |", "|---|---|---|---|---|---|"]
    done = list(outcomes)
    for name in [*CATEGORIES, "all"]:
        of = [outcome for outcome in done if name in (outcome.category, "all")]
        if not of:
            continue
        codes = ", ".join(f"{code}: {n}" for code, n in sorted(Counter(o.code for o in of).items()))
        faults, peak = sum(bool(o.fault) for o in of), max(o.peak_bytes for o in of) / 1e9
        longest = max(o.seconds for o in of)
        lines.append(f"| {name} | {len(of)} | {codes} | {faults} | {peak:.2f} GB | {longest:.1f} s |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
