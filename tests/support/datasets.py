"""Small training sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from skyclass.model.bundle import Cut
from skyclass.training.data.dataset import Dataset

BANDS = ("w1", "w2", "w3")
ZERO_POINTS = (20.5, 19.5, 18.0)
SMALL: dict[str, Any] = {"recipe": "modern", "input_px": 32, "epochs": 2, "batch_size": 16, "precision": "fp32"}


def blobs(n: int, seed: int = 0, size: int = 21) -> Dataset:
    """Return simulated sources, brighter in another band for each class; colours in the photometry as well."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    y, x = np.mgrid[:size, :size] - size // 2
    colours = np.array([[3, 1, 0], [0, 3, 1], [1, 0, 3]])[labels] + rng.normal(0, 0.3, (n, 3))
    pixels = rng.normal(0, 0.1, (n, 3, size, size)) + 2 * colours[:, :, None, None] * np.exp(-(x**2 + y**2) / 30)
    pixels[:, :, 0, :3] = np.nan
    split = np.array(["train"] * 7 + ["val"] * 2 + ["test"])[np.arange(n) % 10]
    magnitudes = {f"w{b + 1}mpro": (15 - colours[:, b]).astype(np.float32) for b in range(3)}
    rows = pa.table(
        {"source_id": [str(i) for i in range(n)], "coadd_id": ["0000p000_ac51"] * n}
        | {"ra": rng.uniform(0, 20, n), "dec": rng.uniform(-10, 10, n)}
        | magnitudes
        | {f"w{b}snr": np.full(n, 20, np.float32) for b in (1, 2, 3)}
        | {"split": split}
    )
    return Dataset(pixels.astype(np.float32), labels, rows, Cut(size, BANDS), ZERO_POINTS, {"simulated": True}, None)


def written(folder: Path, name: str, data: Path, **changes: Any) -> Path:
    """Return the path of a TRAIN.toml."""
    keys = {
        "out": str(folder / name),
        "dataset": str(data),
        **SMALL,
        "noise": 0.5,
        "device": "cpu",
        "learning_rate": 1e-4,
        **changes,
    }
    (folder / f"{name}.toml").write_text("".join(f"{k} = {json.dumps(v)}\n" for k, v in keys.items()))
    return folder / f"{name}.toml"
