"""Simulated spectra: repeatable, normalised, shaped like their class, neither trivial nor hopeless."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks.paper.spectra import LENGTH, WAVELENGTH_A, _depth, galaxies, quasars, simulate_spectra, stars
from benchmarks.paper.spectrum import SpectrumNet
from skyclass.errors import ConfigError
from skyclass.types import Float64


@pytest.fixture(scope="module")
def sample() -> tuple[np.ndarray, np.ndarray]:
    return simulate_spectra(1800, seed=1)


@pytest.mark.integration
def test_shape_share_and_scale(sample: tuple[np.ndarray, np.ndarray]) -> None:
    spectra, labels = sample
    assert spectra.shape == (1800, LENGTH) and spectra.dtype == np.float32
    assert labels.dtype == np.int64 and np.array_equal(np.bincount(labels), [600, 600, 600])
    assert np.isfinite(spectra).all()
    np.testing.assert_allclose(spectra.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(spectra.std(1), 1, atol=1e-5)


def test_the_seed_decides(sample: tuple[np.ndarray, np.ndarray]) -> None:
    a, b, other = simulate_spectra(30, 5), simulate_spectra(30, 5), simulate_spectra(30, 6)
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))
    assert not np.array_equal(a[0], other[0])
    assert simulate_spectra(0, 1)[0].shape == (0, LENGTH)


@pytest.mark.integration
def test_natural_mix_has_few_quasars() -> None:
    share = np.bincount(simulate_spectra(1500, 3, mix="natural")[1], minlength=3) / 1500
    assert share[1] < 0.03 < 0.2 < min(share[0], share[2])


def test_noiseless_spectra_are_positive_and_look_like_their_class() -> None:
    rng = np.random.default_rng(4)
    galaxy, quasar, star = (draw(200, rng) for draw in (galaxies, quasars, stars))
    assert min(flux.min() for flux in (galaxy, quasar, star)) >= 0
    for flux in (galaxy, quasar, star):
        np.testing.assert_allclose(flux.mean(1), 1)
    calcium, beside = band(star, 3925, 3945), band(star, 4000, 4060)
    assert np.median(calcium / beside) < 0.8, "most stars are cool and show calcium"
    red_to_blue = [np.median(band(flux, 7500, 8500) / band(flux, 4000, 5000)) for flux in (galaxy, quasar, star)]
    assert red_to_blue[1] < 0.7 < 1 < red_to_blue[0]


def band(flux: Float64, low_a: float, high_a: float) -> Float64:
    return flux[:, (low_a < WAVELENGTH_A) & (high_a > WAVELENGTH_A)].mean(1)


def test_a_line_has_its_equivalent_width() -> None:
    wave = np.linspace(4000.0, 6000.0, 20_001)[None]
    depth = _depth(((5000.0, 7.0),), wave, 300.0, 2.0)
    assert depth.sum() * 0.1 == pytest.approx(14.0, rel=1e-3)
    assert wave[0, depth[0].argmax()] == 5000.0


def test_a_straight_line_does_not_solve_it(sample: tuple[np.ndarray, np.ndarray]) -> None:
    """Least squares on spectra thinned to 64 pixels: far above chance, far from perfect."""
    spectra, labels = sample
    x = np.c_[spectra.reshape(len(spectra), 64, -1).mean(2), np.ones(len(spectra))].astype(np.float64)
    weights = np.linalg.lstsq(x[:1200], np.eye(3)[labels[:1200]], rcond=None)[0]
    accuracy = ((x[1200:] @ weights).argmax(1) == labels[1200:]).mean()
    assert 0.5 < accuracy < 0.95


@pytest.mark.integration
def test_the_network_learns_from_them(sample: tuple[np.ndarray, np.ndarray]) -> None:
    spectra, labels = (torch.from_numpy(a) for a in sample)
    torch.manual_seed(0)
    network = SpectrumNet(widths=(16, 32, 64, 64))
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for rows in torch.randperm(1500).split(32) + torch.randperm(1500).split(32):
        optimiser.zero_grad()
        nn.functional.cross_entropy(network(spectra[rows]), labels[rows]).backward()
        optimiser.step()
    with torch.inference_mode():
        accuracy = (network.eval()(spectra[1500:]).argmax(1) == labels[1500:]).float().mean()
    assert accuracy > 0.75


@pytest.mark.integration
@torch.inference_mode()
@pytest.mark.parametrize("length", [32, 100, 1024])
def test_a_spectrum_may_have_any_length(length: int) -> None:
    network, spectra = SpectrumNet().eval(), torch.randn(2, length)
    assert network(spectra).shape == (2, 3)
    torch.testing.assert_close(network.head[-1](network.embed(spectra)), network(spectra))


def test_mistakes_name_the_choices() -> None:
    with pytest.raises(ConfigError, match="widths"):
        SpectrumNet(widths=())
    with pytest.raises(ConfigError, match="natural, balanced"):
        simulate_spectra(3, 0, mix="even")  # type: ignore[arg-type]
