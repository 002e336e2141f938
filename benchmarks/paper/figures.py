"""The paper's figures from our records and models: all of simulated sources, and each says so."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skyclass.images.composite import atlas_settings
from skyclass.model.bundle import load_bundle
from skyclass.model.preprocess import Preprocess
from skyclass.report import save_figure
from skyclass.training.data.composites import composites
from skyclass.training.evaluation.predictions import probabilities_of

from . import analyses, classic, layers, pictures, published
from .cells import EFFORT, Records, effort
from .study import BANDS, BASELINES, SIZES, Study
from .tables import NETWORK_NAMES

LETTERS_PER_INCH = 19
"""Of the text below the figures."""
SHOWN = 6
"""Sources in the figure of Grad-CAM: two of each class."""


def write_figures(study: Study, records: Records) -> list[Path]:
    """Write every figure that the records, the models and the time limit allow; return their paths.

    Text below each states how it was made.
    """
    folder = study.results / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {**of_records(records), **of_data(study), **of_model(study, records)}
    left = takewhile(lambda item: not study.limit.is_over, drawn.items())
    return [save_figure(stamped(draw(), words), folder / f"{name}.png") for name, (words, draw) in left]


def stamped(figure: Any, words: str) -> Any:
    """Return a figure with small text below it, in lines that fit its width."""
    lines = textwrap.wrap(words, int(LETTERS_PER_INCH * figure.get_figwidth()))
    figure.supxlabel("\n".join(lines), x=0.99, ha="right", fontsize=6, color=pictures.INK)
    return figure


def effort_words(records: Records, group: list[dict[str, Any]]) -> str:
    """Return the effort and the simulated sky of records as one line."""
    pairs = zip(EFFORT, effort(records, group), strict=True)
    return ", ".join(f"{name}: {value}" for name, value in pairs)


Drawn = dict[str, tuple[str, Callable[[], Any]]]
"""Name of a figure -> how it was made, and the function that draws it."""


def of_data(study: Study) -> Drawn:
    """Figures 2, 5 and 6: the set itself."""
    if not (study.work / "dataset").exists():
        return {}
    data = study.dataset
    rows = data.split("train")[::4]
    draw: dict[str, Callable[[], Any]] = {
        "fig02-snr": lambda: pictures.draw_snr(analyses.snr_statistics(data, rows), simulated=True),
        "fig05-histograms": lambda: pictures.draw_histograms(
            analyses.rgb_histograms(images_of(study)[rows], data.labels[rows], BANDS), simulated=True
        ),
        "fig06-colours": lambda: pictures.draw_colour_colour(analyses.colour_colour(data, rows), simulated=True),
    }
    words = f"{len(rows):,} training images, simulated sky: {study.sky}"
    return {name: (words, function) for name, function in draw.items()}


def images_of(study: Study) -> Any:
    """Return the composites of the whole set, as IICnet sees them."""
    return composites(study.dataset, BANDS, atlas_settings(BANDS))


def of_records(records: Records) -> Drawn:
    """Figures 8, 12, 14, 15 and 18."""
    return {**of_sweeps(records), **of_validation(records), **of_iicnet(records.get("iicnet", [])[:1], records)}


def of_sweeps(records: Records) -> Drawn:
    """Figures 8 and 12: the sweeps."""
    found: Drawn = {}
    best: dict[float, float] = {published.BEST_SIZE_PX: published.BEST_SIZE_ACCURACY}
    for name, values, words, paper in (
        ("fig08-kernel", {k: f"kernel-{k}" for k in (3, 7)} | {5: "equal-iicnet"}, "first kernel (px)", None),
        ("fig12-size", {px: f"size-{px}" for px in SIZES} | {80: "equal-iicnet"}, "input size (px)", best),
    ):
        group = [{"x": x} | r for x, experiment in values.items() for r in records.get(experiment, [])]
        if len(group) > 1:
            curve = analyses.sweep(group, "x", "accuracy")
            draw = partial(pictures.draw_sweep, curve, words, simulated=True, paper=paper)
            found[name] = (effort_words(records, group), draw)
    return found


def of_validation(records: Records) -> Drawn:
    """Figure 15: the first seed of each network."""
    firsts = {name: group[0] for name, group in records.items() if group[0].get("validation")}
    known = [n for n in ("iicnet", *BASELINES) if f"equal-{n}" in firsts]
    networks = {NETWORK_NAMES[n].partition(" ")[0]: firsts[f"equal-{n}"] for n in known}
    bands = {words: firsts[n] for n, words in (("iicnet", "W1 W2 W3"), ("iicnet-4", "W1 W2 W3 W4")) if n in firsts}
    if not networks and not bands:
        return {}
    curves = [{label: r["validation"] for label, r in panel.items()} for panel in (networks, bands)]
    words = "; ".join(
        f"{letter}: {effort_words(records, list(panel.values()))}"
        for letter, panel in (("a", networks), ("b", bands))
        if panel
    )
    return {"fig15-validation": (words, partial(pictures.draw_validation, *curves, simulated=True))}


def of_iicnet(group: list[dict[str, Any]], records: Records) -> Drawn:
    """Figures 14 and 18: the first seed of IICnet."""
    words = effort_words(records, group)
    found: Drawn = {}
    for record in group:
        found["fig18-confusion"] = (words, partial(pictures.draw_confusion, record, simulated=True))
        if "roc" in record:
            found["fig14-roc"] = (words, partial(pictures.draw_roc, record, simulated=True))
    return found


def of_model(study: Study, records: Records) -> Drawn:
    """Figures 11, 13, 19, 20 and 21, and Grad-CAM: the first IICnet."""
    seed = study.preset.seeds[0]
    path = study.model("iicnet", seed)
    group = (
        [r for r in records.get("iicnet", []) if r["seed"] == seed and r["sky"] == study.sky] if path.exists() else []
    )
    if not group:
        return {}
    bundle, data = load_bundle(path), study.dataset
    test = data.split("test")
    images, labels = images_of(study)[test], data.labels[test]
    p = probabilities_of(bundle, data, test, study.device)
    network = classic.network_of(bundle)
    sure = np.concatenate([np.flatnonzero((labels == k) & (p.argmax(1) == k))[: SHOWN // 3] for k in range(3)])
    x = Preprocess(bundle.preprocessing)(torch.from_numpy(images[sure]))
    embedded = classic.embeddings(bundle, data, test, study.device)
    words = [("galaxy", "quasar", "star")[k] for k in labels[sure]]
    groups = analyses.misclassified(labels, p, embedded, data.pixels[test][:, :3])
    few = analyses.outliers(labels, p)
    made = effort_words(records, group)
    draw: dict[str, Callable[[], Any]] = {
        "fig11-feature-maps": lambda: pictures.draw_feature_maps(
            layers.feature_maps(network, x[:1]), images[sure[0]], simulated=True
        ),
        "grad-cam": lambda: pictures.draw_grad_cam(images[sure], layers.grad_cam(network, x), words, simulated=True),
        "fig13-training": lambda: pictures.draw_training(analyses.training_curves(f"{path}.jsonl"), simulated=True),
        "fig19-misclassified": lambda: pictures.draw_misclassified(groups, images, labels, p, simulated=True),
        "fig20-21-unsure": lambda: pictures.draw_outliers(few, images, labels, p, simulated=True),
    }
    return {name: (made, function) for name, function in draw.items()}
