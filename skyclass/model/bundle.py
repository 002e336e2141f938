"""The model bundle: a folder with `model.json`, which describes the network and its input, and `weights.safetensors`.

`model.json` holds the digest of its own content and of the weights, so that a changed byte in either file is refused.
Nothing is unpickled. A bundle may name a network outside of skyclass by its import path; `load_bundle` refuses it
unless the caller trusts its code. Torch is imported only when weights are loaded or saved.
"""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import BundleError, ConfigError
from ..images.composite import CompositeSettings
from ..import_path import is_import_path, source_sha256
from ..types import BANDS, PIXEL_SCALE_ARCSEC, class_problems
from .bundle_files import (
    MODEL_FILE,
    PACKAGED,
    REMEDY,
    SCHEMA,
    WEIGHTS_FILE,
    check_target,
    digest_of,
    find_bundle,
    read_document,
    render,
    translate_bundle_errors,
    verify,
    write_durably,
)
from .outliers import OutlierStatistics
from .photometry import PhotometrySettings
from .priors import BinnedCalibration

if TYPE_CHECKING:
    from torch import Tensor

MOST_PX = 512
"""Largest side of a cutout and of a network's input, in pixels."""

LARGEST_NUMBER = 1e30
"""Larger numbers overflow float32 in the first sum."""

SYMMETRIES = (1, 8)

SHA256 = re.compile(r"[0-9a-f]{64}")


