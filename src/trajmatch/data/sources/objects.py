"""Data sets given as Python objects: torch Datasets, arrays, Hugging Face tables.

Nothing of torchvision is imported: its data sets are recognized by `classes` and `targets`.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from trajmatch.data.dataset import ImageDataset, Split, numbered_classes
from trajmatch.data.pixels import image_tensor, resize
from trajmatch.data.sources.classes import choose, renumbered
from trajmatch.data.sources.decode import fitted, plain
from trajmatch.data.sources.hub import is_table, load_tables
from trajmatch.data.sources.source import Request
from trajmatch.data.stratified import TEST_IS_CUT, cut_test
from trajmatch.errors import DataError
from trajmatch.types import Tensor, UInt8

_ROLES = {"train": "train", "test": "test", "val": "val", "valid": "val", "validation": "val"}
_VAL_IS_TEST = "val is the test split, as no test images were given; validation is cut from train"
_KINDS = "a torch Dataset with a length, a pair (images, labels), or a Hugging Face Dataset"


def load_objects(data: Any, test: Any, request: Request) -> ImageDataset:
    """The data set of `data`: the training images, or a dict of splits by name.

    test: the test images where `data` is no dict. Without any, val serves as test, and without val
    a fifth of each class of train does; the data set's `note` records that. Raises DataError for
    objects of another kind and for images and labels that do not fit together.
    """
    splits = _by_role(data, test)
    if all(is_table(split) for split in splits.values()):
        dataset = load_tables(splits, request)
        if dataset.num_classes < 2:
            raise DataError(f"'{dataset.name}' has a single class; give at least two")
        return dataset
    parts: dict[str, Split] = {}
    names: tuple[str, ...] | None = None
    for role, given in splits.items():
        own = _class_names(given)
        if own is not None and names is not None and own != names:
            raise DataError(f"the {role} images have other classes than the train images")
        names = own if names is None else names
        parts[role] = _split(given, role, names, request)
    classes = names or tuple(numbered_classes(list(parts.values())))
    for role, split in parts.items():
        _require_labels(split, role, classes)
    train = splits["train"]
    name = "arrays" if isinstance(train, tuple) else type(train).__name__
    return _assemble(name, parts, classes, request)


def _by_role(data: Any, test: Any) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        return {"train": data} if test is None else {"train": data, "test": test}
    if test is not None:
        raise DataError("data is a dict of splits and test= is given, too; put test into the dict")
    unknown = [key for key in data if key not in _ROLES]
    if "train" not in data or (unknown and not all(map(is_table, data.values()))):
        raise DataError(
            f"the dict of splits has {', '.join(map(str, data)) or 'nothing'}; give train, and "
            "test and val where there are"
        )
    if all(map(is_table, data.values())):
        return dict(data)
    return {_ROLES[key]: split for key, split in data.items()}


def _assemble(
    name: str, parts: dict[str, Split], classes: tuple[str, ...], request: Request
) -> ImageDataset:
    """The data set of these splits: of the chosen classes, with a test split."""
    chosen = choose(classes, request.classes, "the data set")
    if request.classes is not None:
        parts = {role: renumbered(split, classes, chosen) for role, split in parts.items()}
    note = ""
    if "test" not in parts and "val" in parts:
        parts["test"], note = parts.pop("val"), _VAL_IS_TEST
    elif "test" not in parts:
        rest, cut = cut_test(parts["train"].labels, chosen, "without test images")
        parts["train"], parts["test"] = parts["train"].take(rest), parts["train"].take(cut)
        note = TEST_IS_CUT
    return ImageDataset(name, parts["train"], parts["test"], parts.get("val"), chosen, note)


def _split(given: Any, role: str, names: tuple[str, ...] | None, request: Request) -> Split:
    if isinstance(given, tuple) and len(given) == 2:
        split = Split.from_arrays(*given, role)
        if request.size is not None and len(split):
            split = Split(resize(split.images, request.size), split.labels)
        return split
    if is_table(given):
        raise DataError("some splits are Hugging Face Datasets and others are not; give one kind")
    _require_items(given, role)
    indices = _wanted(given, names, request.classes)
    reader = _Reader(role, request.size, len(indices))
    for position, index in enumerate(indices):
        reader.read(position, given[index])
        if request.progress is not None and (position % 256 == 255 or position + 1 == len(indices)):
            request.progress(position + 1, len(indices))
    return reader.result()


def _require_items(given: Any, role: str) -> None:
    """Refuse everything but a map-style data set."""
    streamed = isinstance(given, (torch.utils.data.IterableDataset, torch.utils.data.DataLoader))
    if streamed or not (hasattr(given, "__len__") and hasattr(given, "__getitem__")):
        raise DataError(
            f"the {role} images are of type {type(given).__name__}, which has no length and items; "
            f"give {_KINDS}"
        )
    if isinstance(given, (np.ndarray, Tensor)):
        raise DataError(f"the {role} images come without labels; give a pair (images, labels)")
    if not len(given):
        raise DataError(f"the {role} images are an empty data set; add some")


def _require_labels(split: Split, role: str, classes: tuple[str, ...]) -> None:
    if not len(split):
        raise DataError(f"there are no {role} images; add some")
    low, high = int(split.labels.min()), int(split.labels.max())
    if low < 0 or high >= len(classes):
        raise DataError(
            f"{role} labels reach from {low} to {high} and there are {len(classes)} classes; "
            f"labels must lie in 0..{len(classes) - 1}"
        )
    if len(classes) < 2:
        raise DataError("all labels are 0, a single class; give images of at least two classes")


def _class_names(given: Any) -> tuple[str, ...] | None:
    """The names in `classes`, which a subset finds at the data set it is of."""
    while not hasattr(given, "classes") and hasattr(given, "dataset"):
        given = given.dataset
    names = getattr(given, "classes", None)
    if not isinstance(names, (list, tuple)):
        return None
    return tuple(" / ".join(n) if isinstance(n, tuple) else str(n) for n in names)


def _wanted(
    given: Any, names: tuple[str, ...] | None, chosen: tuple[str, ...] | None
) -> Sequence[int]:
    """The items to read. Where `targets` hold the labels, images of other classes than the chosen
    ones are not decoded."""
    everything = range(len(given))
    targets = getattr(given, "targets", None)
    renamed = getattr(given, "target_transform", None) is not None
    if chosen is None or names is None or renamed or targets is None:
        return everything
    if len(targets) != len(given):
        return everything
    numbers = {names.index(name) for name in choose(names, chosen, "the data set")}
    return [index for index in everything if int(targets[index]) in numbers]


class _Reader:
    """Items (image, label) of one split, gathered in one tensor."""

    def __init__(self, role: str, size: int | None, count: int) -> None:
        self.role, self.size, self.count = role, size, count
        self.images: UInt8[Tensor, "count 3 height width"] | None = None
        self.labels = torch.zeros(count, dtype=torch.int64)
        self.gray = True

    def read(self, position: int, item: Any) -> None:
        what = f"{self.role} item {position}"
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"{what} is of type {type(item).__name__}; give pairs (image, label)")
        pixels = self._pixels(item[0], f"{self.role} images (item {position})")
        if self.images is None:
            self.images = torch.empty(self.count, 3, *pixels.shape[1:], dtype=torch.uint8)
        if pixels.shape[1:] != self.images.shape[2:]:
            one, other = ("x".join(map(str, s)) for s in (self.images.shape[2:], pixels.shape[1:]))
            raise DataError(
                f"images have several sizes, height x width: {one}, and {other} in {what}; bring "
                "them to one with size=64 (or another side in pixels)"
            )
        self.images[position] = pixels
        self.gray = self.gray and len(pixels) == 1
        self.labels[position] = _index(item[1], f"the label of {what}")

    def result(self) -> Split:
        if self.images is None:
            raise DataError(f"no {self.role} images are of the chosen classes; choose others")
        return Split(self.images[:, :1].clone() if self.gray else self.images, self.labels)

    def _pixels(self, image: Any, what: str) -> UInt8[Tensor, "channels height width"]:
        if isinstance(image, Image.Image):
            picture = plain(image)
            if self.size is not None:
                picture = fitted(picture, self.size)
            array = np.atleast_3d(np.asarray(picture)).transpose(2, 0, 1)
            return torch.from_numpy(np.array(array, order="C"))
        if not isinstance(image, (np.ndarray, Tensor)):
            raise DataError(
                f"{what} are of type {type(image).__name__}; give PIL images, arrays or tensors"
            )
        pixels = image_tensor(image[None], what)
        return (pixels if self.size is None else resize(pixels, self.size))[0]


def _index(label: Any, what: str) -> int:
    try:
        if isinstance(label, (bool, np.bool_)):
            raise TypeError
        return operator.index(label)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{what} is {label!r:.60}, no class index; give one whole number per image, from 0"
        ) from error
