"""Models side by side on a labelled dataset: scores, intervals, strata and paired differences.

bundles, dataset -> predictions.py -> metrics.py, bootstrap.py, caveats.py -> JSON -> folder of an evaluation
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from ... import __version__
from ...catalog.prior_files import read_prior
from ...errors import ConfigError
from ...files import write_bytes
from ...model.bundle import Bundle, load_bundle
from ...model.photometry import numbers as floats
from ...model.priors import PriorTable
from ...sky.galactic import abs_galactic_latitude_deg
from ...types import DEFAULT_CLASSES, Float32, Float64, Int64
from ..data.classes import label_counts
from ..data.dataset import Dataset
from ..extra import train_extra
from .bootstrap import DRAWS, LEVEL, bootstrap, differences, interval, precision_at_sky, strata
from .caveats import caveats, is_simulated
from .metrics import (
    CUT_CLASSES,
    RATE_METRICS,
    colour_cuts,
    confusion,
    confusion_scores,
    metrics_of,
    nan_to_none,
    scores,
)
from .natural import natural_rates, selection_function, tile_depth_mag
from .predictions import check_fit, probabilities_of, rows_of
from .training_log import read_log

COLOUR_CUTS = "colour cuts"
SCHEMA = "skyclass evaluation 1"
NATURAL = "counts"
"""Prior table of the class shares on the sky."""
STRATA: dict[str, tuple[str, tuple[float, ...]]] = {
    "w1snr": ("W1 S/N", (-math.inf, 3, 5, 10, 20, 50, math.inf)),
    "w1mpro": ("W1 (Vega mag)", (-math.inf, 11, 12, 13, 14, 15, 16, 17, math.inf)),
    "abs_b_deg": ("|b| (deg)", (0, 10, 20, 30, 45, 60, 90)),
}
"""Column -> (label with unit, edges): [low, high) each, the last one closed."""


def evaluate(
    bundle: Bundle,
    dataset: Dataset,
    split: str = "test",
    device: str = "auto",
    precision: str = "auto",
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the scores of `bundle` on one split of a dataset ("all" for every row), as JSON.

    The keys of `scores`, and `model_id`, `training` (provenance), `simulated`, `intervals` (as the scores, [low,
    high]), `strata`, `precision_at_sky`, `colour_cuts` (the same for the colour cuts on the same rows; None when the
    rows have no magnitudes), `dataset`. Raises `ConfigError` when the dataset does not fit the bundle.
    """
    document = evaluate_models([bundle], dataset, split, device, precision, draws, seed)
    common = {key: value for key, value in document.items() if key not in ("models", "differences")}
    return common | dict(document["models"][0])


def evaluate_models(
    bundles: Sequence[Bundle | str | Path],
    dataset: Dataset,
    split: str = "test",
    device: str = "auto",
    precision: str = "auto",
    draws: int = DRAWS,
    seed: int = 0,
    trust_code: bool = False,
) -> dict[str, Any]:
    """Return the scores of several models on the same rows, side by side, with paired differences, as JSON.

    `models` holds one entry for each model as `evaluate` returns it, `differences` one entry for each pair: b minus a,
    with the interval of the paired bootstrap. Every model is checked against the dataset before the first one runs.
    `trust_code` accepts bundles, given by name or folder, whose network is code outside of skyclass.
    """
    models = [b if isinstance(b, Bundle) else load_bundle(b, trust_code=trust_code) for b in bundles]
    check_fit(models, dataset)
    index = rows_of(dataset, split)
    probabilities = {
        name: probabilities_of(bundle, dataset, index, device, precision)
        for name, bundle in zip(_unique_names(models), models, strict=True)
    }
    labels = dataset.labels[index]
    comparison = compare(labels, dataset.rows.take(pa.array(index)), probabilities, dataset.classes, draws, seed)
    provenance = [_model_provenance(bundle) for bundle in models]
    comparison["models"] = [facts | model for facts, model in zip(provenance, comparison["models"], strict=True)]
    return {
        "schema": SCHEMA,
        "skyclass": __version__,
        "split": split,
        "dataset": _dataset_provenance(dataset, labels),
        "simulated_data": is_simulated(dataset),
        "bootstrap": {"draws": draws, "seed": seed, "level": LEVEL},
        "caveats": caveats(models, dataset, split, index),
    } | comparison


