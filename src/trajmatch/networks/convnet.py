"""ConvNet-D: the field's network, on which experts are trained and images are distilled.

Gidaris & Komodakis, Dynamic few-shot visual learning without forgetting, CVPR 2018; as used by
Zhao, Mopuri & Bilen, Dataset condensation with gradient matching, ICLR 2021.
"""

from __future__ import annotations

import math

import torch
from torch import nn

from trajmatch.config import require_range
from trajmatch.errors import SettingError
from trajmatch.networks.base import Network, height_width, one_of, require_pixels
from trajmatch.networks.norm import build_norm, norm_words
from trajmatch.types import Float, Size, Tensor


class AvgPool2d(nn.AvgPool2d):
    """Means of 2x2 pixels; the last row or column of an odd side is dropped.

    Under torch.compile it is a plain mean, which fuses with the operations around it (an expert's
    step takes 0.83 times as long, measured on one core); eagerly torch's kernel is twice as fast.
    """

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels _ _"]:
        if not torch.compiler.is_compiling():
            return super().forward(images)
        batch, channels, height, width = images.shape
        half, breadth = height // 2, width // 2
        squares = images[:, :, : 2 * half, : 2 * breadth]
        return squares.reshape(batch, channels, half, 2, breadth, 2).mean((3, 5))


ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leakyrelu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
}
POOLINGS: dict[str, type[nn.Module]] = {
    "avg": AvgPool2d,
    "max": nn.MaxPool2d,
    "none": nn.Identity,
}


class ConvNet(Network):
    """`depth` blocks of 3x3 convolution, norm, activation, 2x2 pooling; then one linear layer.

    Parameters come in the released code's order with the released code's initialization (PyTorch's
    default), so a vector of one is a vector of the other. 320,010 of them for 3x32x32 and 10
    classes. Pooling floors: 28 pixels become 14, 7, 3.

    depth: None takes 3 at 32 pixels, 4 at 64, 5 at 128: round(log2(shorter side)) - 2, at least 2.
    norm: instance, group, layer, batch, none. activation: relu, leakyrelu, sigmoid.
    pooling: avg, max, none.

    Raises SettingError for a depth that would pool the image away, and for unknown choices.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        size: Size,
        depth: int | None = None,
        width: int = 128,
        norm: str = "instance",
        activation: str = "relu",
        pooling: str = "avg",
    ) -> None:
        height, breadth = height_width(size)
        require_pixels("convnet", height, breadth, 2)
        if depth is None:
            depth = default_depth(height, breadth)
        require_range("depth", depth)
        require_range("width", width)
        one_of("activation", activation, tuple(ACTIVATIONS))
        one_of("pooling", pooling, tuple(POOLINGS))
        if pooling != "none" and depth > deepest(height, breadth):
            raise SettingError(
                f"depth {depth} pools {height}x{breadth} pixels away; "
                f"the largest depth that fits is {deepest(height, breadth)}"
            )
        super().__init__(
            channels=channels,
            classes=classes,
            size=size,
            options={
                "depth": depth,
                "width": width,
                "norm": norm,
                "activation": activation,
                "pooling": pooling,
            },
        )
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [
                nn.Conv2d(channels, width, 3, padding=1),
                build_norm(norm, width, (height, breadth)),
                ACTIVATIONS[activation](),
            ]
            channels = width
            if pooling != "none":
                layers.append(POOLINGS[pooling](2))
                height, breadth = height // 2, breadth // 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * height * breadth, classes)

    def describe(self) -> str:
        """For example `ConvNet-D3 width 128 instance`; activation and pooling only if unusual."""
        options = self.options
        words = [f"ConvNet-D{options['depth']} width {options['width']}"]
        words.append(norm_words(str(options["norm"])))
        if options["activation"] != "relu":
            words.append(str(options["activation"]))
        if options["pooling"] != "avg":
            words.append(f"{options['pooling']} pooling")
        return " ".join(words)


def default_depth(height: int, width: int) -> int:
    """The field's depth for a size: 3 at 32 pixels, 4 at 64, 5 at 128; at least 2 where 2 fit."""
    wanted = max(2, round(math.log2(min(height, width))) - 2)
    return min(wanted, deepest(height, width))


def deepest(height: int, width: int) -> int:
    """How often an image can be halved, rounding down, before no pixel remains."""
    return min(height, width).bit_length() - 1
