"""`python -m benchmarks.gate NEW.jsonl`: has skyclass fallen behind its rivals since the results that are kept?

Ratios of one run are compared with ratios of one run, never seconds: machines differ, and are busy. A processor
for which no result is kept has nothing to be compared with, and that is said.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .report import Record, records_of, rivals_of

KEPT = Path(__file__).parent / "results" / "rivals.jsonl"


def fallen(now: list[Record], kept: list[Record], tolerance: float) -> list[tuple[str, float, float, bool]]:
    """Return (contestant, ratio then, ratio now, whether it fell) of what both hold for one processor."""
    here = {(r["cpu"], r["cores"]) for r in now if "group" in r}
    before = rivals_of(r for r in kept if (r.get("cpu"), r.get("cores")) in here)
    return [
        (f"{group}: {name}", old["ratio"], new["ratio"], new["ratio"] < (1 - tolerance) * old["ratio"])
        for group, contestants in rivals_of(now).items()
        for name, new in contestants.items()
        if "ratio" in new and (old := before.get(group, {}).get(name))
    ]


@click.command()
@click.argument("new", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--against", default=KEPT, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--tolerance", default=0.25, show_default=True, help="By so much of itself a ratio may fall.")
def main(new: Path, against: Path, tolerance: float) -> None:
    """Compare the ratios of NEW with those that are kept; exit code 1 when one fell."""
    found = fallen(records_of(new), records_of(against), tolerance)
    for name, then, now, fell in found:
        click.echo(f"{'FELL' if fell else 'ok':4}  {then:10.2f} -> {now:10.2f}  {name}")
    if not found:
        click.echo(f"{against} holds nothing for this processor: nothing to compare with")
    sys.exit(any(fell for *_, fell in found))


if __name__ == "__main__":
    main()
