"""Compare the SIMULATED sky with real fields: can a classifier tell real sources from simulated ones?

    python -m benchmarks.real_sky FIELDS --sky 2010H=sky-a --sky 2010ai=sky-b

FIELDS holds real cutouts NAME-w1.fits, NAME-w2.fits, NAME-w3.fits. A sky is the tile that `skyclass mock --center` made
at the position of the field; a field may have several, of different seeds. Sources are detected in the same way in the
real field and in boxes of its size near its place on the simulated tiles, and each real one is matched with simulated
ones of equal W1 flux. A random forest on pixel statistics (or on the embedding of a network) is fitted on one field and
tested on the other.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import matplotlib
import numpy as np
import torch
from astropy.io import fits
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from photutils.detection import DAOStarFinder
from scipy.optimize import curve_fit
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score

from skyclass.images.composite import composite
from skyclass.model.bundle import load_bundle, load_weights
from skyclass.model.preprocess import Preprocess
from skyclass.networks import build
from skyclass.text import counted

matplotlib.use("Agg")

Float = NDArray[np.float64]
BANDS = ("w1", "w2", "w3")
HALF_PX = 18
FWHM_PX = 6.2
DETECTION_SIGMA = 5.0
APERTURE_PX = 5.0
NEAR_PX = 500
TILE_CENTRE_PX = 2048
MATCHES = 5
FEWEST = 8
N_BOOTSTRAP = 1000
KINDS = ("pixel statistics", "embedding")
STATISTICS = (
    "p1", "p10", "median", "p90", "p99", "std", "peak", "concentration", "xx", "yy", "xy", "noise", "ac1", "ac4",
)  # fmt: skip


@dataclass(frozen=True)
class Detections:
    """N sources of an image: cutouts (N, 3, 37, 37) in DN less the sky of their border, and W1 aperture fluxes (N,)."""

    cutouts: Float
    flux: Float

    def take(self, rows: NDArray[np.int64]) -> Detections:
        """Return some of the sources."""
        return Detections(self.cutouts[rows], self.flux[rows])


Pair = tuple[Detections, Detections]


@dataclass(frozen=True)
class Pool:
    """All simulated sources of a field: features (N, D), W1 fluxes (N,) and the index (N,) of their box."""

    features: Float
    flux: Float
    box: NDArray[np.int64]

    def pair(self, rows: NDArray[np.int64]) -> tuple[Float, Float]:
        """Return the features of rows of one box, and of the sources of other boxes that match them in flux."""
        others = np.flatnonzero(self.box != self.box[rows[0]])
        matches = others[matched_rows(self.flux[rows], self.flux[others], MATCHES)]
        return self.features[rows], self.features[matches]


def lower_scatter(image: Float) -> float:
    """Return the median minus the 16th percentile of the pixels, which sources hardly change."""
    low, middle = np.nanpercentile(image, [15.865, 50.0])
    return float(middle - low)


def pixel_noise(image: Float) -> float:
    """Return the robust scatter of the second differences, which only the noise on the scale of a pixel changes."""
    second = 4 * image[1:-1, 1:-1] - image[:-2, 1:-1] - image[2:, 1:-1] - image[1:-1, :-2] - image[1:-1, 2:]
    return float(1.4826 * np.nanmedian(np.abs(second)))


def detected_pixels(images: Float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the 0-based pixels x, y of the sources that DAOStarFinder detects in W1 of images (3, rows, columns)."""
    w1 = np.nan_to_num(images[0], nan=float(np.nanmedian(images[0]))) - np.nanmedian(images[0])
    finder = DAOStarFinder(threshold=DETECTION_SIGMA * pixel_noise(images[0]), fwhm=FWHM_PX)
    table = finder(w1)
    if table is None:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    x_column, y_column = ("x_centroid", "y_centroid") if "x_centroid" in table.colnames else ("xcentroid", "ycentroid")
    return np.rint(np.asarray(table[x_column])).astype(int), np.rint(np.asarray(table[y_column])).astype(int)


