"""Result lines -> a Markdown table: `python -m benchmarks.report FILE`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from skyclass.errors import ConfigError

Record = dict[str, Any]

MEANINGS = {
    "catalog": "read and order a tile's sources",
    "read": "tile rows from disk",
    "cut": "cutouts from rows in memory",
    "composites": "cutouts, sky, zero point and stretch from rows in memory",
    "infer": "the network",
    "commit": "one Parquet file a tile",
    "publish": "HATS class catalogue",
    "line": "all of it, one process",
    "line-null-archive": "the line without reading",
    "line-null-classifier": "the line without the network",
}


def main(arguments: list[str]) -> int:
    """Print the tables of a file of result lines; return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m benchmarks.report FILE.jsonl", file=sys.stderr)
        return 2
    try:
        print(report(Path(arguments[0])))
    except (OSError, ConfigError) as error:
        print(f"benchmarks.report: {error}", file=sys.stderr)
        return 2
    return 0


def report(path: Path) -> str:
    """Return Markdown, a table for each scenario, commit and machine in a file of result lines."""
    lines = path.read_text().splitlines()
    groups: dict[str, dict[str, Record]] = {}
    for record in map(json.loads, filter(str.strip, lines)):
        groups.setdefault(heading(record), {})[record["stage"]] = record  # a later run takes the earlier's place
    if not groups:
        raise ConfigError(f"{path} holds no result line: fill it with `skyclass bench -o {path}`")
    return "\n\n".join(f"{title}{warning(stages)}\n\n{table(stages)}" for title, stages in groups.items())


def heading(record: Record) -> str:
    """Return what the numbers of a table hold for."""
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
    """Return a sentence where other work was running beside the benchmark, or nothing."""
    disturbed = [s for s, r in stages.items() if r["load_average"] > r["hardware"]["cores"] + 1]
    return f" Disturbed by other work, measure again: {', '.join(disturbed)}." if disturbed else ""


def table(stages: dict[str, Record]) -> str:
    """Return the Markdown table of one scenario on one machine; the ratio is to the stage `line`."""
    line = stages.get("line")
    rows = [row(record, line) for record in stages.values()]
    head = "| stage | | threads | sources/s | ratio to `line` | MB/s | peak memory, MB |"
    return "\n".join([head, "|---|---|---:|---:|---:|---:|---:|", *rows])


def row(record: Record, line: Record | None) -> str:
    """Return one row of the table."""
    ratio = f"{record['sources_per_s'] / line['sources_per_s']:.2f}" if line else ""
    rate = "" if record["MB_per_s"] is None else f"{record['MB_per_s']:,.0f}"
    return (
        f"| {record['stage']} | {meaning(record['stage'])} | {record['threads']} | "
        f"{record['sources_per_s']:,.0f} | {ratio} | {rate} | {record['peak_rss_mb']:,.0f} |"
    )


def meaning(stage: str) -> str:
    """Return a stage in words."""
    if stage.startswith("engine-"):
        return f"all of it on Dask, {stage.removeprefix('engine-')} worker(s) of one thread"
    return MEANINGS[stage]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
