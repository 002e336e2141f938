"""Images and colours fused, Zhao et al. 2023, fig. 16: the embedding of IICnet beside that of the colour branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .blocks import full_precision, initialise
from .colour import HIDDEN, colour_branch
from .iicnet import IICnet


class FusionNet(nn.Module):
    """Fusion: images (N, in_channels, S, S) and standardised photometry (N, features) to (N, classes) logits.

    It has 1,750,999 parameters with the defaults. The options are those of IICnet, and `features` and `colour_hidden`
    for the colour branch. One linear layer takes the input of IICnet's last linear layer (64 numbers) and the output of
    the colour branch (64 numbers). All parts are trained together.
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
        cbam_start: str = "half",
        init: str = "torch",
        features: int = 2,
        colour_hidden: Sequence[int] = HIDDEN,
    ) -> None:
        super().__init__()
        if not head:
            raise ConfigError("fusion: head=() leaves no embedding to fuse: give hidden widths, such as (512, 64)")
        self.images = IICnet(in_channels, classes, bn, rfb, cbam, pool, head, first_kernel, cbam_start, init)
        self.images.head[-1] = nn.Identity()  # its output is the input of the logits
        self.colour = colour_branch(features, colour_hidden)
        self.head = nn.Sequential(nn.Linear(head[-1] + colour_hidden[-1], classes))
        initialise(nn.ModuleList((self.colour, self.head)), init)

    def forward(self, images: Tensor, photometry: Tensor) -> Tensor:
        return full_precision(self.head, self.embed(images, photometry))

    def embed(self, images: Tensor, photometry: Tensor) -> Tensor:
        """Return the input of the last linear layer, (N, head[-1] + colour_hidden[-1]) float32."""
        return torch.cat((self.images(images), full_precision(self.colour, photometry)), 1)

    @torch.no_grad()
    def begin_with(self, weights: Mapping[str, Tensor]) -> None:
        """Take the weights of a trained IICnet: until training goes on, the logits are its own for any photometry."""
        last = max(int(name.split(".")[1]) for name in weights if name.startswith("head."))
        linear = self.head[-1]
        assert isinstance(linear, nn.Linear)
        width = weights[f"head.{last}.weight"].shape[1]
        linear.weight.zero_()
        linear.weight[:, :width] = weights[f"head.{last}.weight"]
        linear.bias.copy_(weights[f"head.{last}.bias"])
        self.images.load_state_dict({k: v for k, v in weights.items() if not k.startswith(f"head.{last}.")})
