"""What every kernel of an infinitely wide network has: layers that covariances go through."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from trajmatch.errors import SettingError
from trajmatch.methods.kip.ntk.covariance import Covariance
from trajmatch.types import Float, Tensor


@dataclass(frozen=True)
class Kernel(ABC):
    """A ReLU network of infinite width: `depth` hidden layers, then a linear one.

    Computed in float64 whatever the images are, and differentiable in them. Costs `cost` numbers of
    memory for a pair of images and a layer, some twenty times that with the graph.

    Raises SettingError for a depth below 1, and sigmas that leave no network.
    """

    depth: int = 3
    sigma_w: float = math.sqrt(2)
    """Standard deviation of a unit's weights, times the root of how many it has."""
    sigma_b: float = 0.1
    """Standard deviation of a unit's bias."""

    def __post_init__(self) -> None:
        if self.depth < 1:
            raise SettingError(f"depth is {self.depth}; a kernel has at least 1 hidden layer")
        if not (self.sigma_w > 0 and self.sigma_b >= 0):
            raise SettingError(
                f"sigma_w is {self.sigma_w:g} and sigma_b {self.sigma_b:g}; use a sigma_w above 0 "
                "and a sigma_b of at least 0"
            )

    def nngp(
        self,
        a: Float[Tensor, "n channels height width"],
        b: Float[Tensor, "m channels height width"],
    ) -> Float[Tensor, "n m"]:
        """Covariance of the outputs of random networks: of training the last layer alone."""
        return self.output(a, b).nngp

    def ntk(
        self,
        a: Float[Tensor, "n channels height width"],
        b: Float[Tensor, "m channels height width"],
    ) -> Float[Tensor, "n m"]:
        """The neural tangent kernel: of training all layers by gradient descent."""
        return self.output(a, b).ntk

    def output(
        self,
        a: Float[Tensor, "n channels height width"],
        b: Float[Tensor, "m channels height width"],
    ) -> Covariance:
        """Both at once; they share the work."""
        layer = self.pixels(a.double(), b.double())
        layer = layer.affine(self.kernel, self.sigma_w, self.sigma_b)
        for _ in range(self.depth - 1):
            layer = layer.relu().affine(self.kernel, self.sigma_w, self.sigma_b)
        return layer.relu().affine(self.all_places, self.sigma_w, self.sigma_b)

    @abstractmethod
    def pixels(
        self,
        a: Float[Tensor, "n channels height width"],
        b: Float[Tensor, "m channels height width"],
    ) -> Covariance:
        """What the first layer sees. Nothing is learned yet: the tangent kernel is 0."""

    @abstractmethod
    def kernel(self, covariance: Tensor) -> Tensor:
        """The mean over the places that a hidden unit looks at."""

    @abstractmethod
    def all_places(self, covariance: Tensor) -> Tensor:
        """The mean over the places that the last layer looks at, which are all."""

    @abstractmethod
    def cost(self, pixels: int) -> int:
        """Numbers kept for a pair of images of `pixels` places, in every layer."""

    @abstractmethod
    def describe(self) -> str:
        """For example `NTK, 3 dense layers`."""
