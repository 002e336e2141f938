"""The experiments: each trains or measures one thing on the simulated paper set and leaves one JSON record.

    Study(preset, folder)  ->  EXPERIMENTS[name](study, seed)  ->  results/<preset>/<name>-<seed>.json

A record that is there is not made again, so a study that was stopped goes on. All sources are SIMULATED.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from skyclass.images.composite import atlas_settings
from skyclass.model.bundle import Bundle
from skyclass.model.devices import resolve_device, set_threads
from skyclass.model.photometry import features, scale_of, scaled
from skyclass.networks import build, macs, parameters
from skyclass.networks.colour import ColourNet
from skyclass.training.data.composites import composites
from skyclass.training.data.dataset import Dataset
from skyclass.training.evaluation.bootstrap import bootstrap, interval
from skyclass.training.evaluation.calibration import calibrate, softmax
from skyclass.training.evaluation.evaluate import evaluate
from skyclass.training.evaluation.metrics import scores
from skyclass.training.evaluation.predictions import probabilities_of
from skyclass.training.fit.job import input_statistics
from skyclass.training.fit.recipe import TrainConfig
from skyclass.types import DEFAULT_CLASSES, Float32, Int64

from . import analyses, classic, selfsup, tabular
from .spectra import simulate_spectra
from .spectrum import SpectrumNet
from .study import BANDS, BASELINES, SIZES, Study, effort_of
from .training import device_name, fewer, measured, small_run, trained

ALL_FEATURES = ("w1-w2", "w2-w3", "w1", "w1_snr", "w2_snr", "w3_snr", "w3_limit")
BORDER_PX = 8
FUSION_RATE = 3e-3
SIMCLR_EPOCHS = 50
"""Pre-training at most: it has no checkpoints, and more epochs would take longer than a call may."""
RATES = {"vgg16": 3e-4, "googlenet": 3e-4}
"""Learning rates in Table 3 of the networks without BatchNorm, which 1e-3 throws off; no rate was tuned any further."""


def run_experiment(study: Study, name: str, seed: int) -> dict[str, Any]:
    """Return the record of an experiment. It runs now unless there is one of the same effort and simulated sky."""
    path = study.record(name, seed)
    effort, sky = effort_of(study.preset, name), None if name == "real-tables" else study.sky
    if not is_made(path, effort, sky):
        began = time.monotonic()
        found = EXPERIMENTS[name](study, seed)
        facts = {"experiment": name, "seed": seed, "preset": study.preset.name, "simulated": True, "sky": sky}
        made = {"effort": effort, "seconds": round(time.monotonic() - began, 1)}
        text = json.dumps(facts | found | made, indent=1)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".tmp").write_text(text + "\n")
        path.with_suffix(".tmp").replace(path)
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def is_made(path: Path, effort: dict[str, Any], sky: str | None) -> bool:
    """Return whether a record is there that was made with this effort on this simulated sky."""
    if not path.exists():
        return False
    record = json.loads(path.read_text())
    return bool(record["effort"] == effort and record.get("sky") == sky)


def todo(study: Study) -> Iterator[tuple[str, int]]:
    """Yield (experiment, seed), those first that others build on."""
    for name in EXPERIMENTS:
        if name == "real-tables" and study.real is None:
            continue
        for seed in study.preset.seeds if name in SEEDED else study.preset.other_seeds:
            yield name, seed


# --- image networks ---------------------------------------------------------------------------------


def iicnet(study: Study, seed: int) -> dict[str, Any]:
    """IICnet on W1, W2, W3: Tables 2 and 4, Figs. 14, 15, 18 to 21."""
    bundle, test = iicnet_model(study, seed), study.dataset.split("test")
    labels, p = study.dataset.labels[test], probabilities_of(bundle, study.dataset, test, study.device)
    names = study.dataset.rows["source_id"].take(test).to_pylist()
    unsure = analyses.outliers(labels, p)
    embedded = classic.embeddings(bundle, study.dataset, test, study.device)
    groups = analyses.misclassified(labels, p, embedded, study.dataset.pixels[test][:, : len(BANDS)])
    return measured(study, bundle) | {
        "samples": analyses.samples(labels, p, names),
        "roc": analyses.roc(labels, p),
        "groups": {key: groups[key] for key in ("counts", "empty_count", "rule")},
        "unsure": {key: unsure[key] for key in ("counts", "share", "sure")},
    }


def iicnet_model(study: Study, seed: int) -> Bundle:
    """Return IICnet of a seed; others build on it, and it may have been made on another machine."""
    return trained(study, "iicnet", seed)


def fusion(study: Study, seed: int) -> dict[str, Any]:
    """IICnet of the same seed, its weights kept, with all the photometry that the random forest sees: Fig. 17.

    Only the colour branch and the layer that joins the two are trained, for three quarters as many epochs.
    """
    more = fusion_epochs(study)
    words = f"{study.preset.epochs}, then {more} with the images' weights kept"
    return measured(study, fusion_model(study, seed)) | {"epochs": words}


def fusion_model(study: Study, seed: int) -> Bundle:
    """Return fusion of a seed."""
    start = str(iicnet_model(study, seed).path)
    facts: dict[str, Any] = {
        "network": "fusion",
        "features": ALL_FEATURES,
        "frozen": ("images",),
        "learning_rate": FUSION_RATE,
    }
    return trained(study, "fusion", seed, start_from=start, epochs=fusion_epochs(study), **facts)


def fusion_epochs(study: Study) -> int:
    """Return the epochs in which fusion learns what the colours say."""
    return max(1, 3 * study.preset.epochs // 4)


MODELS: dict[str, Callable[[Study, int], Bundle]] = {"iicnet": iicnet_model, "fusion": fusion_model}


def fusion_from_scratch(study: Study, seed: int) -> dict[str, Any]:
    """The same network trained end to end from random weights, as many epochs as IICnet."""
    return measured(study, trained(study, "fusion-scratch", seed, network="fusion", features=ALL_FEATURES))


def per_image_stretch(network: str, study: Study, seed: int) -> dict[str, Any]:
    """With each band of each cutout stretched between its own percentiles, which loses flux and colour.

    Viewers do that. Then photometry tells a network what the image no longer can.
    """
    facts: dict[str, Any] = {"network": network, "composite": {"stretch": "percentile"}}
    if network == "fusion":
        facts["features"] = ALL_FEATURES
    return measured(study, small_run(study, f"stretched-{network}", seed, **facts))


def real_tables(study: Study, seed: int) -> dict[str, Any]:
    """The colour network on real sources."""
    assert study.real is not None
    return tabular.real_tables(study.real, seed) | {"simulated": False}


def four_bands(study: Study, seed: int) -> dict[str, Any]:
    """IICnet on W1 to W4: Fig. 17."""
    return measured(study, trained(study, "iicnet-4", seed, bands=(*BANDS, "w4")))


def equal(network: str, study: Study, seed: int) -> dict[str, Any]:
    """One network of Table 3, all with the same rows and epochs, at 80 x 80 pixels."""
    facts: dict[str, Any] = {"network": network}
    if study.preset.recipe == "modern" and network in RATES:
        facts["learning_rate"] = RATES[network]
    bundle = small_run(study, f"equal-{network}", seed, **facts)
    print_, test = bundle.training["fingerprint"], study.dataset.split("test")
    guess = probabilities_of(bundle, study.dataset, test, study.device).argmax(1)
    right = "".join("01"[hit] for hit in (guess == study.dataset.labels[test]).astype(int))
    return measured(study, bundle) | cost(network) | {"learning_rate": print_["learning_rate"], "right": right}


def cost(network: str) -> dict[str, Any]:
    """Return parameters, and multiply-accumulates at 80 and at 224 pixels."""
    module = build(network)
    return {
        "parameters": parameters(module),
        "macs_80": macs(module, (1, 3, 80, 80)),
        "macs_224": macs(module, (1, 3, 224, 224)),
    }


def sweep(name: str, study: Study, seed: int, **changes: Any) -> dict[str, Any]:
    """IICnet of Table 3 with one thing changed: Figs. 8 and 12, and the ablation of its blocks."""
    return measured(study, small_run(study, name, seed, **changes))


# --- the mock is no giveaway ------------------------------------------------------------------------


def only_w1(study: Study, seed: int) -> dict[str, Any]:
    """A network that sees W1 alone, trained as IICnet of Table 2: shape and brightness, no colour."""
    return measured(study, trained(study, "only-w1", seed, bands=("w1",)))


def shuffled(study: Study, seed: int) -> dict[str, Any]:
    """A network trained on shuffled labels and tested on the true ones: chance."""
    dataset, rng = fewer(study.dataset, study.preset.small_rows, seed), np.random.default_rng(seed)
    labels = dataset.labels.copy()
    for split in ("train", "val"):
        rows = dataset.split(split)
        labels[rows] = labels[rng.permutation(rows)]
    bundle = small_run(study, "shuffled", seed, replace(dataset, labels=labels))
    return measured(study, bundle)


def border(study: Study, seed: int) -> dict[str, Any]:
    """A network that sees the 8 pixels along the border alone, trained as IICnet: the neighbours, not the source."""
    dataset = study.dataset
    pixels = dataset.pixels[:, :3].copy()
    inner = slice(BORDER_PX, dataset.cut.size_px - BORDER_PX)
    pixels[:, :, inner, inner] = np.nan
    cut = replace(dataset.cut, bands=BANDS)
    framed = replace(dataset, pixels=pixels, cut=cut, zero_point_mag=dataset.zero_point_mag[:3], path=None)
    return measured(study, trained(study, "border", seed, framed), framed)


# --- without images, and other methods -----------------------------------------------------------------


def rated(labels: Int64, probabilities: Float32, **facts: Any) -> dict[str, Any]:
    """Return the scores of probabilities that no bundle made."""
    found = scores(labels, probabilities, DEFAULT_CLASSES)
    drawn = bootstrap(labels, {"it": probabilities})["it"]["accuracy"]
    kept = ("accuracy", "balanced_accuracy", "recall", "precision", "specificity", "f1", "class_accuracy", "auc", "ece")
    ends = interval(found["accuracy"], drawn).tolist()
    return {
        "n_test": len(labels),
        "confusion": found["confusion"],
        **{k: found[k] for k in kept},
        "interval": ends,
    } | facts


def photometry_of(dataset: Dataset, names: tuple[str, ...]) -> tuple[Float32, Int64, Int64]:
    """Return features of all rows, training rows (validation included) and test rows."""
    rows = np.sort(np.concatenate([dataset.split("train"), dataset.split("val")]))
    return features(dataset.rows, names), rows, dataset.split("test")


def by_photometry(method: str, study: Study, seed: int) -> dict[str, Any]:
    """Random forest or SVM on the catalogue's measured photometry of the same sources."""
    data = study.dataset
    x, rows, test = photometry_of(data, ALL_FEATURES)
    fitted = classic.METHODS[method](x[rows], data.labels[rows], seed)
    return rated(data.labels[test], fitted.predict_proba(x[test]), train_rows=len(rows), features=ALL_FEATURES)


