"""Images as the network sees them in training: flipped, turned, shifted and with noise, all in one interpolation.

The inference path brings native pixels to the network's size by one bilinear interpolation (`infer.Preprocess`). Here
the same interpolation samples a grid that is flipped, turned and shifted, so an augmented image is no smoother
than a plain one. What is drawn depends only on (seed, epoch, step): never on ranks, threads or interruptions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...model.classifier import FLOAT16_MAX, Preprocess
from ...types import Float32
from .recipe import TrainConfig


@dataclass(frozen=True)
class Draw:
    """What happens to N images: `matrix` (N, 2, 3) from output to input places, `noise` (N, C, S, S) or None."""

    matrix: Float32
    noise: Float32 | None

    def part(self, rows: slice) -> Draw:
        """Return the draw of some of the images."""
        return Draw(self.matrix[rows], None if self.noise is None else self.noise[rows])


def draw(run: TrainConfig, generator: np.random.Generator, shape: tuple[int, int, int, int]) -> Draw:
    """Return what happens to images of `shape` (N, C, S, S)."""
    n, _, _, size = shape
    code = generator.integers(0, 8, n) if run.flips else np.zeros(n, np.int64)
    angle = np.pi / 2 * (code % 4) + np.deg2rad(run.rotate_deg) * generator.uniform(-1, 1, n)
    mirror = np.where(code < 4, 1.0, -1.0)
    move = run.shift_px * generator.uniform(-1, 1, (n, 2)) * 2 / size  # the grid spans -1..1 over the image
    cos, sin = np.cos(angle), np.sin(angle)
    rows = [mirror * cos, -sin, move[:, 0], mirror * sin, cos, move[:, 1]]
    matrix = np.stack(rows, axis=1).reshape(n, 2, 3).astype(np.float32)
    noise = run.noise * generator.standard_normal(shape, dtype=np.float32) if run.noise else None
    return Draw(matrix, noise)


def augment(preprocess: Preprocess, images: Tensor, drawn: Draw) -> Tensor:
    """Return network input (N, C, P, P) float32, channels_last, from composites (N, C, S, S) float16, NaN = missing.

    Missing pixels are 0, the sky level, as in `Preprocess`; so is what moves in from outside the cutout.
    """
    x = torch.nan_to_num(images.float(), nan=0.0, posinf=FLOAT16_MAX, neginf=-FLOAT16_MAX)
    if drawn.noise is not None:
        x = x + torch.from_numpy(drawn.noise).to(x.device) * torch.isfinite(images)
    px, size = preprocess.input_px, x.shape[-1]
    matrix = torch.from_numpy(drawn.matrix).to(x.device)
    grid = F.affine_grid(matrix, [len(x), x.shape[1], px, px], align_corners=False)
    # One repeated pixel around the cutout, as `Preprocess` repeats its outermost: the rim is not dimmed.
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = F.grid_sample(x, grid * size / (size + 2), mode="bilinear", padding_mode="zeros", align_corners=False)
    x = x.permute(0, 2, 3, 1).contiguous()
    return ((x - preprocess.mean) / preprocess.std).permute(0, 3, 1, 2)
