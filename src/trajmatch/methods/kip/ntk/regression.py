"""Kernel ridge regression: what a network of infinite width says after training to its end.

Nguyen, Chen and Lee, Dataset Meta-Learning from Kernel Ridge-Regression, ICLR 2021, equation 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from trajmatch.errors import SettingError
from trajmatch.methods.kip.ntk.kernel import Kernel
from trajmatch.types import Float, Int, Tensor

REGULARIZATION = 1e-6
"""Published; as a share of the kernel's mean diagonal."""


@dataclass(frozen=True)
class Regression:
    """A kernel fitted on a few images. Differentiable in images and targets."""

    kernel: Kernel
    images: Float[Tensor, "n channels height width"]
    weights: Float[Tensor, "n classes"]
    """float64: (K + lambda I)^-1 targets."""

    @classmethod
    def fit(
        cls,
        kernel: Kernel,
        images: Float[Tensor, "n channels height width"],
        targets: Float[Tensor, "n classes"],
        regularization: float = REGULARIZATION,
    ) -> Regression:
        """With lambda = regularization * trace(K) / n, in float64; n^2 memory and n^3 time.

        Raises SettingError when K + lambda I is not positive definite: images beyond all numbers.
        """
        gram = kernel.ntk(images, images)
        ridge = regularization * gram.diagonal().mean()
        eye = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(gram + ridge * eye)
        if failed or not factor.isfinite().all():
            raise SettingError(
                f"the kernel of {len(images)} images with pixels up to "
                f"{float(images.detach().abs().max()):.3g} cannot be inverted with regularization "
                f"{regularization:g}; start again with a lower --lr-img, which keeps them bounded"
            )
        return cls(kernel, images, torch.cholesky_solve(targets.double(), factor))

    def predict(
        self, images: Float[Tensor, "m channels height width"]
    ) -> Float[Tensor, "m classes"]:
        """In float64; the largest is the class. All at once: m * n times the kernel's cost."""
        return self.kernel.ntk(images, self.images) @ self.weights


def centered(
    labels: Int[Tensor, "n"] | Float[Tensor, "n classes"], classes: int
) -> Float[Tensor, "n classes"]:
    """The targets of regression, in float64: one-hot, or probabilities, minus 1 / classes."""
    shares = labels if labels.is_floating_point() else F.one_hot(labels, classes)
    return shares.double() - 1 / classes