def colours(study: Study, seed: int) -> dict[str, Any]:
    """The colour-colour network: Fig. 17."""
    data = study.dataset
    x = features(data.rows, ("w1-w2", "w2-w3"))
    train_rows, val, test = (data.split(name) for name in ("train", "val", "test"))
    scale = scale_of(x[train_rows])
    x = scaled(x, scale)
    network = tabular.fit_tabular(
        tabular.seeded(ColourNet, seed),
        x[train_rows],
        data.labels[train_rows],
        val=(x[val], data.labels[val]),
        seed=seed,
    )
    p = softmax(tabular.logits_of(network, x[test])).astype(np.float32)
    return rated(data.labels[test], p, train_rows=len(train_rows), epochs="60 at most, early stopping")


def spectra(study: Study, seed: int) -> dict[str, Any]:
    """A 1-D network on simulated spectra of the same number of sources: Fig. 17."""
    counts = [len(study.dataset.split(name)) for name in ("train", "val", "test")]
    flux, labels = simulate_spectra(sum(counts), seed)
    train_rows, val, test = np.split(np.random.default_rng(seed).permutation(len(labels)), np.cumsum(counts)[:-1])
    epochs = 12
    network = tabular.fit_tabular(
        tabular.seeded(SpectrumNet, seed), flux[train_rows], labels[train_rows], val=(flux[val], labels[val]),
        epochs=epochs, seed=seed, learning_rate=1e-3, device=study.device,
    )  # fmt: skip
    p = softmax(tabular.logits_of(network, flux[test])).astype(np.float32)
    return rated(labels[test], p, train_rows=len(train_rows), epochs=epochs, **place(study))


