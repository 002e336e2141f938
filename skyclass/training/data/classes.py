"""Numbers of rows of each class."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ...errors import CatalogError
from ...types import Int64


def label_counts(labels: Int64, classes: Sequence[str]) -> dict[str, int]:
    """Return the number of rows of each class."""
    return dict(zip(classes, np.bincount(labels, minlength=len(classes)).tolist(), strict=True))


def label_counts_text(labels: Int64, classes: Sequence[str]) -> str:
    """Return the number of rows of each class as text, such as "10 galaxy, 0 quasar, 3 star"."""
    return ", ".join(f"{n:,} {name}" for name, n in label_counts(labels, classes).items())


def require_all_classes(labels: Int64, classes: Sequence[str], context: str) -> None:
    """Raise `CatalogError` with the counts when a class has no row; `context` begins the message."""
    if empty := [name for name, n in label_counts(labels, classes).items() if not n]:
        raise CatalogError(
            f"{context}: no {', '.join(empty)} ({label_counts_text(labels, classes)}); all of {', '.join(classes)} are "
            "needed: set `classes` to those of the table"
        )
