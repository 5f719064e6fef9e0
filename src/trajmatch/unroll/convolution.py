"""A 3x3 convolution with padding 1, and its two gradients, on images in channels-last layout.

Most convolutions use torch's own. For small ones its time goes into rearranging filters; and with
one input channel it returns a channels-first result, which costs the operations after it more than
the convolution itself. In both cases every pixel's 3x3 neighborhood is laid out as a row (im2col)
and one matrix product does the rest. Measured on one core: an iteration of the size of the digits
demo takes 0.36 of the time of the plain twin in benchmarks/ this way, 0.49 with matrix products for
the first layer only, and 0.68 with torch's convolutions throughout.

The functions are pure, linear in each tensor, and of any floating type; they are meant for
torch.compile, which fuses the layout of neighborhoods with what comes before it.
"""

from __future__ import annotations

import functools

import torch
from torch.nn import functional as F

from trajmatch.types import Float, Tensor

MATMUL_LIMIT = 2**16
"""Number of elements of all neighborhoods up to which the matrix product is faster."""


def convolve(
    x: Float[Tensor, "batch in height width"],
    filters: Float[Tensor, "out in 3 3"],
    limit: int = MATMUL_LIMIT,
) -> Float[Tensor, "batch out height width"]:
    """The convolution of `x`; by matrix product up to `limit` elements, or with one channel.

    Examples:
        >>> x, filters = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3)
        >>> convolve(x, filters)[0, 0].tolist()
        [[4.0, 6.0, 4.0], [6.0, 9.0, 6.0], [4.0, 6.0, 4.0]]
    """
    if not _by_product(x, limit):
        return F.conv2d(x, filters, padding=1)
    matrix = filters.permute(2, 3, 1, 0).reshape(-1, len(filters))
    return _images(_neighborhoods(x) @ matrix, x)


def gradient_at_images(
    grad: Float[Tensor, "batch out height width"],
    x: Float[Tensor, "batch in height width"],
    filters: Float[Tensor, "out in 3 3"],
    limit: int = MATMUL_LIMIT,
) -> Float[Tensor, "batch in height width"]:
    """The gradient of `convolve` at `x`, given `grad` at its result. Of `x` the shape matters."""
    if not _by_product(x, limit):
        return _library(grad, x, filters, 0)
    batch, channels, height, width = x.shape
    rows = _pixels(grad) @ filters.permute(0, 2, 3, 1).reshape(len(filters), -1)
    # The transpose of laying out neighborhoods: every pixel sums its entries in nine of them.
    around = F.pad(rows.view(batch, height, width, 9, channels), (0, 0, 0, 0, 1, 1, 1, 1))
    places = [(i, j) for i in range(3) for j in range(3)]
    shares = [
        around[:, 2 - i : 2 - i + height, 2 - j : 2 - j + width, 3 * i + j] for i, j in places
    ]
    return _images(functools.reduce(torch.add, shares), x)


def gradient_at_filters(
    grad: Float[Tensor, "batch out height width"],
    x: Float[Tensor, "batch in height width"],
    filters: Float[Tensor, "out in 3 3"],
    limit: int = MATMUL_LIMIT,
) -> Float[Tensor, "out in 3 3"]:
    """The gradient of `convolve` at its filters, given `grad` at its result. Of `filters` the shape
    matters."""
    if not _by_product(x, limit):
        return _library(grad, x, filters, 1)
    out, channels = filters.shape[:2]
    return (_pixels(grad).mT @ _neighborhoods(x)).view(out, 3, 3, channels).permute(0, 3, 1, 2)


def _by_product(x: Float[Tensor, "batch in height width"], limit: int) -> bool:
    return x.shape[1] == 1 or 9 * x.numel() <= limit


def _neighborhoods(x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "pixels entries"]:
    """[pixels, 9 * in]: the 3x3 around each pixel, zeros outside the image."""
    around = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
    return around.permute(0, 2, 3, 4, 5, 1).reshape(-1, 9 * x.shape[1])


def _pixels(x: Float[Tensor, "batch in height width"]) -> Float[Tensor, "pixels in"]:
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _images(
    pixels: Float[Tensor, "..."], like: Float[Tensor, "batch in height width"]
) -> Float[Tensor, "batch out height width"]:
    """[pixels, out] (or [batch, height, width, out]) as images of the size of `like`, channels
    last in memory."""
    batch, _, height, width = like.shape
    return pixels.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def _library(
    grad: Float[Tensor, "batch out height width"],
    x: Float[Tensor, "batch in height width"],
    filters: Float[Tensor, "out in 3 3"],
    which: int,
) -> Float[Tensor, "_ in _ _"]:
    """torch's gradient at the images (which = 0) or at the filters (1)."""
    one, outputs = [1, 1], [which == 0, which == 1, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        grad, x, filters, None, one, one, one, False, [0, 0], 1, outputs
    )[which]
    return found
