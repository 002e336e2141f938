"""Image and colour fused, Zhao et al. 2023, fig. 16: IICnet's embedding beside that of the colour branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .blocks import full_precision
from .colour import HIDDEN, colour_branch
from .iicnet import IICnet


class FusionNet(nn.Module):
    """Fusion: images (N, in_channels, S, S) and standardised photometry (N, features) to (N, classes) logits.

    1,750,999 parameters with the defaults. The options are those of IICnet, with `features` and
    `colour_hidden` for the colour branch. What IICnet's last linear layer would see (64 numbers) and the
    colour branch's 64 go through one linear layer together, trained end to end.
    """

    inputs = ("images", "photometry")

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
        features: int = 2,
        colour_hidden: Sequence[int] = HIDDEN,
    ) -> None:
        super().__init__()
        if not head:
            raise ConfigError("fusion: head=() leaves no embedding to fuse: give hidden widths, such as (512, 64)")
        self.images = IICnet(in_channels, classes, bn, rfb, cbam, pool, head, first_kernel)
        self.images.head[-1] = nn.Identity()  # its logits are not wanted, only what stands before them
        self.colour = colour_branch(features, colour_hidden)
        self.head = nn.Sequential(nn.Linear(head[-1] + colour_hidden[-1], classes))

    def forward(self, images: Tensor, photometry: Tensor) -> Tensor:
        return full_precision(self.head, self.embed(images, photometry))

    def embed(self, images: Tensor, photometry: Tensor) -> Tensor:
        """Return what the last linear layer sees: (N, head[-1] + colour_hidden[-1]) float32."""
        return torch.cat((self.images(images), full_precision(self.colour, photometry)), 1)

    @torch.no_grad()
    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Begin as the trained IICnet of these weights: the same logits, whatever the photometry, until trained on."""
        last = max(int(name.split(".")[1]) for name in weights if name.startswith("head."))
        own = self.head[-1]
        assert isinstance(own, nn.Linear)
        width = weights[f"head.{last}.weight"].shape[1]
        own.weight.zero_()
        own.weight[:, :width] = weights[f"head.{last}.weight"]
        own.bias.copy_(weights[f"head.{last}.bias"])
        self.images.load_state_dict({k: v for k, v in weights.items() if not k.startswith(f"head.{last}.")})
