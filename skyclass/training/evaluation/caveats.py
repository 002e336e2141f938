"""The limits of an evaluation: rows that a model has seen in training, simulated data, missing photometry."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import ConfigError
from ...model.bundle import Bundle
from ...types import Int64
from ..data.dataset import Dataset, pixels_digest, rows_digest
from .predictions import has_photometry

GENERAL_CAVEATS = (
    "Precision holds for the class shares of this sample, and balanced accuracy is not the purity of a catalogue: on "
    "the sky other sources outnumber quasars by hundreds. `Precision at assumed class shares` is the precision if the "
    "classes had these shares, and if sources of the sky were confused as often as these rows.",
    "Intervals are 95 % bootstrap intervals over the rows. They do not include the differences between training runs "
    "or fields, or wrong labels.",
)
_TOO_OPTIMISTIC = "Metrics on rows of its training flatter a model: evaluate it on split test."


def caveats(bundles: Sequence[Bundle], dataset: Dataset, split: str, index: Int64) -> list[str]:
    """Return the caveats of an evaluation on the rows at `index`, which are those of `split`."""
    return [
        *_simulated_caveats(is_simulated(dataset), bundles),
        *_seen_caveats(bundles, dataset, split),
        *_photometry_caveats(bundles, dataset, index),
        *_split_caveats(dataset),
        *GENERAL_CAVEATS,
    ]


def is_simulated(dataset: Dataset) -> bool:
    """Return whether the images of a dataset are simulated; `ConfigError` when its provenance does not say."""
    if not isinstance(simulated := dataset.provenance.get("simulated"), bool):
        raise ConfigError("the provenance of the dataset does not say `simulated` (true or false): make it again")
    return simulated


def _simulated_caveats(simulated_data: bool, bundles: Sequence[Bundle]) -> list[str]:
    texts = []
    if simulated_data:
        texts.append("The images, magnitudes and labels are SIMULATED: no number is a result on the real sky.")
    if simulated := [bundle.name for bundle in bundles if bundle.training["simulated"]]:
        texts.append(f"Trained on a SIMULATED sky: {', '.join(dict.fromkeys(simulated))}.")
    return texts


def _photometry_caveats(bundles: Sequence[Bundle], dataset: Dataset, index: Int64) -> list[str]:
    """Return a caveat for each model with photometry if some rows lack it."""
    texts = []
    for bundle in bundles:
        if bundle.photometry and (n_missing := int((~has_photometry(bundle, dataset)[index]).sum())):
            texts.append(
                f"{bundle.name} looks at photometry, and {n_missing:,} of the {len(index):,} rows have none: it treats "
                "them as sources without photometry. Make the dataset with a catalogue to evaluate it with photometry."
            )
    return texts


def _split_caveats(dataset: Dataset) -> list[str]:
    """Return a caveat for a dataset that is not split on the sky."""
    if dataset.provenance.get("split", {}).get("order", 0) is not None:
        return []
    return [
        "The dataset is split at random by row, not by sky: test sources may be neighbours of training sources, and "
        "come from the same fields."
    ]


def _seen_caveats(bundles: Sequence[Bundle], dataset: Dataset, split: str) -> list[str]:
    """Return a caveat for the models fitted on rows of this split, and one for those that may have been."""
    pixels, rows = pixels_digest(dataset), rows_digest(dataset)
    fitted: list[str] = []
    perhaps: list[str] = []
    for bundle in bundles:
        used = [digest for name, digest in _fitted_on(bundle) if name == split or "all" in (name, split)]
        fingerprint = bundle.training.get("fingerprint") or {}
        if pixels and pixels == fingerprint.get("pixels") and fingerprint.get("rows", rows) != rows:
            fitted.append(bundle.name)  # the same sources with other labels or splits
        elif used:
            (fitted if pixels and pixels in used else perhaps).append(bundle.name)
    texts = []
    if fitted:
        texts.append(f"Fitted on rows of this split, {split}: {', '.join(fitted)}. {_TOO_OPTIMISTIC}")
    if perhaps:
        texts.append(f"May have seen rows of this split, {split}, in training: {', '.join(perhaps)}. {_TOO_OPTIMISTIC}")
    return texts


def _fitted_on(bundle: Bundle) -> list[tuple[str, str | None]]:
    """Return the (split, digest of the dataset's pixels) that decided weights, epoch and calibration of a model.

    The digest is None where it is not recorded. A dataset of another digest may still hold the same sources.
    """
    pixels = (bundle.training.get("fingerprint") or {}).get("pixels")
    records = [record for name in ("calibration", "binned_calibration") if (record := bundle.training.get(name))]
    calibrated = [(record["split"], record.get("pixels")) for record in records]
    return [("train", pixels), ("val", pixels), *calibrated]
