"""CIFAR-10 and CIFAR-100: 50,000 training and 10,000 test images of 32x32, as published.

Read from the python version (as torchvision leaves it) or the binary one, unpacked or in the
.tar.gz. Alex Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.
"""

from __future__ import annotations

import abc
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.sources.arrays import labeled, one_line
from trajmatch.data.sources.source import Request
from trajmatch.data.sources.tree import require_regular
from trajmatch.data.sources.unpickle import text, unpickle
from trajmatch.errors import DataError

_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"
_PIXELS = 3 * 32 * 32
_LARGEST_FILE = 1 << 28  # bytes; the largest published file, CIFAR-100's train, has 155 MB

Batch = tuple[NDArray[np.uint8], Any]
"""Images [n, 3072] (all red values, all green, all blue, row by row) and their labels."""


def load_cifar10(request: Request) -> ImageDataset:
    """CIFAR-10. Raises DataError, with the file, where one is absent or not as published."""
    return _load("cifar10", 10, _CIFAR10, request, ("", "cifar10", "cifar-10", "CIFAR10"))


def load_cifar100(request: Request) -> ImageDataset:
    """CIFAR-100 with its 100 fine labels. Raises DataError as `load_cifar10`."""
    return _load("cifar100", 100, _CIFAR100, request, ("", "cifar100", "cifar-100", "CIFAR100"))


@dataclass(frozen=True)
class _Version(abc.ABC):
    """One of the published archives: the folder in it and the files there."""

    archive: str
    folder: str
    train: tuple[str, ...]
    test: str
    meta: str

    @abc.abstractmethod
    def batch(self, data: bytes, where: str) -> Batch:
        """The images and labels in the bytes of an image file; where: its name, for messages."""

    @abc.abstractmethod
    def names(self, data: bytes, where: str) -> list[str]:
        """The class names in the bytes of the meta file."""


@dataclass(frozen=True)
class _Python(_Version):
    """One dictionary per file, pickled by Python 2."""

    labels_key: str
    names_key: str

    def batch(self, data: bytes, where: str) -> Batch:
        found = unpickle(data, where)
        images, labels = found.get("data"), found.get(self.labels_key)
        if labels is None or not isinstance(images, np.ndarray):
            raise DataError(
                f"{where} holds no 'data' and '{self.labels_key}' but "
                f"{', '.join(found) or 'nothing'}; download it again"
            )
        if images.ndim != 2 or images.shape[1] != _PIXELS:
            raise DataError(
                f"{where} holds an array of shape {images.shape} instead of (n, {_PIXELS}); "
                "download it again"
            )
        return images, labels

    def names(self, data: bytes, where: str) -> list[str]:
        found = unpickle(data, where).get(self.names_key)
        try:
            return [text(name) for name in found or ()]
        except (TypeError, ValueError):
            return []


@dataclass(frozen=True)
class _Binary(_Version):
    """Per image the label bytes, the last of which is the label, and 3072 bytes of pixels."""

    label_bytes: int

    def batch(self, data: bytes, where: str) -> Batch:
        length = self.label_bytes + _PIXELS
        if len(data) % length:
            raise DataError(
                f"{where} has {len(data)} bytes, no multiple of the {length} of an image: it is "
                "truncated or another file; download it again"
            )
        records = np.frombuffer(data, np.uint8).reshape(-1, length)
        return records[:, self.label_bytes :], records[:, self.label_bytes - 1]

    def names(self, data: bytes, where: str) -> list[str]:
        return data.decode("utf-8", "replace").split()


_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
_CIFAR10 = (
    _Python(
        "cifar-10-python.tar.gz", "cifar-10-batches-py",
        _BATCHES, "test_batch", "batches.meta", "labels", "label_names",
    ),
    _Binary(
        "cifar-10-binary.tar.gz", "cifar-10-batches-bin",
        tuple(f"{name}.bin" for name in _BATCHES), "test_batch.bin", "batches.meta.txt", 1,
    ),
)  # fmt: skip
_CIFAR100 = (
    _Python(
        "cifar-100-python.tar.gz", "cifar-100-python",
        ("train",), "test", "meta", "fine_labels", "fine_label_names",
    ),
    _Binary(
        "cifar-100-binary.tar.gz", "cifar-100-binary",
        ("train.bin",), "test.bin", "fine_label_names.txt", 2,
    ),
)  # fmt: skip


def _load(
    name: str,
    count: int,
    versions: Sequence[_Version],
    request: Request,
    folders: tuple[str, ...],
) -> ImageDataset:
    homes = {v.folder: v for v in versions} | {v.archive: v for v in versions}
    get = f"download {versions[0].archive} from {_PAGE}"
    place = request.find(name, tuple(homes), get, folders)
    version = homes[place.name]
    files = _files(place, version)
    classes = version.names(files[version.meta], f"{place / version.meta}")
    if len(set(classes)) != count:
        raise DataError(
            f"{place / version.meta} holds {len(set(classes))} class names instead of {count}; "
            "download it again"
        )

    def split(names: Sequence[str]) -> Split:
        parts = []
        for file in names:
            images, labels = version.batch(files[file], f"{place / file}")
            shaped = images.reshape(-1, 3, 32, 32)
            parts.append(labeled(shaped, labels, count, f"{place / file}"))
        return Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))

    return ImageDataset(name, split(version.train), split((version.test,)), None, tuple(classes))


def _files(place: Path, version: _Version) -> dict[str, bytes]:
    """The bytes of the version's files by name, from its folder or its archive."""
    wanted = {*version.train, version.test, version.meta}
    try:
        if place.is_dir():
            for name in wanted:
                require_regular(place / name)
            found = {name: (place / name).read_bytes() for name in sorted(wanted)}
        else:
            found = _unpacked(place, version.folder, wanted)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise DataError(f"cannot read {place} ({one_line(error)}); download it again") from error
    missing = sorted(wanted - found.keys())
    if missing:
        raise DataError(f"{place} holds no {version.folder}/{missing[0]}; download it again")
    return found


def _unpacked(archive: Path, folder: str, wanted: set[str]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:  # in file order: seeking back would unpack all from the start
            *_, inner, name = ("", *PurePosixPath(member.name).parts)
            if inner != folder or name not in wanted or not member.isfile():
                continue
            if member.size > _LARGEST_FILE:
                raise tarfile.TarError(f"{member.name} unpacks to {member.size / 1e6:,.0f} MB")
            file = tar.extractfile(member)
            assert file is not None  # it is a plain file
            found[name] = file.read()
            if found.keys() == wanted:
                break
    return found
