"""ResNet18 as the field trains it on small images: 3x3 stem of stride 1, no first pooling.

He, Zhang, Ren & Sun, Deep residual learning for image recognition, CVPR 2016.
"""

from __future__ import annotations

import torch
from torch import nn

from trajmatch.config import require_range
from trajmatch.networks.base import Network, height_width, require_pixels
from trajmatch.networks.norm import build_norm, norm_words
from trajmatch.types import Float, Size, Tensor

STAGES = (1, 2, 4, 8)
"""Filters of each stage, in units of the width; two blocks a stage."""


class ResNet18(Network):
    """A 3x3 convolution, four stages of two residual blocks, the average over pixels, one linear
    layer. Stages two to four halve the image.

    A halving that would leave a single pixel is left out (the norms would set single numbers to
    zero), so images from 4 pixels on fit; the field uses 32. Convolutions have no bias, as in the
    field, unless there is no norm, whose shift replaces it. 11,173,962 parameters
    for 3x32x32 and 10 classes.

    width: filters of the first stage. norm: instance, group, layer, batch, none; instance is the
    field's: it is stateless, so the network can be expert and student, and it does not depend on
    the batch, which for a distilled set is tiny and unlike the test data.
    """

    def __init__(
        self, *, channels: int, classes: int, size: Size, width: int = 64, norm: str = "instance"
    ) -> None:
        super().__init__(
            channels=channels, classes=classes, size=size, options={"width": width, "norm": norm}
        )
        require_range("width", width)
        height, breadth = height_width(size)
        require_pixels("resnet18", height, breadth, 4)
        layers: list[nn.Module] = [
            nn.Conv2d(channels, width, 3, padding=1, bias=norm == "none"),
            build_norm(norm, width, (height, breadth)),
            nn.ReLU(),
        ]
        channels = width
        for units in STAGES:
            halve = units > 1 and min(height, breadth) > 2
            stride = 2 if halve else 1
            height, breadth = -(-height // stride), -(-breadth // stride)
            layers.append(_Block(channels, units * width, stride, norm, (height, breadth)))
            channels = units * width
            layers.append(_Block(channels, channels, 1, norm, (height, breadth)))
        self.ends = (nn.ReLU, _Block)
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1))
        self.classifier = nn.Linear(channels, classes)

    def describe(self) -> str:
        """For example `ResNet18 instance`; the width only if unusual."""
        width = "" if self.options["width"] == 64 else f" width {self.options['width']}"
        return f"ResNet18{width} {norm_words(str(self.options['norm']))}"


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut, which is a 1x1 convolution where the shape changes."""

    def __init__(
        self, channels: int, filters: int, stride: int, norm: str, size: tuple[int, int]
    ) -> None:
        super().__init__()
        bias = norm == "none"
        self.residual = nn.Sequential(
            nn.Conv2d(channels, filters, 3, stride, padding=1, bias=bias),
            build_norm(norm, filters, size),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, padding=1, bias=bias),
            build_norm(norm, filters, size),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != filters:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride, bias=bias),
                build_norm(norm, filters, size),
            )

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch filters new_height new_width"]:
        return torch.relu(self.residual(images) + self.shortcut(images))
