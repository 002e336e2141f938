"""SIMULATED optical spectra of galaxies, quasars and stars, for the network of the paper's row "spectra".

Nothing here was observed. A spectrum is a smooth continuum with lines of textbook wavelengths and
assumed strengths, on the range of a survey spectrograph at a third of its resolution, with noise:

    galaxy  old and young populations: 4000 A break, metal and Balmer absorption, nebular lines, 0.005 < z < 0.8
    quasar  power law, broad and narrow lines, iron, Lyman-alpha forest, reddening, host light, 0.1 < z < 4
    star    blackbody of 2,800 to 25,000 K with the absorption of its type, |v| < 300 km/s or so

Line centres: rest wavelengths in Angstrom as in Vanden Berk et al. 2001 (AJ 122, 549) and the SDSS line
table. Strengths, widths and mixtures are assumptions, chosen so that the classes overlap where real ones
do: quiescent galaxies at low redshift beside K stars, weak-lined quasars beside hot stars, Seyferts between.
The signal to noise of a pixel is log-normal with median `MEDIAN_SNR`: what is faint is hard.
"""

from __future__ import annotations

from typing import cast

import numpy as np

from skyclass.errors import ConfigError
from skyclass.mock.counts import natural_counts
from skyclass.mock.population import MIXES, Mix
from skyclass.types import DEFAULT_CLASSES, Float32, Float64, Int64

LENGTH = 1024
WAVELENGTH_A: Float64 = np.geomspace(3800.0, 9200.0, LENGTH)
"""Observed wavelength of each pixel, logarithmic: 259 km/s a pixel."""
RESOLUTION_SIGMA_KM_S = 220.0
LIGHT_KM_S = 299_792.458
SECOND_RADIATION_A_K = 1.438777e8
NATURAL_DIRECTION_DEG = (236.0, 42.0)
"""Galactic longitude and latitude of the default position of `skyclass mock`."""
NATURAL_W1_MAG = 15.5
"""Brightness whose natural shares of the classes a "natural" sample has: about as faint as such spectra go."""
MEDIAN_SNR, SNR_SCATTER, SNR_RANGE = 8.0, 0.7, (1.0, 60.0)
CHUNK = 1024

Lines = tuple[tuple[float, float], ...]
"""(rest wavelength in A, equivalent width in A) of each line; absorption and emission are both positive."""

METALS: Lines = ((3933.7, 7.0), (3968.5, 6.0), (4304.0, 5.0), (5175.0, 5.5), (5270.0, 2.5), (5335.0, 2.0),
                 (5892.9, 3.5), (8498.0, 1.5), (8542.1, 3.5), (8662.1, 2.8))  # fmt: skip
BALMER: Lines = ((3797.9, 7.0), (3835.4, 8.0), (3889.0, 9.0), (3970.1, 10.0), (4101.7, 10.0), (4340.5, 10.0),
                 (4861.3, 10.0), (6562.8, 8.0))  # fmt: skip
TITANIUM_OXIDE: Lines = ((4955.0, 25.0), (5170.0, 30.0), (5450.0, 30.0), (5950.0, 45.0), (6250.0, 45.0),
                         (6750.0, 60.0), (7150.0, 90.0), (7700.0, 80.0), (8450.0, 60.0))  # fmt: skip
STAR_FORMING: Lines = ((3727.4, 18.0), (4101.7, 1.5), (4340.5, 3.0), (4861.3, 7.0), (4958.9, 3.0), (5006.8, 9.0),
                       (6548.0, 3.5), (6562.8, 28.0), (6583.5, 10.0), (6716.4, 5.0), (6730.8, 4.0))  # fmt: skip
NARROW: Lines = ((3425.9, 2.0), (3727.4, 5.0), (3868.8, 2.5), (4861.3, 2.0), (4958.9, 6.0), (5006.8, 18.0),
                 (6548.0, 4.0), (6562.8, 10.0), (6583.5, 12.0), (6716.4, 3.5), (6730.8, 3.5))  # fmt: skip
