"""Inference: preprocessing, rows that do not depend on their neighbours, clear refusals."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from skyclass.errors import BundleError, ConfigError
from skyclass.model import classifier as infer
from skyclass.model.bundle import Bundle, load_weights, save_bundle
from skyclass.model.classifier import (
    NetworkClassifier,
    NullClassifier,
    PreparedNetwork,
    cached_classifier,
    calibrated,
    load_classifier,
)
from skyclass.model.compile import Network
from skyclass.model.devices import set_threads
from skyclass.model.photometry import standardise
from skyclass.model.preprocess import Preprocess
from skyclass.networks import build
from skyclass.types import Classifier, Float16, Float32
from tests.support.bundles import COLOUR, FIELDS, FUSION, PHOTOMETRY, make_bundle

_: list[type[Classifier]] = [NullClassifier, NetworkClassifier]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("infer") / "model")


@pytest.fixture(scope="module")
def fusion(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("infer") / "fusion", **FUSION)


@pytest.fixture(scope="module")
def photometry() -> Float32:
    """Raw features of 75 sources, one in ten unknown."""
    rng = np.random.default_rng(6)
    values = rng.normal(PHOTOMETRY.mean, PHOTOMETRY.std, (75, 3))
    values[rng.random(values.shape) < 0.1] = np.nan
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def images() -> Float16:
    """Composites of very different brightness, some pixels missing."""
    rng = np.random.default_rng(5)
    x = rng.normal(0, 1, (75, 3, 37, 37)) * rng.uniform(0.1, 5, (75, 1, 1, 1))
    x[rng.random(x.shape) < 0.01] = np.nan
    return x.astype(np.float16)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_row_depends_on_nothing_but_its_image(bundle: Bundle, images: Float16, precision: str) -> None:
    classifier = load_classifier(bundle, "cpu", precision)
    rng = np.random.default_rng(1)
    set_threads(2)
    whole = classifier.predict(images)
    for threads in (1, 2):
        set_threads(threads)
        subsets = [np.arange(1), np.arange(40, 43), rng.permutation(75), rng.choice(75, 33, replace=False)]
        for subset in subsets:
            assert np.array_equal(classifier.predict(images[subset]), whole[subset])
    assert len(np.unique(whole, axis=0)) == 75


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("changes", [FUSION, COLOUR], ids=["fusion", "colour"])
def test_a_row_of_photometry_depends_on_nothing_but_its_source(
    tmp_path: Path, images: Float16, photometry: Float32, changes: dict, precision: str
) -> None:
    classifier = load_classifier(make_bundle(tmp_path / "m", **changes), "cpu", precision)
    rng = np.random.default_rng(1)
    set_threads(2)
    whole, logits = classifier.predict(images, photometry), classifier.logits(images, photometry)
    for threads in (1, 2):
        set_threads(threads)
        for subset in [np.arange(1), np.arange(40, 43), rng.permutation(75), rng.choice(75, 33, replace=False)]:
            assert np.array_equal(classifier.predict(images[subset], photometry[subset]), whole[subset])
            assert np.array_equal(classifier.logits(images[subset], photometry[subset]), logits[subset])
    assert len(np.unique(whole, axis=0)) > 70


@pytest.mark.integration
def test_fusion_is_the_plain_network_on_standardised_photometry(
    fusion: Bundle, images: Float16, photometry: Float32
) -> None:
    network = build("fusion", **fusion.network_options, features=3).eval()
    network.load_state_dict(load_weights(fusion))
    with torch.inference_mode():
        x = Preprocess(fusion.preprocessing)(torch.from_numpy(images))
        expected = network(x, torch.from_numpy(standardise(photometry, PHOTOMETRY))).numpy()
    classifier = load_classifier(fusion, "cpu", "fp32")
    logits, given = classifier.logits(images, photometry), classifier.predict(images, photometry)
    assert logits.dtype == given.dtype == np.float32
    assert np.abs(logits - expected).max() < 1e-4 * np.abs(expected).max()
    powers = np.exp(logits.astype(np.float64) / fusion.temperature + fusion.bias)
    assert np.abs(given - powers / powers.sum(1, keepdims=True)).max() < 1e-6
    assert np.array_equal(given, calibrated(logits, fusion.temperature, fusion.bias))
    assert classifier.predict(images[:0], photometry[:0]).shape == classifier.logits(images[:0], photometry[:0]).shape
    other = classifier.predict(images, photometry[::-1].copy())
    assert (np.abs(other - given).max(1) > 1e-4).mean() > 0.9, "photometry counts"


@pytest.mark.integration
def test_unknown_photometry_counts_as_the_training_mean(fusion: Bundle, images: Float16) -> None:
    classifier = load_classifier(fusion, "cpu", "fp32")
    mean = np.tile(np.array(PHOTOMETRY.mean, np.float32), (75, 1))
    given = classifier.predict(images, np.full_like(mean, np.nan))
    assert np.abs(given.sum(1) - 1).max() < 1e-6
    assert np.abs(given - classifier.predict(images, mean)).max() < 1e-5


def test_a_colour_network_heeds_only_the_number_of_images(tmp_path: Path, images: Float16, photometry: Float32) -> None:
    classifier = load_classifier(make_bundle(tmp_path / "m", **COLOUR), "cpu", "fp32")
    no_pixels = np.empty((75, 0, 0, 0), np.float16)
    assert np.array_equal(classifier.predict(images, photometry), classifier.predict(no_pixels, photometry))


def test_networks_and_photometry_that_do_not_fit_are_refused(
    tmp_path: Path, fusion: Bundle, images: Float16, photometry: Float32
) -> None:
    classifier = load_classifier(fusion, "cpu")
    for wrong in (None, photometry[:, :2], photometry[:10]):
        with pytest.raises(ConfigError, match=r"photometry \(N, 3\): w1-w2, w2-w3, w1.*75 images, not"):
            classifier.predict(images, wrong)
    state = build("fusion", head=[8], features=2).state_dict()
    with pytest.raises(BundleError, match="do not fit"):
        load_classifier(save_bundle(tmp_path / "narrow", FIELDS | FUSION, state), "cpu")
    with pytest.raises(BundleError, match="no photometry settings.*images and photometry"):
        load_classifier(save_bundle(tmp_path / "without", FIELDS | {"network": "fusion"}, state), "cpu")
    with pytest.raises(BundleError, match="has photometry settings.*takes images"):
        load_classifier(save_bundle(tmp_path / "with", FIELDS | {"photometry": PHOTOMETRY}, state), "cpu")
    with pytest.raises(ConfigError, match="network .spectrum. is unknown: use one of"):
        load_classifier(save_bundle(tmp_path / "spectrum", FIELDS | {"network": "spectrum"}, state), "cpu")


@pytest.mark.integration
def test_probabilities_are_calibrated_softmax_of_the_plain_network(bundle: Bundle, images: Float16) -> None:
    network = build(bundle.network, **bundle.network_options).eval()
    network.load_state_dict(load_weights(bundle))
    with torch.inference_mode():
        logits = network(Preprocess(bundle.preprocessing)(torch.from_numpy(images)))
    expected = torch.softmax(logits / bundle.temperature, 1).numpy()
    classifier = load_classifier(bundle.path, "cpu", "fp32")
    given = classifier.predict(images)
    assert given.dtype == np.float32
    assert np.abs(given - expected).max() < 1e-4
    assert np.abs(given.sum(1) - 1).max() < 1e-6
    assert classifier.predict(images[:0]).shape == (0, 3)
    frozen = images.copy()
    frozen.flags.writeable = False  # as arrays arrive from another process
    assert np.array_equal(classifier.predict(frozen), given)
    ignored = np.zeros((len(images), 2), np.float32)  # a network of images alone leaves photometry aside
    assert np.array_equal(classifier.predict(images, ignored), given)


@pytest.mark.integration
def test_bf16_agrees_with_fp32(bundle: Bundle, images: Float16) -> None:
    exact, fast = (load_classifier(bundle, "cpu", p).predict(images) for p in ("fp32", "bf16"))
    assert np.abs(exact - fast).max() < 0.05
    clear = np.sort(exact, axis=1)[:, -1] - np.sort(exact, axis=1)[:, -2] > 0.1
    assert np.array_equal(exact.argmax(1)[clear], fast.argmax(1)[clear])


@pytest.mark.parametrize("size", [37, 64, 100])
def test_preprocessing_fills_resizes_and_normalises(bundle: Bundle, size: int) -> None:
    rng = np.random.default_rng(size)
    x = torch.from_numpy(rng.normal(0, 3, (5, 3, size, size)).astype(np.float16))
    x[0, 0, :4] = float("nan")
    zeroed = torch.where(x.isnan(), 0, x).float()
    px = bundle.preprocessing.input_px
    torch_resize = torch.nn.functional.interpolate(zeroed, size=(px, px), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v)[:, None, None] for v in (bundle.preprocessing.mean, bundle.preprocessing.std))
    out = Preprocess(bundle.preprocessing)(x)
    assert torch.allclose(out, (torch_resize - mean) / std, atol=1e-4)
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_null_classifier_is_deterministic_and_takes_any_batch(images: Float16) -> None:
    null = NullClassifier()
    p = null.predict(images)
    assert p.shape == (75, 3)
    assert np.abs(p.sum(1) - 1).max() < 1e-6
    assert np.array_equal(null.predict(images[10:20]), p[10:20])
    assert len(np.unique(p, axis=0)) == 75


@pytest.mark.integration
@pytest.mark.fault(4)
def test_out_of_memory_halves_the_batch(bundle: Bundle, images: Float16) -> None:
    classifier = load_classifier(bundle, "cpu", "fp32")
    expected = classifier.predict(images)

    def small_memory(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > most:
            raise torch.OutOfMemoryError("pretended")
        return module(batch)

    module, classifier.module = classifier.module, small_memory
    most, classifier.prepared = 128, PreparedNetwork(512, small_memory)
    assert np.abs(classifier.predict(images) - expected).max() < 1e-5
    assert classifier.prepared.micro_batch == 128
    most = 16
    with pytest.raises(torch.OutOfMemoryError):
        classifier.predict(images)


@pytest.mark.integration
@pytest.mark.fault(4)
def test_the_batch_is_found_at_start(bundle: Bundle, images: Float16, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = load_classifier(bundle, "cpu", "fp32").predict(images)
    tried = []

    def small_memory(network: Network, example: list[torch.Tensor], name: str) -> Network:
        tried.append(len(example[0]))
        if tried[-1] > 256:
            raise torch.OutOfMemoryError("pretended")
        return network

    monkeypatch.setattr(infer, "compiled", small_memory)
    monkeypatch.setitem(infer.MICRO_BATCH, "cpu", 1024)
    classifier = load_classifier(bundle, "cpu", "fp32", compile=True)
    assert tried == [1024, 512, 256] and classifier.prepared.micro_batch == 256
    assert np.abs(classifier.predict(images) - expected).max() < 1e-5


@pytest.mark.integration
@pytest.mark.fault(4)
def test_threads_that_run_out_of_memory_together_halve_once(
    bundle: Bundle, images: Float16, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = load_classifier(bundle, "cpu", "fp32")
    expected, module, together = classifier.predict(images), classifier.module, threading.Barrier(4, timeout=60)

    def small_memory(batch: torch.Tensor) -> torch.Tensor:
        if len(batch) > 128:
            together.wait()
            raise torch.OutOfMemoryError("pretended")
        return module(batch)

    classifier.module, classifier.prepared = small_memory, PreparedNetwork(256, small_memory)
    prepared, prepare = [], classifier._prepare_largest
    monkeypatch.setattr(classifier, "_prepare_largest", lambda size: prepared.append(size) or prepare(size))
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(classifier.predict, [images] * 4))
    assert prepared == [128] and classifier.prepared.micro_batch == 128
    assert all(np.abs(p - expected).max() < 1e-5 for p in said)


@pytest.mark.integration
def test_refusals_name_the_way_out(bundle: Bundle, images: Float16) -> None:
    with pytest.raises(ConfigError, match=r"\(N, 3, 37, 37\) of w1, w2, w3, not \(75, 2, 37, 37\)"):
        load_classifier(bundle, "cpu").predict(images[:, :2])
    with pytest.raises(ConfigError, match=r"takes composites in float16, not float32: make them from cutouts in DN"):
        load_classifier(bundle, "cpu").predict(images.astype(np.float32))
    with pytest.raises(ConfigError, match="choose auto, fp32, bf16"):
        load_classifier(bundle, "cpu", "fp8")
    with pytest.raises(ConfigError, match="choose auto, cpu"):
        load_classifier(bundle, "tpu")
    with pytest.raises(ConfigError, match="choose cpu"):
        load_classifier(bundle, "cuda:99")
    with pytest.raises(BundleError, match="same files"):
        cached_classifier(str(bundle.path), "0" * 64)
    assert cached_classifier(str(bundle.path), bundle.digest, "cpu") is cached_classifier(
        str(bundle.path), bundle.digest, "cpu"
    )


@pytest.mark.parametrize("shape", [(2, 3, 80, 80), (2, 1, 37, 37), (3, 37, 37), (2,)])
def test_composites_of_another_shape_are_told_with_the_way_to_make_them(bundle: Bundle, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        load_classifier(bundle, "cpu").predict(np.zeros(shape, np.float16))
    assert str(caught.value) == (
        f"{bundle.model_id} takes composites (N, 3, 37, 37) of w1, w2, w3, not {shape}: write cutouts of 37 pixels "
        "with `skyclass cutouts --size 37px --bands w1,w2,w3`, and make composites of them with "
        "skyclass.images.composite.composite(cutouts, zero_point_mag, bundle.composite); predict itself resizes them "
        f"to the {bundle.preprocessing.input_px} pixels of the network"
    )


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    other = save_bundle(tmp_path / "m", FIELDS, build("iicnet", head=[7]).state_dict())
    with pytest.raises(BundleError, match="do not fit"):
        load_classifier(other, "cpu")


@pytest.mark.skipif(not platform.libc_ver()[0], reason="glibc only")
def test_what_a_batch_has_freed_is_kept() -> None:
    """In a process of its own: a block above glibc's first threshold comes from the heap once memory is kept."""
    program = """
import ctypes, resource, sys
from skyclass.model.malloc import keep_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
if sys.argv[1:]: keep_memory()
first = libc.malloc(2**24); libc.memset(ctypes.c_void_p(first), 1, 2**24); libc.free(first)
resident = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
print(resident)
"""
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    kept, given_back = (
        int(
            subprocess.run(
                [sys.executable, "-c", program, *how], env=own, stdout=subprocess.PIPE, text=True, check=True
            ).stdout
        )
        for how in (["keep"], [])
    )
    assert kept - given_back > 2**23
