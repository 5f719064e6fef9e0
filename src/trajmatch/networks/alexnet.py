"""AlexNet as the field trains it on small images: five convolutions and one linear layer.

Krizhevsky, Sutskever & Hinton, ImageNet classification with deep convolutional neural networks,
NeurIPS 2012; cut down for 32 pixels by Zhao, Mopuri & Bilen, ICLR 2021.
"""

from __future__ import annotations

from torch import nn

from trajmatch.networks.base import Network, height_width, require_pixels
from trajmatch.networks.norm import build_norm, norm_words
from trajmatch.types import Size

LAYERS = ((128, 5, True), (192, 5, True), (256, 3, False), (192, 3, False), (192, 3, True))
"""Filters, side of the kernel, whether 2x2 max pooling follows."""


class AlexNet(Network):
    """Five convolutions, max pooling after the first, second and fifth, one linear layer.

    One-channel images are padded by 4 at the first convolution (28 pixels become 32). Pooling that
    would leave less than 2 pixels to a convolution is left out, so 8 pixels fit, too.
    1,872,202 parameters for 3x32x32 and 10 classes, without norm.

    norm: instance, group, layer, batch, none. None is the field's and the default: its AlexNet
    numbers are from a network without normalization. No dropout. SettingError below 4 pixels.
    """

    def __init__(self, *, channels: int, classes: int, size: Size, norm: str = "none") -> None:
        super().__init__(channels=channels, classes=classes, size=size, options={"norm": norm})
        height, width = height_width(size)
        require_pixels("alexnet", height, width, 4)
        layers: list[nn.Module] = []
        for index, (filters, kernel, pooled) in enumerate(LAYERS):
            padding = 4 if index == 0 and channels == 1 else kernel // 2
            height, width = (side + 2 * padding - kernel + 1 for side in (height, width))
            layers.append(nn.Conv2d(channels, filters, kernel, padding=padding))
            layers += [build_norm(norm, filters, (height, width)), nn.ReLU()]
            channels = filters
            last = index == len(LAYERS) - 1
            if pooled and min(height, width) >= (2 if last else 4):
                layers.append(nn.MaxPool2d(2))
                height, width = height // 2, width // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels * height * width, classes)

    def describe(self) -> str:
        """For example `AlexNet without norm`."""
        return f"AlexNet {norm_words(str(self.options['norm']))}"
