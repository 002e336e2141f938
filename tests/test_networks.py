"""Networks: the reconstruction's counts, its sizes and options, and the exact inference form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from skyclass.errors import ConfigError
from skyclass.networks import build, fuse


def lived_in(network: nn.Module, seed: int = 0) -> nn.Module:
    """Return the network in eval mode with BatchNorm statistics not 0 and 1, and lively logits."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data *= 2.0
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.3, 3.0),
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.3, 0.3),
            ):
                tensor.uniform_(low, high, generator=generator)
    return network.eval()


def test_iicnet_has_the_published_parameters_and_cost() -> None:
    network = build("iicnet").eval()
    assert sum(p.numel() for p in network.parameters()) == 1_748_407
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, 80, 80))
    assert counter.get_total_flops() // 2 == 216_770_440


@torch.inference_mode()
def test_all_input_sizes_run_without_change() -> None:
    network = build("iicnet").eval()
    for size in range(64, 129, 8):
        assert network(torch.zeros(2, 3, size, size)).shape == (2, 3)


@torch.inference_mode()
@pytest.mark.parametrize(
    "options",
    [{}, {"bn": "all", "pool": "avg"}, {"rfb": False}, {"cbam": False, "head": ()}, {"in_channels": 4}],
)
def test_fused_network_computes_the_same(options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    network = lived_in(build("iicnet", **options))
    channels = options.get("in_channels", 3)
    images = torch.randn(4, channels, 80, 80) * torch.tensor([0.1, 1, 5, 20])[:, None, None, None]
    plain, fused = network(images), fuse(network)(images)
    assert plain.std(0).max() > 0.01
    assert (fused - plain).abs().max() < 1e-5 * max(1, plain.abs().max())
    assert torch.equal(network(images), plain), "fuse must not touch the original"
    assert not any(isinstance(m, nn.BatchNorm2d) for m in fuse(network).modules())


@pytest.mark.parametrize(
    ("name", "options", "named"),
    [
        ("icnet", {}, "iicnet"),
        ("iicnet", {"batchnorm": "all"}, "bn"),
        ("iicnet", {"bn": "some"}, "first, all"),
        ("iicnet", {"pool": "min"}, "max, avg"),
        ("iicnet", {"first_kernel": 4}, "odd"),
    ],
)
def test_mistakes_name_the_choices(name: str, options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        build(name, **options)
