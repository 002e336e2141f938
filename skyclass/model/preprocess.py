"""Preprocessing of composites for a network: missing pixels, bilinear resize, normalisation by channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..images.composite import FLOAT16_MAX
from .bundle import Preprocessing


class Preprocess(nn.Module):
    """Network input (N, C, P, P) float32, channels_last, from composites (N, C, S, S) float16.

    Missing pixels (NaN) become 0, the sky level. Then follow a bilinear resize to P = `input_px` pixels and
    (x - mean) / std for each channel. Training and inference share this module. Every step is an elementwise sum,
    product or quotient, so the result is bit-identical for any batch, number of threads and device. The resize of torch
    does not guarantee this.

    If `size_px`, the side S of the composites, is given, the sampling of the resize is computed once instead of for
    each batch.
    """

    mean: Tensor
    std: Tensor
    low: Tensor | None
    high: Tensor | None
    weight: Tensor | None

    def __init__(self, settings: Preprocessing, size_px: int | None = None) -> None:
        super().__init__()
        self.input_px, self.size_px = settings.input_px, size_px
        samples = bilinear_samples(size_px, self.input_px) if size_px else (None, None, None)
        for name, values in zip(("low", "high", "weight"), samples, strict=True):
            self.register_buffer(name, values)
        self.register_buffer("mean", torch.tensor(settings.mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(settings.std, dtype=torch.float32))

    def forward(self, images: Tensor) -> Tensor:
        x = torch.nan_to_num(images.float(), nan=0.0, posinf=FLOAT16_MAX, neginf=-FLOAT16_MAX)
        if x.shape[-1] != self.input_px:
            if self.low is None or self.high is None or self.weight is None or x.shape[-1] != self.size_px:
                x = resize(x, *bilinear_samples(x.shape[-1], self.input_px, x.device))
            else:
                x = resize(x, self.low, self.high, self.weight)
        x = (x - self.mean[:, None, None]) / self.std[:, None, None]
        return x.contiguous(memory_format=torch.channels_last)


def bilinear_samples(size_px: int, input_px: int, device: torch.device | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Return how `input_px` pixels sample `size_px` pixels along one axis, as torch does with align_corners=False.

    The three tensors (input_px,) hold the index of the lower neighbour, the index of the upper neighbour and the weight
    of the upper neighbour.
    """
    position = ((torch.arange(input_px, dtype=torch.float64, device=device) + 0.5) * size_px / input_px - 0.5).clamp(0)
    low = position.floor().long()
    return low, (low + 1).clamp(max=size_px - 1), (position - low).float()


def resize(images: Tensor, low: Tensor, high: Tensor, weight: Tensor) -> Tensor:
    """Return images (N, C, S, S) float32 resized along both axes with the samples of `bilinear_samples`."""
    rows = weight[:, None]
    x = images[:, :, low].mul_(1 - rows).add_(images[:, :, high].mul_(rows))
    return x[..., low].mul_(1 - weight).add_(x[..., high].mul_(weight))