BROAD: Lines = ((1033.0, 12.0), (1215.7, 80.0), (1240.1, 18.0), (1399.0, 9.0), (1549.1, 26.0), (1857.0, 3.0),
                (1908.7, 22.0), (2798.8, 32.0), (4101.7, 6.0), (4340.5, 13.0), (4861.3, 46.0), (5875.6, 5.0),
                (6562.8, 190.0))  # fmt: skip
IRON: Lines = ((2080.0, 6.0), (2400.0, 25.0), (2560.0, 30.0), (3200.0, 25.0), (4570.0, 25.0), (5270.0, 22.0))
IRON_SIGMA_KM_S = 5000.0
OXIDE_SIGMA_KM_S = 2600.0


def simulate_spectra(n: int, seed: int, mix: Mix = "balanced") -> tuple[Float32, Int64]:
    """Return SIMULATED spectra (n, 1024) float32 and their labels (n,) int64, indices into `DEFAULT_CLASSES`.

    Each spectrum has mean 0 and standard deviation 1; its pixels lie at `WAVELENGTH_A`. `mix` is "balanced",
    a third each, or "natural", the simulated sky's shares at `NATURAL_W1_MAG`. The same n, seed and mix
    give the same bytes. Raises `ConfigError` for an unknown mix or a negative n.
    """
    if mix not in MIXES or n < 0:
        raise ConfigError(
            f"simulated spectra: n={n!r}, mix={mix!r}: n must be 0 or more, mix one of {', '.join(MIXES)}"
        )
    rng = np.random.default_rng(seed)
    labels = _labels(n, mix, rng)
    spectra = np.empty((n, LENGTH), np.float32)
    for start in range(0, n, CHUNK):
        part = slice(start, start + CHUNK)
        spectra[part] = _normalised(_noisy(_fluxes(labels[part], rng), rng))
    return spectra, labels


def _labels(n: int, mix: str, rng: np.random.Generator) -> Int64:
    if mix == "natural":
        shares = natural_counts(*NATURAL_DIRECTION_DEG).fractions([NATURAL_W1_MAG])[0]
        return rng.choice(len(DEFAULT_CLASSES), size=n, p=shares).astype(np.int64)
    return cast(Int64, rng.permutation(np.arange(n, dtype=np.int64) % len(DEFAULT_CLASSES)))


def _fluxes(labels: Int64, rng: np.random.Generator) -> Float64:
    """Return noiseless spectra (N, L) with mean 1, of the class of each label."""
    flux = np.empty((len(labels), LENGTH))
    for label, draw in enumerate((galaxies, quasars, stars)):
        rows = np.flatnonzero(labels == label)
        flux[rows] = draw(len(rows), rng)
    return flux


def galaxies(n: int, rng: np.random.Generator) -> Float64:
    """Return noiseless simulated galaxy spectra (n, L) with mean 1."""
    z = 0.005 + 0.795 * rng.beta(1.3, 3.0, n)
    rest = _rest(z)
    young = np.where(rng.random(n) < 0.4, rng.uniform(0, 0.08, n), rng.beta(1.5, 2.0, n))[:, None]
    sigma = np.hypot(rng.uniform(60, 280, n), RESOLUTION_SIGMA_KM_S)[:, None]
    metals = _absorbed(METALS, rest, sigma, rng.lognormal(0, 0.2, (n, 1)))
    old = _blackbody(rest, rng.uniform(4300, 5000, n)) * _step(rest, 4000, rng.uniform(1.5, 2.1, n)) * metals
    hot = _blackbody(rest, rng.uniform(7500, 14000, n)) * _step(rest, 3720, rng.uniform(1.1, 1.8, n))
    hot = hot * _absorbed(BALMER, rest, 1.6 * sigma, rng.uniform(0.3, 0.8, (n, 1)))
    flux = _unit((1 - young) * _unit(old) + young * _unit(hot)) * _dust(rest, rng.exponential(0.25, n) * young[:, 0])
    seyfert = (rng.random((n, 1)) < 0.08) * rng.lognormal(0.3, 0.6, (n, 1))
    forming = 2.2 * young * rng.lognormal(0, 0.5, (n, 1))
    lines = _depth(STAR_FORMING, rest, sigma, forming) + _depth(NARROW, rest, 1.3 * sigma, seyfert)
    return _unit(flux * (1 + lines))


