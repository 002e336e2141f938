"""Networks with weights as after some training."""

from __future__ import annotations

import torch
from torch import nn


def lived_in(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network in eval mode with BatchNorm statistics not 0 and 1, and lively logits."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= 2.0
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.3, 3.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
            ):
                tensor.uniform_(low, high, generator=generator)
    return network.eval()
