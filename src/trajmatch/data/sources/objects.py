"""Data sets given as Python objects: torch Datasets, arrays, Hugging Face tables.

Nothing of torchvision is imported: its data sets are recognized by `classes` and `targets`.
"""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from trajmatch.data.dataset import ImageDataset, Split, numbered_classes
from trajmatch.data.labels import class_indices, class_names
from trajmatch.data.pixels import image_tensor, require_space, resize
from trajmatch.data.sources.classes import choose, renumbered
from trajmatch.data.sources.decode import fitted, plain
from trajmatch.data.sources.hub import is_table, load_tables
from trajmatch.data.sources.source import Request
from trajmatch.data.sources.tree import split_role
from trajmatch.data.stratified import TEST_IS_CUT, cut_test
from trajmatch.errors import DataError
from trajmatch.types import Tensor, UInt8

_VAL_IS_TEST = "val is the test split, as no test images were given; validation is cut from train"
_KINDS = "a torch Dataset with a length, a pair (images, labels), or a Hugging Face Dataset"


def load_objects(data: Any, test: Any, request: Request, *, name: str = "") -> ImageDataset:
    """The data set of `data`: the training images, or a dict of splits by name.

    name: of the data set; that of its type where it is empty.
    test: the test images where `data` is no dict. Without any, val serves as test, and without val
    a fifth of each class of train does; the data set's `note` records that. Raises DataError for
    objects of another kind and for images and labels that do not fit together.
    """
    splits = _by_role(data, test)
    if all(is_table(split) for split in splits.values()):
        return load_tables(splits, request)
    images: dict[str, UInt8[Tensor, "_ _ _ _"]] = {}
    labels: dict[str, Any] = {}
    names: tuple[str, ...] | None = None
    broken: list[str] = []
    for role, given in splits.items():
        own = _class_names(given)
        if own is not None and names is not None and own != names:
            raise DataError(f"the {role} images have other classes than the train images")
        names = own if names is None else names
        images[role], labels[role], bad = _read(given, role, names, request)
        broken += bad
    indices, names = class_indices(labels, names)
    parts = {role: Split(images[role], indices[role]) for role in images}
    classes = names or tuple(numbered_classes(list(parts.values())))
    for role, split in parts.items():
        _require_labels(split, role, classes)
    train = splits["train"]
    name = name or ("arrays" if isinstance(train, tuple) else type(train).__name__)
    dataset = _assemble(name, parts, classes, request)
    if not broken:
        return dataset
    skipped = f"passed over {len(broken):,} items that cannot be read, such as {broken[0]}"
    return replace(dataset, note=f"{dataset.note}; {skipped}" if dataset.note else skipped)


def _by_role(data: Any, test: Any) -> dict[str, Any]:
    if not isinstance(data, Mapping):
        return {"train": data} if test is None else {"train": data, "test": test}
    if test is not None:
        raise DataError("data is a dict of splits and test= is given, too; put test into the dict")
    tables = all(map(is_table, data.values()))
    roles = [split_role(key) for key in data]
    if "train" not in roles or (None in roles and not tables):
        raise DataError(
            f"the dict of splits has {', '.join(map(str, data)) or 'nothing'}; give train, and "
            "test and val where there are"
        )
    if tables:
        return dict(data)
    if len(set(roles)) < len(roles):
        raise DataError(
            f"the dict of splits has {', '.join(map(str, data))}, two of which are names of one "
            "split; leave one out"
        )
    return {str(split_role(key)): split for key, split in data.items()}


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


