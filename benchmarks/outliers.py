"""Outliers: blank positions, halos, and kinds of sources that no model knows, against ordinary sources.

    python -m benchmarks.outliers --choose SKY --verify SKY --reference DATASET [--fields FOLDER] -o outliers.md

Skies are SIMULATED, natural ones with outliers (`skyclass mock --outliers-per-deg2`). The thresholds of
`skyclass/images/aperture.py` were chosen on the first and are tested on the second. DATASET, of a third sky, gives
the embeddings of ordinary sources. FOLDER has the real fields of `benchmarks/real_sky.py`: no number was chosen there.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import click
import matplotlib
import numpy as np
from astropy.stats import binom_conf_interval
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from skyclass.images.aperture import (
    BLANK_BELOW,
    BLENDED_ABOVE,
    HALO_ABOVE,
    CentreMeasures,
    centre_flags,
    measure_centres,
)
from skyclass.images.archive import open_archive
from skyclass.images.composite import BLOCK, border_levels, composite
from skyclass.mock.population import OUTLIERS
from skyclass.model.bundle import load_bundle
from skyclass.model.classifier import NetworkClassifier, load_classifier
from skyclass.model.malloc import keep_memory
from skyclass.model.outliers import OutlierStatistics, nearest_bin
from skyclass.model.photometry import numbers
from skyclass.training.data.dataset import load_dataset
from skyclass.training.evaluation.outlier_fit import fit_outliers, whitening
from skyclass.training.evaluation.predictions import embeddings_of
from skyclass.types import Flag

from .field import BANDS
from .network_start import markdown
from .positions import BLANK, HALO, Positions, positions_of
from .real_sky import HALF_PX, detected_pixels, read_field

matplotlib.use("Agg")

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
FlagsOf = dict[str, NDArray[np.int32]]
KINDS = (BLANK, HALO, *OUTLIERS)
ZERO_POINT_MAG = (20.5, 19.5, 18.0)
NEIGHBOURS, MOST_NEIGHBOURS = 10, 4000
CORNER_PX, ROUNDS = 700, 12
DETECTION_PX, APART_PX = 9.0, 6.0
"""Distance of a blank position of a real field from every detection, and from other blank positions."""
GPU_SOURCES_PER_S, GPU_THREADS = 56_067.0, 16
"""Whole pipeline, one H100 beside 16 threads (`benchmarks/results/device.jsonl`)."""


@dataclass(frozen=True)
class Reference:
    """Embeddings (N, W) and W1 (N,) of ordinary sources, and their statistics."""

    embeddings: NDArray[np.float32]
    w1: Float
    labels: NDArray[np.int64]
    statistics: OutlierStatistics


@dataclass(frozen=True)
class Scored:
    """Positions with their measures, W1 (of the catalogue or the aperture; the faint limit if neither) and scores."""

    positions: Positions
    measures: CentreMeasures
    w1: Float
    scores: dict[str, Float]

    @property
    def flags(self) -> NDArray[np.int32]:
        """Flags (N,) of the images and of the embedding."""
        outlier = np.where(self.scores["nearest class"] > 1, int(Flag.OUTLIER), 0)
        return centre_flags(self.measures) | outlier.astype(np.int32)


# --- scores ------------------------------------------------------------------------------------------


def measured(pixels: NDArray[np.float32]) -> CentreMeasures:
    """Return the measures of Atlas cutouts."""
    return measure_centres(pixels, *border_levels(pixels, 3), BANDS, ZERO_POINT_MAG)


def scored(positions: Positions, classifier: NetworkClassifier, reference: Reference) -> Scored:
    """Return the scores of positions; a larger score is more unusual."""
    measures = measured(positions.pixels)
    w1 = np.where(np.isfinite(positions.w1), positions.w1, measures.w1_aperture).astype(float)
    w1 = np.where(np.isfinite(w1), w1, reference.statistics.w1_edges[-1])
    images = composite(positions.pixels, ZERO_POINT_MAG, classifier.bundle.composite)
    probabilities, embeddings = classifier.predict_and_embed(images)
    scores = {
        "contrast": -measures.contrast,
        "halo": measures.halo,
        "nearest class": reference.statistics.scores(embeddings, w1),
        "one mean": one_mean(embeddings, w1, reference),
        f"{NEIGHBOURS} neighbours": neighbours(embeddings, w1, reference),
        "1 - highest p": 1 - probabilities.max(1),
    }
    return Scored(positions, measures, w1, {name: np.asarray(v, float) for name, v in scores.items()})


def one_mean(embeddings: NDArray[np.float32], w1: Float, reference: Reference) -> Float:
    """Return the Mahalanobis distance to the mean of all classes in the bin of W1."""
    edges, x = reference.statistics.w1_edges, reference.embeddings.astype(float)
    of_reference = nearest_bin(reference.w1, edges)
    means = np.stack([x[of_reference == b].mean(0) for b in range(len(edges) - 1)])
    factor = whitening(x - means[of_reference])
    return np.sqrt((((embeddings - means[nearest_bin(w1, edges)]) @ factor) ** 2).sum(1))


def neighbours(embeddings: NDArray[np.float32], w1: Float, reference: Reference) -> Float:
    """Return the distance to the tenth nearest reference source in the bin of W1, after whitening."""
    edges, factor = reference.statistics.w1_edges, np.zeros((reference.statistics.width,) * 2)
    factor[np.tril_indices(len(factor))] = np.concatenate(reference.statistics.whitening)
    index, of_reference, out = nearest_bin(w1, edges), nearest_bin(reference.w1, edges), np.empty(len(w1))
    for b in range(len(edges) - 1):
        known = reference.embeddings[of_reference == b][:MOST_NEIGHBOURS] @ factor
        for rows in np.array_split(np.flatnonzero(index == b), 1 + np.sum(index == b) // 500):
            x = embeddings[rows] @ factor
            squares = (x**2).sum(1)[:, None] + (known**2).sum(1) - 2 * x @ known.T
            out[rows] = np.sqrt(np.partition(squares, NEIGHBOURS, axis=1)[:, NEIGHBOURS].clip(0))
    return out


def placements(score: Float, is_kind: Bool, is_ordinary: Bool, bins: NDArray[np.int64]) -> Float:
    """Return for each position of a kind the share of ordinary sources of its bin with a lower score, ties half.

    Their mean is the AUC within bins.
    """
    out = []
    for b in np.unique(bins[is_kind]):
        values, ordinary = score[is_kind & (bins == b)], np.sort(score[is_ordinary & (bins == b)])
        if len(ordinary) >= NEIGHBOURS:
            ranks = [np.searchsorted(ordinary, values, side) for side in ("left", "right")]
            out.append(np.mean(ranks, axis=0) / len(ordinary))
    return np.concatenate(out)


def with_interval(share: Float) -> str:
    """Return the mean of placements with its 95 % interval."""
    half = 1.96 * share.std() / np.sqrt(len(share))
    return f"{share.mean():.3f} ± {half:.3f}"


# --- tables ------------------------------------------------------------------------------------------


def auc_table(sky: Scored, edges: tuple[float, ...]) -> str:
    """Return the AUC of each kind by each score."""
    kind, ordinary, bins = sky.positions.kind, sky.positions.is_ordinary, nearest_bin(sky.w1, edges)
    rows = []
    for name in KINDS:
        shares = [placements(score, kind == name, ordinary, bins) for score in sky.scores.values()]
        rows.append([name, f"{(kind == name).sum():,}", *map(with_interval, shares)])
    return markdown(["kind", "n", *sky.scores], rows)


def share(mask: Bool) -> str:
    """Return the share in % where a mask is true, with its 95 % interval (Wilson)."""
    low, high = binom_conf_interval(mask.sum(), len(mask), 0.95, interval="wilson")
    return f"{100 * mask.mean():.1f} ({100 * low:.1f} to {100 * high:.1f})"


def flag_table(groups: FlagsOf, columns: dict[str, Flag]) -> str:
    """Return the share of each group that has a flag, or any of several."""
    rows = [
        [name, f"{len(flags):,}", *(share((flags & int(flag)) > 0) for flag in columns.values())]
        for name, flags in groups.items()
    ]
    return markdown(["", "n", *columns], rows)


def groups_of(positions: Positions, flags: NDArray[np.int32]) -> FlagsOf:
    """Return the flags of ordinary sources, of isolated point sources among them, and of each kind."""
    point = positions.is_ordinary & (positions.kind != "galaxy")
    groups = {"ordinary sources": positions.is_ordinary, "stars and quasars": point}
    groups |= {"the same, isolated": point & positions.is_isolated}
    return {name: flags[rows] for name, rows in groups.items()} | {k: flags[positions.kind == k] for k in KINDS}


IMAGE_COLUMNS = {
    "BLANK": Flag.BLANK, "HALO": Flag.HALO, "BLANK or HALO": Flag.BLANK | Flag.HALO, "BLENDED": Flag.BLENDED,
}  # fmt: skip
FLAG_COLUMNS = IMAGE_COLUMNS | {
    "OUTLIER": Flag.OUTLIER, "BLANK, HALO or OUTLIER": Flag.BLANK | Flag.HALO | Flag.OUTLIER,
}  # fmt: skip


# --- real fields -------------------------------------------------------------------------------------


def detected_and_blank(name: str, images: Float) -> dict[str, NDArray[np.float32]]:
    """Return the cutouts of the detections of an image (3, rows, columns), and of random positions far from them."""
    found = np.column_stack(detected_pixels(images))
    far = cKDTree(found).query(found, 2)[0][:, 1] > 2 * DETECTION_PX
    blank = blank_pixels(images.shape[1:], found, np.random.default_rng(1))
    kinds = {"detections": found, "isolated detections": found[far], "blank positions": blank}
    return {f"{name}, {kind}": boxes_at(images, at) for kind, at in kinds.items()}


def real_flags(
    pixels: NDArray[np.float32], classifier: NetworkClassifier, statistics: OutlierStatistics
) -> NDArray[np.int32]:
    """Return the flags (N,) of cutouts of sources without a catalogue."""
    measures = measured(pixels)
    embeddings = classifier.predict_and_embed(composite(pixels, ZERO_POINT_MAG, classifier.bundle.composite))[1]
    outlier = statistics.scores(embeddings, measures.w1_aperture) > 1
    return centre_flags(measures) | np.where(outlier, int(Flag.OUTLIER), 0).astype(np.int32)


def simulated_images(sky: Path) -> dict[str, Float]:
    """Return a corner (3, 700, 700) of each tile of a simulated sky."""
    archive, tiles = open_archive(str(sky / "images"), BANDS), json.loads((sky / "mock.json").read_text())["tiles"]
    opened = {name: archive.tile(name, BANDS) for name in tiles}
    return {
        name: np.array([archive.read_rows(tile, band, 0, CORNER_PX)[:, :CORNER_PX] for band in BANDS], float)
        for name, tile in opened.items()
    }


def pooled(groups: FlagsOf) -> FlagsOf:
    """Return the flags of all fields together by kind, before those of each field."""
    kinds = dict.fromkeys(name.split(", ", 1)[1] for name in groups)
    together = {k: np.concatenate([v for name, v in groups.items() if name.endswith(f", {k}")]) for k in kinds}
    return {f"all, {kind}": flags for kind, flags in together.items()} | groups


def real_tables(fields: Path, sky: Path, classifier: NetworkClassifier, statistics: OutlierStatistics) -> list[str]:
    """Return the tables of the real fields, and of the same measurement on a simulated sky."""
    real = {name: read_field(fields, name) for name in ("2010H", "2010ai")}
    of_real, of_simulated = (
        {kind: pixels for name, image in images.items() for kind, pixels in detected_and_blank(name, image).items()}
        for images in (real, simulated_images(sky))
    )
    flags = {kind: real_flags(pixels, classifier, statistics) for kind, pixels in of_real.items()}
    simulated_flags = {kind: centre_flags(measured(pixels)) for kind, pixels in of_simulated.items()}
    return [
        "Two real fields (Atlas images), opened after the thresholds were chosen, share flagged in %. Detections are "
        "those of DAOStarFinder in W1. Blank positions are at least 9 px from all of them, so some of them hold "
        "sources that it does not detect:",
        flag_table(pooled(flags), FLAG_COLUMNS),
        "Detections and blank positions found in the same way on the SIMULATED sky on which nothing was chosen:",
        flag_table(pooled(simulated_flags), IMAGE_COLUMNS),
    ]


def boxes_at(images: Float, at: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the whole cutouts (N, 3, 37, 37) without missing pixels at 0-based pixels (x, y)."""
    rows, columns = images.shape[1:]
    inside = (at >= HALF_PX).all(1) & (at[:, 0] < columns - HALF_PX) & (at[:, 1] < rows - HALF_PX)
    boxes = [images[:, y - HALF_PX : y + HALF_PX + 1, x - HALF_PX : x + HALF_PX + 1] for x, y in at[inside]]
    pixels = np.array(boxes, np.float32)
    return pixels[np.isfinite(pixels).all((1, 2, 3))]


