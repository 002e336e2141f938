"""What models get right on a labelled dataset, side by side: scores, intervals, strata, paired differences.

    bundles, dataset -> probabilities -> scores, bootstrap -> JSON -> folder of an evaluation

What a number cannot tell (rows that a model has seen, simulated data, the purity of a catalogue) stands in `caveats`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from ... import __version__
from ...errors import ConfigError
from ...files import write_bytes
from ...model.bundle import Bundle, load_bundle
from ...model.classifier import load_classifier
from ...model.photometry import columns_of, features
from ...model.photometry import numbers as floats
from ...networks import INPUTS
from ...types import CLASSES, Bool, Float16, Float32, Float64, Int64
from ..data.classes import label_counts
from ..data.composites import composites
from ..data.dataset import Dataset, pixels_digest, rows_digest
from ..extra import train_extra
from .bootstrap import DRAWS, LEVEL, bootstrap, differences, interval, precision_at_sky, strata
from .metrics import OF_GUESSES, colour_cuts, confusion, confusion_scores, named, numbers_of, scores
from .training_log import read_log

BATCH = 4096
"""Images given to the network at a time: 30 MB."""
CUTS = "colour cuts"

SCHEMA = "skyclass evaluation 1"
STRATA: dict[str, tuple[str, tuple[float, ...]]] = {
    "w1snr": ("W1 S/N", (-math.inf, 3, 5, 10, 20, 50, math.inf)),
    "w1mpro": ("W1 (Vega mag)", (-math.inf, 11, 12, 13, 14, 15, 16, 17, math.inf)),
    "abs_b_deg": ("|b| (deg)", (0, 10, 20, 30, 45, 60, 90)),
}
"""Column -> (name with unit, edges): [low, high) each, the last one closed."""

CAVEATS = (
    "Precision holds for the class shares of this very sample, and balanced accuracy is not the purity of a "
    "catalogue: on the sky quasars are outnumbered by hundreds. `precision at sky shares` says what would be left.",
    "Intervals are 95 % bootstrap intervals over the rows: they do not cover another training run, another field, "
    "or labels that are wrong.",
)


# --- a model on a dataset --------------------------------------------------------------------------


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
    high]), `strata`, `precision_at_sky`, `colour_cuts` (the same on the same rows, without probabilities; None when
    the rows have no magnitudes), `dataset`. Raises `ConfigError` when the dataset does not fit the bundle.
    """
    document = evaluate_models([bundle], dataset, split, device, precision, draws, seed)
    own = {k: v for k, v in document.items() if k not in ("models", "differences")}
    return own | dict(document["models"][0])


