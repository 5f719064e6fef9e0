"""Whitening by a matrix over all pixels and channels of an image."""

from __future__ import annotations

import abc
import math
from typing import Any

import torch

from trajmatch.data.whiten.base import Whitening
from trajmatch.errors import DataError, MismatchError
from trajmatch.types import Float, Shaped, Tensor


def cholesky(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    """L with L L^T = matrix. Raises DataError for a matrix that is not positive definite."""
    root: Tensor
    root, failed = torch.linalg.cholesky_ex(matrix)
    if int(failed):
        raise DataError(f"{_NOT_DEFINITE}; {_MEND}")
    return root


def require_positive(diagonal: Float[Tensor, "d"]) -> None:
    """Refuse a matrix whose diagonal alone shows that it is not positive definite, without the
    seconds that `cholesky` takes."""
    if not bool((diagonal > 0).all()):
        least = float(diagonal.min())
        raise DataError(f"{_NOT_DEFINITE} ({least:.3g} on its diagonal); {_MEND}")


_NOT_DEFINITE = "the matrix of the whitening is not positive definite, so nothing undoes it"
_MEND = "give the matrix of a ZCA with eps above 0, or fit the whitening on the training images"


class LinearWhitening(Whitening):
    """W (x - mean), with a symmetric, positive definite W of d x d, d = channels * height * width.

    Applying costs d multiplications per value: 10 s for all of CIFAR-10 on one core.
    """

    def __init__(
        self,
        tensors: dict[str, Shaped[Tensor, "..."]],
        *,
        shape: tuple[int, int, int],
        eps: float,
    ) -> None:
        """tensors: the mean, and the numbers that determine W. shape: channels, height and width
        of the images. Raises DataError for numbers that are not finite and for a mean of another
        length than the product of the shape."""
        super().__init__(tensors)
        d, words = math.prod(shape), "x".join(map(str, shape))
        if tensors["mean"].shape != (d,):
            given = "x".join(map(str, tensors["mean"].shape))
            raise DataError(f"a mean of {given} values for {words} images; give {d}")
        if not 0 <= eps < math.inf:
            raise DataError(f"eps of the whitening is {eps}; give a finite number from 0")
        self.shape = shape
        self.eps = eps

    @property
    @abc.abstractmethod
    def matrix(self) -> Float[Tensor, "d d"]:
        """W, in float32."""

    @property
    @abc.abstractmethod
    def inverse(self) -> Float[Tensor, "d d"]:
        """The inverse of the stored W, in float32. Raises DataError where W has none."""

    def transform(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        self._check(images)
        centered = images.flatten(1) - self.tensors["mean"].to(images)
        return (centered @ self.matrix.to(images)).view_as(images)

    def invert(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        self._check(images)
        plain = images.flatten(1) @ self.inverse.to(images) + self.tensors["mean"].to(images)
        return plain.view_as(images)

    def to(self, device: torch.device | str) -> LinearWhitening:
        there = super().to(device)
        assert isinstance(there, LinearWhitening)
        for name in ("matrix", "inverse"):
            if name in self.__dict__:  # already computed
                there.__dict__[name] = self.__dict__[name].to(device)
        return there

    def settings(self) -> dict[str, Any]:
        return {"eps": self.eps, "shape": list(self.shape)}

    def _check(self, images: Tensor) -> None:
        if tuple(images.shape[1:]) != self.shape:
            fitted, given = ("x".join(map(str, s)) for s in (self.shape, images.shape[1:]))
            raise MismatchError(
                f"the ZCA was fitted on {fitted} images (channels x height x width) and these are "
                f"{given}; use the whitening saved beside these images"
            )
