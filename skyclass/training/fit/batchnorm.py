"""BatchNorm whose statistics are those of the whole batch on all ranks."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .ddp import Group


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over the ranks; its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over the images of all ranks, also on CPUs (SyncBatchNorm of torch needs GPUs).

    It has the parameters and buffers of the BatchNorm that it replaces, so their states are interchangeable.
    """

    def _check_input_dim(self, x: Tensor) -> None:
        """Accept every shape (N, C, ...)."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        axes = [0, *range(2, x.ndim)]
        values = x.float()
        count = values.new_full((1,), x.numel() / x.shape[1])
        sums = _SumOverRanks.apply(torch.cat((values.sum(axes), (values * values).sum(axes), count)))  # type: ignore[no-untyped-call]
        c = x.shape[1]
        n, mean = sums[-1], sums[:c] / sums[-1]
        variance = (sums[c : 2 * c] / n - mean * mean).clamp_min(0)
        self._update_running(mean.detach(), (variance * n / (n - 1)).detach())
        scale = torch.rsqrt(variance + self.eps) * self.weight
        shape = (1, c) + (1,) * (x.ndim - 2)
        normalised: Tensor = (values * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)
        return normalised

    @torch.no_grad()
    def _update_running(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        momentum = 0.1 if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, momentum)
        self.running_var.lerp_(variance, momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


def sync_batchnorm(network: nn.Module, group: Group) -> nn.Module:
    """Replace every BatchNorm of a network by one over all ranks, and return the network."""
    if group.world == 1:
        return network
    if group.device.startswith("cuda"):
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-any-return,no-untyped-call]
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, (nn.BatchNorm1d, nn.BatchNorm2d)):
                setattr(parent, name, _like(child))
    return network


def _like(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> SyncedBatchNorm:
    synced = SyncedBatchNorm(norm.num_features, norm.eps, norm.momentum)
    synced.load_state_dict(norm.state_dict())
    return synced