def evaluate_models(
    bundles: Sequence[Bundle | str | Path],
    dataset: Dataset,
    split: str = "test",
    device: str = "auto",
    precision: str = "auto",
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """Return the scores of several models on the same rows, side by side, with paired differences, as JSON.

    `models` holds one entry a model as `evaluate` returns it, `differences` one entry a pair: b minus a, with the
    interval of the paired bootstrap. Every model is checked against the dataset before the first one runs.
    """
    models = [b if isinstance(b, Bundle) else load_bundle(b) for b in bundles]
    check_fit(models, dataset)
    index = rows_of(dataset, split)
    given = {
        name: probabilities_of(bundle, dataset, index, device, precision)
        for name, bundle in zip(_names(models), models, strict=True)
    }
    labels = dataset.labels[index]
    document = _compared(labels, dataset.rows.take(pa.array(index)), given, draws, seed)
    provenance = [_provenance(bundle) for bundle in models]
    document["models"] = [known | found for known, found in zip(provenance, document["models"], strict=True)]
    simulated = is_simulated(dataset)
    return {
        "schema": SCHEMA,
        "skyclass": __version__,
        "split": split,
        "dataset": _dataset_words(dataset, labels),
        "simulated_data": simulated,
        "bootstrap": {"draws": draws, "seed": seed, "level": LEVEL},
        "caveats": [
            *_simulated_words(simulated, models),
            *_seen_words(models, dataset, split),
            *_blind_words(models, dataset, index),
            *CAVEATS,
        ],
    } | document


def probabilities_of(
    bundle: Bundle,
    dataset: Dataset,
    index: Int64 | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Float32:
    """Return (N, 3) calibrated probabilities, by the bundle, of the rows at `index` (all when None)."""
    classifier = load_classifier(bundle, device, precision)
    return _answers(classifier.predict, bundle, dataset, index)


def logits_of(
    bundle: Bundle,
    dataset: Dataset,
    index: Int64 | None = None,
    device: str = "auto",
    precision: str = "auto",
) -> Float32:
    """Return (N, 3) logits, before temperature and bias, of the rows at `index` (all when None)."""
    classifier = load_classifier(bundle, device, precision)
    return _answers(classifier.logits, bundle, dataset, index)


def rows_of(dataset: Dataset, split: str) -> Int64:
    """Return the positions of a split, or of every row for "all"; `ConfigError` when there are none."""
    if split == "all":
        return np.arange(len(dataset), dtype=np.int64)
    index = dataset.split(split)
    if not len(index):
        raise ConfigError(f"the dataset has no rows of split {split!r}: choose train, val, test or all")
    return index


def is_simulated(dataset: Dataset) -> bool:
    """Return whether the images of a dataset were simulated; `ConfigError` when its provenance does not say."""
    if not isinstance(simulated := dataset.provenance.get("simulated"), bool):
        raise ConfigError("the provenance of the dataset does not say `simulated` (true or false): make it again")
    return simulated


def check_fit(bundles: Sequence[Bundle], dataset: Dataset) -> None:
    """Raise `ConfigError`, naming every misfit, unless each bundle can look at the dataset's cutouts."""
    problems = [f"{bundle.model_id}: {words}" for bundle in bundles for words in _misfits(bundle, dataset)]
    if problems:
        where = f"the dataset {dataset.path}" if dataset.path else "the dataset"
        raise ConfigError(
            f"{where} does not fit: " + "; ".join(problems) + "; make one with `skyclass dataset` for these models"
        )


def _misfits(bundle: Bundle, dataset: Dataset) -> Iterator[str]:
    needs = INPUTS.get(bundle.network, ("images",))
    mine, theirs = bundle.cut, dataset.cut
    if "images" in needs:
        if (mine.size_px, mine.pixel_scale_arcsec) != (theirs.size_px, theirs.pixel_scale_arcsec):
            yield (
                f"it takes cutouts of {mine.size_px} px of {mine.pixel_scale_arcsec} arcsec, the dataset has "
                f"{theirs.size_px} px of {theirs.pixel_scale_arcsec} arcsec"
            )
        if lost := [band for band in mine.bands if band not in theirs.bands]:
            yield f"it needs {', '.join(lost)}, the dataset has {', '.join(theirs.bands)}"
    wanted = columns_of(bundle.photometry.features) if bundle.photometry else ()
    if absent := [column for column in wanted if column not in dataset.rows.column_names]:
        yield f"it needs the columns {', '.join(absent)}, which the dataset's rows lack"
    elif bundle.photometry and "images" not in needs and not _seen(bundle, dataset).any():
        yield f"it looks at {', '.join(wanted)} alone, and no row has a value"


def _seen(bundle: Bundle, dataset: Dataset) -> Bool:
    """Return of which rows (N,) a model that looks at photometry sees a value; flags of limits are none."""
    assert bundle.photometry is not None
    wanted = columns_of(bundle.photometry.features)
    known: Bool = np.any([np.isfinite(floats(dataset.rows[column])) for column in wanted], axis=0)
    return known


def _blind_words(bundles: Sequence[Bundle], dataset: Dataset, index: Int64) -> list[str]:
    """Return a caveat for each model that looks at photometry which rows lack: it was judged on images there."""
    words = []
    for bundle in bundles:
        if bundle.photometry and (blind := int((~_seen(bundle, dataset)[index]).sum())):
            words.append(
                f"{bundle.name} looks at photometry, and {blind:,} of the {len(index):,} rows have none: there it was "
                "given what training calls unknown. Make the dataset with a catalogue to judge it on what it is for."
            )
    return words


def _answers(ask: Any, bundle: Bundle, dataset: Dataset, index: Int64 | None) -> Float32:
    """Return what `ask(images, photometry)` answers for the rows at `index`, batch by batch."""
    check_fit([bundle], dataset)
    index = np.arange(len(dataset)) if index is None else index
    images, settings = _images(bundle, dataset), bundle.photometry
    known = features(dataset.rows, settings.features) if settings else None
    parts = np.array_split(index, max(1, math.ceil(len(index) / BATCH)))
    found = [ask(images[part], None if known is None else known[part]) for part in parts]
    return np.concatenate(found)


def _images(bundle: Bundle, dataset: Dataset) -> Float16:
    """Return composites (N, C, S, S); for a network that looks at none, zeros that take no memory."""
    if "images" in INPUTS.get(bundle.network, ("images",)):
        return composites(dataset, bundle.bands, bundle.composite)
    shape = (len(dataset), len(bundle.bands), bundle.size_px, bundle.size_px)
    return np.broadcast_to(np.float16(0), shape)


def _names(bundles: Sequence[Bundle]) -> list[str]:
    """Return a name for each model, as short as tells them apart."""
    choices = ([b.name for b in bundles], [b.path.name for b in bundles], [b.model_id for b in bundles])
    names = next((names for names in choices if len(set(names) | {CUTS}) == len(bundles) + 1), None)
    if names is None:
        raise ConfigError(f"a model is named twice among {', '.join(choices[-1])}: name each once")
    return names


def _provenance(bundle: Bundle) -> dict[str, Any]:
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
    """Return the records of the epochs that training wrote beside the bundle; empty when there are none."""
    path = Path(f"{bundle.path}.jsonl")
    if not path.is_file():
        return []
    return [record for record in read_log(path) if "epoch" in record and "loss" in record]


def _dataset_words(dataset: Dataset, labels: Int64) -> dict[str, Any]:
    provenance = json.loads(json.dumps(dataset.provenance, default=str))
    return {"path": str(dataset.path or ""), "counts": label_counts(labels), "provenance": provenance}


def _simulated_words(simulated_data: bool, bundles: Sequence[Bundle]) -> list[str]:
    words = []
    if simulated_data:
        words.append("The images, magnitudes and labels are SIMULATED: no number here is one of the real sky.")
    if trained := [b.name for b in bundles if b.training["simulated"]]:
        words.append(f"Trained on a SIMULATED sky: {', '.join(dict.fromkeys(trained))}.")
    return words


def _seen_words(bundles: Sequence[Bundle], dataset: Dataset, split: str) -> list[str]:
    """Return a caveat for the models that were fitted on rows of this split, and one for those that may have been."""
    here, own = pixels_digest(dataset), rows_digest(dataset)
    sure: list[str] = []
    unsure: list[str] = []
    for bundle in bundles:
        used = [digest for name, digest in _fitted_on(bundle) if name == split or "all" in (name, split)]
        trained = bundle.training.get("fingerprint") or {}
        if here and here == trained.get("pixels") and trained.get("rows", own) != own:
            sure.append(bundle.name)  # the same sources, labelled or split otherwise
        elif used:
            (sure if here and here in used else unsure).append(bundle.name)
    words = []
    if sure:
        words.append(f"Fitted on rows of this very split, {split}: {', '.join(sure)}. " + _FLATTERED)
    if unsure:
        words.append(f"May have seen rows of this split, {split}, in training: {', '.join(unsure)}. " + _FLATTERED)
    return words


_FLATTERED = "Numbers on rows that a model has seen flatter it: judge it by split test."


def _fitted_on(bundle: Bundle) -> list[tuple[str, str | None]]:
    """Return the (split, digest of the dataset's pixels) that decided weights, epoch and calibration of a model.

    None: not recorded. A dataset of another digest may still hold the same sources.
    """
    trained = (bundle.training.get("fingerprint") or {}).get("pixels")
    record = bundle.training.get("calibration")
    return [("train", trained), ("val", trained), *([(record["split"], record.get("pixels"))] if record else [])]


# --- one set of rows, several answers --------------------------------------------------------------


def _compared(labels: Int64, rows: pa.Table, given: Mapping[str, Float32], draws: int, seed: int) -> dict[str, Any]:
    """Return the scores of each set of probabilities, of the colour cuts, and their paired differences."""
    cuts = _cut_guess(rows)
    one_hot = {} if cuts is None else {CUTS: np.eye(len(CLASSES), dtype=np.float32)[cuts]}
    everyone = {**given, **one_hot}
    drawn = bootstrap(labels, everyone, draws, seed)
    if cuts is not None:
        drawn[CUTS] = {name: drawn[CUTS][name] for name in OF_GUESSES}
    values = _strata_values(rows)
    found = {
        name: {"name": name} | _scored(labels, p, drawn[name], values, name == CUTS, draws, seed)
        for name, p in everyone.items()
    }
    return {
        "n": len(labels),
        "classes": list(CLASSES),
        "models": [found[name] for name in given],
        "colour_cuts": found.get(CUTS),
        "differences": differences(labels, everyone, drawn),
    }


def _scored(
    labels: Int64,
    probabilities: Float32,
    drawn: Mapping[str, Float64],
    values: Mapping[str, Float64],
    guesses_only: bool,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    guess = probabilities.argmax(1)
    table = confusion(labels, guess)
    found = confusion_scores(table) if guesses_only else scores(labels, probabilities)
    point = {name: np.asarray(value) for name, value in numbers_of(labels, probabilities).items()}
    found["intervals"] = {name: named(interval(point[name], drawn[name], name)) for name in drawn}
    found["precision_at_sky"] = precision_at_sky(table, draws, seed)
    found["strata"] = {
        column: {"label": words, "unknown": int(np.isnan(values[column]).sum())}
        | {"bins": strata(labels, guess, values[column], edges, draws, seed)}
        for column, (words, edges) in STRATA.items()
        if column in values
    }
    return found


def _cut_guess(rows: pa.Table) -> Int64 | None:
    """Return the class (N,) that the colour cuts give, an index into `CLASSES`; None where no row has W1-W2."""
    names = ("w1mpro", "w2mpro", "w3mpro")
    if not set(names) <= set(rows.column_names):
        return None
    magnitudes = [floats(rows[name]) for name in names]
    if not np.isfinite(magnitudes[0] - magnitudes[1]).any():
        return None
    index = {name: k for k, name in enumerate(CLASSES)}
    guess = colour_cuts(*magnitudes)
    return np.array([index[name] for name in guess.tolist()], dtype=np.int64)


def _strata_values(rows: pa.Table) -> dict[str, Float64]:
    known = {name: floats(rows[name]) for name in STRATA if name in rows.column_names}
    return known | {"abs_b_deg": galactic_latitude_deg(floats(rows["ra"]), floats(rows["dec"]))}


def galactic_latitude_deg(ra_deg: ArrayLike, dec_deg: ArrayLike) -> Float64:
    """Return |b| in degrees of ICRS positions in degrees."""
    from astropy import units as u  # a second to import, which training need not pay
    from astropy.coordinates import SkyCoord

    return np.abs(np.asarray(SkyCoord(ra_deg * u.deg, dec_deg * u.deg).galactic.b.deg, np.float64))


# --- writing ---------------------------------------------------------------------------------------


def write_evaluation(folder: str | Path, results: Mapping[str, Any]) -> Path:
    """Write what `evaluate_models` returned and return the folder: figures, evaluation.md, evaluation.json.

    The JSON comes last, so a folder that has one is whole. An earlier evaluation there is replaced; a folder with
    anything else raises `ConfigError`.
    """
    from ... import report

    target = Path(folder)
    check_folder(target)
    figures = report.evaluation_figures(results)
    target.mkdir(parents=True, exist_ok=True)
    for old in (target / report.RESULTS, *(target / f"{name}.png" for name in report.EVALUATION_FIGURES)):
        old.unlink(missing_ok=True)
    for name, figure in figures.items():
        report.save_figure(figure, target / f"{name}.png")
    write_bytes(target / "evaluation.md", report.markdown(results, list(figures)).encode())
    write_bytes(target / report.RESULTS, (json.dumps(results, indent=1, allow_nan=False) + "\n").encode())
    return target


def check_folder(target: Path) -> None:
    """Raise `ConfigError` unless an evaluation may be written there: nothing, an evaluation, or part of one."""
    from ... import report

    own = {report.RESULTS, "evaluation.md", "report.html", *(f"{name}.png" for name in report.EVALUATION_FIGURES)}
    there = {p.name for p in target.iterdir()} if target.is_dir() else {target.name} if target.exists() else set()
    strangers = there - own if target.is_dir() else there
    if strangers:
        raise ConfigError(f"{target} exists and is no evaluation ({min(strangers)}): give another folder to `-o`")
    with train_extra("the figures of an evaluation"):
        import matplotlib  # noqa: F401
