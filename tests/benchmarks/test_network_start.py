"""The benchmark of the start of IICnet on a tiny SIMULATED set: its effort, its records, its tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import network_start
from benchmarks.network_start import BATCH, LAYERS, VARIANTS, compare, effort_of, learned, main, report, signal
from skyclass.errors import ConfigError
from skyclass.networks import build
from skyclass.training.data.dataset import save_dataset
from tests.support.datasets import blobs

OPEN = 1 / (1 + np.exp(-3))


def record_of(variant: str, steps: int, seed: int, accuracy: float) -> dict:
    facts = {"variant": variant, "steps": steps, "seed": seed, "balanced_accuracy": accuracy, "n_test": 50}
    effort = {"rows": 64, "epochs": steps, "image_views": 64 * steps, "steps_taken": steps, "training_seconds": 7.0}
    place = {"device": "cpu", "precision": "bf16", "cpu": "A", "threads": 2, "gpu": None, "commit": "c"}
    return facts | effort | place | {"simulated": True}


@given(steps=st.integers(1, 5000), n_train=st.integers(BATCH, 40_000))
def test_an_effort_is_whole_batches_of_rows_that_are_there(steps: int, n_train: int) -> None:
    effort = effort_of(steps, n_train)
    assert effort.rows % BATCH == 0 and BATCH <= effort.rows <= n_train
    assert steps <= effort.steps < steps + effort.epochs
    assert (effort.epochs - 1) * (n_train // BATCH) < steps


def test_efforts_by_hand() -> None:
    assert effort_of(744, 29_000) == (372 * 64, 2) and effort_of(2976, 29_000) == (426 * 64, 7)
    with pytest.raises(ConfigError, match="63 training rows"):
        effort_of(1, 63)


def test_the_variants_are_networks_and_the_reconstruction_has_no_option() -> None:
    assert VARIANTS["reconstruction"] == {}
    assert len({json.dumps(options) for options in VARIANTS.values()}) == len(VARIANTS) == 7
    for options in VARIANTS.values():
        build("iicnet", **options)


@pytest.mark.integration
def test_the_signal_follows_the_gates(tmp_path: Path) -> None:
    data = blobs(100)
    plain, opened, without = (
        signal(data, name, 1, "cpu", tmp_path) for name in ("reconstruction", "open-gates", "no-cbam")
    )
    assert plain["n_images"] == 70 and plain["parameters"] == 1_748_407 and plain["precision"] == "fp32"
    for kind in ("all", "between_images"):
        assert list(plain[kind]) == list(LAYERS)
        assert opened[kind]["rfb"] == pytest.approx(plain[kind]["rfb"], rel=1e-5), "the same seed"
        assert opened[kind]["cbam1"] == pytest.approx(opened[kind]["rfb"] * OPEN**2, rel=1e-5)
        assert without[kind]["cbam1"] == without[kind]["rfb"] and without[kind]["cbam2"] == without[kind]["conv5"]
        assert plain[kind]["cbam1"] < 0.5 * plain[kind]["rfb"]
    assert plain["between_images"]["head"] < plain["all"]["head"], "biases differ between classes, not images"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.integration
def test_records_are_made_once_and_come_as_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, out, work, said = blobs(100), tmp_path / "start.json", tmp_path / "work", []
    only = ("open-gates", "reconstruction")
    text = compare(data, out, work, only, (2,), (1,), "cpu", said.append)
    records = json.loads(out.read_text())
    assert len(said) == len(records) == 4 and [line.split(",")[0] for line in said[:2]] == list(only)[::-1]
    assert out.with_suffix(".md").read_text() == text and "SIMULATED" in text
    trained = records["open-gates, 1 steps, seed 2"]
    table = np.array(trained["confusion"])
    assert table.sum() == trained["n_test"] == len(data.split("test"))
    recalls = [row[i] / row.sum() for i, row in enumerate(table) if row.sum()]
    assert trained["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    facts = {"image_views": 64, "rows": 64, "epochs": 1, "steps_taken": 1, "batch_size": 64, "device": "cpu"}
    assert facts.items() <= trained.items() and trained["training_seconds"] > 0 and trained["simulated"] is True
    assert trained["options"] == {"cbam_start": "open"} and trained["precision"] in ("bf16", "fp32")
    assert [path.name for path in work.iterdir() if path.is_dir()] == [], "no model stays"

    gone = records.pop("reconstruction, signal, seed 2")
    out.write_text(json.dumps(records))
    monkeypatch.setattr(network_start, "train", None)
    said.clear()
    assert compare(data, out, work, only, (2,), (1,), "cpu", said.append) == text
    assert said == ["reconstruction, signal, seed 2: written"]
    assert json.loads(out.read_text())["reconstruction, signal, seed 2"] == gone
    with pytest.raises(ConfigError, match="records of another dataset.*choose another --out"):
        compare(replace(data, labels=data.labels[::-1]), out, work, only, (1,), (1,), "cpu")


def test_a_training_that_diverges_is_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(run, dataset):
        Path(run.out).mkdir(parents=True)
        raise ConfigError(message)

    monkeypatch.setattr(network_start, "train", fail)
    message = "training diverged in epoch 1: lower learning_rate = 0.001"
    found = learned(blobs(100), "he", 1, "cpu", tmp_path, 2)
    assert found["error"] == message and found["image_views"] == 128 and list(tmp_path.iterdir()) == []
    facts = {"variant": "he", "steps": 2, "seed": 1, "simulated": True}
    assert f"- he, 2 steps, seed 1: {message}" in report({"a": facts | found})
    message = "no space"
    with pytest.raises(ConfigError, match="no space"):
        learned(blobs(100), "he", 1, "cpu", tmp_path, 2)


def test_the_table_has_means_and_paired_differences() -> None:
    numbers = {"reconstruction": (0.70, 0.74), "he": (0.75, 0.77), "no-cbam": (0.8,)}
    records = [
        record_of(name, 9, seed, value) for name, values in numbers.items() for seed, value in enumerate(values, 1)
    ]
    records.append(record_of("he", 1234, 3, 0.9) | {"simulated": False})
    text = report({str(i): record for i, record in enumerate(records)})
    assert "| variant | 9 steps | difference | 1,234 steps | difference |" in text
    assert "| `reconstruction` | 72.0 ± 2.8 (2) |  |  |  |" in text
    assert "| `he` | 76.0 ± 1.4 (2) | +4.0 ± 1.0 | 90.0 (1) |  |" in text
    assert "| `no-cbam` | 80.0 (1) | +10.0 |  |  |" in text
    assert (
        "- 9 steps: 64 images x 9 epochs = 576 image views in 9 steps; 50 test images; cpu (A, threads: 2), bf16"
        in text
    )
    assert "All images are observed" in text and "All images are SIMULATED" in report({"0": records[0]})


@pytest.mark.integration
def test_the_command_reads_a_dataset_and_prints_the_table(tmp_path: Path) -> None:
    save_dataset(tmp_path / "data", blobs(100))
    options = ["--out", str(tmp_path / "r" / "start.json"), "--work", str(tmp_path / "work"), "--device", "cpu"]
    arguments = [str(tmp_path / "data"), *options, "--only", "bn-all-he", "--seeds", "4", "--steps", "2"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0 and "| `bn-all-he` | bn = 'all', init = 'he' | 1,750,199 |" in result.output
    assert len(json.loads((tmp_path / "r" / "start.json").read_text())) == 2
    for wrong, message in ((["--seeds", "1,x"], "'1,x': write positive whole numbers"), (["--only", "he2"], "he2")):
        result = CliRunner().invoke(main, [*arguments, *wrong])
        assert result.exit_code == 2 and message in result.output
    result = CliRunner().invoke(main, [str(tmp_path), *options])
    assert result.exit_code == 1 and "is not a dataset" in result.output
