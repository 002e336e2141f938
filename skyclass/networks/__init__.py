"""The networks, by name: `build("iicnet")` gives a module from (N, bands, 80, 80) images to (N, 3) logits."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from torch import nn

from ..errors import ConfigError
from .iicnet import IICnet, fuse

NETWORKS: dict[str, Callable[..., nn.Module]] = {"iicnet": IICnet}

__all__ = ["NETWORKS", "build", "channels_last", "fuse", "to_bf16"]


def build(name: str, **options: object) -> nn.Module:
    """Return a freshly initialised network: (N, in_channels, S, S) images to (N, 3) logits.

    An unknown name or option raises `ConfigError` with the choices.

    >>> sum(p.numel() for p in build("iicnet").parameters())
    1748407
    """
    if name not in NETWORKS:
        raise ConfigError(f"network {name!r} is unknown: use one of {', '.join(sorted(NETWORKS))}")
    known = inspect.signature(NETWORKS[name]).parameters
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(f"network {name!r} has no option {', '.join(unknown)}: it has {', '.join(known)}")
    return NETWORKS[name](**options)


def to_bf16(network: nn.Module) -> nn.Module:
    """Return the network with its weights in bfloat16, but for the head: logits keep their digits."""
    for name, child in network.named_children():
        if name != "head":
            child.to(torch.bfloat16)
    return network


def channels_last(network: nn.Module) -> nn.Module:
    """Return the network with its weights laid out for (N, H, W, C) images: faster on CPU and GPU."""
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return network
