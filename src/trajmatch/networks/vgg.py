"""VGG11 as the field trains it on small images: normalized, with one linear layer.

Simonyan & Zisserman, Very deep convolutional networks for large-scale image recognition, ICLR 2015.
"""

from __future__ import annotations

from torch import nn

from trajmatch.config import require_range
from trajmatch.networks.base import Network, height_width, require_pixels
from trajmatch.networks.norm import build_norm, norm_words
from trajmatch.types import Size

STAGES = ((1,), (2,), (4, 4), (8, 8), (8, 8))
"""Filters of each convolution, in units of the width; 2x2 max pooling ends a stage."""


class VGG11(Network):
    """Eight 3x3 convolutions in five stages, each ended by max pooling; then one linear layer.

    Pooling that would leave less than 2 pixels to the next convolution is left out (its norm would
    set single numbers to zero), so images from 4 pixels on fit; the field uses 32. The remaining
    pixels are averaged. 9,231,114 parameters for 3x32x32 and 10 classes.

    width: filters of the first stage. norm: instance, group, layer, batch, none; instance is the
    field's: it is stateless, so the network can be expert and student, and it does not depend on
    the batch, which for a distilled set is tiny and unlike the test data. No dropout.
    """

    def __init__(
        self, *, channels: int, classes: int, size: Size, width: int = 64, norm: str = "instance"
    ) -> None:
        super().__init__(
            channels=channels, classes=classes, size=size, options={"width": width, "norm": norm}
        )
        require_range("width", width)
        height, breadth = height_width(size)
        require_pixels("vgg11", height, breadth, 4)
        layers: list[nn.Module] = []
        for index, stage in enumerate(STAGES):
            for units in stage:
                filters = units * width
                layers.append(nn.Conv2d(channels, filters, 3, padding=1))
                layers += [build_norm(norm, filters, (height, breadth)), nn.ReLU()]
                channels = filters
            last = index == len(STAGES) - 1
            if min(height, breadth) >= (2 if last else 4):
                layers.append(nn.MaxPool2d(2))
                height, breadth = height // 2, breadth // 2
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(channels, classes)

    def describe(self) -> str:
        """For example `VGG11 instance`; the width only if unusual."""
        width = "" if self.options["width"] == 64 else f" width {self.options['width']}"
        return f"VGG11{width} {norm_words(str(self.options['norm']))}"
