"""Networks outside of skyclass: trained, refused unless trusted, and refused where their source differs."""

from __future__ import annotations

import dataclasses
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from distributed import Client, LocalCluster

from skyclass.engine import engine
from skyclass.errors import BundleError, ConfigError
from skyclass.import_path import source_sha256
from skyclass.model.bundle import Bundle, load_bundle, load_weights, read_bundle, save_bundle
from skyclass.model.classifier import load_classifier
from skyclass.model.preprocess import Preprocess
from skyclass.networks import build, network_inputs
from skyclass.run import pipeline
from skyclass.run.config import RunConfig
from skyclass.run.progress import no_progress
from skyclass.training.evaluation.evaluate import evaluate_models
from skyclass.training.fit.recipe import TrainConfig, train_config
from skyclass.training.fit.train import train
from tests.support.bundles import FIELDS, PHOTOMETRY, rewritten
from tests.support.datasets import SMALL, blobs
from tests.support.runs import rows_of

EXAMPLE = Path(__file__).parents[2] / "docs" / "extensions" / "small_network.py"
FOREIGN = "small_network:SmallNetwork"


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The source file of a module that only this process can import."""
    folder = tmp_path / "modules"
    folder.mkdir()
    shutil.copy(EXAMPLE, folder)
    monkeypatch.syspath_prepend(str(folder))
    forget()
    return folder / EXAMPLE.name


def forget() -> None:
    """Forget the imported module, as a new process would not know it."""
    from skyclass import import_path

    sys.modules.pop("small_network", None)
    import_path._import.cache_clear()
    importlib.invalidate_caches()


@pytest.fixture
def foreign(module: Path, tmp_path: Path) -> Bundle:
    """A bundle with random weights of a network outside of skyclass."""
    torch.manual_seed(1)
    network = build(FOREIGN, width=8)
    with torch.no_grad():
        network.head.weight *= 30
    fields = FIELDS | {"network": FOREIGN, "network_options": {"width": 8}, "source_sha256": source_sha256(FOREIGN)}
    return save_bundle(tmp_path / "foreign", fields, network.state_dict())


def composites(n: int = 40) -> np.ndarray:
    return np.random.default_rng(2).normal(0, 2, (n, 3, 37, 37)).astype(np.float16)


def test_a_network_outside_of_skyclass_is_refused_unless_it_is_trusted(foreign: Bundle, run: RunConfig) -> None:
    refusal = "runs code outside of skyclass, the network 'small_network:SmallNetwork'.*--trust-code"
    with pytest.raises(BundleError, match=refusal):
        load_bundle(foreign.path)
    with pytest.raises(BundleError, match=refusal):
        load_classifier(foreign.path, "cpu")
    forget()
    with pytest.raises(BundleError, match=refusal):
        pipeline.classify(dataclasses.replace(run, model=str(foreign.path)))
    assert "small_network" not in sys.modules and not Path(run.out).exists()
    assert read_bundle(foreign.path) == foreign == load_bundle(foreign.path, trust_code=True)


def test_a_network_of_photometry_alone_sees_no_pixels(tmp_path: Path) -> None:
    name = "docs.extensions.photometry_network:PhotometryNetwork"
    network = build(name, features=len(PHOTOMETRY.features))
    fields = FIELDS | {"network": name, "network_options": {}, "source_sha256": source_sha256(name)}
    fields |= {"photometry": PHOTOMETRY}
    bundle = save_bundle(tmp_path / "colours", fields, network.state_dict())
    classifier = load_classifier(bundle, "cpu", "fp32", trust_code=True)
    photometry = np.array([[0.5, 2.0, 15.0], [0.9, 3.0, 14.0], [np.nan, 2.0, 15.0]], np.float32)
    images = composites(3)
    probabilities = classifier.predict(images, photometry)
    np.testing.assert_array_equal(classifier.predict(images[::-1].copy(), photometry), probabilities)
    with torch.inference_mode():
        logits = network.eval()(torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, -2 / 3], [0.0, 0.0, 0.0]]))
    expected = torch.softmax(logits / bundle.temperature, 1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


def test_a_network_of_two_inputs_has_images_and_photometry_of_the_same_source(tmp_path: Path) -> None:
    name = "docs.extensions.two_input_network:TwoInputNetwork"
    network = build(name, features=len(PHOTOMETRY.features))
    fields = FIELDS | {"network": name, "network_options": {}, "source_sha256": source_sha256(name)}
    bundle = save_bundle(tmp_path / "both", fields | {"photometry": PHOTOMETRY}, network.state_dict())
    classifier = load_classifier(bundle, "cpu", "fp32", trust_code=True)
    photometry = np.array([[0.5, 2.0, 15.0], [0.9, 3.0, 14.0], [np.nan, 2.0, 15.0]], np.float32)
    standardised = torch.tensor([[0.0, 0.0, 0.0], [1.0, 1.0, -2 / 3], [0.0, 0.0, 0.0]])
    images = composites(3)
    with torch.inference_mode():
        logits = network.eval()(Preprocess(bundle.preprocessing)(torch.from_numpy(images)), standardised)
    expected = torch.softmax(logits / bundle.temperature, 1).numpy()
    np.testing.assert_allclose(classifier.predict(images, photometry), expected, atol=1e-5)
    assert not np.allclose(classifier.predict(images[::-1].copy(), photometry), expected, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_its_probabilities_are_those_of_the_plain_network(foreign: Bundle, precision: str) -> None:
    network = build(FOREIGN, width=8).eval()
    network.load_state_dict(load_weights(foreign))
    images = composites()
    with torch.inference_mode():
        logits = network(Preprocess(foreign.preprocessing)(torch.from_numpy(images)))
    expected = torch.softmax(logits / foreign.temperature, 1).numpy()
    classifier = load_classifier(foreign.path, "cpu", precision, trust_code=True)
    np.testing.assert_allclose(classifier.predict(images), expected, atol=1e-5 if precision == "fp32" else 0.05)
    np.testing.assert_array_equal(classifier.predict(images[30:]), classifier.predict(images)[30:])
    assert np.ptp(expected, axis=0).max() > 0.01, "the images differ"


@pytest.mark.integration
def test_a_trusted_run_is_the_same_on_workers(foreign: Bundle, run: RunConfig, module: Path, tmp_path: Path) -> None:
    here = dataclasses.replace(run, model=str(foreign.path), trust_code=True)
    assert pipeline.classify(here).classified > 0
    there = dataclasses.replace(here, out=str(tmp_path / "there"))
    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0") as pool:
        with Client(pool) as client:
            engine.classify(there, client, no_progress)
    assert rows_of(there).equals(rows_of(here))


@pytest.mark.integration
def test_another_source_is_refused_at_load_and_on_resume(foreign: Bundle, run: RunConfig, module: Path) -> None:
    trusted = dataclasses.replace(run, model=str(foreign.path), trust_code=True)
    pipeline.classify(trusted)
    module.write_text(module.read_text() + "\n# another comment\n")
    now = source_sha256(FOREIGN)
    refusal = f"another source of {FOREIGN!r} .SHA-256 {foreign.source_sha256[:12]} then, {now[:12]} here.: restore"
    for _ in ("in this process, which has imported the earlier source", "in a new process"):
        with pytest.raises(BundleError, match=refusal):
            load_classifier(foreign.path, "cpu", trust_code=True)
        with pytest.raises(BundleError, match=refusal):
            load_classifier(foreign, "cpu")
        with pytest.raises(BundleError, match=refusal):
            pipeline.classify(trusted)
        forget()
    module.unlink()
    forget()
    with pytest.raises(BundleError, match="needs the network .*no module small_network here: install its package"):
        load_classifier(foreign.path, "cpu", trust_code=True)


@pytest.mark.slow
def test_a_worker_without_the_module_is_named(foreign: Bundle, run: RunConfig) -> None:
    trusted = dataclasses.replace(run, model=str(foreign.path), trust_code=True)
    command = [sys.executable, "-m", "distributed.cli.dask_worker"]
    pool = LocalCluster(n_workers=0, host="127.0.0.1", dashboard_address="127.0.0.1:0")
    with pool, Client(pool) as client:
        worker = subprocess.Popen(
            [*command, pool.scheduler_address, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"],
            env=os.environ | {"PYTHONPATH": str(EXAMPLE.parents[2])},
            stderr=subprocess.DEVNULL,
        )
        try:
            client.wait_for_workers(1, timeout=120)
            (address,) = client.scheduler_info()["workers"]
            with pytest.raises(ConfigError, match=f"1 of 1 workers .* worker {address}: .*no module small_network"):
                engine.classify(trusted, client, no_progress)
        finally:
            worker.terminate()
            worker.wait(60)
    assert not Path(run.out).exists()


@pytest.mark.integration
def test_a_network_by_import_path_is_trained_and_evaluated(module: Path, tmp_path: Path) -> None:
    settings = {"network": FOREIGN, "options": {"width": 8}, "epochs": 1}
    run = TrainConfig(out=str(tmp_path / "model"), dataset="in memory", **SMALL | settings)
    bundle = train(run, dataset=blobs(200))
    assert bundle.network == FOREIGN and bundle.source_sha256 == source_sha256(FOREIGN)
    assert bundle.training["fingerprint"]["source"] == bundle.source_sha256
    assert train(run, dataset=blobs(200)) == bundle, "a finished training is not repeated"
    test_set = blobs(60, seed=1)
    scores = evaluate_models([tmp_path / "model"], test_set, "all", "cpu", "fp32", draws=20, trust_code=True)
    assert scores["models"][0]["network"] == FOREIGN
    with pytest.raises(BundleError, match="--trust-code"):
        evaluate_models([tmp_path / "model"], test_set, "all", "cpu", draws=20)
    module.write_text(module.read_text() + "\n# another comment\n")
    forget()
    with pytest.raises(ConfigError, match="holds another model"):
        train(run, dataset=blobs(200))


def test_training_refuses_what_is_no_network() -> None:
    for network, problem in {
        "no_such_module:Network": "no module no_such_module here",
        "pathlib:Path": "derive it from torch.nn.Module",
        "spectrum": "choose iicnet, .*import path such as package.module:Class",
    }.items():
        with pytest.raises(ConfigError, match=problem):
            train_config({"out": "model", "dataset": "dataset", "network": network})


def test_what_a_network_takes_is_its_attribute_inputs(module: Path) -> None:
    assert network_inputs(FOREIGN) == ("images",)
    source = module.read_text()
    changed = source.replace("    def __init__", '    inputs = ("images", "photometry")\n\n    def __init__', 1)
    module.write_text(changed)
    forget()
    assert network_inputs(FOREIGN) == ("images", "photometry")
    module.write_text(changed.replace('("images", "photometry")', '("spectra",)'))
    forget()
    with pytest.raises(ConfigError, match=r"has inputs = \('spectra',\): choose one of \('images',\)"):
        network_inputs(FOREIGN)


def test_a_bundle_names_a_source_exactly_for_an_import_path(foreign: Bundle) -> None:
    for changes in ({"source_sha256": ""}, {"source_sha256": "abc"}, {"network": "iicnet"}):
        with pytest.raises(BundleError, match="source_sha256 = .*: must be set exactly for an import path"):
            read_bundle(rewritten(foreign.path, **changes))
        rewritten(foreign.path, network=FOREIGN, source_sha256=foreign.source_sha256)