def place(study: Study) -> dict[str, str]:
    """Return the device of an experiment that trains without a bundle."""
    kind = resolve_device(study.device).partition(":")[0]
    return {"device": kind, "device_name": device_name(kind)}


def embedding_svm(study: Study, seed: int) -> dict[str, Any]:
    """An SVM on what the last layer of IICnet sees."""
    data, bundle = study.dataset, iicnet_model(study, seed)
    rows, test = np.concatenate([data.split("train"), data.split("val")]), data.split("test")
    known, asked = (classic.embeddings(bundle, data, index, study.device) for index in (rows, test))
    fitted = classic.fit_svm(known, data.labels[rows], seed)
    return rated(data.labels[test], fitted.predict_proba(asked), train_rows=len(rows))


def self_supervised(study: Study, seed: int) -> dict[str, Any]:
    """SimCLR on unlabelled cutouts, then a linear probe; beside the probe of an untrained network."""
    set_threads(1)
    data = fewer(study.dataset, study.preset.small_rows, seed)
    images = composites(data, BANDS, atlas_settings(BANDS))
    rows, test = data.split("train"), data.split("test")
    settings = input_statistics(images, rows, TrainConfig(out="-", dataset="-"))
    epochs = min(2 * study.preset.small_epochs, SIMCLR_EPOCHS)
    batch, where = min(256, len(rows)), study.device
    state = selfsup.pretrain(images[rows], settings, epochs=epochs, batch_size=batch, seed=seed, device=where)
    probe = partial(selfsup.linear_probe, seed=seed, device=where)
    known, asked, labels = images[rows], images[test], data.labels
    p = probe(state, settings, known, labels[rows], asked)
    chance = probe(selfsup.random_state(seed=seed), settings, known, labels[rows], asked)
    untrained = float((chance.argmax(1) == labels[test]).mean())
    facts = {"epochs": epochs, "accuracy_of_an_untrained_network": untrained} | place(study)
    return rated(labels[test], p, train_rows=len(rows), **facts)


