"""`python -m benchmarks.gate NEW.jsonl`: compare the ratios of skyclass to its rivals with those of a baseline.

It compares ratios within a run, never seconds, because machines differ and have other work. For a processor without a
result in the baseline it compares nothing, and prints so.
"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from .report import Record, records_of, rivals_of

BASELINE = Path(__file__).parent / "results" / "rivals.jsonl"


def compare(new: list[Record], baseline: list[Record], tolerance: float) -> list[tuple[str, float, float, bool]]:
    """Return (contestant, old ratio, new ratio, whether it fell) of all contestants with both on one processor."""
    processors = {(r["cpu"], r["cores"]) for r in new if "group" in r}
    before = rivals_of(r for r in baseline if (r.get("cpu"), r.get("cores")) in processors)
    return [
        (f"{group}: {name}", old["ratio"], record["ratio"], record["ratio"] < (1 - tolerance) * old["ratio"])
        for group, contestants in rivals_of(new).items()
        for name, record in contestants.items()
        if "ratio" in record and (old := before.get(group, {}).get(name))
    ]


@click.command()
@click.argument("new", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--against",
    default=BASELINE,
    show_default="benchmarks/results/rivals.jsonl",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
@click.option("--tolerance", default=0.25, show_default=True, help="Largest relative decrease of a ratio.")
def main(new: Path, against: Path, tolerance: float) -> None:
    """Compare the ratios of NEW with those of a baseline. The exit code is 1 if one fell."""
    results = compare(records_of(new), records_of(against), tolerance)
    for name, old, now, fell in results:
        click.echo(f"{'FELL' if fell else 'ok':4}  {old:10.2f} -> {now:10.2f}  {name}")
    if not results:
        click.echo(f"{against} has no result of this processor: nothing is compared")
    sys.exit(any(fell for *_, fell in results))


if __name__ == "__main__":
    main()
