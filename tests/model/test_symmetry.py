"""Bundles whose output is averaged over the orientations of an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from skyclass.errors import ConfigError
from skyclass.model.bundle import load_bundle, load_weights, save_bundle
from skyclass.model.classifier import load_classifier
from skyclass.training.evaluation.calibration import fields_of
from tests.support.bundles import FUSION, make_bundle


def images(n: int = 5) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(n, 3, 37, 37)).astype(np.float16)


def turned(x: np.ndarray) -> list[np.ndarray]:
    """Return images in eight orientations."""
    return [np.ascontiguousarray(np.rot90(y, k, (2, 3))) for y in (x, x[:, :, :, ::-1]) for k in range(4)]


def test_the_logits_are_the_mean_over_eight_orientations() -> None:
    one = load_bundle("iicnet-mock")
    plain = load_classifier(one, "cpu", "fp32")
    whole = load_classifier(replace(one, symmetry=8), "cpu", "fp32")
    expected = np.mean([plain.logits(x) for x in turned(images())], axis=0)
    np.testing.assert_allclose(whole.logits(images()), expected, rtol=1e-3, atol=1e-3)
    answers = [whole.predict(x) for x in turned(images())]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=1e-4)
    assert np.abs(plain.predict(turned(images())[1]) - plain.predict(images())).max() > 0.01
    assert whole.predict_and_embed(images())[1].shape == plain.predict_and_embed(images())[1].shape


def test_photometry_is_the_same_in_each_orientation(tmp_path: Path) -> None:
    fusion = make_bundle(tmp_path / "fusion", **FUSION)
    photometry = np.random.default_rng(1).normal(size=(5, len(fusion.photometry.features))).astype(np.float32)
    plain, whole = (load_classifier(replace(fusion, symmetry=n), "cpu", "fp32") for n in (1, 8))
    expected = np.mean([plain.logits(x, photometry) for x in turned(images())], axis=0)
    np.testing.assert_allclose(whole.logits(images(), photometry), expected, rtol=1e-4, atol=1e-5)


def test_a_bundle_keeps_its_symmetry(bundle: Path, tmp_path: Path) -> None:
    one = load_bundle(bundle)
    made = save_bundle(tmp_path / "eight", fields_of(one) | {"symmetry": 8}, load_weights(one))
    assert load_bundle(tmp_path / "eight") == made and made.symmetry == 8 and made.digest != one.digest
    with pytest.raises(ConfigError, match="symmetry = 4: choose 1 or 8"):
        replace(one, symmetry=4)
