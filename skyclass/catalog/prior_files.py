"""The files of priors: the table that a user gives, and the two files beside a published catalogue.

calibration.json   the calibration of the model in bins of W1 and |b|, where it has one
prior.json         the prior of the columns p_<class>_sky, and the estimate of each bin of W1 and |b|
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from ..errors import ConfigError, StoreError
from ..files import read_json
from ..model.priors import BinnedCalibration, PriorTable
from ..text import counted
from .sky_columns import CataloguePrior
from .sky_prior import BinEstimate

NONE = "none"
ESTIMATE: Literal["estimate"] = "estimate"
Prior = PriorTable | Literal["estimate"] | None
"""Class shares of the sky: a table, an estimate from the sources of the catalogue, or none."""
CALIBRATION_FILE, PRIOR_FILE = "calibration.json", "prior.json"
SHIPPED = Path(__file__).parent / "priors"
"""Folder of the prior tables that ship with skyclass."""
NO_CALIBRATION = (
    "the model has no calibration in bins of W1 and |b|, which a prior needs: add one with `skyclass evaluate MODEL "
    "DATASET --calibrate OUT --kind bins`, and classify with the model OUT; or use the prior none"
)


def read_prior(request: str, classes: Sequence[str]) -> Prior:
    """Return the prior for the classes of a model: "none", "estimate", the name of a shipped table, or a JSON file.

    A file holds a `PriorTable`, or is the `prior.json` of a catalogue. Raises `ConfigError` for a file that is neither,
    and for a table with other classes.
    """
    if request == NONE:
        return None
    if request == ESTIMATE:
        return ESTIMATE
    path = SHIPPED / f"{request}.json"
    if not path.is_file():
        path = Path(request)
    try:
        document = read_json(path)
    except (StoreError, OSError) as error:
        raise ConfigError(f"prior = {request!r}: {error}; choose {NONE}, {ESTIMATE}, {choices()} or a file") from error
    fields = document.get("prior", document)
    table = PriorTable.from_dict(fields if isinstance(fields, Mapping) else {})
    if table.classes != tuple(classes):
        raise ConfigError(
            f"prior = {request!r}: it has the classes {', '.join(table.classes)}, and the model has "
            f"{', '.join(classes)}: give a prior for the classes of the model, in their order"
        )
    return table


def choices() -> str:
    """Return the names of the shipped prior tables."""
    return ", ".join(sorted(path.stem for path in SHIPPED.glob("*.json")))


def prior_files(
    calibration: BinnedCalibration | None, prior: CataloguePrior | None, bins: Sequence[BinEstimate]
) -> dict[str, bytes]:
    """Return the files of calibration and prior beside a published catalogue, by name."""
    documents: dict[str, Any] = {CALIBRATION_FILE: calibration.to_dict()} if calibration else {}
    if prior:
        table = {"prior_id": prior.table.prior_id, "prior": prior.table.to_dict()}
        documents[PRIOR_FILE] = table | {"bins": [_bin(one) for one in bins]}
    return {name: json.dumps(document, indent=1).encode() + b"\n" for name, document in documents.items()}


def _bin(estimate: BinEstimate) -> dict[str, Any]:
    fit = estimate.fit._asdict() if estimate.fit else None
    return asdict(estimate) | {"fit": fit}


def read_calibration(root: Path) -> BinnedCalibration | None:
    """Return the calibration beside a published catalogue, or None where its model has none."""
    path = root / CALIBRATION_FILE
    return BinnedCalibration.from_dict(read_json(path)) if path.is_file() else None


def read_prior_file(root: Path) -> dict[str, Any]:
    """Return the content of prior.json beside a published catalogue: `prior_id`, `prior` and `bins`."""
    return read_json(root / PRIOR_FILE)


def prior_lines(root: Path) -> list[str]:
    """Return what a user must know of the prior of a published catalogue, in lines; none without a prior."""
    if not (root / PRIOR_FILE).is_file():
        return []
    document = read_prior_file(root)
    bins = document["bins"]
    lines = [f"prior {document['prior_id']}: {document['prior']['label']}"]
    if bins:
        refused = [one for one in bins if one["refusal"] and one["n_sources"]]
        n_adjusted = sum(one["n_sources"] for one in bins if not one["refusal"])
        n_refused = sum(one["n_sources"] for one in refused)
        lines.append(
            f"class shares for {counted(n_adjusted, 'source')}; none for {counted(n_refused, 'source')} in "
            f"{counted(len(refused), 'bin')} of W1 and |b| (see {PRIOR_FILE}), nor for sources outside of all bins"
        )
    return lines
