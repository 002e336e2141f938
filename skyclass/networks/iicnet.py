"""IICnet: a reconstruction of the infrared image classifier of Zhao et al. 2023 (RAA 23, 085010).

The paper states the blocks (five convolutions, three poolings, one receptive field block, two attention modules), the
number of parameters (1.75 M) and the cost (218.66 M), but not the widths, strides or head. This reconstruction agrees
with every stated number and block. It is not the authors' network.

    image (N, 3, 80, 80)
      conv1 5x5/2 + BN + ReLU   64 x 40 x 40
      RFB                       64 x 40 x 40     Liu et al. 2018, ECCV, "Receptive Field Block Net"
      CBAM, pool                64 x 20 x 20     Woo et al. 2018, ECCV, "Convolutional Block Attention Module"
      conv2 3x3, pool          128 x 10 x 10
      conv3, conv4, conv5 3x3  256 x 10 x 10
      CBAM, pool, mean         256
      512, 64                    3 logits
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import ConfigError
from .blocks import ImageClassifier, conv_block, dense, initialise
from .folding import bias_of, conv_of, fold, folded_conv

WIDTHS = (64, 128, 256, 256, 256)
POOLS: dict[str, type[nn.Module]] = {"max": nn.MaxPool2d, "avg": nn.AvgPool2d}
BN_PLACES = ("first", "all")
CBAM_STARTS = ("half", "open")
CBAM_REDUCTION = 16
OPEN_LOGIT = 3.0
"""Logit of an open gate: it lets 95 % through, and its gradient is a fifth of the greatest."""
RFB_SCALE = 0.1


class IICnet(ImageClassifier):
    """Reconstruction of IICnet: (N, in_channels, S, S) images to (N, classes) logits.

    With the defaults it has 1,748,407 parameters and 216,770,440 multiply-accumulates (convolutions and linear layers)
    at 3 x 80 x 80. The mean over pixels before the head accepts any S from 64 to 128 px.

    Parameters
    ----------
    in_channels, classes : int
        Number of bands and of classes.
    bn : str
        Place of BatchNorm outside RFB and CBAM, which have their own: "first" (after conv1 only, as in the paper) or
        "all".
    rfb, cbam : bool
        Whether the blocks are present; without one for an ablation.
    pool : str
        "max" or "avg".
    head : sequence of int
        Hidden widths of the head. `embed` returns the last one.
    first_kernel : int
        Kernel of conv1: 5 in the paper, 3 in its ablation.
    cbam_start : str
        Gates of CBAM before the first step: "half", about 0.5 by the random weights, or "open", 0.95 for every image.
        Without effect if not `cbam`.
    init : str
        Initial weights, see `initialise` in blocks.py: "torch" or "he".
    """

    keep_fp32 = ("conv1", "cbam1")
    """These parts stay in float32 in a bf16 network: every later layer would inherit their rounding errors."""

    def __init__(
        self,
        in_channels: int = 3,
        classes: int = 3,
        bn: str = "first",
        rfb: bool = True,
        cbam: bool = True,
        pool: str = "max",
        head: Sequence[int] = (512, 64),
        first_kernel: int = 5,
        cbam_start: str = "half",
        init: str = "torch",
    ) -> None:
        super().__init__()
        _check(bn, pool, first_kernel, cbam_start)
        norm = bn == "all"
        w1, w2, w3, w4, w5 = WIDTHS
        self.conv1 = conv_block(in_channels, w1, first_kernel, stride=2, bias=True, norm=True)
        self.rfb = RFB(w1) if rfb else nn.Identity()
        self.cbam1 = CBAM(w1) if cbam else nn.Identity()
        self.conv2 = conv_block(w1, w2, 3, bias=True, norm=norm)
        self.conv3 = conv_block(w2, w3, 3, bias=True, norm=norm)
        self.conv4 = conv_block(w3, w4, 3, bias=True, norm=norm)
        self.conv5 = conv_block(w4, w5, 3, bias=True, norm=norm)
        self.cbam2 = CBAM(w5) if cbam else nn.Identity()
        self.pool = POOLS[pool](2)
        self.gap = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Sequential(*dense((w5, *head)), nn.Linear((w5, *head)[-1], classes))
        initialise(self, init)
        if cbam_start == "open":
            for block in (self.cbam1, self.cbam2):
                if isinstance(block, CBAM):
                    block.open_gates()

    def features(self, x: Tensor) -> Tensor:
        x = self.pool(self.cbam1(self.rfb(self.conv1(x))))  # (N, 64, S/4, S/4)
        x = self.pool(self.conv2(x))  # (N, 128, S/8, S/8)
        x = self.conv5(self.conv4(self.conv3(x)))  # (N, 256, S/8, S/8)
        x = self.pool(self.cbam2(x))  # (N, 256, S/16, S/16)
        pooled: Tensor = self.gap(x.float()).flatten(1)
        return pooled


class RFB(nn.Module):
    """Receptive field block: three branches of growing kernel and dilation beside a 1x1 shortcut.

    The shape (N, C, H, W) is kept. The layout is that of the published BasicRFB with dilations 1, 2 and 3. The last
    convolution of a branch, `linear` and the shortcut have no ReLU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        i = channels // 8
        self.branch0 = nn.Sequential(
            conv_block(channels, 2 * i, 1),
            conv_block(2 * i, 2 * i, 3, act=None),
        )
        self.branch1 = nn.Sequential(
            conv_block(channels, i, 1),
            conv_block(i, 2 * i, 3),
            conv_block(2 * i, 2 * i, 3, dilation=2, act=None),
        )
        self.branch2 = nn.Sequential(
            conv_block(channels, i, 1),
            conv_block(i, i // 2 * 3, 3),
            conv_block(i // 2 * 3, 2 * i, 3),
            conv_block(2 * i, 2 * i, 3, dilation=3, act=None),
        )
        self.linear = conv_block(6 * i, channels, 1, act=None)
        self.shortcut = conv_block(channels, channels, 1, act=None)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.cat((self.branch0(x), self.branch1(x), self.branch2(x)), 1)
        out: Tensor = self.relu(RFB_SCALE * self.linear(branches) + self.shortcut(x))
        return out

    def fused(self) -> FusedRFB:
        """Return the exact inference form, with 9 convolutions instead of 11 and no BatchNorm."""
        return FusedRFB(self)


class CBAM(nn.Module):
    """Convolutional block attention: weights for channels, then for pixels. The shape (N, C, H, W) is kept.

    As published, a perceptron of two layers takes the mean and the maximum of each channel, then a 7x7 convolution
    takes the mean and the maximum over channels.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = channels // CBAM_REDUCTION
        self.mlp = nn.Sequential(nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels))
        self.spatial = conv_block(2, 1, 7, act=None)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.mlp(x.mean((2, 3))) + self.mlp(x.amax((2, 3))))  # (N, C)
        x = x * gate[:, :, None, None]
        maps = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)  # (N, 2, H, W)
        return x * torch.sigmoid(self.spatial(maps))

    def open_gates(self) -> None:
        """Set both gates to sigmoid(OPEN_LOGIT) for every input, until training changes them.

        The scale of the BatchNorm is set to 0, not the convolution before it: the gradient of a convolution through a
        BatchNorm of constant maps is 300 times too large.
        """
        # the perceptron's two outputs are added
        for layer, logit in ((self.mlp[-1], OPEN_LOGIT / 2), (self.spatial[-1], OPEN_LOGIT)):
            assert isinstance(layer, nn.Linear | nn.BatchNorm2d)
            nn.init.zeros_(layer.weight)
            nn.init.constant_(layer.bias, logit)


class FusedRFB(nn.Module):
    """The exact inference form of an RFB: one 1x1 convolution before all branches, and one after them."""

    keep_fp32 = ("shortcut",)
    """It stays in float32: it carries the image past the branches, whose output is scaled by a tenth."""

    def __init__(self, rfb: RFB) -> None:
        super().__init__()
        branches = [list(branch.children()) for branch in (rfb.branch0, rfb.branch1, rfb.branch2)]
        leads = [folded_conv(blocks[0]) for blocks in branches]
        self.widths = [lead.out_channels for lead in leads]
        self.lead = conv_of(torch.cat([c.weight for c in leads]), torch.cat([bias_of(c) for c in leads]))
        self.tails = nn.ModuleList(nn.Sequential(*map(fold, blocks[1:])) for blocks in branches)
        linear, shortcut = folded_conv(rfb.linear), folded_conv(rfb.shortcut)
        self.linear = conv_of(RFB_SCALE * linear.weight)
        self.shortcut = conv_of(shortcut.weight, RFB_SCALE * bias_of(linear) + bias_of(shortcut))

    def forward(self, x: Tensor) -> Tensor:
        parts = torch.split(F.relu(self.lead(x), inplace=True), self.widths, 1)
        branches = [tail(part) for tail, part in zip(self.tails, parts, strict=True)]
        return F.relu(self.shortcut(x).add_(self.linear(torch.cat(branches, 1))), inplace=True)


def _check(bn: str, pool: str, first_kernel: int, cbam_start: str) -> None:
    choices = (("bn", bn, BN_PLACES), ("pool", pool, POOLS), ("cbam_start", cbam_start, CBAM_STARTS))
    for name, value, known in choices:
        if value not in known:
            raise ConfigError(f"iicnet: {name}={value!r} is unknown: use one of {', '.join(known)}")
    if first_kernel < 1 or first_kernel % 2 == 0:
        raise ConfigError(f"iicnet: first_kernel={first_kernel!r} must be odd and positive, such as 5")
