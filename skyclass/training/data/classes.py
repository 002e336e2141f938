"""Numbers of rows of each class."""

from __future__ import annotations

import numpy as np

from ...errors import CatalogError
from ...types import CLASSES, Int64


def label_counts(labels: Int64) -> dict[str, int]:
    """Return the number of rows of each class."""
    return dict(zip(CLASSES, np.bincount(labels, minlength=len(CLASSES)).tolist(), strict=True))


def label_counts_text(labels: Int64) -> str:
    """Return the number of rows of each class as text, such as "10 galaxy, 0 quasar, 3 star"."""
    return ", ".join(f"{n:,} {name}" for name, n in label_counts(labels).items())


def require_all_classes(labels: Int64, context: str) -> None:
    """Raise `CatalogError` with the counts when a class has no row; `context` begins the message."""
    if empty := [name for name, n in label_counts(labels).items() if not n]:
        raise CatalogError(
            f"{context}: no {', '.join(empty)} ({label_counts_text(labels)}); all of {', '.join(CLASSES)} are needed"
        )