def _unique_names(bundles: Sequence[Bundle]) -> list[str]:
    """Return a short name for each model that distinguishes it from the others."""
    choices = ([b.name for b in bundles], [b.path.name for b in bundles], [b.model_id for b in bundles])
    names = next((names for names in choices if len(set(names) | {COLOUR_CUTS}) == len(bundles) + 1), None)
    if names is None:
        raise ConfigError(f"a model is named twice among {', '.join(choices[-1])}: name each once")
    return names


def _model_provenance(bundle: Bundle) -> dict[str, Any]:
    return {
        "model_id": bundle.model_id,
        "network": bundle.network,
        "training": bundle.training,
        "simulated": bool(bundle.training["simulated"]),
        "bands": list(bundle.bands),
        "size_px": bundle.size_px,
        "temperature": bundle.temperature,
        "bias": list(bundle.bias),
        "log": training_log(bundle),
    }


def training_log(bundle: Bundle) -> list[dict[str, Any]]:
    """Return the records of the epochs that training wrote beside the bundle; empty without a log."""
    path = Path(f"{bundle.path}.jsonl")
    if not path.is_file():
        return []
    return [record for record in read_log(path) if "epoch" in record and "loss" in record]


def _dataset_provenance(dataset: Dataset, labels: Int64) -> dict[str, Any]:
    provenance = json.loads(json.dumps(dataset.provenance, default=str))
    return {"path": str(dataset.path or ""), "counts": label_counts(labels, dataset.classes), "provenance": provenance}


# --- one set of rows, several predictions ----------------------------------------------------------


