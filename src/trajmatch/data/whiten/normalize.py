"""Mean 0 and standard deviation 1, channel by channel."""

from __future__ import annotations

from typing import Any

import torch

from trajmatch.data.dataset import Split
from trajmatch.data.whiten.base import Whitening
from trajmatch.errors import DataError, MismatchError
from trajmatch.storage.files import TensorFile
from trajmatch.types import Float, Tensor


class Normalize(Whitening):
    """(x - mean) / std, per channel. Exact and cheap in both directions.

    A channel of a single gray level is centered only.
    """

    any_size = True

    def __init__(self, mean: Float[Tensor, "channels"], std: Float[Tensor, "deviations"]) -> None:
        """One number per channel each, of images in [0, 1]. Raises DataError for numbers that are
        not finite, a std that is not above 0, and lengths that differ."""
        super().__init__({"mean": mean, "std": std})
        if mean.ndim != 1 or mean.shape != std.shape:
            raise DataError(
                f"mean has shape {list(mean.shape)} and std {list(std.shape)}; give one number per "
                "channel each"
            )
        if not bool((std > 0).all()):
            raise DataError(f"std is {std.tolist()}; give numbers above 0")

    @classmethod
    def fit(cls, split: Split) -> Normalize:
        """Mean and (biased) standard deviation over all pixels of each channel."""
        channels = split.images.shape[1]
        levels = torch.arange(256, dtype=torch.float64)
        mean, std = torch.empty(channels), torch.empty(channels)
        for channel in range(channels):  # the moments of a histogram of gray levels are exact
            share = split.images[:, channel].reshape(-1).bincount(minlength=256).double()
            share /= share.sum()
            center = (share * levels).sum()
            spread = (share * (levels - center).square()).sum().sqrt()
            mean[channel] = center / 255
            std[channel] = spread / 255 if spread > 0 else 1.0
        return cls(mean, std)

    @classmethod
    def read(cls, file: TensorFile) -> Normalize:
        return cls(file.read("mean"), file.read("std"))

    def transform(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        mean, std = self._statistics(images)
        return (images - mean) / std

    def invert(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        mean, std = self._statistics(images)
        return images * std + mean

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
