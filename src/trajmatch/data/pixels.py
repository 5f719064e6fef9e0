"""Arrays of the caller -> uint8 images, floats in [0, 1] and class indices; and images at another
size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from trajmatch.errors import DataError
from trajmatch.runtime.memory import free_bytes
from trajmatch.types import Float, Int, Tensor, UInt8


def image_tensor(images: Any, what: str) -> UInt8[Tensor, "n channels height width"]:
    """A copy of images of any accepted layout. what: begins messages ("train images").

    Computes in NumPy, because torch starts threads for each of many single images. Raises DataError
    for other layouts, dtypes and ranges.
    """
    pixels = _array(images, what)
    shape = pixels.shape
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim != 4:
        raise DataError(f"{what} have shape {shape}; give [n, c, h, w] or [n, h, w, c]")
    else:
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if first == last:
            raise DataError(
                f"{what} have shape {shape}, where "
                f"{'either' if first else 'neither'} of axes 1 and 3 can be 1 or 3 channels; give "
                "[n, c, h, w] or [n, h, w, c] with c = 1 or 3 and larger sides"
            )
        pixels = pixels if first else pixels.transpose(0, 3, 1, 2)
    if pixels.dtype.kind == "f":
        low, high = (pixels.min(), pixels.max()) if pixels.size else (0, 1)
        _require_unit_range(float(low), float(high), what)
        pixels = np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise DataError(f"{what} are {pixels.dtype}; give uint8 in 0..255 or floats in [0, 1]")
    return torch.from_numpy(np.array(pixels, order="C"))


def to_float(images: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """uint8 in 0..255 to float32 in [0, 1]."""
    return images.to(torch.float32) / 255


def unit_floats(images: Any, what: str) -> Float[Tensor, "*shape"]:
    """Images as floats in [0, 1]: uint8 divided by 255, floats as they are. what: begins messages.

    A tensor keeps its device and, if of floats, its dtype; arrays become float32, which networks
    take. Raises DataError for other dtypes and for floats out of range.
    """
    if isinstance(images, Tensor):
        pixels = images
    else:
        array = _array(images, what)
        pixels = torch.from_numpy(array.astype(np.float32) if array.dtype.kind == "f" else array)
    if pixels.dtype == torch.uint8:
        return to_float(pixels)
    if not pixels.is_floating_point():
        raise DataError(f"{what} are {pixels.dtype}; give uint8 in 0..255 or floats in [0, 1]")
    if pixels.numel():
        low, high = pixels.detach().aminmax()
        _require_unit_range(float(low), float(high), what)
    return pixels


def label_tensor(labels: Any, what: str) -> Int[Tensor, "n"]:
    """A copy of class indices [n], or [n, 1] as Keras returns them. what: begins messages.

    Raises DataError for anything else.
    """
    indices = _array(labels, what)
    if indices.ndim == 2 and indices.shape[1] == 1:
        indices = indices[:, 0]
    if indices.ndim != 1 or indices.dtype.kind not in "iu":
        raise DataError(
            f"{what} have shape {indices.shape} and {indices.dtype}; give one whole number per "
            "image, from 0"
        )
    return torch.from_numpy(indices.astype(np.int64))


def resize(
    images: UInt8[Tensor, "n channels height width"], size: int
) -> UInt8[Tensor, "n channels size size"]:
    """The shorter side brought to `size` pixels, then center-cropped to a square of that side.

    Bicubic with antialiasing, rounded back to 0..255. Works in chunks of 1024 images, because
    floats of all of them would take four times their memory. Raises DataError where the result and
    a chunk do not fit into memory.
    """
    height, width = images.shape[2:]
    factor = size / min(height, width)
    tall, wide = max(round(height * factor), size), max(round(width * factor), size)
    floats = 4 * (height * width + 2 * tall * wide) * min(len(images), 1024)
    require_space(
        images.shape[1] * (len(images) * size * size + floats),
        f"{len(images):,} images of {size:,}x{size:,}",
        "give a smaller size",
    )
    top, left = (tall - size) // 2, (wide - size) // 2
    chunks = []
    for chunk in torch.split(images, 1024):
        scaled = functional.interpolate(
            chunk.float(), (tall, wide), mode="bicubic", antialias=True, align_corners=False
        )
        cropped = scaled[:, :, top : top + size, left : left + size]
        chunks.append(cropped.round().clamp(0, 255).to(torch.uint8))
    return torch.cat(chunks)


def require_space(needed: int, what: str, mend: str) -> None:
    """Refuse images that take more memory than is free. needed: bytes; what, mend: for the message.

    Where free memory is unknown, nothing is refused. Raises DataError.
    """
    free = free_bytes(torch.device("cpu"))
    if free is not None and needed > free:
        raise DataError(
            f"{what} need about {needed / 1e9:,.1f} GB of memory and {free / 1e9:,.1f} GB are "
            f"free; {mend}"
        )


def _require_unit_range(low: float, high: float, what: str) -> None:
    # Interpolation in float32 leaves [0, 1] by some 1e-7. So written that NaN is refused.
    if not (low >= -1e-5 and high <= 1 + 1e-5):
        raise DataError(
            f"{what} are floats from {low:.4g} to {high:.4g}; give floats in [0, 1] "
            "(divide by 255, undo any normalization) or uint8"
        )


def _array(values: Any, what: str) -> NDArray[Any]:
    """On the CPU; shares memory with the caller's array where it can."""
    try:
        if isinstance(values, Tensor):
            values = values.detach().cpu()
            values = values.float() if values.dtype == torch.bfloat16 else values
        array: NDArray[Any] = np.asarray(values)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are not a numeric array ({error})") from error
    if array.dtype.kind not in "biufc":
        raise DataError(f"{what} are not a numeric array ({array.dtype})")
    return array