def detect(images: Float) -> Detections:
    """Return the sources that DAOStarFinder detects in W1, whose box lies on the images (3, rows, columns).

    A source whose flux above the sky of its border is not positive is left out.
    """
    x, y = detected_pixels(images)
    if not len(x):
        return Detections(np.zeros((0, 3, 2 * HALF_PX + 1, 2 * HALF_PX + 1)), np.zeros(0))
    rows, columns = images.shape[1:]
    inside = (x >= HALF_PX) & (y >= HALF_PX) & (x < columns - HALF_PX) & (y < rows - HALF_PX)
    boxes = [images[:, j - HALF_PX : j + HALF_PX + 1, i - HALF_PX : i + HALF_PX + 1] for i, j in zip(x, y, strict=True)]
    cutouts = np.array([box for box, good in zip(boxes, inside, strict=True) if good])
    whole = np.isfinite(cutouts).all((1, 2, 3))
    cutouts = cutouts[whole] - _border_sky(cutouts[whole])
    offset = np.arange(-HALF_PX, HALF_PX + 1)
    aperture = np.hypot(offset[:, None], offset[None, :]) <= APERTURE_PX
    flux = cutouts[:, 0][:, aperture].sum(1)
    return Detections(cutouts, flux).take(np.flatnonzero(flux > 0))


def _border_sky(cutouts: Float) -> Float:
    """Return the median of the outer three pixels of each band, (N, 3, 1, 1)."""
    inner = np.zeros(cutouts.shape[-2:], np.bool_)
    inner[3:-3, 3:-3] = True
    return np.asarray(np.median(cutouts[..., ~inner], axis=-1))[..., None, None]


def pixel_statistics(cutouts: Float) -> Float:
    """Return (N, 42) statistics: `STATISTICS` of W1, W2 and W3."""
    return np.concatenate([_band_statistics(cutouts[:, band]) for band in range(len(BANDS))], axis=1)


def _band_statistics(cutouts: Float) -> Float:
    """Return (N, 14) statistics of the cutouts (N, S, S) of a band."""
    flat = cutouts.reshape(len(cutouts), -1)
    offset = np.arange(-HALF_PX, HALF_PX + 1)
    x, y = np.broadcast_to(offset[None, :], cutouts.shape[1:]), np.broadcast_to(offset[:, None], cutouts.shape[1:])
    near = np.hypot(x, y) <= 8
    weight = np.where(near, cutouts.clip(0), 0)
    total = np.maximum(weight.sum((1, 2)), 1e-9)
    inner = np.where(np.hypot(x, y) <= 3, cutouts, 0).sum((1, 2))
    deviation = cutouts - cutouts.mean((1, 2), keepdims=True)
    power = (deviation**2).mean((1, 2))
    second = 4 * cutouts[:, 1:-1, 1:-1] - cutouts[:, :-2, 1:-1] - cutouts[:, 2:, 1:-1]
    second = second - cutouts[:, 1:-1, :-2] - cutouts[:, 1:-1, 2:]
    lags = [(deviation[:, :, lag:] * deviation[:, :, :-lag]).mean((1, 2)) / power for lag in (1, 4)]
    return np.column_stack([
        *np.percentile(flat, [1, 10, 50, 90, 99], axis=1), flat.std(1), cutouts[:, HALF_PX, HALF_PX], inner / total,
        *((weight * form).sum((1, 2)) / total for form in (x * x, y * y, x * y)),
        np.median(np.abs(second), axis=(1, 2)), *lags,
    ])  # fmt: skip


def matched_rows(flux: Float, simulated_flux: Float, n: int) -> NDArray[np.int64]:
    """Return the rows of n simulated sources for each flux: those of the closest W1 flux, each at most once."""
    free = np.ones(len(simulated_flux), np.bool_)
    log_flux = np.log(simulated_flux)
    rows: list[int] = []
    for value in np.sort(flux)[::-1]:
        distance = np.where(free, np.abs(log_flux - np.log(value)), np.inf)
        closest = np.argsort(distance, kind="stable")[:n]
        free[closest] = False
        rows += closest.tolist()
    return np.array(rows, np.int64)


