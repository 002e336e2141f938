"""Model bundles of every input, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from skyclass.images.composite import atlas_settings
from skyclass.model.bundle import (
    Bundle,
    Cut,
    Preprocessing,
    save_bundle,
)
from skyclass.model.bundle_files import MODEL_FILE, digest_of, render
from skyclass.model.photometry import PhotometrySettings
from skyclass.networks import build
from skyclass.types import DEFAULT_CLASSES
from tests.support.networks import lived_in

BANDS = ("w1", "w2", "w3")


FIELDS: dict[str, Any] = {
    "name": "tiny",
    "network": "iicnet",
    "network_options": {"head": [8]},
    "cut": Cut(37, BANDS),
    "composite": atlas_settings(BANDS),
    "preprocessing": Preprocessing(64, (0.1, 0.2, 0.3), (1.0, 1.1, 0.9)),
    "temperature": 1.25,
    "classes": DEFAULT_CLASSES,
    "training": {"simulated": True, "label": "random weights"},
}


PHOTOMETRY = PhotometrySettings(("w1-w2", "w2-w3", "w1"), (0.5, 2.0, 15.0), (0.4, 1.0, 1.5))


FUSION: dict[str, Any] = {"network": "fusion", "photometry": PHOTOMETRY, "bias": (0.5, -0.25, 0.0)}
"""Changes that make the bundle one of images and photometry, its probabilities shifted between classes."""


COLOUR = FUSION | {"network": "colour", "network_options": {"hidden": [16, 8]}}


def make_bundle(path: Path, **changes: Any) -> Bundle:
    """Return a bundle of random weights whose network has lived-in BatchNorms and lively logits."""
    fields = FIELDS | changes
    width = {"features": len(fields["photometry"].features)} if fields.get("photometry") else {}
    torch.manual_seed(3)
    network = lived_in(build(fields["network"], **fields["network_options"] | width))
    return save_bundle(path, fields, network.state_dict())


def rewritten(path: Path, **changes: Any) -> Path:
    """The bundle's folder with other content in model.json, its digest fitting: what another version may write."""
    document = json.loads((path / MODEL_FILE).read_text()) | changes
    document = {k: v for k, v in document.items() if v is not ...}
    (path / MODEL_FILE).write_bytes(render(document | {"digest": digest_of(document)}))
    return path
