"""A network that skyclass knows by its import path: it takes photometry only."""

from torch import Tensor, nn


class PhotometryNetwork(nn.Module):
    """Two layers on standardised photometry."""

    inputs = ("photometry",)

    def __init__(self, features: int = 2, width: int = 32, classes: int = 3) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, width), nn.ReLU(), nn.Linear(width, classes))

    def forward(self, photometry: Tensor) -> Tensor:
        """Return logits (N, classes) for photometry (N, features)."""
        logits: Tensor = self.layers(photometry)
        return logits