def is_number(value: object) -> bool:
    """Return whether a value is a finite number that float32 can calculate with."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= LARGEST_NUMBER


def is_side(value: object) -> bool:
    """Return whether a value can be the side of an image in pixels."""
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_PX


@dataclass(frozen=True)
class Cut:
    """The cutouts of a model: `size_px` native pixels on a side, in each of `bands`.

    Raises `ConfigError` for an impossible side and for unknown bands.
    """

    size_px: int
    bands: tuple[str, ...]
    pixel_scale_arcsec: float = PIXEL_SCALE_ARCSEC

    def __post_init__(self) -> None:
        problems = []
        if not is_side(self.size_px):
            problems.append(f"size_px = {self.size_px!r}: must be a whole number from 1 to {MOST_PX}")
        if not self.bands or len(set(self.bands)) < len(self.bands) or not set(self.bands) <= set(BANDS):
            problems.append(f"bands = {list(self.bands)}: choose different ones of {', '.join(BANDS)}")
        if not (is_number(self.pixel_scale_arcsec) and self.pixel_scale_arcsec > 0):
            problems.append(f"pixel_scale_arcsec = {self.pixel_scale_arcsec!r}: must be a positive number")
        if problems:
            raise ConfigError("cut: " + "; ".join(problems))


@dataclass(frozen=True)
class Preprocessing:
    """How a composite becomes network input: a resize to `input_px` on a side, then (x - mean) / std by channel.

    Raises `ConfigError` for an impossible side, and for means and deviations that are not usable numbers.
    """

    input_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        problems = []
        if not is_side(self.input_px):
            problems.append(f"input_px = {self.input_px!r}: must be a whole number from 1 to {MOST_PX}")
        if not all(map(is_number, self.mean)):
            problems.append(f"mean = {list(self.mean)}: must be finite numbers")
        if not all(is_number(s) and s > 0 for s in self.std):
            problems.append(f"std = {list(self.std)}: must be positive numbers")
        if problems:
            raise ConfigError("preprocessing: " + "; ".join(problems))


@dataclass(frozen=True)
class Bundle:
    """A model as its `model.json` describes it, without the weights.

    Probabilities are softmax(logits / temperature + bias).

    Attributes
    ----------
    path : Path
        Folder of the bundle.
    name : str
        First part of `model_id`.
    network : str
        Name of a network of skyclass, or an import path such as "package.module:Class".
    network_options : dict
        Arguments of the network's class.
    cut : Cut
        Side in native pixels and bands of the cutouts.
    composite : CompositeSettings
        How cutouts become composites.
    preprocessing : Preprocessing
        How composites become network input.
    temperature : float
        Temperature of the calibration.
    training : dict
        Provenance. It has `simulated`, whether the training data were simulated, and `label`, a text for readers.
    weights_sha256, digest : str
        SHA-256 of the weights, and of the content of `model.json`.
    classes : tuple of str
        Classes in the order of the logits.
    bias : tuple of float
        Bias of the calibration for each class.
    photometry : PhotometrySettings or None
        Features that the network takes; None for a network of images alone.
    binned_calibration : BinnedCalibration or None
        Calibration in bins of W1 and |b|, and the class shares to which it refers; None where none was fitted.
        `predict` does not use it.
    outliers : OutlierStatistics or None
        Embeddings of reference sources, for the column `outlier`; None where they were not measured.
    symmetry : int
        Orientations of an image over which the output of the network is averaged: 1, or 8 for all flips and rotations
        by right angles, which takes eight times as long.
    source_sha256 : str
        SHA-256 of the source of the network's module if `network` is an import path, else empty.

    Raises
    ------
    ConfigError
        For impossible values; the message has all problems.
    """

    path: Path
    name: str
    network: str
    network_options: dict[str, Any]
    cut: Cut
    composite: CompositeSettings
    preprocessing: Preprocessing
    temperature: float
    training: dict[str, Any]
    weights_sha256: str
    digest: str
    classes: tuple[str, ...]
    bias: tuple[float, ...]
    photometry: PhotometrySettings | None = None
    binned_calibration: BinnedCalibration | None = None
    outliers: OutlierStatistics | None = None
    symmetry: int = 1
    source_sha256: str = ""

    def __post_init__(self) -> None:
        if problems := [*self._type_problems(), *self._number_problems()]:
            raise ConfigError("; ".join(problems))

    def _type_problems(self) -> list[str]:
        texts = {"name": self.name, "network": self.network}
        problems = [f"{k} = {v!r}: must be text" for k, v in texts.items() if not (v and isinstance(v, str))]
        needs_source = isinstance(self.network, str) and is_import_path(self.network)
        if bool(self.source_sha256) != needs_source or (needs_source and not SHA256.fullmatch(self.source_sha256)):
            problems.append(f"source_sha256 = {self.source_sha256!r}: must be set exactly for an import path")
        if not isinstance(self.network_options, dict):
            problems.append(f"network_options = {self.network_options!r}: must be a table of options")
        training = self.training if isinstance(self.training, dict) else {}
        if not isinstance(training.get("simulated"), bool) or not isinstance(training.get("label"), str):
            problems.append("training must have `simulated` (true or false) and a text `label`")
        return problems

    def _number_problems(self) -> list[str]:
        problems = []
        if wrong := class_problems(self.classes):
            problems.append(f"classes = {list(self.classes)}: {', '.join(wrong)}")
        binned = self.binned_calibration
        if binned and binned.classes != self.classes:
            problems.append(f"binned_calibration has the classes {', '.join(binned.classes)}, not those of the bundle")
        if not (is_number(self.temperature) and self.temperature > 0):
            problems.append(f"temperature = {self.temperature!r}: must be a positive number")
        if self.symmetry not in SYMMETRIES:
            problems.append(f"symmetry = {self.symmetry!r}: choose {' or '.join(map(str, SYMMETRIES))}")
        if len(self.bias) != len(self.classes) or not all(map(is_number, self.bias)):
            problems.append(f"bias = {list(self.bias)}: give one number for each class ({', '.join(self.classes)})")
        by_band = {"softening_dn": self.composite.softening_dn, "mean": self.preprocessing.mean}
        for name, values in (by_band | {"std": self.preprocessing.std}).items():
            if len(values) != len(self.bands):
                problems.append(f"{name} = {list(values)}: give one number for each band ({', '.join(self.bands)})")
        return problems

    @property
    def bands(self) -> tuple[str, ...]:
        """The bands of the cutouts, in the order of the channels."""
        return self.cut.bands

    @property
    def size_px(self) -> int:
        """Side of a cutout in native pixels."""
        return self.cut.size_px

    @property
    def is_packaged(self) -> bool:
        """True for a model that ships with skyclass. Every installation has it under its name."""
        return self.path.parent == PACKAGED

    @property
    def model_id(self) -> str:
        """Name and digest, the content of the column `model_id`."""
        return f"{self.name}-{self.digest[:12]}"


def load_bundle(name_or_path: str | Path, digest: str | None = None, trust_code: bool = False) -> Bundle:
    """Return a bundle whose network may be run.

    Parameters
    ----------
    name_or_path : str or Path
        Name of a shipped model, or the folder of a bundle.
    digest : str, optional
        Digest that the bundle must have.
    trust_code : bool
        Accept a bundle whose network is code outside of skyclass, named by an import path.

    Returns
    -------
    Bundle
        The description of the model. Both files of the bundle are verified.

    Raises
    ------
    BundleError
        If the folder or a file is missing, a byte has changed, the schema is another, the digest is not `digest`, the
        bundle needs code that the caller does not trust, or the source of that code is missing or has changed.

    Examples
    --------
    >>> bundle = load_bundle("iicnet-mock")
    >>> bundle.network, bundle.bands, bundle.size_px
    ('iicnet', ('w1', 'w2', 'w3'), 37)
    """
    bundle = read_bundle(name_or_path, digest)
    if is_import_path(bundle.network) and not trust_code:
        raise BundleError(
            f"the bundle at {bundle.path} runs code outside of skyclass, the network {bundle.network!r}: read the "
            "source of its module; if you trust it, add --trust-code (in Python and TOML: trust_code = true)"
        )
    check_source(bundle)
    return bundle


def check_source(bundle: Bundle) -> None:
    """Raise `BundleError` unless the source of a network outside of skyclass is that of the bundle's training."""
    if not is_import_path(bundle.network):
        return
    try:
        found = source_sha256(bundle.network)
    except ConfigError as error:
        raise BundleError(f"the bundle at {bundle.path} needs the network {bundle.network!r}: {error}") from error
    if found != bundle.source_sha256:
        raise BundleError(
            f"the bundle at {bundle.path} was made with another source of {bundle.network!r} (SHA-256 "
            f"{bundle.source_sha256[:12]} then, {found[:12]} here): restore that source, or train the model again"
        )


