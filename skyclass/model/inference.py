"""Preprocessing and network in one module, in one orientation of the images or as a mean over eight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .network import with_embedding
from .preprocess import Preprocess


class InferenceModule(nn.Module):
    """Logits and embedding (N, K + W) float32 from a batch in `INPUT_DTYPES`.

    Preprocessing and network are in one module to be compiled. W, the `width` of the embedding, may be 0. With
    `symmetry` 8 the output is the mean over the flips and rotations of the images.
    """

    def __init__(self, inputs: tuple[str, ...], preprocess: Preprocess, network: nn.Module, symmetry: int = 1) -> None:
        super().__init__()
        self.inputs, self.preprocess = inputs, preprocess
        self.symmetry = symmetry if "images" in inputs else 1
        self.network, self.width = with_embedding(network)
        self.dtype = next((p.dtype for p in network.parameters()), torch.float32)

    def forward(self, *batch: Tensor) -> Tensor:
        if self.symmetry == 1:
            return self._outputs(batch)
        i = self.inputs.index("images")
        turned = [(*batch[:i], image, *batch[i + 1 :]) for image in orientations(batch[i])]
        return torch.stack([self._outputs(one) for one in turned]).mean(0)

    def _outputs(self, batch: tuple[Tensor, ...]) -> Tensor:
        prepare = {"images": lambda x: self.preprocess(x).to(self.dtype), "photometry": lambda x: x}
        outputs: Tensor = self.network(*(prepare[name](x) for name, x in zip(self.inputs, batch, strict=True)))
        return outputs.float()


def orientations(images: Tensor) -> list[Tensor]:
    """Return images (N, C, S, S) in their eight orientations: rotations by right angles, and these flipped.

    >>> sorted(tuple(x.flatten().tolist()) for x in orientations(torch.arange(4.0).view(1, 1, 2, 2)))[:2]
    [(0.0, 1.0, 2.0, 3.0), (0.0, 2.0, 1.0, 3.0)]
    """
    turned = [torch.rot90(images, k, (2, 3)) for k in range(4)]
    return [*turned, *(image.flip(3) for image in turned)]