# --- calibration and margins ------------------------------------------------------------------------


def natural_mix(name: str, study: Study, seed: int) -> dict[str, Any]:
    """Calibration on a simulated sky of natural class shares: fitted on one half of it, measured on the other."""
    bundle = MODELS[name](study, seed)
    models = {"as trained": bundle}
    for kind in ("temperature", "bias"):
        out = study.model(f"{name}-natural-{kind}", seed)
        models[kind] = calibrate(bundle, study.natural, "train", out, kind, device=study.device)
    return {kind: on_natural(study, model) for kind, model in models.items()}


def on_natural(study: Study, bundle: Bundle) -> dict[str, Any]:
    """Return how well calibrated a bundle is on the test half of the natural sky."""
    found = evaluate(bundle, study.natural, "test", study.device)
    kept = {k: found[k] for k in ("ece", "ece_floor", "accuracy", "balanced_accuracy", "nll", "n")}
    return kept | {"ece_interval": found["intervals"]["ece"], "temperature": bundle.temperature, "bias": bundle.bias}


def margins(study: Study, seed: int) -> dict[str, Any]:
    """Paired differences of accuracy between forest, IICnet and fusion, on the test rows and on the held-out sky."""
    data = study.dataset
    x, rows, _ = photometry_of(data, ALL_FEATURES)
    forest = classic.fit_forest(x[rows], data.labels[rows], seed)
    models = {name: model(study, seed) for name, model in MODELS.items()}
    there = study.held_out
    places = {"test": (data, data.split("test")), "held-out sky": (there, np.arange(len(there)))}
    return {name: gaps(forest, models, *rows, study.device) for name, rows in places.items()}


