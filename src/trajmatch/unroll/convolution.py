"""A convolution of 3x3, padded by 1, and its two gradients, on images that lie channels last.

Most convolutions go to the library. Where there is little to compute it spends its time on
arranging filters, and with one channel it gives its result channels first, which costs what follows
more than the convolution itself. There each pixel's neighborhood is laid out as a row, and one
matrix product does the rest. Seen on one core: an iteration at the size of the digits demo, against
the plain twin in benchmarks/, takes 0.36 of its time so, 0.49 with products for the first layer
alone, and 0.68 with the library's convolutions throughout.

The functions are pure, linear in each argument, and of any floating type; they are meant for
torch.compile, which fuses the laying out with what comes before it.
"""

from __future__ import annotations

import functools

import torch
from torch.nn import functional as F

from trajmatch.types import Float, Tensor

SMALL = 2**16
"""Numbers in all neighborhoods together up to which the matrix product is faster."""


def convolve(
    x: Float[Tensor, "batch in height width"], filters: Float[Tensor, "out in 3 3"]
) -> Float[Tensor, "batch out height width"]:
    """The filters at every pixel."""
    if not _by_product(x):
        return F.conv2d(x, filters, padding=1)
    matrix = filters.permute(2, 3, 1, 0).reshape(-1, len(filters))
    return _images(_neighborhoods(x) @ matrix, x)


def gradient_at_images(
    back: Float[Tensor, "batch out height width"],
    x: Float[Tensor, "batch in height width"],
    filters: Float[Tensor, "out in 3 3"],
) -> Float[Tensor, "batch in height width"]:
    """What `convolve` passes back to `x` (read for its shape), `back` being the gradient at its
    result."""
    if not _by_product(x):
        return _library(back, x, filters, 0)
    batch, channels, height, width = x.shape
    rows = _pixels(back) @ filters.permute(0, 2, 3, 1).reshape(len(filters), -1)
    # The adjoint of laying out neighborhoods: every pixel collects its share of nine of them.
    around = F.pad(rows.view(batch, height, width, 9, channels), (0, 0, 0, 0, 1, 1, 1, 1))
    places = [(i, j) for i in range(3) for j in range(3)]
    shares = [
        around[:, 2 - i : 2 - i + height, 2 - j : 2 - j + width, 3 * i + j] for i, j in places
    ]
    return _images(functools.reduce(torch.add, shares), x)


def gradient_at_filters(
    back: Float[Tensor, "batch out height width"],
    x: Float[Tensor, "batch in height width"],
    filters: Float[Tensor, "out in 3 3"],
) -> Float[Tensor, "out in 3 3"]:
    """What `convolve` passes back to its filters (read for their shape)."""
    if not _by_product(x):
        return _library(back, x, filters, 1)
    out, channels = filters.shape[:2]
    return (_pixels(back).mT @ _neighborhoods(x)).view(out, 3, 3, channels).permute(0, 3, 1, 2)


def _by_product(x: Tensor) -> bool:
    return x.shape[1] == 1 or 9 * x.numel() <= SMALL


def _neighborhoods(x: Tensor) -> Tensor:
    """[pixels, 9 channels]: each pixel's row holds the 3x3 around it, zeros outside."""
    around = F.pad(x, (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
    return around.permute(0, 2, 3, 4, 5, 1).reshape(-1, 9 * x.shape[1])


def _pixels(x: Tensor) -> Tensor:
    """[pixels, channels]."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def _images(pixels: Tensor, like: Tensor) -> Tensor:
    """[pixels, channels] as images of as many pixels as `like` has, channels last in memory."""
    batch, _, height, width = like.shape
    return pixels.reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def _library(back: Tensor, x: Tensor, filters: Tensor, which: int) -> Tensor:
    one, wanted = [1, 1], [which == 0, which == 1, False]
    found: Tensor = torch.ops.aten.convolution_backward(
        back, x, filters, None, one, one, one, False, [0, 0], 1, wanted
    )[which]
    return found
