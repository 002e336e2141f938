"""Checks of what was read: rows, pixel values, and the checksum of a complete file."""

from __future__ import annotations

import hashlib
import re

import numpy as np

from ..errors import TileFault
from ..types import Float32, Tile
from .atlas import AtlasImage
from .source import ImageSource

MAX_CHECKSUM_BYTES = 4096
"""Limit of an `.md5` file; real ones have about 70 bytes."""
MIN_FINITE_FRACTION = 0.02
"""Share of finite pixels below which the rows of a strip are rejected. The emptiest real cutout that is known, on M42,
has 60 %, and a strip is wider than any nebula."""
MAX_ZERO_FRACTION = 0.05
"""Share of exact zeros above which a row is rejected; each row is judged alone. An incompletely copied file
holds blocks of zeros; a real Atlas image marks missing pixels with NaN, and its sky is never exactly 0 in float32 (the
nine real cutouts on which these rules were checked contain no zero)."""


def check_rows(tile: Tile, start: int, stop: int) -> None:
    """Raise `ValueError` if rows `start:stop` are not on the tile."""
    if not 0 <= start < stop <= tile.shape[0]:
        raise ValueError(f"rows {start}:{stop} are not in the {tile.shape[0]} rows of {tile.coadd_id}")


def check_pixels(tile: Tile, band: str, start: int, pixels: Float32) -> None:
    """Raise `TileFault` if rows from `start` on have too many exact zeros or too few finite pixels."""
    if np.count_nonzero(pixels == 0) > MAX_ZERO_FRACTION * pixels.shape[1]:  # with fewer zeros no row has too many
        zero_fraction = np.mean(pixels == 0, axis=1)
        worst = int(zero_fraction.argmax())
        if zero_fraction[worst] > MAX_ZERO_FRACTION:
            share = f"{zero_fraction[worst]:.0%} of row {start + worst}"
            raise TileFault(tile.coadd_id, f"zeroed pixels: {share} are exactly 0, fetch it again", band)
    finite_fraction = np.count_nonzero(np.isfinite(pixels)) / pixels.size
    if finite_fraction < MIN_FINITE_FRACTION:
        reason = f"{finite_fraction:.1%} of rows {start} to {start + len(pixels)} are finite pixels, fetch it again"
        raise TileFault(tile.coadd_id, reason, band)


def checksum_fault(source: ImageSource, image: AtlasImage) -> str:
    """Return how a file differs from the `.md5` file beside it, or ""; without such a file nothing is read."""
    sidecar = f"{image.path}.md5"
    try:
        content = b"".join(bytes(p.data) for p in source.read(f"{image.file.name}.md5", 0, MAX_CHECKSUM_BYTES + 1))
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"cannot be checked: {sidecar} cannot be read ({error.strerror or error})"
    if len(content) > MAX_CHECKSUM_BYTES:
        return f"cannot be checked: {sidecar} cannot be read (it has more than {MAX_CHECKSUM_BYTES:,} bytes)"
    expected = re.match(r"\s*([0-9a-fA-F]{32})(\s|$)", content.decode(errors="replace"))
    if not expected:
        return f"cannot be checked: {sidecar} holds no checksum; fetch that again, or remove it"
    digest = hashlib.md5()
    try:
        for piece in source.read(image.file.name, 0, image.file.stamp.size_bytes):
            digest.update(piece.data)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    md5 = expected[1].lower()
    return "" if digest.hexdigest() == md5 else f"has the MD5 {digest.hexdigest()}, and {sidecar} says {md5}"
