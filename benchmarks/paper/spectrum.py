"""A 1-D convolutional network for optical spectra: the row "spectra" of Zhao et al. 2023, fig. 17.

The paper does not describe its spectral classifier; this is a plain strided chain with a global mean and a
global maximum at the end, the maximum for the narrow lines, the mean for the continuum.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from skyclass.errors import ConfigError
from skyclass.networks.blocks import BN_MOMENTUM, dense, full_precision, initialise

WIDTHS = (32, 64, 128, 128, 256)
KERNEL = 7
SHORTEST = 32


class SpectrumNet(nn.Module):
    """Spectrum network: normalised flux (N, L) to (N, classes) float32 logits, for any L from 32 pixels on.

    `widths` are those of the convolutions, each of stride 2; `hidden` are the linear layers before the logits.
    """

    def __init__(self, classes: int = 3, widths: Sequence[int] = WIDTHS, hidden: Sequence[int] = (64,)) -> None:
        super().__init__()
        if not widths:
            raise ConfigError(f"spectrum: widths=() leaves no convolution: use some, such as {WIDTHS}")
        layers = [_layer(a, b) for a, b in zip((1, *widths[:-1]), widths, strict=True)]
        self.layers = nn.Sequential(*layers)
        ends = (2 * widths[-1], *hidden)
        self.head = nn.Sequential(*dense(ends), nn.Linear(ends[-1], classes))
        initialise(self, "he")

    def forward(self, spectra: Tensor) -> Tensor:
        return full_precision(self.head, self.features(spectra))

    def embed(self, spectra: Tensor) -> Tensor:
        """Return what the last linear layer sees, (N, hidden[-1]) float32, of spectra (N, L)."""
        return full_precision(self.head[:-1], self.features(spectra))

    def features(self, spectra: Tensor) -> Tensor:
        """Return mean and maximum along the spectrum of the last layer's channels, (N, 2 widths[-1])."""
        x = self.layers(spectra[:, None]).float()  # (N, widths[-1], L / 2^layers)
        return torch.cat((x.mean(2), x.amax(2)), 1)


def _layer(n_in: int, n_out: int) -> nn.Sequential:
    conv = nn.Conv1d(n_in, n_out, KERNEL, stride=2, padding=KERNEL // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm1d(n_out, momentum=BN_MOMENTUM), nn.ReLU())
