"""What lies between two convolutions of the field's ConvNet: instance norm, ReLU, 2x2 average.

One function for each of the four passes of `convnet`: forward, forward for tangents, backward,
backward for tangents; symbols are explained there. Each is one loop over its inputs once compiled.
Arithmetic is in float32 or wider; results that enter a convolution have the type of h.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn import functional as F

from trajmatch.types import Float, Tensor

EPS = 1e-5
"""Of the instance norm, as in torch."""


class Layer(NamedTuple):
    """The parameters of one block, or tangents in their place."""

    weight: Float[Tensor, "out in 3 3"]
    scale: Float[Tensor, "out"]
    shift: Float[Tensor, "out"]


class Block(NamedTuple):
    """What `grad` saves of one block."""

    x: Float[Tensor, "batch in height width"]
    h: Float[Tensor, "batch out height width"]
    mean: Float[Tensor, "batch out 1 1"]
    """Of h."""
    s: Float[Tensor, "batch out 1 1"]
    """1 / deviation of h."""
    e: Float[Tensor, "batch out half breadth"]
    """The gradient at the next x."""
    h_grad: Float[Tensor, "batch out height width"]


class Tangents(NamedTuple):
    """What `grad_vjp`'s forward pass leaves of one block for its backward pass."""

    x: Float[Tensor, "batch in height width"] | None
    """None for the images, which have no tangent."""
    h: Float[Tensor, "batch out height width"]
    mean: Float[Tensor, "batch out 1 1"]
    """Of d_h."""
    along: Float[Tensor, "batch out 1 1"]
    """Mean of z d_h."""


def norm_relu_pool(
    h: Float[Tensor, "batch out height width"], layer: Layer
) -> tuple[
    Float[Tensor, "batch out half breadth"],
    Float[Tensor, "batch out 1 1"],
    Float[Tensor, "batch out 1 1"],
]:
    """(next x, mean of h, 1 / deviation of h)."""
    wide = _wide(h)
    mean = _mean(wide)
    centered = wide - mean
    s = torch.rsqrt(_mean(centered * centered) + EPS)
    a = centered * (s * _channel(layer.scale)) + _channel(layer.shift)
    return _pool(a.relu()).to(h.dtype), mean, s


def norm_relu_pool_tangent(
    block: Block,
    layer: Layer,
    d_layer: Layer,
    d_h: Float[Tensor, "batch out height width"],
) -> tuple[
    Float[Tensor, "batch out half breadth"],
    Float[Tensor, "batch out 1 1"],
    Float[Tensor, "batch out 1 1"],
]:
    """(tangent of the next x, mean of d_h, mean of z d_h)."""
    z = (_wide(block.h) - block.mean) * block.s
    a = z * _channel(layer.scale) + _channel(layer.shift)
    d_wide = _wide(d_h)
    d_mean, along = _mean(d_wide), _mean(z * d_wide)
    d_z = block.s * (d_wide - d_mean - z * along)
    d_a = d_z * _channel(layer.scale) + z * _channel(d_layer.scale) + _channel(d_layer.shift)
    return _pool(torch.where(a > 0, d_a, 0)).to(block.h.dtype), d_mean, along


def norm_relu_pool_grad(
    h: Float[Tensor, "batch out height width"],
    mean: Float[Tensor, "batch out 1 1"],
    s: Float[Tensor, "batch out 1 1"],
    layer: Layer,
    e: Float[Tensor, "batch out half breadth"],
) -> tuple[Float[Tensor, "batch out height width"], Float[Tensor, "out"], Float[Tensor, "out"]]:
    """The gradients at h, scale and shift, with `e` that at the next x."""
    height, width = h.shape[2:]
    z = (_wide(h) - mean) * s
    a = z * _channel(layer.scale) + _channel(layer.shift)
    e = torch.where(a > 0, _unpool(_wide(e), height, width), 0)
    e_mean, e_along = _mean(e), _mean(e * z)
    h_grad = (s * _channel(layer.scale)) * (e - e_mean - z * e_along)
    pixels = height * width
    return h_grad.to(h.dtype), (e_along * pixels).sum((0, 2, 3)), (e_mean * pixels).sum((0, 2, 3))


def norm_relu_pool_grad_tangent(
    block: Block,
    tangent: Tangents,
    layer: Layer,
    d_layer: Layer,
    d_e: Float[Tensor, "batch out half breadth"],
) -> tuple[Float[Tensor, "batch out height width"], Float[Tensor, "out"], Float[Tensor, "out"]]:
    """The tangents of what `norm_relu_pool_grad` returns."""
    h, s = block.h, block.s
    height, width = h.shape[2:]
    z = (_wide(h) - block.mean) * s
    a = z * _channel(layer.scale) + _channel(layer.shift)
    e = torch.where(a > 0, _unpool(_wide(block.e), height, width), 0)
    d_e = torch.where(a > 0, _unpool(_wide(d_e), height, width), 0)
    d_z = s * (_wide(tangent.h) - tangent.mean - z * tangent.along)
    d_s = -s * s * tangent.along
    e_mean, e_along = _mean(e), _mean(e * z)
    d_e_mean, d_e_along = _mean(d_e), _mean(d_e * z) + _mean(e * d_z)
    factor = s * _channel(layer.scale)
    d_factor = s * _channel(d_layer.scale) + d_s * _channel(layer.scale)
    d_h_grad = d_factor * (e - e_mean - z * e_along) + factor * (
        d_e - d_e_mean - d_z * e_along - z * d_e_along
    )
    pixels = height * width
    return (
        d_h_grad.to(h.dtype),
        (d_e_along * pixels).sum((0, 2, 3)),
        (d_e_mean * pixels).sum((0, 2, 3)),
    )


def _wide(tensor: Float[Tensor, "_ _ _ _"]) -> Float[Tensor, "_ _ _ _"]:
    """In float32, or wider where it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _mean(x: Float[Tensor, "batch out height width"]) -> Float[Tensor, "batch out 1 1"]:
    return x.mean((2, 3), keepdim=True)


def _channel(x: Float[Tensor, "out"]) -> Float[Tensor, "1 out 1 1"]:
    return x.view(1, -1, 1, 1)


def _pool(
    x: Float[Tensor, "batch out height width"],
) -> Float[Tensor, "batch out half breadth"]:
    """Means of 2x2; a row or column left over at an odd border is dropped."""
    batch, channels, height, width = x.shape
    half, breadth = height // 2, width // 2
    squares = x[:, :, : 2 * half, : 2 * breadth].reshape(batch, channels, half, 2, breadth, 2)
    return squares.mean((3, 5))


def _unpool(
    e: Float[Tensor, "batch out half breadth"], height: int, width: int
) -> Float[Tensor, "batch out {height} {width}"]:
    """The gradient of `_pool` at its inputs of `height` x `width`."""
    batch, channels, half, breadth = e.shape
    spread = (e * 0.25).view(batch, channels, half, 1, breadth, 1).expand(-1, -1, -1, 2, -1, 2)
    spread = spread.reshape(batch, channels, 2 * half, 2 * breadth)
    return F.pad(spread, (0, width - 2 * breadth, 0, height - 2 * half))
