"""LeNet as the field trains it: ReLU and max pooling on 28- or 32-pixel images.

LeCun, Bottou, Bengio & Haffner, Gradient-based learning applied to document recognition, 1998.
"""

from __future__ import annotations

from torch import nn

from trajmatch.networks.base import Network, height_width, require_pixels
from trajmatch.types import Size

PADDED_BELOW = 16
"""Shorter side, in pixels, below which two unpadded 5x5 convolutions and poolings leave none."""


class LeNet(Network):
    """Two 5x5 convolutions (6 and 16 filters) with max pooling, then 120, 84 and the classes.

    As in the field, one-channel images are padded by 2 at the first convolution (28 pixels become
    32), others not. Below 16 pixels both convolutions are padded, so that digits of 8 pixels fit.
    62,006 parameters for 3x32x32 and 10 classes. Raises SettingError below 4 pixels.
    """

    def __init__(self, *, channels: int, classes: int, size: Size) -> None:
        super().__init__(channels=channels, classes=classes, size=size, options={})
        height, width = height_width(size)
        require_pixels("lenet", height, width, 4)
        second = 2 if min(height, width) < PADDED_BELOW else 0
        first = 2 if channels == 1 else second
        height, width = (
            ((side + 2 * first - 4) // 2 + 2 * second - 4) // 2 for side in (height, width)
        )
        self.features = nn.Sequential(
            nn.Conv2d(channels, 6, 5, padding=first),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(6, 16, 5, padding=second),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(16 * height * width, 120),
            nn.ReLU(),
            nn.Linear(120, 84),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(84, classes)

    def describe(self) -> str:
        """`LeNet`."""
        return "LeNet"
