"""The harness of the paper's study on a tiny simulated sky: records, their order, tables and figures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.paper import experiments, training
from benchmarks.paper.cells import EFFORT, MISSING, PAPER_EFFORT, percent
from benchmarks.paper.experiments import EXPERIMENTS, NEEDS, SEEDED, WITHOUT_CHECKPOINTS, run_experiment, todo
from benchmarks.paper.figures import write_figures
from benchmarks.paper.limit import TimeLimit
from benchmarks.paper.pool import THREADS, run_all
from benchmarks.paper.published import COST, IICNET, SPLIT, TOTALS
from benchmarks.paper.study import (
    BASELINES,
    PRESETS,
    SIZES,
    Study,
    effort_of,
)
from benchmarks.paper.tables import STRETCHED, document, load_records
from benchmarks.paper.training import fewer
from skyclass.errors import Interrupted, SkyclassError
from skyclass.types import DEFAULT_CLASSES
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
    (table,) = re.findall(r"(?:^\| .*\n)+", found, flags=re.M)[:1]
    rows = [line[2:-2].split(" | ") for line in table.splitlines()]
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
    assert record["sky"] == study.sky and len(record["validation"]) == 1
    assert (
        record["epochs"] == 1 and record["device"] in ("cpu", "cuda") and set(record["recall"]) == set(DEFAULT_CLASSES)
    )
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
    record.write_text(json.dumps(old | {"accuracy": 0.0, "sky": "code of 2026-11-22"}))
    assert run_experiment(study, "colours", 1)["accuracy"] == old["accuracy"], "a record of another sky is made anew"


def test_networks_of_table_3_start_by_one_rule_and_keep_their_options(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, object] = {}
    monkeypatch.setattr(training, "trained", lambda *args, **changes: options.update({args[1]: changes["options"]}))
    for name in ("equal-iicnet", "equal-vgg16"):
        training.small_run(study, name, 1, network=name.removeprefix("equal-"))
    training.small_run(study, "kernel-3", 1, options={"first_kernel": 3})
    assert options["equal-iicnet"] == options["equal-vgg16"] == {"init": "he"}
    assert options["kernel-3"] == {"init": "he", "first_kernel": 3}


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
        assert items[0] == ("iicnet", 1) and items[len(preset.seeds)][0].startswith("equal-")
    assert len(items) == 3 * (len(EXPERIMENTS) - 1), "the preset full has three seeds of everything"
    assert set(EXPERIMENTS) >= WITHOUT_CHECKPOINTS
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
    for row, name in zip(section(page, "Table 1"), DEFAULT_CLASSES, strict=True):
        assert row[:5] == [name, *(str(SPLIT[name][s]) for s in ("train", "test", "val")), str(TOTALS[name])]
        assert row[5:] == [str(record["split"][s][name]) for s in ("train", "test", "val", "none")]
    rows = {(row[0], row[1]): row[2:7] for row in section(page, "Table 2")}
    for name in DEFAULT_CLASSES:
        assert rows[name, "paper"] == [str(rate) for rate in IICNET[name]]
        assert rows[name, "ours"][1] == percent(record["recall"][name])
    assert rows["all", "paper"][-1] == "95.2 (derived: 1 - 104 / 2175)"
    assert rows["all", "ours"][-1].startswith(percent(record["accuracy"]))
    costs = section(page, "Table 3")
    assert [tuple(row[1:3]) for row in costs] == [COST[n] for n in ("iicnet", *BASELINES)]
    assert all(row[3:7] == [MISSING] * 4 for row in costs)
    samples = {(row[0].partition(",")[0], row[1]): row[2:5] for row in section(page, "Table 4")}
    assert samples["quasar", "paper"] == ["0.024439", "0.000004", "0.975557"]
    ours = record["samples"]["star"]["probabilities"]
    assert samples["star", "ours"] == [f"{ours[name]:.6f}" for name in ("galaxy", "star", "quasar")]


def test_the_answers_of_iicnet_are_those_of_its_confusion_matrix(page: str, study: Study) -> None:
    record = run_experiment(study, "iicnet", 1)
    matrix, n = np.array(record["confusion"]), record["n_test"]
    wrong, right = n - np.trace(matrix), np.trace(matrix)
    assert sum(record["groups"]["counts"]) == wrong
    unsure = sum(record["unsure"]["counts"].values())
    assert record["unsure"]["share"] == pytest.approx(unsure / right)
    rows = section(page, "Figs. 18 and 19")
    assert rows[0][1:3] == ["104", "2,175 (derived: 730 + 722 + 723)"] and rows[1][1:3] == [str(wrong), str(n)]
    (first,) = re.findall(r"^\| predicted galaxy \| (.*) \|$", page, flags=re.M)
    assert first.split(" | ") == [str(count) for count in matrix[:, 0]], "columns are true classes"
    assert section(page, "Figs. 20 and 21")[1][1] == str(unsure)
    for name in DEFAULT_CLASSES:
        curve = record["roc"][name]
        assert np.trapezoid(curve["tpr"], curve["fpr"]) == pytest.approx(record["auc"][name], abs=0.01)


def test_every_row_states_its_effort(page: str, study: Study) -> None:
    for title in ("Table 2", "Table 3", "Table 4", "Figs. 8", "Fig. 14", "Fig. 15", "Fig. 17", "Figs. 18", "Margins"):
        for row in section(page, title):
            ours = [row[-len(EFFORT) :][k] for k in (0, 5)]
            assert ours in (["1", study.sky], ["-", "-"], [PAPER_EFFORT[0], PAPER_EFFORT[5]]), (title, row)
    cells = {row[0]: row[-len(EFFORT) :] for row in section(page, "Fig. 17")}
    n_train = len(study.dataset.split("train"))
    assert cells["images W1 W2 W3"][2:4] == [f"{n_train}", "below 0.1 %"]
    assert cells["images W1 W2 W3 + photometry"][2] == f"{2 * n_train}"
    assert cells["random forest on photometry"][2] == "no images"
    small = {"experiment": "kernel-3", "seed": 1, "epochs": 3, "train_rows": 4000, "accuracy": 0.5, "interval": [0, 1]}
    text = document({"kernel-3": [small | {"device": "cpu", "sky": "x"}]}, QUICK)
    assert "| 1 | 3 | 12,000 | 0.3 % | cpu | x |" in text


def test_what_has_no_record_is_said_to_be_missing(page: str, study: Study) -> None:
    rows = {row[0]: row[1:] for row in section(page, "Fig. 17")}
    assert rows["images W1 W2 W3"][:2] == ["above 95", "95.2 (derived: 1 - 104 / 2175)"]
    assert rows["images W1 W2 W3 + photometry"][1] == "96.2 (derived: 0.9522 + 0.01)"
    known = {"images W1 W2 W3", "images W1 W2 W3 + photometry"}
    known |= {"colours W1-W2, W2-W3", "random forest on photometry"}
    assert {label for label, cells in rows.items() if cells[2] != MISSING} == known
    assert rows["random forest on photometry"][2].startswith(percent(run_experiment(study, "forest", 1)["accuracy"]))
    controls = {row[0]: row[2] for row in section(page, "The mock is no giveaway")}
    assert [value != MISSING for value in controls.values()] == [False, False, True]
    sweeps = section(page, "Figs. 8 and 12")
    assert len(sweeps) == 4 + len(SIZES) and {row[2] for row in sweeps} == {MISSING}
    assert len(section(page, "Margins")) == 6 and len(section(page, "Calibration on a held-out")) == 3
    assert re.search(rf"Real sources, colours only\n\n{MISSING}", page)


def test_a_class_that_is_never_given_has_no_precision_and_the_table_stands(study: Study) -> None:
    record = run_experiment(study, "iicnet", 1)
    nothing = record | {"precision": dict.fromkeys(DEFAULT_CLASSES), "auc": dict.fromkeys(DEFAULT_CLASSES)}
    half = record | {"seed": 2, "precision": {"galaxy": 0.5, "quasar": None, "star": 0.25}}
    rows = section(document({"iicnet": [nothing, half]}, QUICK), "Table 2")
    ours = {row[0]: row for row in rows if row[1] == "ours"}
    assert [ours[name][2] for name in DEFAULT_CLASSES] == ["50.0", "-", "25.0"]
    assert "2 seeds" in ours["all"][6]


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
    made = {"seed": 1, "epochs": 1, "train_rows": 60}
    size = {f"size-{px}": [made | {"experiment": f"size-{px}", "accuracy": 0.3 + px / 500}] for px in SIZES}
    names = {path.stem for path in write_figures(study, load_records(study.results) | size)}
    assert names == {
        "fig02-snr", "fig05-histograms", "fig06-colours", "fig11-feature-maps", "fig12-size", "fig13-training",
        "fig14-roc", "fig15-validation", "fig18-confusion", "fig19-misclassified", "fig20-21-unsure", "grad-cam",
    }  # fmt: skip
    assert all((study.results / "figures" / f"{name}.png").stat().st_size > 5000 for name in names)


def test_networks_are_ranked_by_the_interval_of_their_difference_over_seeds() -> None:
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
        f"equal-{name}": [
            costs
            | {"experiment": f"equal-{name}", "right": right.get(name, right["iicnet"]), "seed": seed}
            | {"accuracy": 0.8, "interval": [0.7, 0.9]}
            for seed in (1, 2)
        ]
        for name in ("iicnet", *BASELINES)
    }
    records["equal-vgg16"][0] |= {"learning_rate": 3e-4}
    one = document({name: group[:1] for name, group in records.items()}, QUICK)
    assert "ranks no network" in one and "ahead of" not in one
    text = document(records, QUICK)
    assert "learning rate 0.001, 0.0003 for VGG16. Over 2 seeds IICnet" in text
    assert re.search(r"ahead of VGG16 \(\+40.0 \+- \d", text)
    assert re.search(r"behind RepVGG.*\(-20.0", text)
    assert re.search(r"not to be told apart from GoogLeNet", text)


def test_a_failed_experiment_stops_no_other_and_is_named(study: Study, tmp_path: Path) -> None:
    elsewhere = replace(study, results=tmp_path, work=tmp_path / "nowhere")
    for name in ("dataset", "natural"):
        (elsewhere.work / name).mkdir(parents=True)  # damaged
    pool = run_all(elsewhere, ("forest", "iicnet", "natural-mix"), workers=1)
    with pytest.raises(SkyclassError, match=r"3 experiments failed: .*natural-mix, seed 1: needs iicnet"):
        list(pool)


# --- the time limit --------------------------------------------------------------------------------


def test_a_training_stops_at_the_limit_and_resumes_to_the_same_record(study: Study, tmp_path: Path) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "dataset").symlink_to(study.work / "dataset")
    elsewhere = replace(study, work=work, results=tmp_path)
    late = replace(elsewhere, limit=TimeLimit(60, time.time() - 3600))
    for _ in range(2):
        with pytest.raises(Interrupted, match="resume"):
            run_experiment(late, "iicnet", 1)
    assert not late.record("iicnet", 1).exists() and list((work / "models" / "iicnet-1.checkpoints").glob("*.ckpt"))
    resumed, plain = (run_experiment(s, "iicnet", 1) for s in (elsewhere, study))
    for key in ("accuracy", "confusion", "samples", "roc", "validation"):
        assert resumed[key] == plain[key]


def test_at_the_limit_nothing_starts_and_what_is_left_is_told(study: Study, tmp_path: Path) -> None:
    late = replace(study, results=tmp_path, limit=TimeLimit(60, time.time() - 3600))
    with pytest.raises(Interrupted, match=r"2 experiments left \(colours, forest\): run the same"):
        list(run_all(late, ("forest", "colours"), workers=1))
    assert not list(tmp_path.glob("*.json"))


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
