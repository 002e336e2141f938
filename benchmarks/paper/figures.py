"""The paper's figures from our records and models: all of simulated sources, and each says so."""

from __future__ import annotations

from collections.abc import Callable
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

from . import analyses, classic, layers, pictures
from .study import BANDS, SIZES, Study
from .tables import Records

SHOWN = 6
"""Sources in the figure of Grad-CAM: two of each class."""


def write_figures(study: Study, records: Records) -> list[Path]:
    """Write every figure that the records and models at hand allow; return their paths."""
    folder = study.results / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {**of_data(study), **of_records(records), **of_model(study)}
    return [save_figure(draw(), folder / f"{name}.png") for name, draw in drawn.items()]


Drawn = dict[str, Callable[[], Any]]


def of_data(study: Study) -> Drawn:
    """Figures 2, 5 and 6: the set itself."""
    if not (study.work / "dataset").exists():
        return {}
    data = study.dataset
    rows = data.split("train")[::4]
    return {
        "fig02-snr": lambda: pictures.draw_snr(analyses.snr_statistics(data, rows), simulated=True),
        "fig05-histograms": lambda: pictures.draw_histograms(
            analyses.rgb_histograms(images_of(study)[rows], data.labels[rows], BANDS), simulated=True
        ),
        "fig06-colours": lambda: pictures.draw_colour_colour(analyses.colour_colour(data, rows), simulated=True),
    }


def images_of(study: Study) -> Any:
    """Return the composites of the whole set, as IICnet sees them."""
    return composites(study.dataset, BANDS, atlas_settings(BANDS))


def of_records(records: Records) -> Drawn:
    """Figures 8 and 12: the sweeps."""
    found: Drawn = {}
    for name, values, words in (
        ("fig08-kernel", {k: f"kernel-{k}" for k in (3, 7)} | {5: "equal-iicnet"}, "first kernel (px)"),
        ("fig12-size", {px: f"size-{px}" for px in SIZES} | {80: "equal-iicnet"}, "input size (px)"),
    ):
        points = [{"x": x} | r for x, experiment in values.items() for r in records.get(experiment, [])]
        if len(points) > 1:
            curve = analyses.sweep(points, "x", "accuracy")
            found[name] = lambda c=curve, w=words: pictures.draw_sweep(c, w, simulated=True)
    return found


def of_model(study: Study) -> Drawn:
    """Figures 11, 13, 19 and 20, and Grad-CAM: the first IICnet."""
    path = study.model("iicnet", study.preset.seeds[0])
    if not path.exists():
        return {}
    bundle, data = load_bundle(path), study.dataset
    test = data.split("test")
    images, labels = images_of(study)[test], data.labels[test]
    p = probabilities_of(bundle, data, test)
    network = classic.network_of(bundle)
    sure = np.concatenate([np.flatnonzero((labels == k) & (p.argmax(1) == k))[: SHOWN // 3] for k in range(3)])
    x = Preprocess(bundle.preprocessing)(torch.from_numpy(images[sure]))
    embedded = classic.embeddings(bundle, data, test)
    words = [("galaxy", "quasar", "star")[k] for k in labels[sure]]
    groups = analyses.misclassified(labels, p, embedded, data.pixels[test][:, :3])
    few = analyses.outliers(labels, p)
    return {
        "fig11-feature-maps": lambda: pictures.draw_feature_maps(
            layers.feature_maps(network, x[:1]), images[sure[0]], simulated=True
        ),
        "grad-cam": lambda: pictures.draw_grad_cam(images[sure], layers.grad_cam(network, x), words, simulated=True),
        "fig13-training": lambda: pictures.draw_training(analyses.training_curves(f"{path}.jsonl"), simulated=True),
        "fig19-misclassified": lambda: pictures.draw_misclassified(groups, images, labels, p, simulated=True),
        "fig20-outliers": lambda: pictures.draw_outliers(few, images, labels, p, simulated=True),
    }
