"""The cost of a network: its parameters, and its multiply-accumulates for one input."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def parameters(network: nn.Module) -> int:
    """Return the number of parameters; shared parameters count once.

    >>> from skyclass.networks import build
    >>> parameters(build("colour"))
    2595
    """
    return sum(p.numel() for p in network.parameters())


@torch.no_grad()
def macs(network: nn.Module, *input_shapes: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of one forward pass over inputs of these shapes, batch included.

    Convolutions and linear layers are counted, as `torch.utils.flop_counter` does, halved; BatchNorm, ReLU,
    pooling and biases are not. (`ptflops`, which table 3 of Zhao et al. 2023 fits, adds those: 0.9 % for IICnet.)

    >>> from skyclass.networks import build
    >>> macs(build("iicnet"), (1, 3, 80, 80))
    216770440
    """
    training = network.training
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter:
        network.eval()(*(torch.zeros(shape, device=device) for shape in input_shapes))
    network.train(training)
    flops: int = counter.get_total_flops()
    return flops // 2
