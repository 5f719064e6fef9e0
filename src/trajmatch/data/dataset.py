"""A labeled image data set, resident as whole tensors: uint8 images, class indices, class names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from trajmatch.errors import DataError, SettingError
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
                f"{len(self.images)} images have {len(self.labels)} labels; give one label an image"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:  # dataclass would print pixels
        return f"Split({len(self):,} images, {_shape(self)})"

    def take(self, indices: Int[Tensor, "chosen"]) -> Split:
        """A copy of the images at `indices`, in that order."""
        return Split(self.images[indices], self.labels[indices])

    def per_class(self, classes: int) -> list[Int[Tensor, "_"]]:
        """Where the images of class 0, 1, ... `classes` - 1 are, in order."""
        return [(self.labels == label).nonzero()[:, 0] for label in range(classes)]


@dataclass(frozen=True, eq=False, repr=False)
class ImageDataset:
    """What is learned from. Images are 1- or 3-channel, of one size, values 0..255.

    `val` is for choosing (when to stop, which set to keep) and `test` for the one number at the
    end. Raises DataError when splits differ in shape, a label has no class, or a class has no
    training image.
    """

    name: str
    train: Split
    test: Split
    val: Split | None
    classes: tuple[str, ...]
    note: str = ""
    """What a reader of results should know of the splits, when that is not plain."""

    def __post_init__(self) -> None:
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
        """16 hex digits that change with any pixel, label, class name, or the split of them.

        Hashes every byte once (half a second for CIFAR-10) and is then remembered.
        """
        digest = hashlib.sha256(json.dumps(self.classes).encode())
        for role, split in self._splits().items():
            digest.update(f"{role} {list(split.images.shape)}".encode())
            for tensor in (split.images, split.labels.long()):
                digest.update(tensor.cpu().contiguous().view(-1).numpy().data)
        return digest.hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """What a result should say of its data, as plain values."""
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
        return {**summary, "note": self.note} if self.note else summary

    def with_validation(self, fraction: float, seed: int = 0) -> ImageDataset:
        """Set a share of each class's training images aside as `val`; unchanged if there is one.

        At least one image a class is set aside and one kept; what is kept keeps its order. Raises
        SettingError for a fraction outside (0, 1), DataError for a class with a single image.
        """
        if self.val is not None:
            return self
        if not 0 < fraction < 1:
            raise SettingError(f"val_fraction is {fraction}; it must be between 0 and 1")
        rest, cut = stratified(
            self.train.labels, self.classes, fraction, stream(seed, "data", "validation")
        )
        return replace(self, train=self.train.take(rest), val=self.train.take(cut))

    def resized(self, size: int) -> ImageDataset:
        """All images with their shorter side brought to `size` pixels, then center-cropped to it.

        Bicubic with antialiasing, rounded back to 0..255. Returns itself where nothing changes.
        """
        if self.size == size:
            return self
        splits: dict[str, Any] = {
            role: _resized(split, size) for role, split in self._splits().items()
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
        classes: Sequence[str] | None = None,
        name: str = "arrays",
    ) -> ImageDataset:
        """A data set from NumPy arrays or tensors (copied).

        Images are [n, c, h, w], [n, h, w, c] or [n, h, w], with 1 or 3 channels, uint8 in 0..255 or
        floats in [0, 1]; labels are whole numbers from 0. `classes` names them ("0", "1", ... when
        left out). Raises DataError for anything else: layouts and ranges are not guessed.
        """
        if (val_images is None) != (val_labels is None):
            raise DataError("val_images and val_labels come together; give both or neither")
        train = Split(_images(train_images, "train"), _labels(train_labels, "train"))
        test = Split(_images(test_images, "test"), _labels(test_labels, "test"))
        val = None
        if val_images is not None:
            val = Split(_images(val_images, "val"), _labels(val_labels, "val"))
        if classes is None:
            found = [int(s.labels.max()) for s in (train, test, val) if s is not None and len(s)]
            classes = [str(label) for label in range(max(found, default=0) + 1)]
        return cls(name, train, test, val, tuple(classes))

    def _splits(self) -> dict[str, Split]:
        splits = {"train": self.train, "test": self.test}
        return splits if self.val is None else {**splits, "val": self.val}


def stratified(
    labels: Int[Tensor, "n"],
    classes: Sequence[str],
    fraction: float,
    generator: torch.Generator,
) -> tuple[Int[Tensor, "rest"], Int[Tensor, "cut"]]:
    """Cut `fraction` of every class by chance: indices of the rest and of the cut, each in order.

    At least one image of each class lands on either side. Raises DataError for a class with fewer
    than two.
    """
    cut = []
    for label, name in enumerate(classes):
        where = (labels == label).nonzero()[:, 0]
        if len(where) < 2:
            raise DataError(
                f"class '{name}' has {len(where)} training image, too few to set one aside for "
                "validation; add images or give a val/ split"
            )
        count = min(max(round(len(where) * fraction), 1), len(where) - 1)
        cut.append(where[torch.randperm(len(where), generator=generator)[:count]])
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    chosen[torch.cat(cut)] = True
    return (~chosen).nonzero()[:, 0], chosen.nonzero()[:, 0]


def _shape(split: Split) -> str:
    return "x".join(str(side) for side in split.images.shape[1:])


def _resized(split: Split, size: int) -> Split:
    height, width = split.images.shape[2:]
    factor = size / min(height, width)
    tall, wide = max(round(height * factor), size), max(round(width * factor), size)
    top, left = (tall - size) // 2, (wide - size) // 2
    parts = []
    for part in torch.split(
        split.images, 1024
    ):  # floats of all images at once would be four times them
        grown = functional.interpolate(
            part.float(), (tall, wide), mode="bicubic", antialias=True, align_corners=False
        )
        cropped = grown[:, :, top : top + size, left : left + size]
        parts.append(cropped.round().clamp(0, 255).to(torch.uint8))
    return Split(torch.cat(parts), split.labels)


def _images(images: Any, role: str) -> UInt8[Tensor, "n channels height width"]:
    """Images of any accepted layout as a fresh [n, c, h, w] tensor of uint8."""
    pixels = _tensor(images, f"{role} images")
    shape = tuple(pixels.shape)
    if pixels.ndim == 3:
        pixels = pixels[:, None]
    elif pixels.ndim != 4:
        raise DataError(f"{role} images have shape {shape}; give [n, c, h, w] or [n, h, w, c]")
    else:
        first, last = shape[1] in (1, 3), shape[3] in (1, 3)
        if first == last:
            raise DataError(
                f"{role} images have shape {shape}, where "
                f"{'either' if first else 'neither'} of axes 1 and 3 can be 1 or 3 channels; give "
                "[n, c, h, w] or [n, h, w, c] with c = 1 or 3 and larger sides"
            )
        pixels = pixels if first else pixels.permute(0, 3, 1, 2)
    if pixels.is_floating_point():
        low, high = (pixels.min().item(), pixels.max().item()) if pixels.numel() else (0, 1)
        if not (low >= 0 and high <= 1):  # so written that NaN is refused
            raise DataError(
                f"{role} images are floats from {low:.4g} to {high:.4g}; give floats in [0, 1] "
                "(divide by 255, undo any normalization) or uint8"
            )
        pixels = (pixels.double() * 255).round().to(torch.uint8)
    elif pixels.dtype != torch.uint8:
        raise DataError(
            f"{role} images are {pixels.dtype}; give uint8 in 0..255 or floats in [0, 1]"
        )
    return pixels.contiguous()


def _labels(labels: Any, role: str) -> Int[Tensor, "n"]:
    indices = _tensor(labels, f"{role} labels")
    if indices.ndim == 2 and indices.shape[1] == 1:  # as Keras hands out CIFAR
        indices = indices[:, 0]
    whole = not (indices.is_floating_point() or indices.is_complex())
    if indices.ndim != 1 or not whole or indices.dtype == torch.bool:
        raise DataError(
            f"{role} labels have shape {tuple(indices.shape)} and {indices.dtype}; give one whole "
            "number an image, from 0"
        )
    return indices.long()


def _tensor(values: Any, what: str) -> Tensor:
    """A copy on the CPU, so that a later change of the user's array changes nothing here."""
    try:
        if isinstance(values, Tensor):
            return values.detach().cpu().clone()
        return torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} are not a numeric array ({error})") from error
