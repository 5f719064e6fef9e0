"""ZCA: the whitening that decorrelates pixels and changes images least."""

from __future__ import annotations

from functools import cached_property

import torch

from trajmatch.data.dataset import Split
from trajmatch.data.whiten.linear import LinearWhitening, cholesky, require_positive
from trajmatch.errors import DataError, SettingError
from trajmatch.storage.files import TensorFile
from trajmatch.types import Float, Tensor, UInt8

EPS = 0.1
"""Added to the variances along principal axes (of about 0.001 to 10), in squared [0, 1] pixels."""
LARGEST = 13_000
"""Pixels times channels beyond which ZCA is refused: 64x64 RGB is 12,288."""


class ZCA(LinearWhitening):
    """W (x - mean) with W = U (S + eps)^-1/2 U^T, where U S U^T is the covariance of the pixels.

    A file holds W alone (37 MB for CIFAR-10). Its inverse, which turns inputs back into pictures,
    is computed at first use: 2 s for d = 3072, accurate to float precision, as eps keeps W well
    conditioned.

    Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, appendix A.
    """

    def __init__(
        self,
        mean: Float[Tensor, "d"],
        matrix: Float[Tensor, "rows columns"],
        *,
        shape: tuple[int, int, int],
        eps: float = EPS,
    ) -> None:
        """`shape`: channels, height and width of the images, whose product is d. Raises DataError
        for parts that do not fit, or a diagonal that is not positive (the rest of the matrix is
        looked at by `inverse`)."""
        super().__init__({"mean": mean, "matrix": matrix}, shape=shape, eps=eps)
        d = len(mean)
        if matrix.shape != (d, d):
            given = "x".join(map(str, matrix.shape))
            raise DataError(f"a matrix of {given} for {d} pixels; give {d}x{d}")
        require_positive(matrix.diagonal())

    @classmethod
    def fit(cls, split: Split) -> ZCA:
        """Mean and covariance of the pixels. Raises SettingError for images that are too large."""
        channels, height, width = split.images.shape[1:]
        d = channels * height * width
        if d > LARGEST:
            raise SettingError(
                f"ZCA of {channels}x{height}x{width} images needs {d:,} x {d:,} matrices of "
                f"{d * d * 8 / 1e9:.1f} GB each; use whitening 'normalize' or a smaller size"
            )
        mean, covariance = _moments(split.images.flatten(1))
        variances, axes = torch.linalg.eigh(covariance)
        del covariance
        # Rounding leaves variances of 0 slightly negative where there are fewer images than pixels.
        scaled = axes * (variances.clamp(min=0) + EPS).pow(-0.25)
        matrix = scaled @ scaled.mT  # as a product with itself it is exactly symmetric
        return cls(mean.float(), matrix.float(), shape=(channels, height, width))

    @classmethod
    def read(cls, file: TensorFile) -> ZCA:
        channels, height, width = file.metadata["shape"]
        return cls(
            file.read("mean"),
            file.read("matrix"),
            shape=(channels, height, width),
            eps=file.metadata["eps"],
        )

    @property
    def matrix(self) -> Float[Tensor, "d d"]:
        return self.tensors["matrix"]

    @cached_property
    def inverse(self) -> Float[Tensor, "d d"]:
        """U (S + eps)^1/2 U^T, computed from the stored matrix and not taken from the fit, so that
        a whitening read from a file gives the same pictures to the bit."""
        root = cholesky(self.matrix.cpu().double())
        inverse: Tensor = torch.cholesky_inverse(root).float()
        return inverse.to(self.matrix.device)


def _moments(
    pixels: UInt8[Tensor, "n d"],
) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Mean and (unbiased) covariance of pixels scaled to [0, 1], in float64."""
    n, d = pixels.shape
    products = torch.zeros(d, d, dtype=torch.float64)
    total = torch.zeros(d, dtype=torch.int64)
    # Whole numbers up to 2^24 are exact in float32, and 1024 * 128^2 is 2^24: the products of 1024
    # rows are exact at twice float64's speed, at every setting of torch's matmul precision.
    for chunk in torch.split(pixels, 1024):
        total += chunk.sum(dim=0, dtype=torch.int64)
        rows = chunk.float() - 128
        for start in range(0, d, 512):  # only on and above the diagonal: it is symmetric
            block = rows[:, start : start + 512]
            products[start : start + 512, start:] += block.mT @ rows[:, start:]
    mean = total.double() / n
    products = products.triu() + products.triu(1).mT
    covariance = products.sub_(n * torch.outer(mean - 128, mean - 128)).div_((n - 1) * 255**2)
    return mean / 255, covariance
