"""`python -m benchmarks.sky_probabilities RUN=TRUTH ...`: are the probabilities for the shares of the sky right?

Each RUN is a run folder or class catalogue of a SIMULATED sky, published with the prior "estimate", and TRUTH is the
truth.parquet of its sky. The skies of the record:

    skyclass mock test-a --tiles 1 --seed 4001 --center 185,20 --center 30,-10 --center 235,45 --center 340,0
    skyclass mock test-b --tiles 1 --seed 4002 --center 215,10 --center 60,-5 --center 340,30 --center 112,20
    skyclass classify --catalog test-a/catalog --images test-a/images --out run-a --prior estimate    # and for test-b
    python -m benchmarks.sky_probabilities run-a=test-a/truth.parquet run-b=test-b/truth.parquet -o FILE.md

For the raw, the estimated and the true prior: reliability, sums against counts, purity and
completeness of quasars, loss; the coverage of the sets; F1 that is expected without labels against true F1; and the
intervals of estimated shares on skies resampled with other shares of quasars.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from skyclass.catalog.expected import expected_confusion, expected_rates
from skyclass.catalog.manifest import read_manifest
from skyclass.catalog.prior_files import read_calibration
from skyclass.catalog.sky_columns import w1_mag
from skyclass.catalog.sky_prior import estimated_prior, sky_counts
from skyclass.catalog.versions import find_catalog
from skyclass.model.priors import ABS_B_EDGES, NO_BIN, BinnedCalibration, PriorTable, bin_of, in_sets, sky_probabilities
from skyclass.sky.galactic import abs_galactic_latitude_deg
from skyclass.types import Bool, Float64, Int64

from .network_start import markdown

LEAST_ROWS = 400
"""Rows in a bin of the reliability."""
MOST_BINS = 300
RESAMPLED_SKIES = 200
QUASAR_SHARES = (0.001, 0.1)
FEW = 500
"""F1 of classes with fewer members is not compared."""


class Sample(NamedTuple):
    """The rows of all skies: labels (N,), probabilities (N, K) raw, for the estimated and for the true shares."""

    tile: Int64
    labels: Int64
    raw: Float64
    estimated: Float64
    true: Float64
    w1: Float64
    abs_b_deg: Float64
    in_set: Bool
    has_set: Bool

    def take(self, rows: Bool) -> Sample:
        """Return some of the rows."""
        return Sample(*(values[rows] for values in self))


def rows_of(root: Path) -> pa.Table:
    """Return the rows of a class catalogue."""
    return pa.concat_tables([pq.read_table(root / record.path) for record in read_manifest(root).files])


def sample_of(sky: int, root: Path, truth: Path) -> tuple[Sample, BinnedCalibration]:
    """Return the classified rows of a catalogue with their true classes, and the calibration of its model."""
    calibration = read_calibration(root)
    assert calibration is not None
    classes = calibration.classes
    rows = rows_of(root)
    table = pq.read_table(truth)
    index = pc.index_in(rows["source_id"], value_set=table["source_id"].combine_chunks())
    names = table["class"].take(index).combine_chunks()
    labels = pc.index_in(names, value_set=pa.array(classes))
    rows = rows.append_column("label", labels)
    rows = rows.filter(pc.and_(pc.is_valid(rows["class"]), pc.is_valid(rows["label"])))
    y, w1 = rows["label"].to_numpy().astype(np.int64), w1_mag(rows)
    b = abs_galactic_latitude_deg(rows["ra"].to_numpy(), rows["dec"].to_numpy())
    raw, estimated = (
        np.stack([pc.fill_null(rows[f"p_{name}{end}"], np.nan).to_numpy() for name in classes], axis=1).astype(float)
        for end in ("", "_sky")
    )
    prior = true_prior(y, w1, b, calibration)
    members, has_set = in_sets(raw, w1, b, calibration)
    true = sky_probabilities(raw, w1, b, calibration, prior)
    tile = np.unique(rows["coadd_id"].to_pylist(), return_inverse=True)[1] + 1_000 * sky
    return Sample(tile, y, raw, estimated, true, w1, b, members, has_set), calibration


def true_prior(labels: Int64, w1: Float64, abs_b_deg: Float64, calibration: BinnedCalibration) -> PriorTable:
    """Return the class shares of labelled sources in the bins of the calibration and of |b|."""
    i, j = bin_of(w1, calibration.w1_edges), bin_of(abs_b_deg, ABS_B_EDGES)
    n_w1, n_b, k = len(calibration.w1_edges) - 1, len(ABS_B_EDGES) - 1, len(calibration.classes)
    inside = (i != NO_BIN) & (j != NO_BIN)
    cell = ((i * n_b + j) * k + labels)[inside]
    counts = np.bincount(cell, minlength=n_w1 * n_b * k).reshape(n_w1, n_b, k)
    shares = tuple(tuple(tuple((cell / cell.sum()).tolist()) if cell.sum() else None for cell in row) for row in counts)
    return PriorTable(calibration.classes, calibration.w1_edges, ABS_B_EDGES, shares, "truth")


# --- measures -------------------------------------------------------------------------------------------------------


def reliability_bins(p: Float64, hit: Bool, least: int = LEAST_ROWS) -> Iterator[tuple[float, float, int]]:
    """Yield (mean p, observed share, n) of bins of equal counts, with `least` rows or more each."""
    order = np.argsort(p, kind="stable")
    for part in np.array_split(order, max(1, min(MOST_BINS, len(p) // least))):
        yield float(p[part].mean()), float(hit[part].mean()), len(part)


def reliability(p: Float64, labels: Int64) -> tuple[float, Float64, Float64]:
    """Return the share of bins within 0.03 + 2 standard errors, and ECE (K,) and calibration slope (K,) by class."""
    good, ece, slope = [], [], []
    for k in range(p.shape[1]):
        bins = np.array(list(reliability_bins(p[:, k], labels == k)))
        mean, observed, n = bins.T
        error = np.sqrt(np.maximum(mean * (1 - mean), 1e-4) / n)
        good += (np.abs(observed - mean) <= 0.03 + 2 * error).tolist()
        ece.append(float((np.abs(observed - mean) * n).sum() / n.sum()))
        slope.append(calibration_slope(p[:, k], labels == k))
    return float(np.mean(good)), np.array(ece), np.array(slope)


def calibration_slope(p: Float64, hit: Bool) -> float:
    """Return the slope of a logistic regression of hits on the logit of p (Cox 1958)."""
    x = np.log(np.clip(p, 1e-6, 1 - 1e-6)) - np.log1p(-np.clip(p, 1e-6, 1 - 1e-6))
    design = np.stack([x, np.ones_like(x)], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(50):
        mean = 1 / (1 + np.exp(-design @ weights))
        hessian = design.T @ (design * (mean * (1 - mean))[:, None])
        step = np.linalg.solve(hessian, design.T @ (hit - mean))
        weights = weights + step
        if np.abs(step).max() < 1e-8:
            break
    return float(weights[0])


def losses(p: Float64, labels: Int64) -> tuple[float, float]:
    """Return the log-loss and the Brier score."""
    own = np.maximum(p[np.arange(len(p)), labels], 1e-12)
    return float(-np.log(own).mean()), float(((p - np.eye(p.shape[1])[labels]) ** 2).sum(1).mean())


def purity_completeness(p: Float64, labels: Int64, k: int) -> tuple[float, float]:
    """Return purity and completeness of the sources whose most probable class is k."""
    chosen, members = p.argmax(1) == k, labels == k
    right = int((chosen & members).sum())
    return right / max(1, int(chosen.sum())), right / max(1, int(members.sum()))


def completeness_at(p: Float64, labels: Int64, k: int, purity: float) -> float:
    """Return the largest completeness of a sample `p[:, k] > limit` whose purity is at least `purity`."""
    order = np.argsort(-p[:, k], kind="stable")
    hits = np.cumsum(labels[order] == k)
    good = hits / np.arange(1, len(order) + 1) >= purity
    return float(hits[good].max() / max(1, hits[-1])) if good.any() else 0.0


def f1_of(predicted: Int64, labels: Int64, n_classes: int) -> Float64:
    """Return the F1 (K,) of predicted classes."""
    table = np.zeros((n_classes, n_classes))
    np.add.at(table, (labels, predicted), 1)
    return expected_rates(table).f1


# --- tables ---------------------------------------------------------------------------------------------------------

KINDS = ("raw", "estimated", "true")


def reliability_table(sample: Sample, classes: Sequence[str]) -> str:
    """Return reliability, ECE, slope and losses of each prior over the rows that have probabilities for the sky."""
    lines = []
    for kind in KINDS:
        p = getattr(sample, kind)
        good, ece, slope = reliability(p, sample.labels)
        loss, brier = losses(p, sample.labels)
        lines.append(
            (
                kind,
                f"{good:.1%}",
                *(f"{e:.4f}" for e in ece),
                *(f"{s:.2f}" for s in slope),
                f"{loss:.4f}",
                f"{brier:.4f}",
            )
        )
    header = (
        "prior",
        "bins within 0.03 + 2 s.e.",
        *(f"ECE {c}" for c in classes),
        *(f"slope {c}" for c in classes),
        "log-loss",
        "Brier",
    )
    return markdown(header, lines)


def parts(sample: Sample, calibration: BinnedCalibration) -> Iterator[tuple[str, Sample]]:
    """Yield the name and the rows of each bin of W1, and of each sky."""
    for low, high in zip(calibration.w1_edges, calibration.w1_edges[1:], strict=False):
        yield f"W1 {low:g} to {high:g}", sample.take((sample.w1 >= low) & (sample.w1 < high))
    for low, high in zip(ABS_B_EDGES, ABS_B_EDGES[1:], strict=False):
        yield f"\\|b\\| {low:g} to {high:g}", sample.take((sample.abs_b_deg >= low) & (sample.abs_b_deg < high))


def sums_table(sample: Sample, calibration: BinnedCalibration) -> tuple[str, int, int]:
    """Return sums of probabilities against counts by W1 and |b|, the number of failed cells, and that of all cells."""
    lines, failed, total = [], 0, 0
    for name, part in [("all", sample), *parts(sample, calibration)]:
        if not len(part.labels):
            continue
        cells = []
        for k in range(len(calibration.classes)):
            p, count = part.estimated[:, k], int((part.labels == k).sum())
            limit = max(0.1 * count, 2 * float(np.sqrt((p * (1 - p)).sum())))
            is_good = abs(p.sum() - count) <= limit
            failed, total = failed + (not is_good), total + 1
            raw, true = part.raw[:, k].sum(), part.true[:, k].sum()
            cells.append(f"{count:,}: {raw:,.0f} / {p.sum():,.0f} / {true:,.0f}" + ("" if is_good else " **x**"))
        lines.append((name, f"{len(part.labels):,}", *cells))
    header = ("part", "sources", *(f"{c}, count: raw / estimated / true prior" for c in calibration.classes))
    return markdown(header, lines), failed, total


def quasar_table(sample: Sample, classes: Sequence[str]) -> str:
    """Return purity and completeness of quasars at |b| >= 30 and W1 <= 16.5."""
    k = classes.index("quasar")
    part = sample.take((sample.abs_b_deg >= 30) & (sample.w1 <= 16.5))
    lines = []
    for kind in KINDS:
        p = getattr(part, kind)
        purity, completeness = purity_completeness(p, part.labels, k)
        at = (f"{completeness_at(p, part.labels, k, limit):.3f}" for limit in (0.8, 0.9, 0.95))
        lines.append((kind, f"{purity:.3f}", f"{completeness:.3f}", *at))
    n = int((part.labels == k).sum())
    header = (f"prior ({n:,} quasars)", "purity", "completeness", "completeness at purity 0.8", "0.9", "0.95")
    return markdown(header, lines)


def sets_table(sample: Sample, calibration: BinnedCalibration) -> str:
    """Return the coverage of the sets by class and bin of W1, with the deviation from 90 % in standard errors."""
    lines = []
    edges = [
        ("all", -np.inf, np.inf),
        *((f"{a:g} to {b:g}", a, b) for a, b in zip(calibration.w1_edges, calibration.w1_edges[1:], strict=False)),
    ]
    for name, low, high in edges:
        rows = sample.has_set & (sample.w1 >= low) & (sample.w1 < high)
        cells = []
        for k in range(len(calibration.classes)):
            own = rows & (sample.labels == k)
            n = int(own.sum())
            cover = float(sample.in_set[own, k].mean()) if n else float("nan")
            cells.append(f"{cover:.3f} ({(cover - 0.9) / np.sqrt(0.09 / max(n, 1)):+.1f} s.e., {n:,})")
        size = sample.in_set[rows].sum(1)
        lines.append((name, *cells, f"{(size == 1).mean():.0%}, {(size == 0).mean():.1%}"))
    return markdown(("W1", *calibration.classes, "one class, none"), lines)


def f1_table(samples: Sequence[tuple[str, Sample]], classes: Sequence[str]) -> str:
    """Return F1 expected without labels, against the true F1, of each sky."""
    lines = []
    for name, part in samples:
        predicted = part.estimated.argmax(1)
        expected = expected_rates(expected_confusion(part.estimated, predicted)).f1
        true = f1_of(predicted, part.labels, len(classes))
        n = np.bincount(part.labels, minlength=len(classes))
        cells = [
            f"{e:.3f} / {t:.3f}" + ("" if m >= FEW else f" ({m})") for e, t, m in zip(expected, true, n, strict=True)
        ]
        lines.append((name, f"{np.mean(expected):.3f} / {np.mean(true):.3f}", *cells))
    return markdown(("sky", "macro F1, expected / true", *classes), lines)


def resampled(sample: Sample, calibration: BinnedCalibration, n_skies: int, rng: np.random.Generator) -> str:
    """Return how often the intervals of estimated shares cover the share in which a sky was resampled.

    A sky has 4,000 sources of one tile in one bin of W1 and |b|, drawn with replacement within the classes.
    """
    k = calibration.classes.index("quasar")
    cells = list(_full_cells(sample, calibration))
    inside, bias = [], []
    for i in range(n_skies):
        rows = cells[i % len(cells)]
        part = sample.take(rows)
        share = float(np.exp(rng.uniform(*np.log(QUASAR_SHARES))))
        others = np.bincount(part.labels, minlength=len(calibration.classes)).astype(float)
        others[k] = 0
        shares = others / others.sum() * (1 - share)
        shares[k] = share
        labels = rng.choice(len(shares), 4_000, p=shares)
        pools = [np.flatnonzero(part.labels == c) for c in range(len(shares))]
        drawn = np.array([rng.choice(pools[c]) for c in labels])
        counts = sky_counts(part.raw[drawn], part.w1[drawn], part.abs_b_deg[drawn], calibration)
        _, bins = estimated_prior(counts, calibration)
        one = max(bins, key=lambda estimate: estimate.n_sources)
        if one.shares and one.intervals and not one.refusal:
            inside.append([low <= s <= high for s, (low, high) in zip(shares, one.intervals, strict=True)])
            bias.append([e / s - 1 for e, s in zip(one.shares, shares, strict=True)])
    cover, median = np.mean(inside, axis=0), np.median(bias, axis=0)
    mean = np.mean(bias, axis=0)
    lines = [(c, f"{cover[j]:.1%}", f"{median[j]:+.1%}", f"{mean[j]:+.1%}") for j, c in enumerate(calibration.classes)]
    text = markdown(("class", "intervals that cover the share", "median relative error", "mean"), lines)
    return f"{len(inside)} of {n_skies} skies estimated, {n_skies - len(inside)} refused.\n\n{text}"


def _full_cells(sample: Sample, calibration: BinnedCalibration) -> Iterator[Bool]:
    """Yield the rows of each tile in each bin of W1 and |b| with enough sources of each class."""
    i, j = bin_of(sample.w1, calibration.w1_edges), bin_of(sample.abs_b_deg, ABS_B_EDGES)
    cells, number = np.unique(np.stack([i, j, sample.tile], axis=1), axis=0, return_inverse=True)
    for n, cell in enumerate(cells):
        rows = number.ravel() == n
        if cell.min() >= 0 and np.bincount(sample.labels[rows], minlength=len(calibration.classes)).min() >= 40:
            yield rows


def document(skies: Sequence[tuple[str, Sample]], calibration: BinnedCalibration) -> str:
    """Return the measurement as Markdown."""
    classes, everything = calibration.classes, Sample(*map(np.concatenate, zip(*(s for _, s in skies), strict=True)))
    used: Bool = np.asarray(np.isfinite(everything.estimated).all(axis=1) & np.isfinite(everything.true).all(axis=1))
    sample = everything.take(used)
    sums, failed, total = sums_table(sample, calibration)
    by_sky = [(name, sky.take(np.asarray(np.isfinite(sky.estimated).all(axis=1)))) for name, sky in skies]
    texts = [
        f"SIMULATED skies: {', '.join(name for name, _ in skies)}. All tables but Sets and Estimated shares use the "
        f"{used.sum():,} of {len(used):,} classified rows with `p_<class>_sky`; the others lie in bins that the "
        "estimate refused. raw: `p_<class>`; estimated: `p_<class>_sky`; true: the same with the true class shares of "
        "each bin.",
        "## Reliability",
        "A bin holds 400 or more rows of nearly equal probability. ECE is the mean absolute difference of mean "
        "probability and observed share; compare it with the share of the class. Slope 1 is right; below 1 the "
        "probabilities are too extreme. s.e. treats rows as independent.",
        reliability_table(sample, classes),
        *(
            f"### {name}\n\n{reliability_table(part, classes)}"
            for name, part in parts(sample, calibration)
            if len(part.labels) >= 2_000
        ),
        "## Sums",
        "Each entry is the true count, then the sums of the probabilities of the class for the raw, the estimated and "
        "the true prior. x marks a sum for the estimated prior that differs from the count by more than 10 % and by "
        f"more than 2 sqrt(sum p (1 - p)): {failed} of {total}.",
        sums,
        "## Quasars at |b| >= 30 and W1 <= 16.5",
        quasar_table(sample, classes),
        "## Sets",
        "Share of the sources of a class with the class in their set, its distance from 0.9 in binomial standard "
        "errors (without the scatter of the calibration and of tiles), and the number of sources. Last column: share "
        "of sets with one class, and of empty sets. All classified rows in the bins of the calibration count.",
        sets_table(everything, calibration),
        "## F1",
        f1_table([*by_sky, ("all", sample)], classes),
        "## Estimated shares",
        "A sky is 4,000 sources of one tile in one bin of W1 and |b|, drawn with replacement within the classes, with "
        "0.1 to 10 % quasars. Intervals are meant to cover 95 %. Relative error: estimated over true share, less 1.",
        resampled(everything, calibration, RESAMPLED_SKIES, np.random.default_rng(1)),
    ]
    return "\n\n".join(texts) + "\n"


def figure(sample: Sample, classes: Sequence[str]) -> Figure:
    """Return the observed share of each class against its mean probability, raw and for the estimated shares."""
    drawn = Figure(figsize=(9.6, 3.4), layout="constrained")
    panels: Any = drawn.subplots(1, len(classes), sharey=True)
    for k, (axes, name) in enumerate(zip(panels, classes, strict=True)):
        axes.plot([0, 1], [0, 1], color="#999999", lw=0.8)
        for kind, colour, label in (("raw", "#D55E00", f"p_{name}"), ("estimated", "#0072B2", f"p_{name}_sky")):
            mean, observed, _ = zip(*reliability_bins(getattr(sample, kind)[:, k], sample.labels == k), strict=True)
            axes.plot(mean, observed, ".-", ms=4, lw=0.8, color=colour, label=label)
        axes.set_xlabel(f"mean probability of {name}")
        axes.legend(fontsize=8, loc="upper left")
    panels[0].set_ylabel("share of the class")
    drawn.suptitle(f"{len(sample.labels):,} sources of SIMULATED skies", fontsize=10)
    return drawn


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN=TRUTH ...")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Markdown file.  [default: print]")
def main(runs: Iterable[str], output: Path | None) -> None:
    """Measure the probabilities of class catalogues of simulated skies."""
    skies: list[tuple[str, Sample]] = []
    for number, (run, truth) in enumerate(pair.split("=") for pair in runs):
        sample, calibration = sample_of(number, find_catalog(run), Path(truth))
        skies.append((Path(run).name, sample))
    text = document(skies, calibration)
    if output:
        output.write_text(text)
        everything = Sample(*map(np.concatenate, zip(*(sky for _, sky in skies), strict=True)))
        used: Bool = np.asarray(np.isfinite(everything.estimated).all(axis=1))
        figure(everything.take(used), calibration.classes).savefig(output.with_suffix(".png"), dpi=110)
    click.echo(text)


if __name__ == "__main__":
    main()
