"""What must be known of a data set to estimate the cost of a run on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from trajmatch.config import DataConfig, NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.methods import Conditions
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import height_width
from trajmatch.pipeline.recipe import Recipe
from trajmatch.types import Size


@dataclass(frozen=True)
class Shape:
    """The size of a data set's images, and how many there are."""

    channels: int
    size: Size
    classes: int
    train: int
    """Training images, without those for validation."""
    val: int
    test: int

    @classmethod
    def of(cls, data: ImageDataset) -> Shape:
        val = 0 if data.val is None else len(data.val)
        train, test = len(data.train), len(data.test)
        return cls(data.channels, data.size, data.num_classes, train, val, test)

    @classmethod
    def known(cls, config: DataConfig) -> Shape | None:
        """The shape of a well-known data set, without its files; None for any other.

        >>> Shape.known(DataConfig(data="cifar10")).train
        45000
        """
        if config.data not in _KNOWN:
            return None
        channels, size, classes, train, test = _KNOWN[config.data]
        if config.classes is not None:
            chosen = len(config.classes.split(","))
            classes, train, test = chosen, train * chosen // classes, test * chosen // classes
        val = round(train * config.val_fraction)
        return cls(channels, config.size or size, classes, train - val, val, test)

    def network(self, config: NetworkConfig) -> NetworkSpec:
        """The network that a config names, for these images and classes.

        Raises SettingError for a network that does not fit them.
        """
        name = config.network or "convnet"
        return NetworkSpec(name, self.channels, self.classes, self.size, config.options())

    def conditions(self, recipe: Recipe) -> Conditions:
        """What a recipe's method has to work with; the images of each class are not counted."""
        spec = self.network(recipe.network)
        return Conditions(spec, recipe.distill.ipc, recipe.experts.epochs, recipe.data.whitening)

    @property
    def image_pixels(self) -> int:
        """Numbers in one image: channels x height x width."""
        return self.channels * math.prod(height_width(self.size))

    @property
    def pixels(self) -> int:
        """Numbers in all images together."""
        return (self.train + self.val + self.test) * self.image_pixels


_SUBSETS = ("imagenette", "imagewoof", "imagefruit", "imageyellow", "imagemeow", "imagesquawk")
_KNOWN = {
    "cifar10": (3, 32, 10, 50_000, 10_000),
    "cifar100": (3, 32, 100, 50_000, 10_000),
    "svhn": (3, 32, 10, 73_257, 26_032),
    "mnist": (1, 28, 10, 60_000, 10_000),
    "fashion-mnist": (1, 28, 10, 60_000, 10_000),
    "tiny-imagenet": (3, 64, 200, 100_000, 10_000),
    **dict.fromkeys(_SUBSETS, (3, 128, 10, 13_000, 500)),  # about
    "imagenette2": (3, 128, 10, 9_469, 3_925),
    "imagewoof2": (3, 128, 10, 9_025, 3_929),
    "imagenet": (3, 128, 1000, 1_281_167, 50_000),
}
"""Channels, side, classes, training and test images."""
