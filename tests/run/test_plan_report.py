"""The dry run: its numbers by hand, and the lines that `skyclass plan` prints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from skyclass.errors import TileFault
from skyclass.run import plan_report as module
from skyclass.run.config import RunConfig
from skyclass.run.plan import Plan, without_tile_lines
from skyclass.run.plan_report import PlanReport, plan_report, strip_bytes, tile_bytes
from skyclass.types import NO_TILE, TilePlan

REPORT = PlanReport(
    n_sources=7_200, n_tiles=2, n_strips=3, without_tile=4, largest_tile="1500p015_ac51", largest_tile_sources=5_000,
    tile_bytes=402_000_000, worker_bytes=1.26e9, sources_per_second=120.0,
)  # fmt: skip


def test_the_lines_of_a_report() -> None:
    assert str(REPORT).splitlines() == [
        "7,200 sources on 2 tiles, 3 strips",
        *without_tile_lines(4),
        "most crowded tile: 1500p015_ac51 with 5,000 sources",
        "0.40 GB of tile pixels",
        "up to 1.3 GB of memory for each worker",
        "120 sources/s in the network of one process here (just measured): 1.0 process minutes",
    ]
    assert len(REPORT.lines) == 6 and REPORT.process_seconds == 60
    assert len(replace(REPORT, without_tile=0).lines) == 5
    assert replace(REPORT, n_sources=432_000).lines[-1].endswith("60.0 process minutes")
    assert replace(REPORT, n_sources=864_000).lines[-1].endswith("2.0 process hours")
    assert repr(REPORT) == "<PlanReport: 7,200 sources on 2 tiles, 3 strips>"
    assert "<th>largest_tile</th><td>1500p015_ac51</td>" in REPORT._repr_html_()


def test_the_memory_of_a_worker_by_hand() -> None:
    """700 MB, three bands of 4095 x 4095 float32, and 1,000 composites of 3 x 37 x 37 float16 twice."""
    context: Any = SimpleNamespace(bundle=SimpleNamespace(cut=SimpleNamespace(bands=("w1", "w2", "w3"), size_px=37)))
    assert strip_bytes(context, 1000) == 700e6 + 201_228_300 + 16_428_000
    assert strip_bytes(context, 0) == 700e6 + 201_228_300


def test_all_tiles_count_as_large_as_the_first_usable_one() -> None:
    class Archive:
        def tile(self, coadd_id: str, bands: tuple[str, ...]) -> Any:
            if coadd_id in faulty:
                raise TileFault(coadd_id, "truncated", "w1")
            return SimpleNamespace(nbytes=100)

    context: Any = SimpleNamespace(archive=Archive(), bundle=SimpleNamespace(bands=("w1",)))
    plan = Plan((TilePlan("a", 5, (0,)), TilePlan(NO_TILE, 2, (0,)), TilePlan("b", 3, (0,))), "digest")
    faulty = {"a"}
    assert tile_bytes(context, plan) == 200
    faulty.add("b")
    assert tile_bytes(context, plan) == 0


def test_a_dry_run_counts_tiles_and_strips(run: RunConfig, monkeypatch: pytest.MonkeyPatch, sky: Any) -> None:
    monkeypatch.setattr(module, "probe_rate", lambda context: 100.0)
    report = plan_report(replace(run, strip_sources=128))
    assert (report.n_sources, report.n_tiles, report.without_tile) == (sky.n_sources, 2, 0)
    assert report.largest_tile in sky.coadd_ids and report.largest_tile_sources >= sky.n_sources / 2
    others = sky.n_sources - report.largest_tile_sources
    assert report.n_strips == -(-report.largest_tile_sources // 128) - (-others // 128)
    assert report.tile_bytes == 2 * 3 * 4 * 700**2 and report.process_seconds == sky.n_sources / 100
    largest_strip = -(-report.largest_tile_sources // -(-report.largest_tile_sources // 128))
    assert report.worker_bytes == 700e6 + 201_228_300 + largest_strip * 3 * 37**2 * 4 and not Path(run.out).exists()


@pytest.mark.parametrize("features", [(), ("w1-w2", "w1")], ids=["images", "images and photometry"])
def test_the_rate_of_the_network_is_that_of_256_images(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...]
) -> None:
    calls: list[Any] = []
    now = 10.0

    class Classifier:
        def predict(self, images: np.ndarray, photometry: np.ndarray | None) -> None:
            nonlocal now
            calls.append(
                (images.shape, images.dtype, None if photometry is None else (photometry.shape, photometry.dtype))
            )
            assert photometry is None or not photometry.any()
            now += 4.0

    def load(*options: Any, **named: Any) -> Classifier:
        calls.append((options, named))
        return Classifier()

    monkeypatch.setattr(module, "load_classifier", load)
    monkeypatch.setattr(module, "set_threads", calls.append)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: now))
    photometry = SimpleNamespace(features=features) if features else None
    bundle = SimpleNamespace(bands=("w1", "w2", "w3"), size_px=37, photometry=photometry)
    context: Any = SimpleNamespace(bundle=bundle, model="m", device="cpu", precision="fp32", trust_code=True)
    assert module.probe_rate(context) == 64.0
    widths = [((n, 2), np.float32) if features else None for n in (64, 256)]
    assert calls == [
        1,
        (("m", "cpu", "fp32"), {"trust_code": True}),
        ((64, 3, 37, 37), np.float16, widths[0]),
        ((256, 3, 37, 37), np.float16, widths[1]),
    ]