def auc_across(fields: Sequence[tuple[Float, Float]], seed: int = 1) -> tuple[float, float, float]:
    """Return the AUC and its 95 % interval of telling real (first) from simulated features of two fields.

    The random forest is fitted on one field and tested on the other. The AUC is the mean of both directions, the
    interval a bootstrap over the tested sources.
    """
    tested = tested_across(fields, seed)
    rng = np.random.default_rng(seed)
    samples = [_mean_auc(tested, rng) for _ in range(N_BOOTSTRAP)]
    low, high = np.percentile(samples, [2.5, 97.5])
    return _mean_auc(tested, None), float(low), float(high)


def tested_across(fields: Sequence[tuple[Float, Float]], seed: int) -> list[tuple[Float, NDArray[np.int64]]]:
    """Return scores and labels (1 real, 0 simulated) of the sources of each field, by a forest fitted on the other."""
    tested = []
    for train, test in ((0, 1), (1, 0)):
        features, labels = _labelled(*fields[train])
        forest = RandomForestClassifier(500, min_samples_leaf=5, class_weight="balanced", random_state=seed)
        forest.fit(features, labels)
        features, labels = _labelled(*fields[test])
        tested.append((forest.predict_proba(features)[:, 1], labels))
    return tested


def null_aucs(fields: Sequence[Pool], seed: int = 1) -> list[float]:
    """Return the AUC with one simulated box of each field in the place of the real field, for each box in turn.

    These are the AUCs that a perfect simulation would have. They scatter more than a bootstrap over the tested sources
    says, since the forest is fitted on one field of a few dozen sources. Boxes with fewer than `FEWEST` are left out.
    """
    aucs = []
    for k in range(min(int(pool.box.max()) + 1 for pool in fields)):
        chosen = [np.flatnonzero(pool.box == k) for pool in fields]
        if min(map(len, chosen)) >= FEWEST:
            pairs = [pool.pair(rows) for pool, rows in zip(fields, chosen, strict=True)]
            aucs.append(_mean_auc(tested_across(pairs, seed), None))
    return aucs


def _labelled(real: Float, simulated: Float) -> tuple[Float, NDArray[np.int64]]:
    return np.concatenate([real, simulated]), np.repeat([1, 0], [len(real), len(simulated)])


def _mean_auc(tested: Sequence[tuple[Float, NDArray[np.int64]]], rng: np.random.Generator | None) -> float:
    """Return the mean AUC, of a bootstrap sample of each class if there is a generator."""
    values = []
    for score, labels in tested:
        groups = [np.flatnonzero(labels == label) for label in (0, 1)]
        if rng is not None:
            groups = [rng.choice(group, len(group)) for group in groups]
        rows = np.concatenate(groups)
        values.append(roc_auc_score(labels[rows], score[rows]))
    return float(np.mean(values))


def star_shapes(image: Float) -> list[tuple[float, float, float]]:
    """Return (FWHM of the major axis in arcsec, axis ratio, angle in degrees from +x to +y) of bright point sources."""
    level, sigma = float(np.nanmedian(image)), pixel_noise(image)
    table = DAOStarFinder(threshold=40 * sigma, fwhm=FWHM_PX)(np.nan_to_num(image - level))
    shapes = []
    for row in table if table is not None else ():
        x, y = (round(float(row[name])) for name in table.colnames[1:3])
        stamp = image[y - 7 : y + 8, x - 7 : x + 8]
        if min(x, y) < 7 or stamp.shape != (15, 15) or not np.isfinite(stamp).all():
            continue
        fitted = _fit_gaussian(stamp, level)
        if fitted is not None:
            shapes.append(fitted)
    return shapes


