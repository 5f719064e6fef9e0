"""The arrays of a downloaded file -> a split."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trajmatch.data.dataset import Split
from trajmatch.errors import DataError


def labeled(images: NDArray[np.uint8], labels: Any, classes: int, where: str) -> Split:
    """A split of copies of `images` [n, c, h, w] with one label in 0..`classes` - 1 each.

    Raises DataError, which begins with `where` (the file they come from), for anything else.
    """
    try:
        numbers = np.asarray(labels)
        if numbers.ndim != 1 or (len(numbers) and numbers.dtype.kind not in "iu"):
            raise TypeError
    except (TypeError, ValueError, OverflowError) as error:
        raise DataError(
            f"{where} holds labels that are not whole numbers; download it again"
        ) from error
    if len(numbers) != len(images):
        raise DataError(
            f"{where} holds {len(images)} images and {len(numbers)} labels; download it again"
        )
    if not len(images):
        raise DataError(f"{where} holds no images; download it again")
    low, high = int(numbers.min()), int(numbers.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"{where} has labels from {low} to {high} instead of 0 to {classes - 1}: it belongs "
            "to another data set or is damaged; download it again"
        )
    pixels = torch.from_numpy(np.array(images, order="C"))
    return Split(pixels, torch.from_numpy(numbers.astype(np.int64)))


def one_line(error: BaseException) -> str:
    """The message of an error, or its type where it has none, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__