def blank_pixels(shape: tuple[int, ...], found: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return random pixels (x, y) far from every detection and from each other."""
    trial = rng.integers((HALF_PX, HALF_PX), (shape[1] - HALF_PX, shape[0] - HALF_PX), (20_000, 2))
    trial = trial[cKDTree(found).query(trial)[0] > DETECTION_PX]
    chosen: list[NDArray[np.int64]] = []
    for position in trial:
        if not chosen or np.min(np.hypot(*(np.array(chosen) - position).T)) > APART_PX:
            chosen.append(position)
    return np.array(chosen)


# --- cost --------------------------------------------------------------------------------------------


def cost(positions: Positions, classifier: NetworkClassifier, statistics: OutlierStatistics) -> str:
    """Return the microseconds for each source of one process: the fastest of several rounds, stages in turns."""
    pixels, settings = positions.pixels[: 64 * BLOCK].copy(), classifier.bundle.composite
    images = np.empty(pixels.shape, np.float16)
    embeddings = np.zeros((len(pixels), statistics.width), np.float32)
    blocks = [slice(start, start + BLOCK) for start in range(0, len(pixels), BLOCK)]

    def plain() -> None:
        for block in blocks:
            composite(pixels[block], ZERO_POINT_MAG, settings, images[block])

    def with_measures() -> None:
        for block in blocks:
            sky, scatter = border_levels(pixels[block], settings.border_px)
            composite(pixels[block], ZERO_POINT_MAG, settings, images[block], sky)
            centre_flags(measure_centres(pixels[block], sky, scatter, BANDS, ZERO_POINT_MAG))

    stages: dict[str, tuple[Callable[[], object], int]] = {
        "composites": (plain, len(pixels)),
        "composites and measures": (with_measures, len(pixels)),
        "scores": (lambda: statistics.scores(embeddings, np.full(len(pixels), 15.0)), len(pixels)),
        "network": (lambda: classifier.predict(images[:512]), min(512, len(pixels))),
    }
    seconds: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(ROUNDS):
        for name, (work, n_sources) in stages.items():
            began = time.perf_counter()
            work()
            seconds[name].append((time.perf_counter() - began) / n_sources)
    us = {name: 1e6 * min(values) for name, values in seconds.items()}
    added = us["composites and measures"] - us["composites"] + us["scores"]
    gpu_us = 1e6 * GPU_THREADS / GPU_SOURCES_PER_S
    rows = [[name, f"{value:.1f}"] for name, value in us.items()]
    rows += [
        ["added", f"{added:.1f}"],
        ["added, share of composites and network on this CPU", f"{added / (us['composites'] + us['network']):.2%}"],
        [f"added, share of the {gpu_us:.0f} µs of a thread with a GPU (recorded)", f"{added / gpu_us:.2%}"],
    ]
    return markdown(["one process", "µs for each source"], rows)


# --- figure and command ------------------------------------------------------------------------------


def figure(sky: Scored, path: Path) -> None:
    """Write histograms of the contrast, the halo and the score, with the thresholds."""
    picture, axes = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
    kind, ordinary = sky.positions.kind, sky.positions.is_ordinary
    point = ordinary & (kind != "galaxy") & sky.positions.is_isolated
    images = {"ordinary sources": ordinary, "isolated points": point, BLANK: kind == BLANK, HALO: kind == HALO}
    kinds = {"ordinary sources": ordinary, **{name: kind == name for name in OUTLIERS}}
    panels = (
        ("contrast of the centre", sky.measures.contrast, images, BLANK_BELOW, np.linspace(-1.5, 6, 60)),
        (
            "scatter of the border / height of the centre",
            sky.measures.halo,
            images,
            HALO_ABOVE,
            np.geomspace(1e-3, 100, 60),
        ),
        ("distance of the embedding", sky.scores["nearest class"], kinds, 1.0, np.linspace(0, 3, 60)),
    )
    for axis, (label, values, masks, threshold, edges) in zip(axes, panels, strict=True):
        for name, mask in masks.items():
            clipped = np.clip(values[mask], edges[0], edges[-1])
            axis.hist(clipped, edges, histtype="step", lw=1.5, label=name, weights=np.full(mask.sum(), 1 / mask.sum()))
        axis.axvline(threshold, color="0.5", ls="--", lw=1)
        axis.set(xlabel=label, ylabel="share of the positions", xscale="linear" if edges[0] <= 0 else "log")
        axis.legend(fontsize=7)
    picture.suptitle("SIMULATED sky; dashed: threshold", fontsize=9)
    picture.savefig(path, dpi=110)
    plt.close(picture)


def reference_of(folder: str, classifier: NetworkClassifier, device: str) -> Reference:
    """Return the embeddings of all sources of a dataset."""
    dataset = load_dataset(folder)
    x, w1 = (
        embeddings_of(replace(classifier.bundle, outliers=None), dataset, None, device),
        numbers(dataset.rows["w1mpro"]),
    )
    known = np.isfinite(w1)
    return Reference(
        x[known], w1[known], dataset.labels[known], fit_outliers(x, dataset.labels, w1, len(dataset.classes))
    )


@click.command()
@click.option("--choose", "choose", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--verify", "verify", required=True, type=click.Path(exists=True, path_type=Path))
@click.option("--reference", required=True, type=click.Path(exists=True))
@click.option("--fields", type=click.Path(exists=True, path_type=Path), help="Folder of the real fields.")
@click.option("--model", default="iicnet-mock", show_default=True)
@click.option("--device", default="auto", show_default=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Markdown; a figure beside it.")
def main(choose: Path, verify: Path, reference: str, fields: Path | None, model: str, device: str, out: Path) -> None:
    """Measure how well outliers are found, on SIMULATED skies and in real fields."""
    keep_memory()
    classifier = load_classifier(replace(load_bundle(model), outliers=None), device)
    known = reference_of(reference, classifier, device)
    verified, chosen = scored(positions_of(verify), classifier, known), positions_of(choose)
    edges = known.statistics.w1_edges
    parts = [
        f"Model {load_bundle(model).model_id}. AUC against ordinary sources of the same W1, on a SIMULATED sky on "
        "which nothing was chosen, with 95 % intervals:",
        auc_table(verified, edges),
        f"Share flagged in % with 95 % intervals, on the same sky. Thresholds: contrast below {BLANK_BELOW:g}, halo "
        f"above {HALO_ABOVE:g}, neighbour above {BLENDED_ABOVE:g}, distance above 1:",
        flag_table(groups_of(verified.positions, verified.flags), FLAG_COLUMNS),
        "The same on the SIMULATED sky on which the thresholds were chosen:",
        flag_table(groups_of(chosen, centre_flags(measured(chosen.pixels))), IMAGE_COLUMNS),
    ]
    if fields:
        parts += real_tables(fields, verify, classifier, known.statistics)
    parts += ["Cost:", cost(verified.positions, classifier, known.statistics)]
    out.write_text("\n\n".join(parts) + "\n", "utf-8")
    figure(verified, out.with_suffix(".png"))
    click.echo(out.read_text())


if __name__ == "__main__":
    main()
