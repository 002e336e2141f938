"""The harness of the paper's study on a tiny simulated sky: records, their order, tables and figures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.paper import experiments
from benchmarks.paper.experiments import EXPERIMENTS, NEEDS, SEEDED, run_experiment, todo
from benchmarks.paper.figures import write_figures
from benchmarks.paper.pool import THREADS, run_all
from benchmarks.paper.published import COST, IICNET, SPLIT
from benchmarks.paper.study import (
    BASELINES,
    PRESETS,
    SIZES,
    Study,
    effort_of,
)
from benchmarks.paper.tables import MISSING, STRETCHED, document, load_records, percent
from benchmarks.paper.training import fewer
from skyclass.errors import SkyclassError
from skyclass.types import CLASSES
from tests.support.paths import CHECKOUT

pytestmark = pytest.mark.integration

QUICK = PRESETS["quick"]
RAN = ("iicnet", "fusion", "forest", "colours", "margins", "border", "natural-mix")


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """The quick preset with a handful of its experiments done."""
    folder = tmp_path_factory.mktemp("paper")
    done = Study(QUICK, folder / "work", folder / "results")
    done.prepare()
    for name in RAN:
        run_experiment(done, name, 1)
    return done


@pytest.fixture(scope="module")
def page(study: Study) -> str:
    return document(load_records(study.results), QUICK)


def section(page: str, title: str) -> list[list[str]]:
    """Return the cells of the rows of the table below a title."""
    body = re.split(r"^##? ", page, flags=re.M)
    (found,) = [part for part in body if part.startswith(title)]
    rows = [line[2:-2].split(" | ") for line in found.splitlines() if line.startswith("| ")]
    assert len({len(row) for row in rows}) == 1, f"{title}: rows of several lengths"
    return rows[2:]


@pytest.mark.slow
def test_a_record_says_what_was_measured_on_what(study: Study) -> None:
    for name in RAN:
        record = json.loads(study.record(name, 1).read_text())
        assert (record["experiment"], record["seed"], record["preset"]) == (name, 1, "quick")
        assert record["simulated"] is True and record["seconds"] >= 0
    assert {path.name for path in study.results.glob("*.json")} == {f"{name}-1.json" for name in RAN}
    record = run_experiment(study, "iicnet", 1)
    n_test = len(study.dataset.split("test"))
    assert record["n_test"] == n_test == sum(map(sum, record["confusion"]))
    assert record["train_rows"] == len(study.dataset.split("train"))
    assert record["epochs"] == 1 and record["device"] in ("cpu", "cuda") and set(record["recall"]) == set(CLASSES)
    low, high = record["interval"]
    assert low <= record["accuracy"] <= high
    gaps = run_experiment(study, "margins", 1)
    assert gaps["test"]["differences"]["iicnet - forest"][0] == pytest.approx(
        record["accuracy"] - run_experiment(study, "forest", 1)["accuracy"]
    )
    assert (gaps["test"]["n"], gaps["held-out sky"]["n"]) == (n_test, len(study.held_out))
    natural = run_experiment(study, "natural-mix", 1)
    n_natural = len(study.natural.split("test"))
    assert [natural[kind]["n"] for kind in ("temperature", "bias", "as trained")] == [n_natural] * 3


def test_a_record_is_not_made_twice(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {name: study.record(name, 1).read_bytes() for name in RAN}
    monkeypatch.setattr(experiments, "EXPERIMENTS", {})  # whatever is run now fails
    for name in RAN:
        assert run_experiment(study, name, 1) == json.loads(before[name])
    with pytest.raises(KeyError):
        run_experiment(study, "iicnet", 2)
    assert not study.record("iicnet", 2).exists()
    modified = (study.work / "dataset" / "pixels.npy").stat().st_mtime_ns
    study.prepare()
    assert (study.work / "dataset" / "pixels.npy").stat().st_mtime_ns == modified


def test_a_record_of_another_effort_is_made_anew_and_only_where_it_matters(study: Study) -> None:
    shorter, smaller = replace(QUICK, epochs=2), replace(QUICK, small_epochs=2)
    for name, depends in (("iicnet", shorter), ("forest", shorter), ("equal-vgg16", smaller), ("shuffled", smaller)):
        for preset in (shorter, smaller):
            assert (effort_of(preset, name) != effort_of(QUICK, name)) == (preset is depends)
    record = study.record("colours", 1)
    old = json.loads(record.read_text())
    record.write_text(json.dumps(old | {"accuracy": 0.0, "effort": {}}))
    assert run_experiment(study, "colours", 1)["accuracy"] == old["accuracy"]


def test_experiments_come_after_those_they_need(tmp_path: Path) -> None:
    for preset in PRESETS.values():
        items = list(todo(Study(preset, tmp_path, tmp_path)))
        assert len(items) == len(set(items)) and ("real-tables", 1) not in items
        place = {item: i for i, item in enumerate(items)}
        for name, seed in items:
            for need in NEEDS.get(name, ()):
                assert place[need, seed] < place[name, seed]
        assert {name for name, _ in items} == set(EXPERIMENTS) - {"real-tables"}
        assert all((name, seed) in place for name in SEEDED for seed in preset.seeds)
    assert ("real-tables", 1) in todo(Study(QUICK, tmp_path, tmp_path, real=tmp_path))


def test_fewer_rows_are_training_rows_only(study: Study) -> None:
    some = fewer(study.dataset, 20, seed=1)
    assert len(some.split("train")) == 20 and set(some.split("train")) < set(study.dataset.split("train"))
    for name in ("val", "test"):
        assert some.split(name).tolist() == study.dataset.split(name).tolist()
    assert fewer(study.dataset, None, 1) is study.dataset


# --- tables and figures ----------------------------------------------------------------------------


class Noted(dict[str, Any]):
    """Records that note who is asked for."""

    asked: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        self.asked.add(name)
        return super().get(name, default)

    def __contains__(self, name: object) -> bool:
        self.asked.add(str(name))
        return super().__contains__(name)


def test_every_experiment_has_a_place_in_the_tables() -> None:
    records = Noted()
    text = document(records, PRESETS["cpu"])
    assert records.asked == set(EXPERIMENTS)
    assert set(NEEDS) | set(SEEDED) | {need for needs in NEEDS.values() for need in needs} <= set(EXPERIMENTS)
    assert "SIMULATED" in text and text.count(MISSING) > 50


def test_the_page_holds_the_papers_numbers_beside_ours(page: str, study: Study) -> None:
    record = run_experiment(study, "iicnet", 1)
    assert "Our sources are simulated" in page and "SIMULATED sky" in page.splitlines()[0]
    assert "reconstruction" in page and "1 epochs for Table 2" in page
    for row, name in zip(section(page, "Table 1"), CLASSES, strict=True):
        assert row[:4] == [name, *map(str, SPLIT[name])]
        assert row[4:] == [str(record["split"][s][name]) for s in ("train", "val", "test", "none")]
    rows = section(page, "Table 2")
    assert ["all", "accuracy", "95.2"] == rows[-2][:3] and rows[-2][3].startswith(percent(record["accuracy"]))
    printed = {(kind, what): paper for kind, what, paper, _ in rows}
    assert printed["quasar", "recall"] == percent(IICNET["quasar"]["recall"]) == "97.1"
    assert printed["star", "class accuracy"] == "96.4" and printed["galaxy", "precision"] == "-"
    assert rows[1][3] == percent(record["recall"]["galaxy"])
    costs = section(page, "Table 3")
    assert [row[1:3] for row in costs] == [[COST[n]["macs"], COST[n]["parameters"]] for n in ("iicnet", *BASELINES)]
    assert all(row[3:] == [MISSING] * 5 for row in costs)


def test_what_has_no_record_is_said_to_be_missing(page: str, study: Study) -> None:
    rows = {row[0]: row[1:] for row in section(page, "Fig. 17")}
    assert rows["images W1 W2 W3"][0] == "95.2" and rows["images W1 W2 W3 + photometry"][0] == "96.2"
    known = {"images W1 W2 W3", "images W1 W2 W3 + photometry"}
    known |= {"colours W1-W2, W2-W3", "random forest on photometry"}
    assert {label for label, cells in rows.items() if cells[1] != MISSING} == known
    assert rows["random forest on photometry"][1].startswith(percent(run_experiment(study, "forest", 1)["accuracy"]))
    controls = {row[0]: row[2] for row in section(page, "The mock is no giveaway")}
    assert [value != MISSING for value in controls.values()] == [False, False, True]
    sweeps = section(page, "Figs. 8 and 12")
    assert len(sweeps) == 4 + len(SIZES) and {row[1] for row in sweeps} == {MISSING}
    assert len(section(page, "Margins")) == 6 and len(section(page, "Calibration on a held-out")) == 3
    assert re.search(rf"Real sources, colours only\n\n{MISSING}", page)


def test_a_class_that_is_never_given_has_no_precision_and_the_table_stands(study: Study) -> None:
    record = run_experiment(study, "iicnet", 1)
    nothing = record | {"precision": dict.fromkeys(CLASSES), "auc": dict.fromkeys(CLASSES)}
    half = record | {"seed": 2, "precision": {"galaxy": 0.5, "quasar": None, "star": 0.25}}
    ours = {(r[0], r[1]): r[3] for r in section(document({"iicnet": [nothing, half]}, QUICK), "Table 2")}
    assert [ours[name, "precision"] for name in CLASSES] == ["50.0", "-", "25.0"]
    assert "2 seeds" in ours["all", "accuracy"]


def test_the_note_on_stretched_images_stands_only_where_records_bear_it_out(study: Study) -> None:
    records = {
        name: [run_experiment(study, "iicnet", 1) | {"accuracy": a}] for name, a in (("iicnet", 0.9), ("fusion", 0.91))
    }
    for stretched, noted in ((0.7, True), (0.8, False)):
        pair = {"stretched-iicnet": stretched, "stretched-fusion": 0.8}
        both = {name: [run_experiment(study, "iicnet", 1) | {"accuracy": a}] for name, a in pair.items()}
        assert (STRETCHED in document(records | both, QUICK)) == noted
    assert STRETCHED not in document(records, QUICK)


def test_figures_are_drawn_from_what_is_there(study: Study) -> None:
    size = {f"size-{px}": [{"accuracy": 0.3 + px / 500, "seed": 1}] for px in SIZES}
    names = {path.stem for path in write_figures(study, load_records(study.results) | size)}
    assert names == {
        "fig02-snr", "fig05-histograms", "fig06-colours", "fig11-feature-maps", "fig12-size", "fig13-training",
        "fig19-misclassified", "fig20-outliers", "grad-cam",
    }  # fmt: skip
    assert all((study.results / "figures" / f"{name}.png").stat().st_size > 5000 for name in names)


def test_networks_are_ranked_by_the_interval_of_their_difference() -> None:
    right = {"iicnet": "1" * 80 + "0" * 20, "vgg16": "0" * 60 + "1" * 40, "repvgg": "1" * 100}
    costs = {
        "learning_rate": 1e-3,
        "macs_80": 1,
        "macs_224": 1,
        "parameters": 1,
        "train_rows": 1,
        "epochs": 1,
        "device": "cpu",
        "precision_mode": "bf16",
        "seed": 1,
    }
    records = {
        f"equal-{name}": [costs | {"right": right.get(name, right["iicnet"]), "accuracy": 0.8, "interval": [0.7, 0.9]}]
        for name in ("iicnet", *BASELINES)
    }
    records["equal-vgg16"][0] |= {"learning_rate": 3e-4}
    text = document(records, QUICK)
    assert "learning rate 0.001, 0.0003 for VGG16. IICnet" in text
    assert re.search(r"ahead of VGG16 \(\+40.0 \+- \d", text)
    assert re.search(r"behind RepVGG.*\(-20.0", text)
    assert re.search(r"not to be told apart from GoogLeNet", text)


def test_a_failed_experiment_stops_no_other_and_is_named(study: Study, tmp_path: Path) -> None:
    elsewhere = replace(study, results=tmp_path, work=tmp_path / "nowhere")
    pool = run_all(elsewhere, ("forest", "iicnet", "natural-mix"), workers=1)
    with pytest.raises(SkyclassError, match=r"3 experiments failed: .*natural-mix, seed 1: needs iicnet"):
        list(pool)


# --- several at a time -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pool_runs_what_is_missing_and_the_threads_are_put_back(study: Study, tmp_path: Path) -> None:
    before = {name: os.environ.get(name) for name in THREADS}
    elsewhere = replace(study, results=tmp_path)
    done = list(run_all(elsewhere, ("forest", "colours"), workers=1))
    assert [line.partition(",")[0] for line in done] == ["forest", "colours"]
    assert all("seed 1: " in line and ", accuracy 0." in line for line in done)
    for name in ("forest", "colours"):
        assert run_experiment(elsewhere, name, 1)["accuracy"] == run_experiment(study, name, 1)["accuracy"]
    assert {name: os.environ.get(name) for name in THREADS} == before


@pytest.mark.slow
def test_the_command_runs_one_experiment_and_writes_a_page_and_figures(study: Study, tmp_path: Path) -> None:
    folders = ["--work", str(study.work), "--results", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks.paper", "--preset", "quick", "--workers", "1", *folders]
    environment = os.environ | {"MPLBACKEND": "agg"}
    done = subprocess.run(
        [*command, "--only", "colours"], cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "colours, seed 1: " in done.stdout and "1 records, " in done.stdout
    assert "SIMULATED" in (tmp_path / "README.md").read_text() and (tmp_path / "figures" / "fig02-snr.png").is_file()
    assert {path.name for path in tmp_path.glob("*.json")} == {"colours-1.json"}
