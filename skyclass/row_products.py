"""Matrix products whose rows do not depend on each other, bit for bit."""

from __future__ import annotations

import numpy as np

from .types import Float32

BLOCK_ROWS = 192
"""Rows of each product: a multiple of what processors compute at once."""


def row_products(rows: Float32, weights: Float32) -> Float32:
    """Return rows (N, P) times weights (P, M), in products of one shape, the last one filled up with zeros.

    Libraries choose the order of a sum by the shape of the product. With products of one shape, the result of a source
    does not depend on the division of a tile into strips.

    >>> row_products(np.ones((2, 3), np.float32), np.eye(3, 2, dtype=np.float32)).tolist()
    [[1.0, 1.0], [1.0, 1.0]]
    """
    n, width = rows.shape
    if missing := -n % BLOCK_ROWS:
        rows = np.concatenate([rows, np.zeros((missing, width), np.float32)])
    products: Float32 = (rows.reshape(-1, BLOCK_ROWS, width) @ weights).reshape(-1, weights.shape[1])
    return products[:n]