def compare(
    labels: Int64,
    rows: pa.Table,
    probabilities: Mapping[str, Float32],
    classes: Sequence[str],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Return the scores of each model's probabilities and of the colour cuts, and their paired differences."""
    cuts = _predicted_by_cuts(rows, classes)
    one_hot = {} if cuts is None else {COLOUR_CUTS: np.eye(len(classes), dtype=np.float32)[cuts]}
    all_probabilities = {**probabilities, **one_hot}
    drawn = bootstrap(labels, all_probabilities, draws, seed)
    if cuts is not None:
        drawn[COLOUR_CUTS] = {metric: drawn[COLOUR_CUTS][metric] for metric in RATE_METRICS}
    values = _strata_values(rows) | {"depth_mag": tile_depth_mag(rows)}
    prior = read_prior(NATURAL, classes) if tuple(classes) == DEFAULT_CLASSES else None
    assert prior is None or isinstance(prior, PriorTable)
    scored = {
        name: {"name": name}
        | _scored(labels, p, classes, drawn[name], values, name == COLOUR_CUTS, draws, seed)
        | _by_magnitude(labels, p.argmax(1), classes, values, prior, draws, seed)
        for name, p in all_probabilities.items()
    }
    return {
        "n": len(labels),
        "classes": list(classes),
        "models": [scored[name] for name in probabilities],
        "colour_cuts": scored.get(COLOUR_CUTS),
        "differences": differences(labels, all_probabilities, drawn, classes),
    }


def _scored(
    labels: Int64,
    probabilities: Float32,
    classes: Sequence[str],
    drawn: Mapping[str, Float64],
    values: Mapping[str, Float64],
    rates_only: bool,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    predicted = probabilities.argmax(1)
    table = confusion(labels, predicted, len(classes))
    scored = confusion_scores(table, classes) if rates_only else scores(labels, probabilities, classes)
    metrics = metrics_of(labels, probabilities)
    intervals = {metric: interval(metrics[metric], drawn[metric], metric) for metric in drawn}
    scored["intervals"] = {
        metric: dict(zip(classes, nan_to_none(bounds), strict=True)) if bounds.ndim > 1 else nan_to_none(bounds)
        for metric, bounds in intervals.items()
    }
    scored["precision_at_sky"] = precision_at_sky(table, classes, draws, seed)
    scored["strata"] = {
        column: {"label": label, "unknown": int(np.isnan(values[column]).sum())}
        | {"bins": strata(labels, predicted, values[column], edges, classes, draws, seed)}
        for column, (label, edges) in STRATA.items()
        if column in values
    }
    return scored


def _by_magnitude(
    labels: Int64,
    predicted: Int64,
    classes: Sequence[str],
    values: Mapping[str, Float64],
    prior: PriorTable | None,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """Return purity and completeness at the shares of the sky, and the selection function; empty without W1."""
    if "w1mpro" not in values:
        return {"natural": [], "selection": []}
    w1, b = values["w1mpro"], values["abs_b_deg"]
    return {
        "natural": natural_rates(labels, predicted, w1, b, prior, draws, seed) if prior else [],
        "selection": selection_function(labels, predicted, classes, w1, b, values["depth_mag"]),
    }


def _predicted_by_cuts(rows: pa.Table, classes: Sequence[str]) -> Int64 | None:
    """Return the class (N,) that the colour cuts give, an index into `classes`.

    None for other classes than those of the cuts, and where no row has W1-W2.
    """
    names = ("w1mpro", "w2mpro", "w3mpro")
    if set(classes) != set(CUT_CLASSES) or not set(names) <= set(rows.column_names):
        return None
    magnitudes = [floats(rows[name]) for name in names]
    if not np.isfinite(magnitudes[0] - magnitudes[1]).any():
        return None
    magnitudes.append(floats(rows["w3snr"]) if "w3snr" in rows.column_names else np.full(len(rows), np.nan))
    return np.array([classes.index(name) for name in colour_cuts(*magnitudes).tolist()], dtype=np.int64)


def _strata_values(rows: pa.Table) -> dict[str, Float64]:
    values = {name: floats(rows[name]) for name in STRATA if name in rows.column_names}
    return values | {"abs_b_deg": abs_galactic_latitude_deg(floats(rows["ra"]), floats(rows["dec"]))}


# --- writing ---------------------------------------------------------------------------------------


def write_evaluation(folder: str | Path, results: Mapping[str, Any], overwrite: bool = False) -> Path:
    """Write the results of `evaluate_models` and return the folder: figures, Markdown, CSV, JSON.

    The JSON is written last: a folder that has it is complete. `overwrite` replaces a complete evaluation. Raises
    `ConfigError` for a complete evaluation without `overwrite`, and for a folder with other files.
    """
    from ... import report

    target = Path(folder)
    check_folder(target, overwrite)
    figures = report.evaluation_figures(results)
    target.mkdir(parents=True, exist_ok=True)
    for old in (
        target / report.RESULTS,
        target / report.SELECTION,
        *(target / f"{name}.png" for name in report.EVALUATION_FIGURES),
    ):
        old.unlink(missing_ok=True)
    for name, figure in figures.items():
        report.save_figure(figure, target / f"{name}.png")
    write_bytes(target / report.SELECTION, report.selection_csv(results).encode())
    write_bytes(target / "evaluation.md", report.markdown(results, list(figures)).encode())
    write_bytes(target / report.RESULTS, (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())
    return target


def check_folder(target: Path, overwrite: bool = False) -> None:
    """Raise `ConfigError` unless the folder is absent, empty, or holds an evaluation that is incomplete or replaced."""
    from ... import report

    written = {
        report.RESULTS,
        report.SELECTION,
        "evaluation.md",
        "report.html",
        *(f"{name}.png" for name in report.EVALUATION_FIGURES),
    }
    if target.is_dir():
        foreign = {path.name for path in target.iterdir()} - written
    else:
        foreign = {target.name} if target.exists() else set()
    if foreign:
        raise ConfigError(f"{target} exists and is no evaluation ({min(foreign)}): choose another folder with `-o`")
    if (target / report.RESULTS).is_file() and not overwrite:
        raise ConfigError(f"{target} holds an evaluation: give another folder with `-o`, or --overwrite")
    with train_extra("the figures of an evaluation"):
        import matplotlib  # noqa: F401