def _read(
    given: Any, role: str, names: tuple[str, ...] | None, request: Request
) -> tuple[UInt8[Tensor, "_ _ _ _"], Any, list[str]]:
    """The images of a split, their labels as they are given, and items that were passed over."""
    if isinstance(given, tuple) and len(given) == 2:
        images = image_tensor(given[0], f"{role} images")
        if request.size is not None and len(images):
            images = resize(images, request.size)
        return images, given[1], []
    if is_table(given):
        raise DataError("some splits are Hugging Face Datasets and others are not; give one kind")
    _require_items(given, role)
    indices = _wanted(given, names, request.classes)
    reader = _Reader(role, request.size, len(indices), request.skip)
    for position, index in enumerate(indices):
        reader.read(given, index)
        if request.progress is not None and (position % 256 == 255 or position + 1 == len(indices)):
            request.progress(position + 1, len(indices))
    return (*reader.result(), reader.broken)


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
    texts = [" / ".join(n) if isinstance(n, tuple) else str(n) for n in names]
    codes = getattr(given, "wnids", None)
    if codes is not None and len(codes) == len(texts):  # ImageNet has two cranes and two maillots
        counts = Counter(texts)
        texts = [f"{n} ({c})" if counts[n] > 1 else n for n, c in zip(texts, codes, strict=True)]
    return class_names(texts)


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
    wanted: set[Any] = set(choose(names, chosen, "the data set"))
    wanted |= {names.index(name) for name in wanted}
    return [i for i in everything if _label(targets[i], "a target") in wanted]


class _Reader:
    """Items (image, label) of one split, gathered in one tensor."""

    def __init__(self, role: str, size: int | None, count: int, skip: bool) -> None:
        self.role, self.size, self.count, self.skip = role, size, count, skip
        self.images: UInt8[Tensor, "count 3 height width"] | None = None
        self.labels: list[int | str] = []
        self.broken: list[str] = []
        self.gray = True

    def read(self, given: Any, index: int) -> None:
        what = f"{self.role} item {index}"
        try:
            item = given[index]
            if isinstance(item, (tuple, list)) and item and isinstance(item[0], Image.Image):
                item[0].load()  # which may have been left for later
        except (OSError, SyntaxError) as error:  # of a file that is missing, or Pillow's
            if self.skip:
                self.broken.append(what)
                return
            raise DataError(
                f"{what} cannot be read ({' '.join(str(error).split())}); replace or remove it, or "
                "pass over such items by on_bad_image='skip'"
            ) from error
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(f"{what} is of type {type(item).__name__}; give pairs (image, label)")
        pixels = self._pixels(item[0], f"{self.role} images (item {index})")
        if self.images is None:
            shape = (self.count, 3, *pixels.shape[1:])
            require_space(math.prod(shape), f"{self.count:,} {self.role} images", "give a size=")
            self.images = torch.empty(shape, dtype=torch.uint8)
        if pixels.shape[1:] != self.images.shape[2:]:
            one, other = ("x".join(map(str, s)) for s in (self.images.shape[2:], pixels.shape[1:]))
            raise DataError(
                f"images have several sizes, height x width: {one}, and {other} in {what}; bring "
                "them to one with size=64 (or another side in pixels)"
            )
        self.images[len(self.labels)] = pixels
        self.gray = self.gray and len(pixels) == 1
        self.labels.append(_label(item[1], f"the label of {what}"))

    def result(self) -> tuple[UInt8[Tensor, "_ _ _ _"], list[int | str]]:
        if self.images is None:
            mend = "all are broken" if self.broken else "choose others"
            raise DataError(f"no {self.role} images are of the chosen classes; {mend}")
        images = self.images[: len(self.labels)]
        return (images[:, :1].clone() if self.gray else images), self.labels

    def _pixels(self, image: Any, what: str) -> UInt8[Tensor, "channels height width"]:
        if isinstance(image, Image.Image):
            try:
                picture = plain(image)
            except ValueError as error:  # of a mode that has no 8 bits
                raise DataError(f"{what}: {error}") from error
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


def _label(label: Any, what: str) -> int | str:
    try:
        if isinstance(label, (bool, np.bool_)):
            raise TypeError
        return str(label) if isinstance(label, str) else operator.index(label)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{what} is {label!r:.60}, no class index; give one whole number per image, from 0, or "
            "the name of its class"
        ) from error