def _fit_gaussian(stamp: Float, level: float) -> tuple[float, float, float] | None:
    """Return width, axis ratio and angle of an elliptical gaussian, None for what is not a single point source."""
    yy, xx = np.mgrid[-7:8, -7:8]

    def model(_: None, height: float, x0: float, y0: float, sigma: float, q: float, angle: float, sky: float) -> Float:
        u = (xx - x0) * np.cos(angle) + (yy - y0) * np.sin(angle)
        v = (yy - y0) * np.cos(angle) - (xx - x0) * np.sin(angle)
        return np.asarray(sky + height * np.exp(-0.5 * (u**2 + (v / q) ** 2) / sigma**2)).ravel()

    try:
        start = (stamp.max() - level, 0, 0, 2.8, 0.9, 1.3, level)
        fit, _ = curve_fit(model, None, stamp.ravel(), start, maxfev=4000)
    except RuntimeError:
        return None
    height, sigma, q, angle = fit[0], abs(fit[3]), abs(fit[4]), fit[5]
    if q > 1:
        sigma, q, angle = sigma * q, 1 / q, angle + np.pi / 2
    residual = (stamp.ravel() - model(None, *fit)).std() / height
    fwhm_arcsec = 2.3548 * sigma * 1.375
    return (fwhm_arcsec, q, float(np.degrees(angle) % 180)) if residual < 0.02 and fwhm_arcsec < 11.5 else None


def boxes(tile: Float, shape: tuple[int, int], corner: tuple[int, int]) -> list[Float]:
    """Return the boxes of a shape, without overlap, whose corner lies within `NEAR_PX` of a corner (y, x) of a tile.

    `tile` is (3, rows, columns). The boxes are in the order of their columns, so the halves of the list are apart.
    """
    starts = [
        range(max(first - NEAR_PX, 0), min(first + NEAR_PX, size - extent) + 1, extent)
        for first, size, extent in zip(corner, tile.shape[1:], shape, strict=True)
    ]
    return [tile[:, y : y + shape[0], x : x + shape[1]] for x in starts[1] for y in starts[0]]


def corner_on_tile(folder: Path, name: str) -> tuple[int, int]:
    """Return row and column of the first pixel of a real field on its tile."""
    header = fits.getheader(folder / f"{name}-w1.fits")
    return round(TILE_CENTRE_PX - header["CRPIX2"]), round(TILE_CENTRE_PX - header["CRPIX1"])


def read_field(folder: Path, name: str) -> Float:
    """Return the images (3, rows, columns) of a real field in DN."""
    return np.array([fits.getdata(folder / f"{name}-{band}.fits") for band in BANDS], np.float64)


def read_tile(sky: Path) -> Float:
    """Return the images (3, rows, columns) of the only tile of a simulated sky in DN."""
    paths = [next(iter(sorted((sky / "images").rglob(f"*-{band}-int-3.fits")))) for band in BANDS]
    return np.array([fits.getdata(path) for path in paths], np.float32)


def facts(real: Float, simulated: Sequence[Float]) -> dict[str, dict[str, float]]:
    """Return for each band the level, the noise and the PSF of a real field and of simulated boxes (medians)."""
    out = {}
    for i, band in enumerate(BANDS):
        row: dict[str, float] = {}
        for name, measure in (("level", np.nanmedian), ("scatter", lower_scatter), ("pixel_noise", pixel_noise)):
            row[f"{name}_real"] = float(measure(real[i]))
            row[f"{name}_simulated"] = float(np.median([measure(box[i]) for box in simulated]))
        for name, images in (("real", [real[i]]), ("simulated", [box[i] for box in simulated])):
            shapes = [shape for image in images for shape in star_shapes(np.asarray(image, np.float64))]
            if shapes:
                row[f"n_stars_{name}"] = len(shapes)
                row[f"fwhm_arcsec_{name}"], row[f"axis_ratio_{name}"], row[f"angle_deg_{name}"] = np.median(
                    shapes, axis=0
                )
        out[band] = row
    return out


