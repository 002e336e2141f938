from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import line, measure
from benchmarks.report import report
from benchmarks.run import run_scenario
from benchmarks.scenarios import SCENARIOS, find
from skyclass import pipeline
from skyclass.errors import ConfigError
from skyclass.query import open_catalog

STAGES = ["catalog", "read", "cut", "composites", "infer", "commit", "publish"]
LINES = ["line", "line-null-archive", "line-null-classifier", "engine-1", "engine-2"]


def test_a_scenario_gives_a_record_for_each_stage_and_a_table(tmp_path: Path, bundle: Path) -> None:
    output, said = tmp_path / "results" / "tiny.jsonl", []
    tiny = replace(SCENARIOS["tiny"], model=str(bundle), device="cpu")
    records = run_scenario(tiny, str(output), said.append, work=tmp_path / "work")
    assert [r["stage"] for r in records] == STAGES + LINES
    assert output.read_text().splitlines() == said
    assert [json.loads(text) for text in said] == json.loads(json.dumps(records))
    assert len({record["n_sources"] for record in records}) == 1
    for record in records:
        assert record["n_sources"] > 100
        assert record["n_runs"] == 1 == len(record["seconds_of_runs"])
        assert record["sources_per_s"] > 0 and record["peak_rss_mb"] > 0
        assert record["device"] == "cpu" and record["simulated_sky"] is True
        assert record["hardware"]["cpu"] and record["commit"] and record["versions"]["torch"]
    assert {r["stage"]: r["MB_per_s"] for r in records}["catalog"] is None
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["sky-1x150-600px-seed7"]
    text = report(output)
    assert "simulated sky" in text and records[0]["hardware"]["cpu"] in text
    assert [row.split(" | ")[0] for row in text.splitlines() if row.startswith("| ")][1:] == [
        f"| {stage}" for stage in STAGES + LINES
    ]


def test_the_bench_line_with_nothing_taken_out_gives_the_rows_of_the_pipeline(run, tmp_path: Path) -> None:
    pipeline.classify(run)
    whole, null = (replace(run, out=str(tmp_path / name)) for name in ("whole", "null"))
    line.classify(whole)
    rows = open_catalog(run.out).to_arrow()
    assert open_catalog(whole.out).to_arrow().equals(rows)
    without = line.classify(null, null_archive=True, null_classifier=True)
    assert without.sources_in == without.classified == len(rows)


def test_an_unknown_scenario_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="tiny, laptop"):
        find("huge")


def test_peak_memory_is_that_of_the_stage() -> None:
    measure.reset_peak()
    before = measure.peak_here_mb()
    block = bytearray(64_000_000)
    assert measure.peak_here_mb() - before > 0.9 * len(block) / 1e6
