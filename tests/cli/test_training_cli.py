"""From labels to an evaluated model by the command line: what each verb leaves, says, and refuses."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from benchmarks.run import run_scenario
from benchmarks.scenarios import SCENARIOS
from skyclass.catalog.query import open_catalog
from skyclass.cli.main import cli
from skyclass.errors import SkyclassError
from skyclass.model.bundle import load_bundle
from skyclass.run import plan_report
from skyclass.run.config import RunConfig
from skyclass.run.prepare import count_here, plan_run
from skyclass.training.data.dataset import load_dataset
from skyclass.training.data.labels import label_provenance
from skyclass.training.progress import dataset_progress, print_labels_progress
from tests.support.bundles import FUSION, make_bundle
from tests.support.label_tables import TABLES, as_dict, expected_labels, write_catalog
from tests.support.skyserver import Services, silence

pytestmark = pytest.mark.integration

HERE = ("--device", "cpu", "--precision", "fp32")


def skyclass(*words: object) -> SimpleNamespace:
    """Run the command line in this process; return what it said on both streams."""
    done = CliRunner().invoke(cli, [str(word) for word in words], standalone_mode=False, catch_exceptions=False)
    assert not done.return_value, done.output
    return SimpleNamespace(out=done.stdout, err=done.stderr)


def refusal(*words: object, code: int = 2) -> str:
    """Run the command line, which must refuse with one line and this exit code; return the line."""
    with pytest.raises(SkyclassError) as caught:
        skyclass(*words)
    message = str(caught.value)
    assert caught.value.exit_code == code and message and "\n" not in message
    return message


def train_toml(folder: Path, dataset: Path, **changes: object) -> Path:
    keys = {
        "out": str(folder / "model"), "dataset": str(dataset), "name": "tiny", "recipe": "modern", "input_px": 32,
        "epochs": 2, "batch_size": 16, "device": "cpu", "precision": "fp32",
    } | changes  # fmt: skip
    path = folder / "train.toml"
    path.write_text("".join(f"{name} = {json.dumps(value)}\n" for name, value in keys.items()))
    return path


@pytest.fixture(scope="module")
def made(sky, tmp_path_factory) -> SimpleNamespace:
    """What `dataset` and `train` make of the small simulated sky, and what they say."""
    folder = tmp_path_factory.mktemp("training")
    data = folder / "data"
    cutting = skyclass(
        "dataset", "--labels", sky.truth, "--catalog", sky.catalog, "--images", sky.images, "--out", data,
        "--bands", "W1, w2,w3", "--counts", "galaxy=90,star=90", "--seed", 3,
    )  # fmt: skip
    toml = train_toml(folder, data)
    return SimpleNamespace(
        folder=folder, data=data, cutting=cutting, toml=toml, model=folder / "model", training=skyclass("train", toml)
    )


# --- the way through -------------------------------------------------------------------------------


def test_a_dataset_and_its_counts_are_told(made):
    assert f"dataset written to {made.data}" in made.cutting.out and "SIMULATED images" in made.cutting.out
    data = load_dataset(made.data)
    assert data.cut.bands == ("w1", "w2", "w3") and data.provenance["counts"]["galaxy"] == 90
    assert f"{len(data):,} cutouts of 37 x 37 px in w1, w2, w3" in made.cutting.out
    assert all(data.provenance["split"]["counts"]["val"].values())


def test_training_leaves_a_model_and_a_log_and_is_not_done_twice(made):
    bundle = load_bundle(made.model)
    assert f"{bundle.model_id} written to {made.model}" in made.training.out
    assert bundle.training["simulated"] is True and "SIMULATED" in bundle.training["label"]
    lines = [json.loads(line) for line in Path(f"{made.model}.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert made.training.err.startswith("training ") and ": 2 epochs, " in made.training.err.splitlines()[0]
    assert made.training.err.count("balanced accuracy") == 2 and "already trained" not in made.training.err
    weights = (made.model / "model.json").stat().st_mtime_ns
    again = skyclass("train", made.toml)
    assert "already trained" in again.err and again.out == f"{bundle.model_id} is in {made.model}\n"
    assert (made.model / "model.json").stat().st_mtime_ns == weights
    other = train_toml(made.model.parent, made.data, seed=5)
    assert "holds another model" in refusal("train", other)
    train_toml(made.model.parent, made.data)


def test_models_are_evaluated_calibrated_and_reported(made, bundle, tmp_path):
    out, calibrated = tmp_path / "evaluation", tmp_path / "calibrated"
    said = skyclass("evaluate", made.model, bundle, made.data, "-o", out, "--calibrate", calibrated, *HERE)
    assert "SIMULATED" in said.out and f"written to {out}" in said.out and "colour cuts" in said.out
    found = json.loads((out / "evaluation.json").read_text())
    assert {"schema", "split", "dataset", "simulated_data", "bootstrap", "caveats", "models", "differences",
            "colour_cuts", "n"} <= set(found)  # fmt: skip
    assert found["simulated_data"] is True and found["split"] == "test"
    assert [m["model_id"] for m in found["models"]] == [
        load_bundle(path).model_id for path in (made.model, bundle, calibrated)
    ]
    for model in found["models"]:
        assert {"recall", "precision", "specificity", "f1", "auc", "ece", "confusion", "strata"} <= set(model)
    first, _, fitted = found["models"]
    assert fitted["confusion"] == first["confusion"], "a temperature moves no source to another class"
    assert load_bundle(calibrated).training["calibration"]["of"] == load_bundle(made.model).model_id
    assert "SIMULATED" in (out / "evaluation.md").read_text() and len(list(out.glob("*.png"))) >= 3
    assert f"written to {out / 'report.html'}" in skyclass("report", out).out
    page = (out / "report.html").read_text()
    assert "SIMULATED" in page and "data:image/png" in page and load_bundle(made.model).model_id in page


def test_a_trained_model_classifies_a_catalogue_of_which_a_page_is_made(made, sky, tmp_path):
    out, page = tmp_path / "classes", tmp_path / "page.html"
    said = skyclass(
        "classify", "--catalog", sky.catalog, "--images", sky.images, "--model", made.model, "--out", out,
        "--cluster", "none", *HERE,
    )  # fmt: skip
    assert f"{sky.n_sources:,} sources in = {sky.n_sources:,} classified" in said.out and "SIMULATED" in said.out
    assert open_catalog(out).count() == sky.n_sources
    assert f"written to {page}" in skyclass("report", out / "catalog", "-o", page).out
    assert "SIMULATED" in page.read_text() and load_bundle(made.model).model_id in page.read_text()


def test_a_process_of_its_own_ends_with_code_and_one_line(made, tmp_path):
    """What the tests above take for granted: the errors they see become exit codes."""
    words = ["evaluate", made.model, "-o", tmp_path / "out"]
    command = [sys.executable, "-m", "skyclass", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=os.environ | {"RANK": "0"})
    assert done.returncode == 2 and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
    assert done.stderr.splitlines() == [
        f"skyclass: evaluate {made.model}: give one or more models and, last, a dataset folder"
    ]


# --- labels ----------------------------------------------------------------------------------------


def test_labels_are_fetched_by_flags_online_and_offline(tmp_path):
    catalog = write_catalog(tmp_path / "allwise", TABLES["allwise_p3as_psd"])
    with Services(TABLES) as services:
        where = ("--sdss-url", services.url, "--tap-url", f"{services.url}/TAP", "--timeout-s", 5)
        online, offline = tmp_path / "online.parquet", tmp_path / "offline.parquet"
        said = skyclass("labels", "--out", online, *where)
        assert f"label table written to {online}" in said.out
        n_uploads = services.count("tap")
        skyclass("labels", "--out", offline, "--catalog", catalog, *where)
        assert n_uploads and services.count("tap") == n_uploads
        few = tmp_path / "few.parquet"
        skyclass("labels", "--out", few, "--per-class", 9, "--box", "359,1,-1,1", "--min-snr", 10, *where)
        services.faults["sdss"].extend([silence] * 9)
        toml = tmp_path / "labels.toml"
        toml.write_text(f'out = "{tmp_path / "none.parquet"}"\nretries = 0\nsdss_url = "{services.url}"\n')
        message = refusal("labels", toml, "--timeout-s", 0.3, code=1)
        assert "silence for 0.3 s" in message and services.url in message
    assert as_dict(online) == as_dict(offline) == expected_labels(TABLES)
    counts = label_provenance(online)["counts"]
    assert f"write: {counts['spectra']:,} spectra, " in said.err and f"{counts['star']:,} star\n" in said.err
    story = label_provenance(few)
    assert story["counts"]["spectra"] == 27 and story["cuts"]["min_snr"] == 10
    assert "exists" in refusal("labels", "--out", online)
    assert "RA0,RA1,DEC0,DEC1" in refusal("labels", "--out", tmp_path / "a.parquet", "--box", "1,2,3")
    message = refusal("labels", "--out", tmp_path / "a.csv", "--sdss-url", "sky", "--timeout-s", "-1")
    assert all(words in message for words in ("a.csv", "sdss_url = 'sky'", "timeout_s = -1"))


def test_words_of_services_and_tiles_are_printed_as_they_are(capsys):
    reason = "[Microsoft][SQL Server] deadlock, " + 9 * "and so on " + "[/b]"
    print_labels_progress({"step": "wait", "service": "SDSS", "seconds": 3.0, "reason": reason})
    assert capsys.readouterr().err == f"wait: service SDSS, seconds 3.0, reason {reason}\n"
    with dataset_progress() as report:
        report({"done": 3, "total": 9, "faults": [f"tile 0000p000_ac51 w1: {reason}"]})
        report({"done": 9, "total": 9, "faults": []})
    first, fault, last = capsys.readouterr().err.splitlines()
    assert fault == f"left out: tile 0000p000_ac51 w1: {reason}"
    assert [(line["sources"], line["of"]) for line in map(json.loads, (first, last))] == [(3, 9), (9, 9)]


def test_without_an_event_a_log_has_no_progress(capsys):
    with dataset_progress():
        pass
    assert capsys.readouterr().err == ""


# --- bad input -------------------------------------------------------------------------------------

BAD_LABELS = {
    "no class": (lambda t: t.drop(columns="class"), ["no column class", "found: "]),
    "unknown class": (lambda t: t.replace({"class": {"quasar": "nova"}}), ["'nova'", "galaxy, quasar, star"]),
    "empty class": (lambda t: t[t["class"] != "quasar"], ["no quasar", "0 quasar"]),
    "outside": (lambda t: t.assign(ra=(t["ra"] + 60) % 360, coadd_id=None), ["none of", "lies on a tile", "they span"]),
    "two labels": (
        lambda t: pd.concat([t, t.iloc[:1].assign(**{"class": "star" if t["class"][0] != "star" else "galaxy"})]),
        ["1 source has more than one class", "decide on one label"],
    ),
}


@pytest.mark.parametrize("case", BAD_LABELS)
def test_labels_that_cannot_be_right_are_refused(sky, tmp_path, case):
    spoil, words = BAD_LABELS[case]
    table = pq.read_table(sky.truth).to_pandas()[["source_id", "coadd_id", "ra", "dec", "class"]]
    labels, out = tmp_path / "labels.csv", tmp_path / "data"
    spoil(table).to_csv(labels, index=False)
    message = refusal(
        "dataset", "--labels", labels, "--images", sky.images, "--out", out, "--bands", "w1,w2,w3", "--simulated"
    )
    assert all(word in message for word in words), message
    assert not out.exists()


def test_a_dataset_of_other_cutouts_or_bands_is_not_evaluated(made, bundle, sky, tmp_path):
    given = ("--labels", sky.truth, "--catalog", sky.catalog, "--images", sky.images, "--counts", "galaxy=20,star=20")
    small = tmp_path / "small"
    skyclass("dataset", *given, "--out", small, "--bands", "w1,w2", "--size", "21px")
    out, calibrated = tmp_path / "out", tmp_path / "calibrated"
    message = refusal("evaluate", made.model, bundle, small, "-o", out, "--calibrate", calibrated)
    for model in (made.model, bundle):
        assert f"{load_bundle(model).model_id}: it takes cutouts of 37 px" in message
    assert "21 px" in message and "needs w3, the dataset has w1, w2" in message and str(small) in message
    assert not out.exists() and not calibrated.exists()
    assert "has no w3, only w1, w2" in refusal("train", train_toml(tmp_path, small))
    assert not (tmp_path / "model").exists()


def test_what_is_no_dataset_model_evaluation_or_catalogue_is_told(made, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "give one or more models and, last, a dataset" in refusal("evaluate", made.model, "-o", tmp_path / "o")
    assert "is not a dataset" in refusal("evaluate", made.model, empty, "-o", tmp_path / "o")
    assert "is not a dataset" in refusal("evaluate", made.data, made.model, "-o", tmp_path / "o")
    assert "no model bundle at" in refusal("evaluate", empty, made.data, "-o", tmp_path / "o")
    message = refusal("report", empty)
    assert "no evaluation (no evaluation.json)" in message and "no class catalogue" in message and str(empty) in message
    (empty / "evaluation.json").write_text("{}")
    assert "no evaluation of this version" in refusal("report", empty)
    assert "is not a dataset" in refusal("train", train_toml(tmp_path, tmp_path / "nowhere"))
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("empty", "train.toml")] == []


def test_all_mistakes_of_a_file_or_of_flags_come_together(made, tmp_path):
    wrong = train_toml(tmp_path, made.data, network="resnet99", epochs=0, bands=["w1", "w9"], schedule="step", noise=-1)
    message = refusal("train", wrong)
    for words in ("network = 'resnet99'", "iicnet", "epochs = 0", "'w9']: choose", "schedule = 'step'", "noise = -1"):
        assert words in message
    twice = {"bands": ["w1", "w1"], "name": "a/b", "input_px": 3, "learning_rate": 1e9}
    message = refusal("train", train_toml(tmp_path, made.data, **twice))
    for words in ("['w1', 'w1']: choose", "each once", "name = 'a/b'", "input_px = 3: must be", "rate = 1000000000.0"):
        assert words in message
    assert "bands = []: choose one" in refusal("train", train_toml(tmp_path, made.data, bands=[]))
    strange = train_toml(tmp_path, made.data, epoch=3, batch_size="many", seed=1.5)
    message = refusal("train", strange)
    assert all(
        words in message for words in ("'epoch'", "batch_size = 'many'", "seed = 1.5", "expected a whole number")
    )
    (tmp_path / "bad.toml").write_text("epochs = \n")
    assert "not valid TOML" in refusal("train", tmp_path / "bad.toml")
    assert "cannot be read" in refusal("train", tmp_path / "none.toml")
    message = refusal("dataset", "--out", tmp_path / "d", "--bands", "w1,w5", "--size", "0px", "--images", "x")
    assert "tables = None: name a label table as labels" in message
    message = refusal("dataset", "--out", tmp_path / "d", "--labels", "x", "--images", "x", "--bands", "w1,w5",
                      "--size", "0px", "--preset", "papers")  # fmt: skip
    assert all(words in message for words in ("w5", "size = '0px'", "preset = 'papers'"))
    assert "galaxy=500" in refusal("dataset", "--out", tmp_path / "d", "--counts", "galaxy:5")


def test_options_of_a_cluster_without_one_are_not_ignored(made):
    message = refusal("train", made.toml, "--nodes", 2, "--ranks-per-node", 1)
    assert "nodes = 2: this needs a cluster" in message and "ranks_per_node = 1: this needs a cluster" in message
    assert "--workers" in refusal("dataset", "--workers", 2)
    assert "for --cluster local" in refusal("dataset", "--cluster", "tcp://127.0.0.1:1", "--workers", 2)
    assert "need --calibrate BUNDLE" in refusal("evaluate", made.model, made.data, "-o", "x", "--kind", "bias")


# --- photometry in the probe and the benchmark -----------------------------------------------------


@pytest.mark.slow
def test_probe_and_benchmark_take_a_model_of_images_and_photometry(sky, tmp_path, monkeypatch):
    fusion = make_bundle(tmp_path / "fusion", **FUSION).path
    monkeypatch.setattr(plan_report, "PROBE_IMAGES", 70)
    run = RunConfig(str(sky.catalog), str(sky.images), str(tmp_path / "o"), str(fusion), None, "fp32", "cpu")
    assert plan_report.probe_rate(plan_run(run, count_here)[0]) > 0
    assert "sources/s in the network" in skyclass(
        "plan", "--catalog", sky.catalog, "--images", sky.images, "--model", fusion, *HERE
    ).out  # fmt: skip
    tiny = dataclasses.replace(SCENARIOS["tiny"], model=str(fusion), device="cpu", engine_workers=())
    records = run_scenario(tiny, None, lambda _: None, work=tmp_path / "work")
    assert {"infer", "line"} <= {record["stage"] for record in records}