def embedding(cutouts: Float, model: str) -> Float:
    """Return the embedding (N, D) of cutouts by the network of a model of images."""
    bundle = load_bundle(model)
    network = build(bundle.network, **bundle.network_options)
    network.load_state_dict(load_weights(bundle))
    network.eval()
    zero_point_mag = tuple(bundle.composite.zero_point_mag)
    images = composite(cutouts.astype(np.float32), zero_point_mag, bundle.composite)
    preprocess = Preprocess(bundle.preprocessing, bundle.cut.size_px)
    with torch.inference_mode():
        parts = [
            network.embed(preprocess(torch.from_numpy(part))) for part in np.array_split(images, len(images) // 256 + 1)
        ]
    return torch.cat(parts).double().numpy()


def picture(pairs: dict[str, Pair], path: Path, n: int = 6) -> None:
    """Write a picture of n real sources of each field above the simulated sources of the closest fluxes."""
    figure = plt.figure(figsize=(12, 6.6))
    for part, (field, (real, simulated)) in zip(figure.subfigures(1, len(pairs)), pairs.items(), strict=True):
        part.suptitle(f"{field}: real sources and simulated ones of equal W1 flux", fontsize=9)
        axes = part.subplots(
            2 * len(BANDS), n, gridspec_kw={"wspace": 0.04, "hspace": 0.04, "top": 0.94, "bottom": 0.01}
        )
        order = np.argsort(real.flux)[::-1][np.linspace(0, len(real.flux) - 1, n).astype(int)]
        for column, k in enumerate(order):
            partner = int(np.argmin(np.abs(np.log(simulated.flux / real.flux[k]))))
            for b, band in enumerate(BANDS):
                noise = pixel_noise(real.cutouts[k, b])
                for row, cutout in enumerate((real.cutouts[k, b], simulated.cutouts[partner, b])):
                    axis = axes[2 * b + row, column]
                    axis.imshow(np.arcsinh(cutout / noise / 3), origin="lower", cmap="gray", vmin=-2, vmax=5)
                    axis.set(xticks=[], yticks=[])
                    if column == 0:
                        axis.set_ylabel(f"{band.upper()}\n{'simulated' if row else 'real'}", fontsize=7)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def single_statistics(features: Sequence[tuple[Float, Float]]) -> dict[str, list[float]]:
    """Return for each statistic the AUC in each field; 0.5 means equal, above it real values are larger."""
    names = [f"{s}_{b}" for b in BANDS for s in STATISTICS]
    table = {}
    for k, name in enumerate(names):
        values = []
        for real, simulated in features:
            data, labels = _labelled(real[:, k : k + 1], simulated[:, k : k + 1])
            values.append(round(float(roc_auc_score(labels, data[:, 0])), 3))
        table[name] = values
    return dict(sorted(table.items(), key=lambda item: -abs(np.mean(item[1]) - 0.5)))


def document(results: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    lines = ["| AUC | pixel statistics | embedding |", "|---|---|---|"]
    for title in ("real against simulated", "simulated against simulated"):
        cells = ["{:.3f} ({:.3f} to {:.3f})".format(*results["auc"][kind][title]) for kind in KINDS]
        lines.append(f"| {title} | {' | '.join(cells)} |")
    share = "share of boxes at or above the real field"
    lines.append(f"| {share} | {' | '.join('{:.2f}'.format(results['auc'][kind][share]) for kind in KINDS)} |")
    n_real = ", ".join(f"{row['detections']} in {field}" for field, row in results["fields"].items())
    n_tiles = min(row["tiles"] for row in results["fields"].values())
    counts = f"Detections: {n_real}; {counted(n_tiles, 'simulated tile')} for each field"
    lines += ["", f"{counts}; embedding of {results['model']}. Simulated / real in both fields:", ""]
    lines += [
        "| field, band | level | noise of a pixel | scatter | axis ratio | FWHM, arcsec |",
        "|---|---|---|---|---|---|",
    ]
    for field, row in results["fields"].items():
        for band in BANDS:
            facts_of_band = row[band]
            ratios = [
                facts_of_band[f"{name}_simulated"] / facts_of_band[f"{name}_real"]
                for name in ("level", "pixel_noise", "scatter")
            ]
            pairs = [
                f"{facts_of_band[f'{name}_simulated']:.3f} / {facts_of_band[f'{name}_real']:.3f}"
                if f"{name}_real" in facts_of_band and f"{name}_simulated" in facts_of_band
                else "no bright star"
                for name in ("axis_ratio", "fwhm_arcsec")
            ]
            cells = [f"{ratio:.2f}" for ratio in ratios] + pairs
            lines.append(f"| {field}, {band.upper()} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def compare(fields: Path, skies: dict[str, list[Path]], model: str) -> tuple[dict[str, Any], dict[str, Pair]]:
    """Return the results, and the real and the matched simulated sources of each field, from all its tiles."""
    results: dict[str, Any] = {"model": model, "fields": {}, "auc": {}}
    pairs: dict[str, Pair] = {}
    simulated: dict[str, tuple[Detections, NDArray[np.int64]]] = {}
    for name, folders in skies.items():
        real_images, corner = read_field(fields, name), corner_on_tile(fields, name)
        rows, columns = real_images.shape[1:]
        images = [box for folder in folders for box in boxes(read_tile(folder), (rows, columns), corner)]
        real, (found, box) = detect(real_images), _all_detections(images)
        pairs[name] = real, found.take(matched_rows(real.flux, found.flux, MATCHES))
        simulated[name] = found, box
        numbers = {"detections": len(real.flux), "simulated_per_box": len(found.flux) / len(images)}
        numbers |= {"tiles": len(folders), "boxes": len(images)}
        results["fields"][name] = numbers | facts(real_images, images)
    measures: dict[str, Callable[[Float], Float]] = dict(
        zip(KINDS, (pixel_statistics, partial(embedding, model=model)), strict=True)
    )
    for kind, measure in measures.items():
        features = [(measure(a.cutouts), measure(b.cutouts)) for a, b in pairs.values()]
        null = null_aucs([Pool(measure(found.cutouts), found.flux, box) for found, box in simulated.values()])
        auc = auc_across(features)
        results["auc"][kind] = {
            "real against simulated": auc,
            "simulated against simulated": [float(v) for v in np.percentile(null, [50.0, 2.5, 97.5])],
            "boxes": len(null),
            "share of boxes at or above the real field": float(np.mean(np.array(null) >= auc[0])),
        }
        if kind == "pixel statistics":
            results["auc of single statistics"] = single_statistics(features)
    return results, pairs


def _all_detections(images: Sequence[Float]) -> tuple[Detections, NDArray[np.int64]]:
    """Return the sources of several boxes as one, and the index of the box of each."""
    each = [detect(np.asarray(box, np.float64)) for box in images]
    box = np.repeat(np.arange(len(each)), [len(d.flux) for d in each])
    return Detections(np.concatenate([d.cutouts for d in each]), np.concatenate([d.flux for d in each])), box


@click.command()
@click.argument("fields", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--sky", "skies", multiple=True, required=True, metavar="NAME=FOLDER", help="A simulated tile.")
@click.option("--model", default="iicnet-mock", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), help="JSON file of the results; a table is written beside it.")
@click.option("--figure", type=click.Path(path_type=Path), help="Picture of real and simulated sources.")
def main(fields: Path, skies: tuple[str, ...], model: str, out: Path | None, figure: Path | None) -> None:
    """Print how well real fields can be told from the SIMULATED sky at their positions."""
    folders: dict[str, list[Path]] = {}
    for name, folder in (item.split("=", 1) for item in skies):
        folders.setdefault(name, []).append(Path(folder))
    results, pairs = compare(fields, folders, model)
    click.echo(document(results))
    if figure:
        picture(pairs, figure)
    if out:
        out.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
        out.with_suffix(".md").write_text(document(results), "utf-8")


if __name__ == "__main__":
    main()
