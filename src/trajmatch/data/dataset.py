"""A labeled image data set held in memory: uint8 images, class indices, class names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from trajmatch.config import require_range
from trajmatch.data.labels import class_indices, class_names
from trajmatch.data.pixels import image_tensor, require_space, resize
from trajmatch.data.stratified import stratified
from trajmatch.errors import DataError, SettingError, require_utf8
from trajmatch.rng import stream
from trajmatch.types import Int, Size, Tensor, UInt8


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images and their class indices, in a fixed order. Raises DataError when lengths differ."""

    images: UInt8[Tensor, "n channels height width"]
    labels: Int[Tensor, "n_labels"]

    def __post_init__(self) -> None:
        if len(self.images) != len(self.labels):
            raise DataError(
                f"{len(self.images)} images have {len(self.labels)} labels; give one label per "
                "image"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:  # the dataclass's own would print pixels
        return f"Split({len(self):,} images, {_shape(self)})"

    def take(self, indices: Int[Tensor, "chosen"]) -> Split:
        """A copy of the images at `indices`, in that order."""
        return Split(self.images[indices], self.labels[indices])

    def per_class(self, classes: int) -> list[Int[Tensor, "_"]]:
        """The indices of the images of class 0, 1, ... `classes` - 1, in order."""
        return [(self.labels == label).nonzero()[:, 0] for label in range(classes)]


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """Images and labels of all splits. Images have 1 or 3 channels, one size, and values 0..255.

    `val` is for choices (when to stop, which set is best), `test` for the final number alone.
    Names of classes that are no texts (numbers, NumPy strings) become texts. Raises DataError when
    splits differ in shape, a label has no class, a class has no training image, there are fewer
    than two classes, or the name of a class is empty or another's.
    """

    name: str
    train: Split
    test: Split
    val: Split | None
    classes: tuple[str, ...]
    note: str = ""
    """What a reader of results should know about the splits; empty where they are the usual ones.
    """
    remarks: tuple[str, ...] = ()
    """What whoever loads the data should know of their reading; no part of results."""
    uncached: int = 0
    """Bytes of decoded images that another load would write to the cache, and this one did not."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", class_names(self.classes))
        for name in (self.name, *self.classes):
            require_utf8(str(name))
        shape = self.train.images.shape[1:]
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise DataError(
                f"images have {shape[0]} channels; give 1 (gray) or 3 (RGB), without alpha"
            )
        for role, split in self._splits().items():
            if split.images.shape[1:] != shape:
                raise DataError(
                    f"{role} images are {_shape(split)} (channels x height x width) and train "
                    f"images {_shape(self.train)}; bring all to one size and one number of channels"
                )
            if not len(split):
                raise DataError(f"the {role} split of '{self.name}' holds no images; add some")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(self.classes):
                raise DataError(
                    f"{role} labels reach from {low} to {high} and there are {len(self.classes)} "
                    f"classes; labels must lie in 0..{len(self.classes) - 1}"
                )
        if len(self.classes) < 2:
            raise DataError(
                f"'{self.name}' has {'a single class' if self.classes else 'no classes'}; give "
                "images of at least two"
            )
        counts = self.train.labels.bincount(minlength=len(self.classes))
        missing = [self.classes[i] for i in (counts == 0).nonzero()[:, 0].tolist()]
        if missing:
            raise DataError(
                f"{len(missing)} of {len(self.classes)} classes have no training images: "
                f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}; add images or "
                "number the classes without gaps"
            )

    def __repr__(self) -> str:
        counts = ", ".join(f"{len(split):,} {role}" for role, split in self._splits().items())
        shape, classes = _shape(self.train), self.num_classes
        return f"ImageDataset('{self.name}': {counts}; {shape}, {classes} classes)"

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def size(self) -> Size:
        """Side of square images, or (height, width)."""
        height, width = self.train.images.shape[2:]
        return height if height == width else (height, width)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits that change with any pixel, label or class name, and with the splits.

        Hashes every byte at first use (half a second for CIFAR-10).
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for role, split in self._splits().items():
            digest.update(f"{role} {list(split.images.shape)}".encode())
            for tensor in (split.images, split.labels.long()):
                digest.update(tensor.cpu().contiguous().view(-1).numpy().data)
        return digest.hexdigest()[:16]

    def class_counts(self) -> dict[str, tuple[int, ...]]:
        """Split -> images of each class.

        Examples:
            >>> import torch
            >>> images, labels = torch.zeros(3, 1, 4, 4), torch.tensor([0, 1, 1])
            >>> ImageDataset.from_arrays(images, labels, images, labels).class_counts()
            {'train': (1, 2), 'test': (1, 2)}
        """
        return {
            role: tuple(split.labels.bincount(minlength=self.num_classes).tolist())
            for role, split in self._splits().items()
        }

    def summary(self, *, counts: bool = False) -> dict[str, Any]:
        """Name, number of images, shape, classes and fingerprint, as sets and libraries record
        them; with `counts` the `class_counts` as well, as results do."""
        summary: dict[str, Any] = {
            "name": self.name,
            "train": len(self.train),
            "val": len(self.val) if self.val else 0,
            "test": len(self.test),
            "channels": self.channels,
            "size": self.size,
            "classes": list(self.classes),
            "fingerprint": self.fingerprint,
        }
        summary |= {"note": self.note} if self.note else {}
        return summary | ({"counts": self.class_counts()} if counts else {})

    def with_validation(self, fraction: float, seed: int = 0) -> ImageDataset:
        """Move a share of each class's training images to `val`; unchanged if there is one.

        At least one image per class is moved and one stays; the others keep their order. Raises
        SettingError for a fraction outside (0, 1), DataError for a class with a single image.
        """
        if self.val is not None:
            return self
        require_range("val_fraction", fraction, integer=False)
        rest, cut = stratified(
            self.train.labels, self.classes, fraction, stream(seed, "data", "validation")
        )
        return replace(self, train=self.train.take(rest), val=self.train.take(cut))

    def resized(self, size: int) -> ImageDataset:
        """All images with their shorter side brought to `size` pixels, then center-cropped to it.

        Bicubic with antialiasing, rounded back to 0..255. Returns itself where nothing changes.
        Raises DataError where the images do not fit into memory.
        """
        if self.size == size:
            return self
        channels, count = self.channels, sum(len(split) for split in self._splits().values())
        require_space(
            count * channels * size * size,
            f"{count:,} images of {size:,}x{size:,}",
            "give a smaller size",
        )
        splits: dict[str, Any] = {
            role: Split(resize(split.images, size), split.labels)
            for role, split in self._splits().items()
        }
        return replace(self, **splits)

    @classmethod
    def from_arrays(
        cls,
        train_images: Any,
        train_labels: Any,
        test_images: Any,
        test_labels: Any,
        *,
        val_images: Any = None,
        val_labels: Any = None,
        classes: Any = None,
        name: str = "arrays",
        val_fraction: float | None = None,
    ) -> ImageDataset:
        """A data set from NumPy arrays or tensors, which are copied.

        Images are [n, c, h, w], [n, h, w, c] or [n, h, w], with 1 or 3 channels, uint8 in 0..255 or
        floats in [0, 1]. Labels are whole numbers from 0, or names of classes (texts, pandas
        categories). classes: the names; None takes "0", "1", ..., or those among the train labels.
        val_fraction: share of each class's training images that becomes the validation split, which
        choosing the best set needs (`with_validation`); None cuts none. Raises DataError for
        anything else: layouts and ranges are not guessed.

        Examples:
            >>> import numpy as np
            >>> from trajmatch import ImageDataset
            >>> images, labels = np.zeros((20, 8, 8, 3), dtype=np.uint8), np.arange(20) % 2
            >>> ImageDataset.from_arrays(images, labels, images, labels, classes=["cat", "dog"])
            ImageDataset('arrays': 20 train, 20 test; 3x8x8, 2 classes)
        """
        if (val_images is None) != (val_labels is None):
            raise DataError("val_images and val_labels come together; give both or neither")
        if val_images is not None and val_fraction is not None:
            raise SettingError(
                f"val_fraction is {val_fraction} and val_images are given; leave one of them out"
            )
        given = {"train": (train_images, train_labels), "test": (test_images, test_labels)}
        if val_images is not None:
            given["val"] = (val_images, val_labels)
        splits, names = splits_from_arrays(given, classes)
        dataset = cls(name, splits["train"], splits["test"], splits.get("val"), names)
        return dataset if val_fraction is None else dataset.with_validation(val_fraction)

    def _splits(self) -> dict[str, Split]:
        splits = {"train": self.train, "test": self.test}
        return splits if self.val is None else {**splits, "val": self.val}


def splits_from_arrays(
    given: Mapping[str, tuple[Any, Any]], classes: Any
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Splits from copies of images and labels by role ("train", "test", "val"), as
    `ImageDataset.from_arrays` takes them; and the names of the classes."""
    labels, names = class_indices(
        {role: pair[1] for role, pair in given.items()},
        None if classes is None else class_names(classes),
    )
    splits = {
        role: Split(image_tensor(images, f"{role} images"), labels[role])
        for role, (images, _) in given.items()
    }
    return splits, names or tuple(numbered_classes(list(splits.values())))


def numbered_classes(splits: Sequence[Split]) -> list[str]:
    """Names "0", "1", ... up to the largest label of `splits`."""
    largest = [int(split.labels.max()) for split in splits if len(split)]
    return [str(label) for label in range(max(largest, default=0) + 1)]


def _shape(split: Split) -> str:
    return "x".join(str(side) for side in split.images.shape[1:])
