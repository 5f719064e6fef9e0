"""A small vision transformer, in operations that can be differentiated twice on every device.

Dosovitskiy et al., An image is worth 16x16 words, ICLR 2021; without class token (the average of
the tokens is classified) and without dropout, with which training would not be a function of the
parameters alone.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from trajmatch.config import require_range
from trajmatch.errors import SettingError
from trajmatch.networks.base import Network, height_width
from trajmatch.networks.norm import LayerNorm
from trajmatch.types import Float, Size, Tensor


class ViT(Network):
    """Patches -> tokens, `depth` blocks of attention and a perceptron, the tokens' average, one
    linear layer.

    Images are padded with zeros at the right and below to whole patches, so any size fits.
    809,098 parameters for 3x32x32 and 10 classes. Attention is quadratic in the number of patches.

    width: numbers per token. heads: of the attention; they share the width between them.
    patch: side in pixels; None takes an eighth of the shorter side, at least 2: 4 at 32 pixels.

    Raises SettingError for a width that the heads do not divide and for a patch larger than the
    image.
    """

    def __init__(
        self,
        *,
        channels: int,
        classes: int,
        size: Size,
        depth: int = 4,
        width: int = 128,
        heads: int = 4,
        patch: int | None = None,
    ) -> None:
        height, breadth = height_width(size)
        if patch is None:
            patch = min(max(2, round(min(height, breadth) / 8)), height, breadth)
        for name, value in (("depth", depth), ("width", width), ("heads", heads), ("patch", patch)):
            require_range(name, value)
        if width % heads:
            raise SettingError(
                f"width {width} does not split into {heads} heads; use a multiple of {heads}"
            )
        if patch > min(height, breadth):
            raise SettingError(
                f"a patch of {patch} pixels is larger than images of {height}x{breadth}; "
                f"use at most {min(height, breadth)}"
            )
        super().__init__(
            channels=channels,
            classes=classes,
            size=size,
            options={"depth": depth, "width": width, "heads": heads, "patch": patch},
        )
        tokens = -(-height // patch) * -(-breadth // patch)
        self.ends = (_Block,)
        self.features = nn.Sequential(
            _Patches(channels, width, patch, tokens),
            *(_Block(width, heads) for _ in range(depth)),
            LayerNorm(width),
            _Mean(),
        )
        self.classifier = nn.Linear(width, classes)

    def describe(self) -> str:
        """For example `ViT depth 4 width 128 patch 4`."""
        depth, width, patch = (self.options[name] for name in ("depth", "width", "patch"))
        return f"ViT depth {depth} width {width} patch {patch}"


class _Patches(nn.Module):
    """One token per patch: a linear map of its pixels, plus a learned vector for its position."""

    def __init__(self, channels: int, width: int, patch: int, tokens: int) -> None:
        super().__init__()
        self.patch = patch
        self.embedding = nn.Conv2d(channels, width, patch, stride=patch)
        self.place = nn.Parameter(torch.empty(tokens, width))
        nn.init.trunc_normal_(self.place, std=0.02)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens features"]:
        height, width = images.shape[2:]
        padded = F.pad(images, (0, -width % self.patch, 0, -height % self.patch))
        tokens: Tensor = self.embedding(padded).flatten(2).transpose(1, 2) + self.place
        return tokens


class _Block(nn.Module):
    """Attention, then a perceptron of four times the width, each on normalized tokens and with a
    residual connection."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(LayerNorm(width), _Attention(width, heads))
        self.perceptron = nn.Sequential(
            LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(
        self, tokens: Float[Tensor, "batch tokens features"]
    ) -> Float[Tensor, "batch tokens features"]:
        tokens = tokens + self.attention(tokens)
        added: Tensor = tokens + self.perceptron(tokens)
        return added


class _Attention(nn.Module):
    """Softmax attention from matrix products: the fused kernels have no second derivative."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query_key_value = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(
        self, tokens: Float[Tensor, "batch tokens features"]
    ) -> Float[Tensor, "batch tokens features"]:
        split = self.query_key_value(tokens).unflatten(2, (3, self.heads, -1))
        query, key, value = split.permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(2, 3) / key.shape[-1] ** 0.5
        mixed: Tensor = self.out((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return mixed


class _Mean(nn.Module):
    """The tokens' average."""

    def forward(
        self, tokens: Float[Tensor, "batch tokens features"]
    ) -> Float[Tensor, "batch features"]:
        return tokens.mean(1)