def quasars(n: int, rng: np.random.Generator) -> Float64:
    """Return noiseless simulated quasar spectra (n, L) with mean 1."""
    z = np.clip(0.1 + rng.gamma(2.6, 0.6, n), 0.1, 4.0)
    rest = _rest(z)
    power = (rest / 3000) ** -rng.normal(1.5, 0.35, (n, 1))
    width = rng.lognormal(np.log(1900), 0.35, (n, 1))  # sigma: 4,500 km/s full width at half maximum
    strength = rng.lognormal(-0.1, 0.45, (n, 1))
    lines = _depth(BROAD, rest, width, strength)
    lines += _depth(NARROW, rest, 300.0, rng.lognormal(-0.3, 0.7, (n, 1)))
    lines += _depth(IRON, rest, IRON_SIGMA_KM_S, strength * rng.lognormal(0, 0.4, (n, 1)))
    flux = _unit(power * (1 + lines) * _forest(rest, z) * _dust(rest, rng.exponential(0.12, n)))
    return _unit(flux + _host_share(z, rng) * _old_galaxies(rest))


def stars(n: int, rng: np.random.Generator) -> Float64:
    """Return noiseless simulated star spectra (n, L) with mean 1, most of them cooler than the Sun."""
    velocity = rng.normal(0, 90, n)
    rest = _rest(velocity / LIGHT_KM_S)
    kelvin = _temperatures(n, rng)[:, None]
    cool = 1 / (1 + np.exp((kelvin - 5600) / 500))
    oxide = 1 / (1 + np.exp((kelvin - 3700) / 200))
    warm = np.exp(-0.5 * (np.log(kelvin / 9000) / 0.28) ** 2) + 0.04
    wide = np.where(rng.random((n, 1)) < 0.03, 4.0, 1.0)  # the few are white dwarfs
    flux = _blackbody(rest, kelvin[:, 0]) * _step(rest, 3720, 1 + 0.8 * warm[:, 0])
    flux = flux * _absorbed(METALS, rest, RESOLUTION_SIGMA_KM_S, 0.25 + cool * rng.lognormal(0, 0.2, (n, 1)))
    flux = flux * _absorbed(BALMER, rest, 2 * wide * RESOLUTION_SIGMA_KM_S, 1.1 * wide * warm)
    flux = flux * _absorbed(TITANIUM_OXIDE, rest, OXIDE_SIGMA_KM_S, oxide)
    active = (rng.random((n, 1)) < 0.15) * oxide * rng.lognormal(1.0, 0.5, (n, 1))  # flaring M dwarfs
    flux = flux * (1 + _depth(((6562.8, 1.5), (4861.3, 1.0)), rest, RESOLUTION_SIGMA_KM_S, active))
    return _unit(flux * _dust(rest, rng.exponential(0.2, n)))


def _old_galaxies(rest: Float64) -> Float64:
    """Return the old population in which a low-redshift quasar sits, (N, L) with mean 1, at rest wavelengths."""
    flux = _blackbody(rest, np.full(len(rest), 4600.0)) * _step(rest, 4000, np.full(len(rest), 1.8))
    return _unit(flux * _absorbed(METALS, rest, 300.0, 1.0))


def _host_share(z: Float64, rng: np.random.Generator) -> Float64:
    """Return the light of the host (N, 1) beside the nucleus: it fades as the quasar lies farther."""
    return (rng.lognormal(-1.0, 0.8, len(z)) * np.exp(-((z / 0.6) ** 2)))[:, None]


def _temperatures(n: int, rng: np.random.Generator) -> Float64:
    """Return effective temperatures (n,) in K: M and K dwarfs, giants and Sun-like stars, and a hot few."""
    kind = rng.choice(4, size=n, p=(0.30, 0.38, 0.24, 0.08))
    low, high = np.array([[2800, 3900], [3900, 5300], [5300, 7200], [7200, 25000]], np.float64)[kind].T
    return cast(Float64, low * (high / low) ** rng.random(n))


