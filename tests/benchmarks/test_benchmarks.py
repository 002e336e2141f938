from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import device, null_stages, profiles, rival_cutters, rivals, scale, timing
from benchmarks.field import field_of
from benchmarks.gate import compare
from benchmarks.report import draw_rivals, records_of, report, rivals_of, scale_table
from benchmarks.run import run_scenario
from benchmarks.scenarios import SCENARIOS, Scenario, find
from skyclass.catalog.query import open_catalog
from skyclass.errors import ConfigError
from skyclass.model.classifier import load_classifier
from skyclass.run import pipeline
from skyclass.run.stages import cut_strip

STAGES = ["catalog", "read", "cut", "composites", "infer", "commit", "publish"]
PIPELINES = ["line", "line-null-archive", "line-null-classifier", "engine-1", "engine-2"]


@pytest.mark.slow
def test_a_scenario_gives_a_record_for_each_stage_and_a_table(tmp_path: Path, bundle: Path) -> None:
    output, said = tmp_path / "results" / "tiny.jsonl", []
    tiny = replace(SCENARIOS["tiny"], model=str(bundle), device="cpu")
    records = run_scenario(tiny, str(output), said.append, work=tmp_path / "work")
    assert [r["stage"] for r in records] == STAGES + PIPELINES
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
        f"| {stage}" for stage in STAGES + PIPELINES
    ]


@pytest.mark.integration
def test_the_bench_line_with_nothing_taken_out_gives_the_rows_of_the_pipeline(run, tmp_path: Path) -> None:
    pipeline.classify(run)
    whole, null = (replace(run, out=str(tmp_path / name)) for name in ("whole", "null"))
    null_stages.classify(whole)
    rows = open_catalog(run.out).to_arrow()
    assert open_catalog(whole.out).to_arrow().equals(rows)
    without = null_stages.classify(null, null_archive=True, null_classifier=True)
    assert without.sources_in == without.classified == len(rows)


def test_an_unknown_scenario_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="tiny, laptop"):
        find("huge")


def test_peak_memory_is_that_of_the_stage() -> None:
    timing.reset_peak()
    before = timing.peak_here_mb()
    block = bytearray(300_000_000)  # more than a process keeps of what it has freed
    assert timing.peak_here_mb() - before > 0.9 * len(block) / 1e6


RIVALS = [
    {"group": "cut", "contestant": name, "ratio": ratio, "sources_per_s": 100 / ratio, "settings": "-", "rounds": 3}
    | {"cpu": "A", "cores": 2, "commit": "c"}
    for name, ratio in (("skyclass", 1.0), ("numpy", 2.0), ("Cutout2D, lupton", 150.0))
]


def test_the_gate_tells_a_ratio_that_fell_and_leaves_other_processors_alone() -> None:
    slower = [r | {"ratio": r["ratio"] * factor} for r, factor in zip(RIVALS, (1.0, 0.9, 0.5), strict=True)]
    assert [(name, fell) for name, _, _, fell in compare(slower, RIVALS, 0.25)] == [
        ("cut: skyclass", False), ("cut: numpy", False), ("cut: Cutout2D, lupton", True),
    ]  # fmt: skip
    assert compare(slower, [r | {"cpu": "B"} for r in RIVALS], 0.25) == []


def test_the_rivals_come_as_table_and_picture(tmp_path: Path) -> None:
    lines = tmp_path / "rivals.jsonl"
    agree = {"group": "cut", "contestant": "agreement", "n_sources": 9, "same_class": 0.999, "largest_difference": 0.01}
    lines.write_text("\n".join(map(json.dumps, [*RIVALS, agree])))
    text = report(lines)
    assert "| Cutout2D, lupton | 1 | 150.00 x | - |" in text and "9 sources: 99.90% the same class" in text
    draw_rivals(rivals_of(records_of(lines)), tmp_path / "rivals.png")
    assert (tmp_path / "rivals.png").stat().st_size > 5_000


@pytest.mark.integration
def test_rivals_and_we_do_the_same_on_the_same_sources(tmp_path: Path) -> None:
    """The counts are right, and the eager network says what the engine does before calibration."""
    scenario = Scenario("quick", 1, 60, 400, 1)
    field = field_of(scenario, tmp_path, str(tmp_path / "classes"))
    n = len(field.rows)
    assert (
        rival_cutters.cut_with_skyclass(field) == rival_cutters.cut_with_numpy(field, rival_cutters.lupton_uint8) == n
    )
    assert rival_cutters.cut_with_astropy(field, 5) == 5
    images = cut_strip(field.context, field.strips[0]).images
    ours = torch.softmax(torch.from_numpy(load_classifier("iicnet-mock", "cpu", "fp32").logits(images)), dim=1)
    np.testing.assert_allclose(rivals.eager_probabilities(rivals.eager_network(), images), ours, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(("form", "window"), [("split", 2 * 2 + 2 * scale.CORES_A_GPU), ("fused", 16)])
def test_a_small_sky_on_simulated_gpus_ends_with_every_row(monkeypatch, form: str, window: int) -> None:
    monkeypatch.setattr(scale, "SETTLE_S", 0)
    monkeypatch.setattr(scale, "IDLE_S", 0.5)
    plan = scale.sky_plan(40)
    assert len(scale.sky_plan().tiles) == 18_240 and scale.sky_plan().n_sources == scale.SKY_SOURCES
    rates = {name: 100 * rate for name, rate in scale.RATES.items()}
    record = scale.simulate(2, plan, rates, form)
    assert (
        record["rows_out"] == record["rows_in"] == plan.n_sources and record["journal_lines"] == record["tiles"] == 40
    )
    assert 0 < record["in_flight_peak"] <= record["window"] == window
    assert f"| 2 | {form} |" in scale_table([record | {"cpu": "A", "cores": 2}])


@pytest.mark.slow
def test_a_device_is_measured_in_every_way_and_form() -> None:
    """On the processor here: that the command works is all that can be seen without a GPU."""
    ways = ["as it is", "captured"]
    images = np.random.default_rng(0).normal(0, 2, (64, 3, 37, 37)).astype(np.float16)
    *stages, upload = device.measurements("cpu", images, 1, ways)
    assert [r["stage"] for r in stages] == ["gemm", "eager", "network", "network"] and upload["images_per_s"] > 0
    assert stages[2]["of_bf16_peak"] > 0 and "cuda" in stages[3]["error"].lower(), "a way that is not there says so"
    record = device.pipeline_record(Scenario("tiny", 1, 40, 256, 1), "cpu", "fused", "as it is")
    assert record["n_sources"] == 40 and set(record["pool_busy"]) == {"GPU workers"}


@pytest.mark.slow
def test_profiles_say_where_the_time_goes(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(scale, "SETTLE_S", 0)
    monkeypatch.setattr(scale, "IDLE_S", 0.1)
    field = field_of(Scenario("tiny", 1, 40, 256, 1), tmp_path, str(tmp_path / "classes"))
    field.context.folder.make()
    for work in profiles.works(field).values():
        assert "skyclass/" in profiles.top(profiles.profiled(work), 400)
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    assert "`aten::mkldnn_convolution` [32, 256, 10, 10] * [256, 256, 3, 3]" in profiles.kernels(400, passes=1)
    found = profiles.profile_of_scale("fused", 2, 8)
    assert "`run_tiles` skyclass/engine/tile_window.py" in profiles.top(found["driver"], 400)
    assert "distributed/scheduler.py" in profiles.top(found["scheduler"], 400)