def read_bundle(name_or_path: str | Path, digest: str | None = None) -> Bundle:
    """Return the description of a bundle whose network is not run; its code need not be trusted or present.

    Raises the errors of `load_bundle` that do not concern code.
    """
    with translate_bundle_errors(name_or_path):
        folder = find_bundle(name_or_path)
        bundle = _bundle(folder, read_document(folder / MODEL_FILE))
        verify(folder / WEIGHTS_FILE, bundle.weights_sha256)
    if digest and bundle.digest != digest:
        raise BundleError(
            f"the bundle at {name_or_path} has the digest {bundle.digest[:12]} here, and {digest[:12]} is expected: "
            "give every worker the same files"
        )
    return bundle


def load_weights(bundle: Bundle) -> dict[str, Tensor]:
    """Return the state dict of the bundle's network, on the CPU; raise `BundleError` if a byte has changed."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = bundle.path / WEIGHTS_FILE
    with translate_bundle_errors(bundle.path):
        verify(path, bundle.weights_sha256)
        content = path.read_bytes()
    try:
        return load(content)
    except SafetensorError as error:
        raise BundleError(f"{path} is not a safetensors file ({error}): {REMEDY}") from error


def save_bundle(path: str | Path, bundle_fields: Mapping[str, Any], state_dict: Mapping[str, Tensor]) -> Bundle:
    """Write a bundle to a temporary folder, move it to `path`, and return its description.

    `bundle_fields` are the fields of `Bundle` except `path`, `weights_sha256` and `digest`; fields with a default, and
    a bias of zeros, may be left out. A bundle at `path` is replaced; it stays where the new one cannot be moved there.
    Raises `BundleError` if anything else is at `path`.
    """
    from safetensors.torch import save

    target = Path(path)
    check_target(target)
    weights = save({k: v.detach().cpu().contiguous() for k, v in state_dict.items()})
    document = _document(target, bundle_fields, hashlib.sha256(weights).hexdigest())
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as temporary:
        folder = Path(temporary) / "new"
        folder.mkdir()
        write_durably(folder / WEIGHTS_FILE, weights)
        write_durably(folder / MODEL_FILE, render(document))
        replaced = Path(temporary) / "old"
        if target.exists():
            target.rename(replaced)  # `rename` does not replace a folder that has files
        try:
            folder.rename(target)
        except OSError:
            if replaced.exists():
                replaced.rename(target)
            raise
    return read_bundle(target.resolve())


def _document(target: Path, bundle_fields: Mapping[str, Any], weights_sha256: str) -> dict[str, Any]:
    fields = dict(bundle_fields)
    classes, photometry, binned = fields["classes"], fields.get("photometry"), fields.get("binned_calibration")
    outliers = fields.get("outliers")
    plain = {
        **fields,
        "schema": SCHEMA,
        "cut": asdict(fields["cut"]),
        "composite": fields["composite"].to_dict(),
        "preprocessing": asdict(fields["preprocessing"]),
        "photometry": photometry.to_dict() if photometry else None,
        "binned_calibration": binned.to_dict() if binned else None,
        "outliers": outliers.to_dict() if outliers else None,
        "classes": list(classes),
        "bias": [float(b) for b in fields.get("bias", (0.0,) * len(classes))],
        "weights_sha256": weights_sha256,
    }
    for name, absent in (("source_sha256", ""), ("binned_calibration", None), ("outliers", None), ("symmetry", 1)):
        if plain.get(name) == absent:
            plain.pop(name, None)
    document: dict[str, Any] = json.loads(json.dumps(plain))  # tuples become lists, as when read back
    _bundle(target, document | {"digest": ""})  # refuses unreadable fields before anything is replaced
    return document | {"digest": digest_of(document)}


def _bundle(folder: Path, document: Mapping[str, Any]) -> Bundle:
    fields = {k: v for k, v in document.items() if k != "schema"}
    try:
        cut, preprocessing, photometry = (fields.pop(name) for name in ("cut", "preprocessing", "photometry"))
        binned_calibration, outliers = fields.pop("binned_calibration", None), fields.pop("outliers", None)
        return Bundle(
            path=folder,
            cut=Cut(**cut | {"bands": tuple(cut["bands"])}),
            composite=CompositeSettings.from_dict(fields.pop("composite")),
            preprocessing=Preprocessing(
                preprocessing["input_px"], tuple(preprocessing["mean"]), tuple(preprocessing["std"])
            ),
            photometry=PhotometrySettings.from_dict(photometry) if photometry else None,
            binned_calibration=BinnedCalibration.from_dict(binned_calibration) if binned_calibration else None,
            outliers=OutlierStatistics.from_dict(outliers) if outliers else None,
            classes=tuple(fields.pop("classes")),
            bias=tuple(fields.pop("bias")),
            **fields,
        )
    except (LookupError, TypeError, ValueError, ConfigError) as error:
        raise BundleError(f"{folder / MODEL_FILE} has wrong fields ({error}): {REMEDY}") from error
