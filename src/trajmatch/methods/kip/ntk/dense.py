"""A fully connected network of infinite width, on the pixels in a row."""

from __future__ import annotations

from trajmatch.methods.kip.ntk.covariance import Covariance
from trajmatch.methods.kip.ntk.kernel import Kernel
from trajmatch.types import Float, Tensor


class Dense(Kernel):
    """`depth` hidden layers. Blind to where pixels lie: any order of them is the same kernel.

    Almost free: a product of the images and a few numbers for each pair.
    """

    def pixels(
        self,
        a: Float[Tensor, "n channels height width"],
        b: Float[Tensor, "m channels height width"],
    ) -> Covariance:
        one, two = a.flatten(1), b.flatten(1)
        nngp = one @ two.T / one.shape[1]
        squares = [(rows**2).mean(1) for rows in (one, two)]
        return Covariance(squares[0][:, None], squares[1][None], nngp, nngp.new_zeros(nngp.shape))

    def kernel(self, covariance: Tensor) -> Tensor:
        return covariance

    def all_places(self, covariance: Tensor) -> Tensor:
        return covariance

    def cost(self, pixels: int) -> int:
        return 1

    def describe(self) -> str:
        return f"NTK of {self.depth} dense layers"
