"""From the arrays of a file to splits, and to the classes that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.errors import DataError
from trajmatch.types import Int, Tensor


def labeled(images: NDArray[np.uint8], labels: Any, classes: int, where: str) -> Split:
    """A split of copies of `images` [n, c, h, w] and one whole number in 0..`classes` - 1 each.

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


def restricted(dataset: ImageDataset, classes: Sequence[str] | None) -> ImageDataset:
    """Only the images of these classes, which become class 0, 1, ... in this order; None: all.

    Raises DataError for a class that the data set has not, or one given twice.
    """
    if classes is None:
        return dataset
    from trajmatch.data.sources.folder import choose  # Pillow: only when asked for

    chosen = choose(dataset.classes, classes, dataset.name)
    number = torch.full((dataset.num_classes,), -1)
    number[[dataset.classes.index(name) for name in chosen]] = torch.arange(len(chosen))
    return replace(
        dataset,
        train=_renumbered(dataset.train, number),
        test=_renumbered(dataset.test, number),
        val=None if dataset.val is None else _renumbered(dataset.val, number),
        classes=chosen,
    )


def one_line(error: BaseException) -> str:
    """What an error says, or its kind where it says nothing, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _renumbered(split: Split, number: Int[Tensor, "classes"]) -> Split:
    labels = number[split.labels]
    kept = labels >= 0
    return Split(split.images[kept], labels[kept])