def gaps(forest: Any, models: dict[str, Bundle], data: Dataset, index: Int64, device: str) -> dict[str, Any]:
    """Return the accuracy of each method on the rows at `index`, and its paired differences with their intervals."""
    labels = data.labels[index]
    given = {"forest": forest.predict_proba(features(data.rows, ALL_FEATURES)[index])}
    given |= {name: probabilities_of(bundle, data, index, device) for name, bundle in models.items()}
    drawn = bootstrap(labels, given)
    value = {n: float((p.argmax(1) == labels).mean()) for n, p in given.items()}
    found = {}
    for a, b in (("forest", "iicnet"), ("forest", "fusion"), ("iicnet", "fusion")):
        gap = value[b] - value[a]
        found[f"{b} - {a}"] = [gap, *interval(gap, drawn[b]["accuracy"] - drawn[a]["accuracy"]).tolist()]
    return {"n": len(labels), "accuracy": value, "differences": found}


EXPERIMENTS: dict[str, Callable[[Study, int], dict[str, Any]]] = {
    "iicnet": iicnet,
    **{f"equal-{network}": partial(equal, network) for network in ("iicnet", *BASELINES)},
    "fusion": fusion,
    "real-tables": real_tables,
    "forest": partial(by_photometry, "forest"),
    "svm": partial(by_photometry, "svm"),
    "colours": colours,
    "margins": margins,
    "natural-mix": partial(natural_mix, "iicnet"),
    "natural-mix-fusion": partial(natural_mix, "fusion"),
    "embedding-svm": embedding_svm,
    "only-w1": only_w1,
    "shuffled": shuffled,
    "border": border,
    "fusion-scratch": fusion_from_scratch,
    "spectra": spectra,
    "iicnet-4": four_bands,
    **{f"stretched-{network}": partial(per_image_stretch, network) for network in ("iicnet", "fusion")},
    **{f"size-{px}": partial(sweep, f"size-{px}", input_px=px) for px in SIZES if px != 80},
    **{f"kernel-{k}": partial(sweep, f"kernel-{k}", options={"first_kernel": k}) for k in (3, 7)},
    "without-rfb": partial(sweep, "without-rfb", options={"rfb": False}),
    "without-cbam": partial(sweep, "without-cbam", options={"cbam": False}),
    "self-supervised": self_supervised,
}
"""In the order in which they run: a study that is cut short has IICnet and the networks of Table 3 first."""
SEEDED = ("iicnet", "fusion", "forest", "svm", "colours", "embedding-svm", "margins", "natural-mix")
"""Run for the `seeds` of the preset; the others for its `other_seeds`."""
NEEDS = {
    "fusion": ("iicnet",),
    "embedding-svm": ("iicnet",),
    "margins": ("iicnet", "fusion"),
    "natural-mix": ("iicnet",),
    "natural-mix-fusion": ("fusion",),
}
"""Experiments that use the models of others."""

SKIES_OF = {"margins": ("held-out",), "natural-mix": ("natural",), "natural-mix-fusion": ("natural",)}
"""Simulated skies that experiments see besides the paper set."""
WITHOUT_CHECKPOINTS = {
    *("real-tables", "forest", "svm", "colours", "margins", "natural-mix", "natural-mix-fusion"),
    *("embedding-svm", "spectra", "self-supervised"),
}
"""Experiments that begin anew when they are stopped."""
