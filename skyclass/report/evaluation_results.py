"""The content of `evaluation.json` and its names in a report: metrics, entries, facts, title."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .drawing import Json

RESULTS = "evaluation.json"
SELECTION = "selection.csv"
"""Selection by the classifier: recall by class, W1, |b| and depth, without the sources that a catalogue lacks."""

METRIC_LABELS: dict[str, str] = {
    "accuracy": "accuracy (share of right rows)",
    "balanced_accuracy": "balanced accuracy (mean recall)",
    "macro_precision": "precision, mean of classes",
    "macro_specificity": "specificity, mean of classes",
    "macro_f1": "F1, mean of classes",
    "macro_class_accuracy": "accuracy one against the rest, mean of classes",
    "macro_auc": "AUC one against the rest, mean of classes",
    "ece": "ECE (15 bins)",
    "ece_floor": "ECE of a perfect model on as few rows",
    "classwise_ece": "classwise ECE",
    "nll": "negative log-likelihood",
    "brier": "Brier score (0 to 2)",
}
CLASS_METRIC_LABELS: dict[str, str] = {
    "precision": "precision",
    "recall": "recall",
    "specificity": "specificity",
    "f1": "F1",
    "class_accuracy": "accuracy",
    "auc": "AUC",
}


def read_evaluation(folder: str | Path) -> dict[str, Any]:
    """Return the content of `evaluation.json` in a folder; `ConfigError` for an unreadable file or another version."""
    path = Path(folder) / RESULTS
    try:
        results = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read ({error}): run `skyclass evaluate` again") from error
    if not isinstance(results, dict) or results.get("schema") != "skyclass evaluation 1":
        raise ConfigError(f"{path} is no evaluation of this version: run `skyclass evaluate` again")
    return results


def entries(results: Json) -> list[Json]:
    """Return the models of an evaluation, followed by the colour cuts if the rows have magnitudes."""
    return [*results["models"], *([results["colour_cuts"]] if results["colour_cuts"] else [])]


def simulation_warning(results: Json) -> str:
    """Return the warning for simulated rows or a model trained on a simulated sky, "" if all is observed."""
    if results["simulated_data"]:
        return "SIMULATED data"
    return "model trained on a SIMULATED sky" if any(model["simulated"] for model in results["models"]) else ""


def title_of(results: Json) -> str:
    """Return the title of a report."""
    names = ", ".join(model["name"] for model in results["models"])
    warning = simulation_warning(results)
    return f"Evaluation of {names}" + (f" ({warning})" if warning else "")


def facts_of(results: Json) -> list[str]:
    """Return one line about the rows, one about each model and one about the bootstrap."""
    counts = ", ".join(f"{n:,} {name}" for name, n in results["dataset"]["counts"].items())
    kind = "SIMULATED" if results["simulated_data"] else "observed"
    models = [
        f"{m['name']}: {m['model_id']}, network {m['network']}, training: {m['training'].get('label', 'not recorded')}"
        for m in results["models"]
    ]
    return [
        f"{kind} rows of split {results['split']}: {results['n']:,} ({counts})",
        *models,
        f"{results['bootstrap']['draws']:,} bootstrap draws; skyclass {results['skyclass']}",
    ]


def range_label(stratum: Json) -> str:
    """Return the range of a stratum as text, such as "< 3", "3 to 10" or ">= 10"."""
    low, high = stratum["low"], stratum["high"]
    if low is None or high is None:
        return f"< {high:g}" if low is None else f">= {low:g}"
    return f"{low:g} to {high:g}"