def _rest(z: Float64) -> Float64:
    """Return the rest wavelength in A of each pixel (N, L) at redshifts (N,)."""
    return WAVELENGTH_A / (1 + z[:, None])


def _blackbody(rest: Float64, kelvin: Float64) -> Float64:
    """Return B_lambda (N, L) at temperatures (N,), relative to 5500 A."""
    t = kelvin[:, None]
    planck = [(wave / 5500) ** -5 / np.expm1(SECOND_RADIATION_A_K / (wave * t)) for wave in (rest, np.array(5500.0))]
    return planck[0] / planck[1]


def _step(rest: Float64, edge_a: float, ratio: Float64) -> Float64:
    """Return a smooth step (N, L): 1 redward of `edge_a`, 1 / ratio blueward."""
    blue = 1 / (1 + np.exp(np.clip((rest - edge_a) / 25, -50, 50)))
    return 1 - blue * (1 - 1 / ratio[:, None])


def _dust(rest: Float64, tau: Float64) -> Float64:
    """Return transmission (N, L) for optical depths (N,) at 5500 A, of Charlot and Fall 2000's slope -0.7."""
    return cast(Float64, np.exp(-tau[:, None] * (rest / 5500) ** -0.7))


def _forest(rest: Float64, z: Float64) -> Float64:
    """Return the mean transmission (N, L) of the Lyman-alpha forest (Madau 1995's effective depth), and no
    light beyond the Lyman limit."""
    depth = 0.0036 * (rest * (1 + z[:, None]) / 1215.67) ** 3.46
    return cast(Float64, np.where(rest < 1215.67, np.exp(-depth), 1.0) * (rest > 911.8))


def _depth(lines: Lines, rest: Float64, sigma_km_s: Float64 | float, strength: Float64 | float) -> Float64:
    """Return the sum of gaussian lines (N, L) in units of the continuum."""
    total = np.zeros_like(rest)
    for centre, width in lines:
        sigma = centre * np.asarray(sigma_km_s) / LIGHT_KM_S
        total += width / (np.sqrt(2 * np.pi) * sigma) * np.exp(-0.5 * ((rest - centre) / sigma) ** 2)
    return strength * total


def _absorbed(lines: Lines, rest: Float64, sigma_km_s: Float64 | float, strength: Float64 | float) -> Float64:
    """Return what gaussian lines of optical depth let through, (N, L)."""
    return cast(Float64, np.exp(-_depth(lines, rest, sigma_km_s, strength)))


def _noisy(flux: Float64, rng: np.random.Generator) -> Float64:
    """Return spectra (N, L) with the noise of sky and detector, and a flux calibration that is off by a slope."""
    n = len(flux)
    x = np.linspace(-1, 1, LENGTH)
    slope = np.exp(rng.normal(0, 0.08, (n, 1)) * x + rng.normal(0, 0.04, (n, 1)) * x**2)
    snr = np.clip(rng.lognormal(np.log(MEDIAN_SNR), SNR_SCATTER, (n, 1)), *SNR_RANGE)
    return flux * slope + rng.standard_normal(flux.shape) * _sky_noise() / snr


def _sky_noise() -> Float64:
    """Return relative noise (L,): worse at both ends, and in the forest of hydroxyl lines of the night sky."""
    blue = 1.2 * np.exp(-(WAVELENGTH_A - 3800) / 350)
    hydroxyl = np.where(WAVELENGTH_A > 7200, np.abs(np.sin(WAVELENGTH_A / 19)) ** 6, 0.0)
    oxygen = 3 * np.exp(-0.5 * ((WAVELENGTH_A - 5577) / 4) ** 2)
    return cast(Float64, 1 + blue + hydroxyl + oxygen + 0.4 * np.exp((WAVELENGTH_A - 9200) / 400))


def _unit(flux: Float64) -> Float64:
    """Return spectra (N, L) with mean 1."""
    return cast(Float64, flux / flux.mean(1, keepdims=True))


def _normalised(flux: Float64) -> Float32:
    """Return spectra (N, L) float32 with mean 0 and standard deviation 1."""
    centred = flux - flux.mean(1, keepdims=True)
    return cast(Float32, (centred / centred.std(1, keepdims=True)).astype(np.float32))
