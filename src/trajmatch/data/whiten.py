"""Whitening: pixels as the networks see them, and the way back to pictures.

`Normalize` brings each channel to mean 0 and standard deviation 1. `ZCA` also removes the
correlations between pixels, and is what the published CIFAR numbers mostly use; of all transforms
that do so it changes pictures least. Both are fitted on training images scaled to [0, 1].

Fitting needs no draw and no order: sums over uint8 pixels are whole numbers and are taken exactly,
so the same images give the same statistics however many threads add them up.
"""

from __future__ import annotations

import abc
import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from trajmatch.data.dataset import Split
from trajmatch.errors import DataError, FileFormatError, MismatchError, SettingError, suggest
from trajmatch.files import open_tensors, save_tensors
from trajmatch.types import Float, Shaped, Tensor, UInt8

KIND = "whitening"
VERSION = 1
EPS = 0.1
"""Added to the variances along principal axes (of about 0.001 to 10), in squared [0, 1] pixels."""
LARGEST = 13_000
"""Pixels times channels beyond which ZCA is refused: 64x64 RGB is 12,288."""


def to_float(images: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """uint8 in 0..255 to float32 in [0, 1]."""
    return images.to(torch.float32) / 255


class Whitening(abc.ABC):
    """A fitted, invertible map from images in [0, 1] to what networks are fed.

    `tensors` are all that was fitted; they follow `to`. Applying follows the images' device and
    dtype and moves the tensors there at need: `to` once where that is done often.
    """

    name: ClassVar[str]

    def __init__(self, tensors: dict[str, Shaped[Tensor, "..."]]) -> None:
        self.tensors = tensors

    @abc.abstractmethod
    def apply(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        """Whiten images in [0, 1]. Raises MismatchError for images of another shape."""

    @abc.abstractmethod
    def invert(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        """Back to the scale of [0, 1], not clipped. Raises MismatchError for another shape."""

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> Whitening:
        """The same whitening with its tensors on `device`."""

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """What is set rather than fitted, as plain values."""

    @cached_property
    def checksum(self) -> str:
        """16 hex digits that change with any fitted number."""
        digest = hashlib.sha256(self.name.encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().view(-1).numpy().data)
        return digest.hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """What a result should say of it, as plain values."""
        return {"name": self.name, "checksum": self.checksum, **self.settings()}

    def save(self, path: Path) -> None:
        """Write to one file: 37 MB for ZCA of CIFAR-10, a kilobyte for Normalize."""
        metadata = {"name": self.name, **self.settings()}
        save_tensors(path, self.tensors, kind=KIND, version=VERSION, metadata=metadata)

    def apply_split(
        self, split: Split, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "n channels height width"]:
        """All images of a split, whitened, as one float32 tensor on `device`.

        Works in pieces: beyond the result (12 bytes a pixel of RGB) it needs some 50 MB.
        """
        here = self.to(device)
        result = torch.empty(split.images.shape, dtype=torch.float32, device=device)
        for start in range(0, len(split), 1024):
            piece = split.images[start : start + 1024].to(device)
            result[start : start + 1024] = here.apply(to_float(piece))
        return result


class Normalize(Whitening):
    """(x - mean) / std, per channel. Exact and cheap in both directions."""

    name = "normalize"

    def __init__(self, mean: Float[Tensor, "channels"], std: Float[Tensor, "channels"]) -> None:
        super().__init__({"mean": mean, "std": std})

    def apply(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        mean, std = self._statistics(images)
        return (images - mean) / std

    def invert(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        mean, std = self._statistics(images)
        return images * std + mean

    def to(self, device: torch.device | str) -> Normalize:
        return Normalize(self.tensors["mean"].to(device), self.tensors["std"].to(device))

    def settings(self) -> dict[str, Any]:
        return {name: tensor.tolist() for name, tensor in self.tensors.items()}

    def _statistics(self, images: Tensor) -> tuple[Tensor, Tensor]:
        mean, std = self.tensors["mean"].to(images), self.tensors["std"].to(images)
        if len(mean) != images.shape[1]:
            raise MismatchError(
                f"the whitening was fitted on {len(mean)} channels and these images have "
                f"{images.shape[1]}; use the whitening saved beside these images"
            )
        return mean.view(-1, 1, 1), std.view(-1, 1, 1)


class ZCA(Whitening):
    """W (x - mean) with W = U (S + eps)^-1/2 U^T, where U S U^T is the covariance of the pixels.

    d = channels * height * width; W and its inverse are d x d and symmetric. Applying costs d
    multiplications a value: 10 s for all of CIFAR-10 on one core. Only W is kept on disk (37 MB for
    CIFAR-10); its inverse, needed for pictures, is computed when first asked for: 2 s for d = 3072,
    and to float precision, as eps keeps W well conditioned.

    Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009, appendix A.
    """

    name = "zca"

    def __init__(
        self,
        mean: Float[Tensor, "d"],
        matrix: Float[Tensor, "d d"],
        *,
        shape: tuple[int, int, int],
        eps: float = EPS,
    ) -> None:
        """`shape`: channels, height and width of the images, whose product is d."""
        super().__init__({"mean": mean, "matrix": matrix})
        self.shape = shape
        self.eps = eps

    @cached_property
    def inverse(self) -> Float[Tensor, "d d"]:
        """U (S + eps)^1/2 U^T, the inverse of the matrix as it is stored."""
        # Not kept from the fit: a file that was saved and loaded gives the same pictures.
        root = torch.linalg.cholesky(self.tensors["matrix"].cpu().double())
        inverse: Tensor = torch.cholesky_inverse(root).float()
        return inverse.to(self.tensors["matrix"].device)

    def apply(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        self._check(images)
        centered = images.flatten(1) - self.tensors["mean"].to(images)
        return (centered @ self.tensors["matrix"].to(images)).view_as(images)

    def invert(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        self._check(images)
        plain = images.flatten(1) @ self.inverse.to(images) + self.tensors["mean"].to(images)
        return plain.view_as(images)

    def to(self, device: torch.device | str) -> ZCA:
        moved = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        there = ZCA(moved["mean"], moved["matrix"], shape=self.shape, eps=self.eps)
        if "inverse" in self.__dict__:  # already computed: take it along
            there.__dict__["inverse"] = self.inverse.to(device)
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


WHITENINGS = ("normalize", "zca")


def fit_whitening(name: str, split: Split) -> Whitening:
    """Fit "normalize" or "zca" on training images.

    ZCA of CIFAR-10 takes about half a minute on one core and half a gigabyte; both grow with the
    image size to the sixth and fourth power. Raises SettingError for an unknown name or for images
    too large for ZCA, DataError for fewer than two images.
    """
    if name not in WHITENINGS:
        raise SettingError(f"unknown whitening '{name}'; {suggest(name, WHITENINGS)}")
    if len(split) < 2:
        raise DataError(f"whitening is fitted on at least 2 images, not {len(split)}; add images")
    return _fit_normalize(split) if name == "normalize" else _fit_zca(split)


def load_whitening(path: Path) -> Whitening:
    """Read what `Whitening.save` wrote; FileFormatError when it is anything else, or altered."""
    file = open_tensors(path, kind=KIND, version=VERSION)
    try:
        name = file.metadata["name"]
        if name == "normalize":
            return Normalize(file.read("mean"), file.read("std"))
        if name == "zca":
            channels, height, width = file.metadata["shape"]
            return ZCA(
                file.read("mean"),
                file.read("matrix"),
                shape=(channels, height, width),
                eps=file.metadata["eps"],
            )
    except (KeyError, ValueError, SettingError) as error:
        raise FileFormatError(f"{path} is not a whitening of trajmatch: {error}") from error
    raise FileFormatError(f"{path} holds whitening '{name}'; {suggest(str(name), WHITENINGS)}")


def _fit_normalize(split: Split) -> Normalize:
    channels = split.images.shape[1]
    levels = torch.arange(256, dtype=torch.float64)
    mean, std = torch.empty(channels), torch.empty(channels)
    for channel in range(channels):  # a histogram of gray levels holds all moments, exactly
        share = split.images[:, channel].reshape(-1).bincount(minlength=256).double()
        share /= share.sum()
        center = (share * levels).sum()
        spread = (share * (levels - center).square()).sum().sqrt()
        mean[channel] = center / 255
        # A channel of one gray level has nothing to scale.
        std[channel] = spread / 255 if spread > 0 else 1.0
    return Normalize(mean, std)


def _fit_zca(split: Split) -> ZCA:
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
    return ZCA(mean.float(), matrix.float(), shape=(channels, height, width))


def _moments(
    pixels: UInt8[Tensor, "n d"],
) -> tuple[Float[Tensor, "d"], Float[Tensor, "d d"]]:
    """Mean and (unbiased) covariance of pixels scaled to [0, 1], in float64."""
    n, d = pixels.shape
    products = torch.zeros(d, d, dtype=torch.float64)
    total = torch.zeros(d, dtype=torch.int64)
    # Whole numbers up to 2^24 are exact in float32, and 1024 * 128^2 is 2^24: every piece is exact
    # at twice float64's speed, and at any precision that torch may be told to multiply in.
    for piece in torch.split(pixels, 1024):
        total += piece.sum(dim=0, dtype=torch.int64)
        rows = piece.float() - 128
        for start in range(0, d, 512):  # only on and above the diagonal: it is symmetric
            block = rows[:, start : start + 512]
            products[start : start + 512, start:] += block.mT @ rows[:, start:]
    mean = total.double() / n
    products = products.triu() + products.triu(1).mT
    covariance = products.sub_(n * torch.outer(mean - 128, mean - 128)).div_((n - 1) * 255**2)
    return mean / 255, covariance
