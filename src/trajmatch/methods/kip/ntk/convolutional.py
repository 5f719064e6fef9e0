"""A convolutional network of infinite width: 3x3 convolutions, then a linear layer on all places.

Novak et al., Bayesian Deep Convolutional Networks with Many Channels are Gaussian Processes, ICLR
2019; Arora et al., On Exact Computation with an Infinitely Wide Neural Net, NeurIPS 2019.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from trajmatch.methods.kip.ntk.covariance import Covariance
from trajmatch.methods.kip.ntk.kernel import Kernel
from trajmatch.types import Float, Tensor


class Convolutional(Kernel):
    """`depth` convolutions with zeros around the image and no pooling, flattened at the end.

    Without pooling a place of one image meets only the same place of the other, so a pair of images
    costs as many numbers as they have places; with it, as many as pairs of places.
    """

    def pixels(
        self,
        a: Float[Tensor, "n channels height width"],
        b: Float[Tensor, "m channels height width"],
    ) -> Covariance:
        nngp = torch.einsum("nchw,mchw->nmhw", a, b) / a.shape[1]
        squares = [(images**2).mean(1) for images in (a, b)]
        return Covariance(squares[0][:, None], squares[1][None], nngp, nngp.new_zeros(nngp.shape))

    def kernel(self, covariance: Tensor) -> Tensor:
        return F.avg_pool2d(covariance, 3, stride=1, padding=1)

    def all_places(self, covariance: Tensor) -> Tensor:
        return covariance.mean((2, 3))

    def cost(self, pixels: int) -> int:
        return pixels

    def describe(self) -> str:
        return f"NTK of {self.depth} convolutions"
