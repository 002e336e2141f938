"""The colour-colour network of Zhao et al. 2023, fig. 16: classes from catalogue photometry, without pixels.

The paper states neither its layers nor its widths. This is the smallest perceptron that fits its description.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ConfigError
from .blocks import dense, full_precision

HIDDEN = (32, 64)


class ColourNet(nn.Module):
    """Colour network: standardised photometry (N, features) to (N, classes) float32 logits.

    It has 2,595 parameters with the defaults, two colours and hidden layers of 32 and 64. It always computes in
    float32, because its cost is negligible beside an image network.
    """

    inputs = ("photometry",)

    def __init__(self, features: int = 2, classes: int = 3, hidden: Sequence[int] = HIDDEN) -> None:
        super().__init__()
        self.colour = colour_branch(features, hidden)
        self.head = nn.Sequential(nn.Linear(hidden[-1], classes))

    def forward(self, photometry: Tensor) -> Tensor:
        return full_precision(self.head, full_precision(self.colour, photometry))


def colour_branch(features: int, hidden: Sequence[int]) -> nn.Sequential:
    """Return linear layers with BatchNorm and ReLU from (N, features) to (N, hidden[-1]); `ConfigError` if none."""
    if features < 1 or not hidden:
        raise ConfigError(
            f"colour branch: features={features!r} and hidden={hidden!r} must both be at least one, "
            f"such as 2 and {HIDDEN}"
        )
    return dense((features, *hidden), norm=True)
