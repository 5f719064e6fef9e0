"""The field's multilayer perceptron: three linear layers on the pixels."""

from __future__ import annotations

from torch import nn

from trajmatch.config import require_range
from trajmatch.networks.base import Network, height_width
from trajmatch.types import Size


class MLP(Network):
    """Pixels -> width -> width -> classes, with ReLU between. Any size.

    411,146 parameters for 3x32x32 and 10 classes at the field's width of 128.
    """

    def __init__(self, *, channels: int, classes: int, size: Size, width: int = 128) -> None:
        super().__init__(channels=channels, classes=classes, size=size, options={"width": width})
        require_range("width", width)
        height, breadth = height_width(size)
        self.features = nn.Sequential(
            nn.Flatten(),
            nn.Linear(channels * height * breadth, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
        )
        self.classifier = nn.Linear(width, classes)

    def describe(self) -> str:
        """For example `MLP width 128`."""
        return f"MLP width {self.options['width']}"
