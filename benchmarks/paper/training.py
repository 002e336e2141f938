"""Train the image networks of the study, and measure them on the test rows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from skyclass.model.bundle import Bundle
from skyclass.model.devices import set_threads
from skyclass.training.data.dataset import Dataset
from skyclass.training.evaluation.evaluate import evaluate, training_log
from skyclass.training.fit.recipe import train_config
from skyclass.training.fit.train import train

from .limit import stop_training
from .study import Study

CHECKPOINT_MINUTES = 2.0
COMPILE_FROM = 50
"""Epochs from which the compilation of a training on a GPU saves more time than it takes."""


def trained(study: Study, name: str, seed: int, dataset: Dataset | None = None, **changes: Any) -> Bundle:
    """Return the bundle of a network trained on the paper set, or on a change of it; a finished one is not redone."""
    set_threads(1)
    epochs = changes.get("epochs", study.preset.epochs)
    run = train_config(
        {
            "out": str(study.model(name, seed)),
            "dataset": str(study.work / "dataset"),
            "seed": seed,
            "name": name,
            "label": "trained on a SIMULATED sky only (benchmarks/paper)",
            "recipe": study.preset.recipe,
            "epochs": epochs,
            "device": study.device,
            "compile": study.device == "cuda" and epochs >= COMPILE_FROM,
            "checkpoint_minutes": CHECKPOINT_MINUTES,
        }
        | changes
    )
    return train(run, progress=stop_training(study.limit), dataset=dataset or study.dataset)


def measured(study: Study, bundle: Bundle, dataset: Dataset | None = None) -> dict[str, Any]:
    """Return the scores of a bundle on the test rows, and what it took to train it."""
    found = evaluate(bundle, dataset or study.dataset, "test", study.device)
    log = training_log(bundle)
    kept = ("accuracy", "balanced_accuracy", "recall", "precision", "specificity", "f1", "class_accuracy", "auc")
    print_ = bundle.training["fingerprint"]
    return {
        "split": (dataset or study.dataset).provenance["split"]["counts"],
        "n_test": found["n"],
        "confusion": found["confusion"],
        **{k: found[k] for k in (*kept, "ece")},
        "interval": found["intervals"]["accuracy"],
        "strata": found["strata"],
        "epochs": print_["epochs"],
        "train_rows": sum(bundle.training["train_counts"].values()),
        "recipe": print_["recipe"],
        "batch_size": print_["batch_size"],
        "device": bundle.training["device"],
        "device_name": device_name(bundle.training["device"]),
        "images_per_s": [r["images_per_s"] for r in log],
        "validation": [round(r["val_balanced_accuracy"], 5) for r in log],
        "precision_mode": bundle.training["precision"],
        "model_id": bundle.model_id,
    }


def device_name(kind: str) -> str:
    """Return the name of the GPU, or "cpu"."""
    return torch.cuda.get_device_name() if kind == "cuda" and torch.cuda.is_available() else kind


def fewer(dataset: Dataset, n: int | None, seed: int) -> Dataset:
    """Return the dataset with n training rows, chosen at random; validation and test rows stay."""
    rows = dataset.split("train")
    if n is None or n >= len(rows):
        return dataset
    split = np.array(dataset.rows["split"].to_pylist(), dtype=object)
    split[np.setdiff1d(rows, np.random.default_rng(seed).permutation(rows)[:n])] = "none"
    place = dataset.rows.column_names.index("split")
    return replace(dataset, rows=dataset.rows.set_column(place, "split", pa.array(split.tolist(), pa.string())))


def small_run(study: Study, name: str, seed: int, dataset: Dataset | None = None, **changes: Any) -> Bundle:
    """Return a network trained with the effort of Table 3; `dataset` must have its few rows already.

    All of them start by the same rule, which keeps the scale of the activations in networks without BatchNorm.
    """
    dataset = fewer(study.dataset, study.preset.small_rows, seed) if dataset is None else dataset
    effort = {"epochs": study.preset.small_epochs, "batch_size": study.preset.small_batch}
    options = {"init": "he"} | changes.get("options", {})
    return trained(study, name, seed, dataset, **effort | changes | {"options": options})
