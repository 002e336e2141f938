"""Result lines -> a Markdown table: `python -m benchmarks.report FILE`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from math import ceil, floor, log10
from pathlib import Path
from typing import Any

import click

from skyclass.errors import ConfigError

Record = dict[str, Any]

SLEEPS = {"cut": "a core that cuts", "infer": "a GPU", "commit": "a core that commits"}

GROUPS = {
    "cut": "From tile files to pixels ready for a network, one core",
    "infer": "From composites to class probabilities, all cores",
    "whole": "From catalogue and images to classes",
}

MEANINGS = {
    "catalog": "read and order a tile's sources",
    "read": "tile rows from disk",
    "cut": "cutouts from rows in memory",
    "composites": "cutouts, sky, zero point and stretch from rows in memory",
    "infer": "the network",
    "commit": "one Parquet file a tile",
    "publish": "HATS class catalogue",
    "line": "all of it, one process",
    "line-null-archive": "the pipeline without reading",
    "line-null-classifier": "the pipeline without the network",
}


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--figure", type=click.Path(dir_okay=False, path_type=Path), help="Draw the rivals into this PNG.")
def main(file: Path, figure: Path | None) -> None:
    """Print the tables of a file of result lines."""
    try:
        click.echo(report(file))
        if figure:
            draw_rivals(rivals_of(records_of(file)), figure)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error


def report(path: Path) -> str:
    """Return the Markdown of a file of result lines: stages by scenario, commit and machine; rivals; scale."""
    records = records_of(path)
    groups: dict[str, dict[str, Record]] = {}
    for record in (r for r in records if "scenario" in r):
        groups.setdefault(heading(record), {})[record["stage"]] = record  # a later run replaces an earlier one
    parts = [f"{title}{warning(stages)}\n\n{table(stages)}" for title, stages in groups.items()]
    if rivals := rivals_of(records):
        parts.append(rivals_table(rivals))
    if scales := [r for r in records if r.get("stage") == "scale"]:
        parts.append(scale_table(scales))
    return "\n\n".join(parts)


def records_of(path: Path) -> list[Record]:
    """Return the result lines of a file; `ConfigError` for a file without any."""
    records = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    if not records:
        raise ConfigError(f"{path} has no result line: write some with `python -m benchmarks -o {path}`")
    return records


Rivals = dict[str, dict[str, Record]]


def rivals_of(records: Iterable[Record]) -> Rivals:
    """Return the newest record of each contestant, by group."""
    groups: Rivals = {}
    for record in records:
        if "group" in record:
            groups.setdefault(record["group"], {})[record["contestant"]] = record
    return groups


def rivals_table(groups: Rivals) -> str:
    """Return a table for each group. The ratio is that of skyclass to the contestant in the same rounds."""
    parts = []
    for group, contestants in groups.items():
        timed = [r for r in contestants.values() if "ratio" in r]
        last = timed[-1]
        machine = f"{last['cpu']}, {last['cores']} cores, commit {last['commit']}, {last['rounds']} rounds"
        head = f"{GROUPS[group]}. Simulated sky; {machine}."
        rows = ["| | sources/s | skyclass is | settings |", "|---|---:|---:|---|"]
        rows += [
            f"| {r['contestant']} | {r['sources_per_s']:,.0f} | {r['ratio']:,.2f} x | {r['settings']} |" for r in timed
        ]
        words = [
            f"Beside fp32 on {r['n_sources']:,} sources: {r['same_class']:.2%} the same class, probabilities within "
            f"{r['largest_difference']:.3f}."
            for r in contestants.values()
            if "same_class" in r
        ]
        parts.append("\n\n".join([head, "\n".join(rows), *words]))
    return "\n\n".join(parts)


def draw_rivals(groups: Rivals, path: Path) -> None:
    """Draw the sources/s of each contestant on logarithmic axes, a panel for each group."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import NullFormatter

    figure, panels = plt.subplots(1, len(groups), figsize=(5 * len(groups), 3.4), squeeze=False, layout="constrained")
    for panel, (group, contestants) in zip(panels[0], groups.items(), strict=True):
        timed = [r for r in contestants.values() if "ratio" in r][::-1]
        colours = ["tab:blue" if r["contestant"].startswith("skyclass") else "0.7" for r in timed]
        bars = panel.barh([r["contestant"] for r in timed], [r["sources_per_s"] for r in timed], color=colours)
        panel.bar_label(bars, [f"{r['sources_per_s']:,.0f}" for r in timed], padding=3, fontsize=8)
        panel.set(xscale="log", title=GROUPS[group], xlabel="sources/s, simulated sky")
        slowest, fastest = (log10(f(r["sources_per_s"] for r in timed)) for f in (min, max))
        panel.set_xlim(10 ** floor(slowest - 0.3), 10 ** ceil(fastest + 0.5))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.tick_params(labelsize=8)
        panel.title.set_fontsize(9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def scale_table(records: Iterable[Record]) -> str:
    """Return the table of simulated clusters."""
    runs = list(records)
    last = runs[-1]
    rates = ", ".join(f"{last[f'{stage}_rate']:,.0f} {where}" for stage, where in SLEEPS.items())
    head = (
        f"Simulated workers whose stages sleep (sources/s: {rates}); driver and scheduler are real and share "
        f"{last['cores']} cores ({last['cpu']}) with all workers. Rows in = rows out in each. Split: CPU workers cut; "
        f"fused: each GPU worker cuts, with {last['cutting_cores'] // last['gpus']} threads, and a tile is one task. "
        "At rest: what heartbeats alone take of a core; the columns before it hold it, too."
    )
    columns = (
        "GPUs", "form", "strips", "rows", "wall, s", "driver, ms a strip", "scheduler, ms a strip", "at rest",
        "GPUs busy", "window, most in flight", "tail", "driver, MB", "scheduler, MB", "MB per 1,000 strips",
    )  # fmt: skip
    rows = [f"| {' | '.join(columns)} |", "|" + "---:|" * len(columns), *map(scale_row, runs)]
    return head + "\n\n" + "\n".join(rows)


def scale_row(r: Record) -> str:
    """Return one row of the table of simulated clusters."""
    cells = (
        f"{r['gpus']}",
        r["form"],
        f"{r['strips']:,}",
        f"{r['rows_out']:,}",
        f"{r['wall_s']:,.0f}",
        f"{r['driver_ms_a_strip']:.2f}",
        f"{r['scheduler_ms_a_strip']:.2f}",
        f"{r['driver_idle_share'] + r['scheduler_idle_share']:.1%}",
        f"{r['gpu_busy']:.0%}",
        f"{r['window']}, {r['in_flight_peak']}",
        f"{r['tail']:.1%}",
        "{} to {}".format(*r["driver_mb"]),
        "{} to {}".format(*r["scheduler_mb"]),
        f"{r['driver_mb_per_1000_strips']:+.2f}, {r['scheduler_mb_per_1000_strips']:+.2f}",
    )
    return f"| {' | '.join(cells)} |"


def heading(record: Record) -> str:
    """Return the conditions of a table: scenario, machine and commit."""
    settings, machine = record["settings"], record["hardware"]
    cache = "files not in the page cache" if record["page_cache"] == "dropped" else "files in the page cache"
    tiles = f"{settings['n_tiles']} tile(s) of {settings['size_px']} px"
    sources = f"{settings['sources_per_tile']:,} sources each"
    return (
        f"Scenario `{record['scenario']}`, a simulated sky: {tiles}, {sources}; model {settings['model']}. "
        f"Machine: {machine['cpu']}, {machine['cores']} cores, {machine['memory_gb']:.0f} GB"
        f"{', ' + machine['gpu'] if machine['gpu'] else ''}; {record['device']}, {record['precision']}. "
        f"Median of {record['n_runs']} run(s) after {settings['warmups']} dropped, {cache}; "
        f"commit {record['commit']}, {record['date'][:10]}."
    )


def warning(stages: dict[str, Record]) -> str:
    """Return a sentence about stages that other work has disturbed, "" without any."""
    disturbed = [s for s, r in stages.items() if r["load_average"] > r["hardware"]["cores"] + 1]
    return f" Disturbed by other work, measure again: {', '.join(disturbed)}." if disturbed else ""


def table(stages: dict[str, Record]) -> str:
    """Return the Markdown table of one scenario on one machine, with ratios to the stage `line`."""
    whole = stages.get("line")
    rows = [row(record, whole) for record in stages.values()]
    head = "| stage | | threads | sources/s | ratio to `line` | MB/s | peak memory, MB |"
    return "\n".join([head, "|---|---|---:|---:|---:|---:|---:|", *rows])


def row(record: Record, whole: Record | None) -> str:
    """Return one row of the table."""
    ratio = f"{record['sources_per_s'] / whole['sources_per_s']:.2f}" if whole else ""
    rate = "" if record["MB_per_s"] is None else f"{record['MB_per_s']:,.0f}"
    return (
        f"| {record['stage']} | {meaning(record['stage'])} | {record['threads']} | "
        f"{record['sources_per_s']:,.0f} | {ratio} | {rate} | {record['peak_rss_mb']:,.0f} |"
    )


def meaning(stage: str) -> str:
    """Return the description of a stage."""
    if stage.startswith("engine-"):
        return f"all of it on Dask, {stage.removeprefix('engine-')} worker(s) of one thread"
    return MEANINGS[stage]


if __name__ == "__main__":
    main()
