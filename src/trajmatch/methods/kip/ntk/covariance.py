"""How two images' covariance goes through the layers of an infinitely wide ReLU network.

In a layer of infinitely many units, what the units say of two images is a Gaussian process over
random networks; a layer changes its covariance in closed form, and the tangent kernel's with it.

Cho and Saul, Kernel Methods for Deep Learning, NIPS 2009 (arc-cosine kernels); Jacot, Gabriel and
Hongler, Neural Tangent Kernel, NeurIPS 2018, whose parametrization this is: a unit is
sigma_w / sqrt(fan_in) * sum(weight * input) + sigma_b * bias, all parameters begin as N(0, 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from trajmatch.types import Float, Tensor

COINCIDENT = 1e-14
"""Correlations this near to 1 or -1 cannot be distinguished from it after a few sums in float64."""

Spread = Callable[[Tensor], Tensor]
"""The mean over the places that a unit of the next layer looks at; linear."""


@dataclass(frozen=True)
class Covariance:
    """Of the units of one layer at each place of two lists of images, n by m."""

    of_n: Float[Tensor, "n 1 *places"]
    """Variances."""
    of_m: Float[Tensor, "1 m *places"]
    nngp: Float[Tensor, "n m *places"]
    """Covariance of the network's output over random networks."""
    ntk: Float[Tensor, "n m *places"]
    """Product of the gradients of its output, summed over all parameters so far."""

    def affine(self, spread: Spread, sigma_w: float, sigma_b: float) -> Covariance:
        """After a layer of weights and biases: its own gradients come to those before it."""
        w, b = sigma_w**2, sigma_b**2
        nngp = w * spread(self.nngp) + b
        return Covariance(
            w * spread(self.of_n) + b, w * spread(self.of_m) + b, nngp, nngp + w * spread(self.ntk)
        )

    def relu(self) -> Covariance:
        """After a ReLU.

        Images that coincide are at the tip of a cone: the derivative of `step` is infinite there on
        every side and zero on average, so zero is taken. On the diagonal, where both images move
        together, that is exact.
        """
        product = self.of_n * self.of_m
        # A blank image of a network without biases is correlated with nothing.
        blank = product == 0
        length = torch.where(blank, 1.0, product).sqrt()
        line, step = arc_cosines(self.nngp / length)
        nngp = torch.where(blank, 0.0, length * line / 2)
        return Covariance(self.of_n / 2, self.of_m / 2, nngp, self.ntk * step / 2)


def arc_cosines(
    correlation: Float[Tensor, "n m *places"],
) -> tuple[Float[Tensor, "n m *places"], Float[Tensor, "n m *places"]]:
    """2 E[relu(u) relu(v)] and 2 E[u > 0 and v > 0] of two standard normals, both 1 where u = v.

    With angle t = arccos(correlation): (sin t + (pi - t) cos t) / pi and (pi - t) / pi; the second
    is the first's derivative. Finite derivatives everywhere: 1 and 0 where u = v (see
    `Covariance.relu`), 0 and 0 where u = -v.
    """
    one, minus_one = correlation >= 1 - COINCIDENT, correlation <= COINCIDENT - 1
    inside = torch.where(one | minus_one, 0.0, correlation)
    rest = math.pi - inside.arccos()
    line = ((1 - inside**2).sqrt() + rest * inside) / math.pi
    step = rest / math.pi
    line = torch.where(one, correlation, torch.where(minus_one, 0.0, line))
    step = torch.where(one, 1.0, torch.where(minus_one, 0.0, step))
    return line, step
