"""The exact inference form of a network: BatchNorms folded into the layers before them, branches merged."""

from __future__ import annotations

from copy import deepcopy
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)


@runtime_checkable
class Fusable(Protocol):
    """A block with its own inference form, which is faster than layers folded one by one."""

    def fused(self) -> nn.Module:
        """Return a module that computes the same function as this one in eval mode."""


def fuse(network: nn.Module) -> nn.Module:
    """Return a copy for inference that computes the same function with fewer passes over memory.

    BatchNorms are folded into the convolution or linear layer before them; an RFB and a RepVGG block become
    their merged convolutions. In fp32 the logits differ by rounding only (relative 1e-5). The copy is in eval
    mode and without gradients; the original is kept.
    """
    return _fused(deepcopy(network).eval()).requires_grad_(False)


def _fused(module: nn.Module) -> nn.Module:
    if isinstance(module, Fusable):
        return module.fused()
    if isinstance(module, nn.Sequential):
        return fold(module)
    for name, child in module.named_children():
        setattr(module, name, _fused(child))
    return module


def fold(block: nn.Module) -> nn.Sequential:
    """Return the layers of a block in eval mode, each BatchNorm folded into the layer before it."""
    layers: list[nn.Module] = []
    for layer in block.eval().children():
        last = layers[-1] if layers else None
        if isinstance(layer, _BatchNorm) and isinstance(last, (*CONVOLUTIONS, nn.Linear)):
            layers[-1] = _without_norm(last, layer)
        elif isinstance(layer, nn.ReLU) and isinstance(last, (*CONVOLUTIONS, nn.Linear)):
            layers.append(nn.ReLU(inplace=True))  # no other layer reads the output of `last`
        else:
            layers.append(_fused(layer))
    return nn.Sequential(*layers)


def folded_conv(block: nn.Module) -> nn.Conv2d:
    """Return the convolution that is equivalent to a block of a convolution and, if any, a BatchNorm."""
    conv = fold(block)[0]
    assert isinstance(conv, nn.Conv2d)
    return conv


def conv_of(weight: Tensor, bias: Tensor | None = None, stride: int = 1) -> nn.Conv2d:
    """Return the convolution with weights (out, in, k, k) and, if given, biases (out,), padded to keep the size."""
    n_out, n_in, kernel, _ = weight.shape
    conv = nn.Conv2d(n_in, n_out, kernel, stride, kernel // 2, bias=bias is not None)
    conv.weight = nn.Parameter(weight.detach())
    if bias is not None:
        conv.bias = nn.Parameter(bias.detach())
    return conv


def bias_of(conv: nn.Conv2d) -> Tensor:
    """Return the biases (out,) of a convolution: zeros where it has none."""
    return torch.zeros(conv.out_channels) if conv.bias is None else conv.bias


def _without_norm(layer: nn.Module, norm: _BatchNorm) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return fuse_linear_bn_eval(layer, norm)
    assert isinstance(layer, CONVOLUTIONS)
    return fuse_conv_bn_eval(layer, norm)
