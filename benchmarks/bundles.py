"""Balanced accuracy of two bundles on the same skies, by S/N, magnitude and galactic latitude.

    python -m benchmarks.bundles OLD NEW DATASET [DATASET ...]

All rows of all datasets count. So simulated skies must have other seeds than those of the training of both bundles. The
intervals are 95 % bootstraps over rows, paired: both bundles have the same draws.
"""

from __future__ import annotations

import click
import numpy as np
from numpy.typing import NDArray

from skyclass.errors import SkyclassError
from skyclass.model.bundle import read_bundle
from skyclass.sky.galactic import abs_galactic_latitude_deg
from skyclass.training.data.dataset import Dataset, load_dataset
from skyclass.training.evaluation.bootstrap import interval, resamples
from skyclass.training.evaluation.predictions import probabilities_of
from skyclass.types import DEFAULT_CLASSES

from .network_start import markdown

MIN_ROWS = 20
"""Rows of each class without which a bin has no balanced accuracy."""
BINS = {
    "W1 S/N": ("w1snr", (0.0, 10.0, 20.0)),
    "W1 (mag)": ("w1mpro", (0.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0, 18.0)),
    "galactic latitude (deg)": ("abs_b_deg", (0.0, 15.0, 30.0, 50.0, 90.0)),
}
"""Title -> (column, edges of its bins)."""
Columns = dict[str, NDArray[np.float64]]


def columns_of(dataset: Dataset, bundles: tuple[str, str], device: str) -> Columns:
    """Return the labels of a dataset, the values of `BINS` and, for each bundle, whether it is right."""
    rows = np.arange(len(dataset.labels))
    table = {name: np.asarray(dataset.rows[name], float) for name in ("ra", "dec", "w1mpro", "w1snr")}
    right = {
        f"right_{key}": probabilities_of(read_bundle(name), dataset, rows, device).argmax(1) == dataset.labels
        for key, name in zip(("old", "new"), bundles, strict=True)
    }
    latitude = abs_galactic_latitude_deg(table["ra"], table["dec"])
    return {"label": dataset.labels.astype(float), "abs_b_deg": latitude, **table, **right}


def compared(label: NDArray[np.float64], right: NDArray[np.float64], draws: int = 1000) -> NDArray[np.float64]:
    """Return the balanced accuracies of old and new, their difference and its 95 % interval (5,), in %.

    `right` (n, 2) is 1 where old and new are right. NaN if a class has fewer than `MIN_ROWS` rows.
    """
    is_class = label[:, None] == np.arange(len(DEFAULT_CLASSES))
    if is_class.sum(0).min() < MIN_ROWS:
        return np.full(5, np.nan)
    terms = np.concatenate([is_class, is_class * right[:, :1], is_class * right[:, 1:]], axis=1)
    weights = np.concatenate([np.ones((1, len(label))) @ terms, *(w @ terms for w in resamples(len(label), draws, 0))])
    n, old, new = np.split(weights, 3, axis=1)
    accuracy_old, accuracy_new = (100 * (part / n).mean(1) for part in (old, new))
    gain = accuracy_new - accuracy_old
    return np.array([accuracy_old[0], accuracy_new[0], gain[0], *interval(gain[0], gain[1:])])


def row(title: str, columns: Columns, mask: NDArray[np.bool_]) -> list[str]:
    """Return a row of the table: title, number of rows, balanced accuracies and their difference."""
    right = np.column_stack([columns["right_old"], columns["right_new"]])[mask]
    old, new, gain, low, high = compared(columns["label"][mask], right.astype(float))
    if np.isnan(gain):
        return [title, f"{mask.sum():,}", "-", "-", "-"]
    return [title, f"{mask.sum():,}", f"{old:.1f}", f"{new:.1f}", f"{gain:+.1f} ({low:+.1f} to {high:+.1f})"]


def document(parts: dict[str, Columns], bundles: tuple[str, str], sky: str) -> str:
    """Return the table of all datasets together by bin, and of each dataset alone; `sky` says what the skies are."""
    names = next(iter(parts.values()))
    both = {name: np.concatenate([part[name] for part in parts.values()]) for name in names}
    rows = [row("all", both, np.ones(len(both["label"]), bool)), row("W1 S/N > 20", both, both["w1snr"] > 20)]
    for title, (column, edges) in BINS.items():
        for low, high in zip(edges[:-1], edges[1:], strict=True):
            inside = (both[column] >= low) & (both[column] < high)
            rows += [row(f"{title} {low:g} to {high:g}", both, inside)] if inside.any() else []
    for name, part in parts.items():
        rows.append(row(f"{name}, all", part, np.ones(len(part["label"]), bool)))
        rows.append(row(f"{name}, W1 S/N > 20", part, part["w1snr"] > 20))
    old, new = (read_bundle(bundle).model_id for bundle in bundles)
    return (
        f'Balanced accuracy in % on {sky} skies, old: {old}, new: {new}. "-": a class has fewer than {MIN_ROWS} rows. '
        "Difference with its paired 95 % interval.\n\n" + markdown(["rows", "n", "old", "new", "difference"], rows)
    )


@click.command()
@click.argument("old")
@click.argument("new")
@click.argument("datasets", nargs=-1, required=True)
@click.option("--device", default="auto", show_default=True)
def main(old: str, new: str, datasets: tuple[str, ...], device: str) -> None:
    """Compare bundles OLD and NEW on all rows of DATASETS, and print a table."""
    try:
        loaded = {folder: load_dataset(folder) for folder in datasets}
        parts = {folder: columns_of(dataset, (old, new), device) for folder, dataset in loaded.items()}
        is_simulated = {bool(dataset.provenance["simulated"]) for dataset in loaded.values()}
        sky = {(True,): "SIMULATED", (False,): "observed"}.get(tuple(is_simulated), "SIMULATED and observed")
        click.echo(document(parts, (old, new), sky))
    except SkyclassError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
