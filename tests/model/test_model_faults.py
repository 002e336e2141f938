"""Models that give no probabilities: refused before work starts; what slips through is flagged, counted and told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pytest
import torch

from skyclass.cli import main as cli
from skyclass.engine.cluster import connect
from skyclass.engine.engine import classify as classify_on_dask
from skyclass.errors import BundleError
from skyclass.model import classifier as infer
from skyclass.model.bundle import Bundle, save_bundle
from skyclass.model.bundle_files import PACKAGED
from skyclass.model.classifier import load_classifier
from skyclass.model.photometry import PhotometrySettings
from skyclass.model.probabilities import is_distribution, trial_composites, trial_photometry
from skyclass.networks import build
from skyclass.run import pipeline
from skyclass.run.commits import committed
from skyclass.run.config import RunConfig
from skyclass.run.folder import RunFolder
from skyclass.run.progress import no_progress
from skyclass.types import DEFAULT_CLASSES, Flag
from tests.support.bundles import COLOUR, FIELDS, FUSION, PHOTOMETRY, make_bundle, rewritten
from tests.support.command_line import skyclass
from tests.support.networks import lived_in
from tests.support.runs import rows_of

NAN, INF = float("nan"), float("inf")


def spoiled(path: Path, value: float, layer: str = "head.2.weight", **changes: Any) -> Bundle:
    """A bundle one of whose weights is `value`."""
    fields = FIELDS | changes
    width = {"features": len(fields["photometry"].features)} if fields.get("photometry") else {}
    torch.manual_seed(3)
    network = lived_in(build(fields["network"], **fields["network_options"] | width))
    state = network.state_dict()
    layer = layer if layer in state else [name for name in state if name.endswith("weight")][-1]
    state[layer].view(-1)[0] = value
    return save_bundle(path, fields, state)


@pytest.mark.parametrize("changes", [{}, FUSION, COLOUR], ids=["iicnet", "fusion", "colour"])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float, changes: dict[str, Any]) -> None:
    bundle = spoiled(tmp_path / "m", value, **changes)
    with pytest.raises(BundleError, match=f"{bundle.path} are unusable: NaN or infinite numbers in .*weight: restore"):
        load_classifier(bundle, "cpu", "fp32")


def test_weights_that_overflow_on_an_extreme_composite_are_refused(tmp_path: Path) -> None:
    bundle = spoiled(tmp_path / "m", 3e38, "conv1.0.weight")
    with pytest.raises(BundleError, match="for a composite of (ones|the largest float16|infinity)"):
        load_classifier(bundle, "cpu", "fp32")


def test_a_temperature_that_overflows_is_refused(tmp_path: Path) -> None:
    bundle = load_classifier(make_bundle(tmp_path / "m"), "cpu", "fp32").bundle
    with pytest.raises(BundleError, match="(is|are) unusable"):
        load_classifier(dataclasses.replace(bundle, temperature=1e-44), "cpu", "fp32")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"network": "nothing"}, "describes no network: .*unknown"),
        ({"network_options": {"heads": [8]}}, "describes no network: .*no option heads"),
        ({"network_options": {"head": "wide"}}, "describes no network"),
        ({"network_options": {"head": [-8]}}, "describes no network"),
        ({"network_options": {"head": [10**9]}}, "do not fit network 'iicnet': .*not .1000000000, 256"),
        ({"network_options": {"head": [8], "in_channels": 4}}, "do not fit network"),
        ({"preprocessing": {"input_px": 1, "mean": [0] * 3, "std": [1] * 3}}, "fails on composites of its own bundle"),
        ({"cut": {"size_px": 37, "bands": ["w1", "w2"]},
          "preprocessing": {"input_px": 64, "mean": [0] * 2, "std": [1] * 2},
          "composite": {"softening_dn": [1] * 2, "zero_point_mag": [20] * 2}}, "fails on composites of its own bundle"),
    ],
)  # fmt: skip
def test_networks_that_do_not_fit_their_bundle_are_refused(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    path = rewritten(make_bundle(tmp_path / "m").path, **changes)
    with pytest.raises(BundleError, match=words) as refused:
        load_classifier(path, "cpu", "fp32")
    assert "\n" not in str(refused.value)


@pytest.mark.integration
@pytest.mark.parametrize("name", sorted(path.name for path in PACKAGED.iterdir()))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shipped_models_pass_the_trial(name: str, precision: str) -> None:
    assert load_classifier(name, "cpu", precision).model_id.startswith(name)


def test_the_trial_has_extremes_and_is_always_the_same() -> None:
    composites, again = trial_composites(3, 37), trial_composites(3, 37)
    stack = np.stack(list(composites.values()))
    assert stack.shape == (len(composites), 3, 37, 37) and stack.dtype == np.float16
    np.testing.assert_array_equal(stack, np.stack(list(again.values())))
    assert {0.0, 65504.0, -65504.0} <= set(stack[:, 0, 0, 0].tolist()) and np.isnan(stack).all(axis=(1, 2, 3)).any()
    photometry = trial_photometry(PhotometrySettings(("w1",), (15.0,), (1.5,)), 5)
    np.testing.assert_allclose(photometry[:, 0], [NAN, 15, -135, 165, NAN])
    assert len(trial_photometry(PHOTOMETRY, 11)) == 11


def test_what_is_a_distribution() -> None:
    rows = [
        [0.2, 0.3, 0.5],
        [NAN, NAN, NAN],
        [0.5, 0.5, 0.5],
        [-0.1, 0.6, 0.5],
        [INF, 0, 0],
        [1, 0, 0],
        [0, 0, 0],
        [NAN, 0, 1],
    ]
    assert is_distribution(np.array(rows, np.float32)).tolist() == [True, *[False] * 4, True, *[False] * 2]


@pytest.mark.integration
@pytest.mark.parametrize("classify", ["pipeline", "engine"])
def test_a_faulty_model_is_refused_before_the_run_folder_is_made(run: RunConfig, tmp_path: Path, classify: str) -> None:
    run = dataclasses.replace(run, model=str(spoiled(tmp_path / "m", NAN).path))
    with pytest.raises(BundleError, match="(is|are) unusable"):
        if classify == "pipeline":
            pipeline.classify(run)
        else:
            with connect("local", workers=1) as client:
                classify_on_dask(run, client, no_progress)
    assert not Path(run.out).exists()


@pytest.mark.integration
def test_the_command_line_says_so_in_one_message(run: RunConfig, tmp_path: Path) -> None:
    model = spoiled(tmp_path / "m", NAN).path
    command = ["classify", "--catalog", run.catalog, "--images", run.images, "--model", str(model), "--out", run.out]
    for verb in (command, ["plan", *command[1:]]):
        done = skyclass(*verb, "--cluster", "none")
        assert done.returncode == 2
        assert done.stderr.count("skyclass: ") == 1 and f"the weights of {model} are unusable" in done.stderr


@pytest.fixture
def faulty(run: RunConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[RunConfig, float]:
    """A run whose model gives NaN for about half of the sources, those of most star-like images."""
    pipeline.classify(run)
    limit = float(pc.quantile(rows_of(run)["p_star"], 0.5)[0].as_py())
    again = dataclasses.replace(run, out=f"{run.out}-faulty")
    _ = load_classifier(run.model, "cpu", "fp32")
    sound = infer.calibrated

    def broken(logits: np.ndarray, temperature: float, bias: tuple[float, ...]) -> np.ndarray:
        p = sound(logits, temperature, bias)
        p[p[:, DEFAULT_CLASSES.index("star")] > limit] = NAN
        return p

    monkeypatch.setattr(infer, "calibrated", broken)
    monkeypatch.setattr(infer, "refuse_faulty", lambda bundle, predict: None)
    infer.cached_classifier.cache_clear()
    yield again, limit
    infer.cached_classifier.cache_clear()


@pytest.mark.integration
def test_rows_without_probabilities_are_flagged_and_counted(
    run: RunConfig, faulty: tuple[RunConfig, float], capsys: pytest.CaptureFixture[str]
) -> None:
    bad, limit = faulty
    report = pipeline.classify(bad)
    rows, sound = rows_of(bad), rows_of(run)
    expected = {
        i: (None, f | int(Flag.MODEL_FAULT)) if p is not None and p > limit else (c, f)
        for i, c, p, f in zip(*(sound[n].to_pylist() for n in ("source_id", "class", "p_star", "flags")), strict=True)
    }
    given = {i: (c, f) for i, c, f in zip(*(rows[n].to_pylist() for n in ("source_id", "class", "flags")), strict=True)}
    assert given == expected
    n_faults = sum(f & 512 > 0 for _, f in expected.values())
    assert 0.3 * len(rows) < n_faults < 0.7 * len(rows)
    for name in (*(f"p_{c}" for c in DEFAULT_CLASSES), "margin", "entropy"):
        assert rows[name].null_count == rows["class"].null_count >= n_faults
    assert report.model_faults == report.flag_counts["MODEL_FAULT"] == n_faults
    assert json.loads(RunFolder(Path(bad.out)).report_path.read_text())["flag_counts"]["MODEL_FAULT"] == n_faults
    again = pipeline.classify(bad)
    assert again.tiles_resumed == again.tiles and again.model_faults == n_faults, "counted on a resumed run, too"
    commits = committed(RunFolder(Path(bad.out)))
    assert sum(c.flags.get("MODEL_FAULT", 0) for c in commits.values()) == n_faults


@pytest.mark.integration
def test_rows_without_probabilities_end_with_exit_code_3(
    faulty: tuple[RunConfig, float], capsys: pytest.CaptureFixture[str]
) -> None:
    run, _ = faulty
    options = {"catalog": run.catalog, "images": run.images, "model": run.model, "out": run.out}
    flags = [word for name, value in options.items() for word in (f"--{name}", value)]
    code = cli.cli(
        ["classify", *flags, "--cluster", "none", "--precision", "fp32", "--device", "cpu"], standalone_mode=False
    )
    out = capsys.readouterr().out
    n_faults = json.loads(RunFolder(Path(run.out)).report_path.read_text())["flag_counts"]["MODEL_FAULT"]
    assert code == 3
    assert f"+ {n_faults:,} without probabilities" in out and f"{n_faults:,} sources have no class because" in out
