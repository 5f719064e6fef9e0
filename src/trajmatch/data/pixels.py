"""Arrays of the caller -> uint8 images and class indices; and images at another size."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from trajmatch.errors import DataError
from trajmatch.runtime.memory import available_bytes
from trajmatch.types import Int, Tensor, UInt8


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
        if not (low >= 0 and high <= 1):  # so written that NaN is refused
            raise DataError(
                f"{what} are floats from {low:.4g} to {high:.4g}; give floats in [0, 1] "
                "(divide by 255, undo any normalization) or uint8"
            )
        pixels = np.rint(pixels.astype(np.float64) * 255).astype(np.uint8)
    elif pixels.dtype != np.uint8:
        raise DataError(f"{what} are {pixels.dtype}; give uint8 in 0..255 or floats in [0, 1]")
    return torch.from_numpy(np.array(pixels, order="C"))


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
    require_memory(
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


def require_memory(needed: int, what: str, mend: str) -> None:
    """Refuse work that takes more memory than is free. needed: bytes; what, mend: for the message.

    On macOS it is compared with all memory, as what is free is unknown there; on Windows nothing is
    refused. Raises DataError.
    """
    if sys.platform.startswith("linux"):
        there, kind = available_bytes(torch.device("cpu")), "free"
    elif hasattr(os, "sysconf"):
        there, kind = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "there"
    else:
        return
    if needed > there:
        raise DataError(
            f"{what} need about {needed / 1e9:,.1f} GB of memory and {there / 1e9:,.1f} GB are "
            f"{kind}; {mend}"
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
