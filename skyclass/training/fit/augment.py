"""Augmentation: the network sees images in training flipped, rotated, shifted and with noise, in one interpolation.

Inference resizes native pixels to the input of the network by one bilinear interpolation (`Preprocess` in
`model/preprocess.py`). Here the same interpolation samples a grid that is flipped, rotated and shifted, so an augmented
image is no smoother than an original one. The random numbers depend only on (seed, epoch, step), never on ranks,
threads or interruptions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...images.composite import FLOAT16_MAX
from ...model.preprocess import Preprocess
from ...types import Float32
from .recipe import TrainConfig


@dataclass(frozen=True)
class Augmentation:
    """The augmentation of N images: `matrix` (N, 2, 3) from output to input positions, `noise` (N, C, S, S) or None."""

    matrix: Float32
    noise: Float32 | None

    def part(self, rows: slice) -> Augmentation:
        """Return the augmentation of some of the images."""
        return Augmentation(self.matrix[rows], None if self.noise is None else self.noise[rows])


def draw_augmentation(
    run: TrainConfig, generator: np.random.Generator, shape: tuple[int, int, int, int]
) -> Augmentation:
    """Return a random augmentation of images of `shape` (N, C, S, S)."""
    n, _, _, size = shape
    code = generator.integers(0, 8, n) if run.flips else np.zeros(n, np.int64)
    angle = np.pi / 2 * (code % 4) + np.deg2rad(run.rotate_deg) * generator.uniform(-1, 1, n)
    mirror = np.where(code < 4, 1.0, -1.0)
    shift = run.shift_px * generator.uniform(-1, 1, (n, 2)) * 2 / size  # the grid spans -1..1 over the image
    cos, sin = np.cos(angle), np.sin(angle)
    rows = [mirror * cos, -sin, shift[:, 0], mirror * sin, cos, shift[:, 1]]
    matrix = np.stack(rows, axis=1).reshape(n, 2, 3).astype(np.float32)
    noise = run.noise * generator.standard_normal(shape, dtype=np.float32) if run.noise else None
    return Augmentation(matrix, noise)


def augment(preprocess: Preprocess, images: Tensor, augmentation: Augmentation) -> Tensor:
    """Return network input (N, C, P, P) float32, channels_last, from composites (N, C, S, S) float16, NaN = missing.

    Missing pixels are 0, the sky level, as in `Preprocess`. Pixels that move in from outside are 0, too.
    """
    x = torch.nan_to_num(images.float(), nan=0.0, posinf=FLOAT16_MAX, neginf=-FLOAT16_MAX)
    if augmentation.noise is not None:
        x = x + torch.from_numpy(augmentation.noise).to(x.device) * torch.isfinite(images)
    px, size = preprocess.input_px, x.shape[-1]
    matrix = torch.from_numpy(augmentation.matrix).to(x.device)
    grid = F.affine_grid(matrix, [len(x), x.shape[1], px, px], align_corners=False)
    # `Preprocess` repeats the outermost pixels. Without this padding the edge of the image would fade into zeros.
    x = F.pad(x, (1, 1, 1, 1), mode="replicate")
    x = F.grid_sample(x, grid * size / (size + 2), mode="bilinear", padding_mode="zeros", align_corners=False)
    x = x.permute(0, 2, 3, 1).contiguous()
    return ((x - preprocess.mean) / preprocess.std).permute(0, 3, 1, 2)
