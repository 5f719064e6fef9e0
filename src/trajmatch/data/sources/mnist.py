"""MNIST and Fashion-MNIST: 60,000 training and 10,000 test images of 28x28 gray pixels.

Read from the four idx files, compressed or not. Both data sets use the same file names, so they are
read from folders named after the data set only, never from the root itself.

Y. LeCun et al., "Gradient-Based Learning Applied to Document Recognition", 1998; H. Xiao et al.,
"Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", 2017.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.sources.arrays import labeled, one_line
from trajmatch.data.sources.source import Request
from trajmatch.data.sources.tree import require_regular
from trajmatch.errors import DataError

_TRAIN_IMAGES = "train-images-idx3-ubyte"
_LARGEST_FILE = 1 << 28  # bytes; the largest published file has 47 MB

_MNIST = tuple(str(digit) for digit in range(10))
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
    "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def load_mnist(request: Request) -> ImageDataset:
    """MNIST. Raises DataError, with the file, where one is absent or not as published."""
    page = "https://yann.lecun.com/exdb/mnist/ or https://github.com/cvdfoundation/mnist"
    return _load("mnist", _MNIST, page, request, ("MNIST/raw", "MNIST", "mnist"))


def load_fashion_mnist(request: Request) -> ImageDataset:
    """Fashion-MNIST. Raises DataError as `load_mnist`."""
    page = "https://github.com/zalandoresearch/fashion-mnist"
    folders = ("FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "fashion-mnist/data/fashion")
    return _load("fashion-mnist", _FASHION, page, request, folders)


def _load(
    name: str, classes: tuple[str, ...], page: str, request: Request, folders: tuple[str, ...]
) -> ImageDataset:
    get = f"download the four files train-* and t10k-* from {page} into such a folder"
    home = request.find(name, _spellings(_TRAIN_IMAGES), get, folders).parent

    def split(role: str) -> Split:
        images = _member(home, f"{role}-images-idx3-ubyte")
        labels = _member(home, f"{role}-labels-idx1-ubyte")
        pixels = _idx(images, 3)
        if pixels.shape[1:] != (28, 28):
            raise DataError(
                f"{images} holds images of {pixels.shape[1]}x{pixels.shape[2]} instead of 28x28; "
                "download it again"
            )
        return labeled(pixels[:, None], _idx(labels, 1), 10, str(labels))

    return ImageDataset(name, split("train"), split("t10k"), None, classes)


def _spellings(stem: str) -> tuple[str, ...]:
    names = (stem, stem.replace("-idx", ".idx"))
    return (*names, *(f"{name}.gz" for name in names))


def _member(home: Path, stem: str) -> Path:
    for name in _spellings(stem):
        if (home / name).exists():
            return home / name
    raise DataError(f"{home} holds no {stem} or {stem}.gz; put it beside the other files")


def _idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """The array of an idx file of unsigned bytes.

    Big-endian: 0, 0, 8 (for uint8), the number of axes, a length of 4 bytes per axis, the values.
    """
    require_regular(path)
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(_LARGEST_FILE)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot read {path} ({one_line(error)}); download it again") from error
    start = 4 + 4 * axes
    if data[:4] != bytes((0, 0, 8, axes)) or len(data) < start:
        raise DataError(
            f"{path} is no idx file of bytes with {axes} axes: it begins with "
            f"{data[:4].hex(' ') or 'nothing'} instead of 00 00 08 0{axes}; download it again"
        )
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4))
    if len(data) - start != math.prod(shape):
        raise DataError(
            f"{path} should hold {' x '.join(map(str, shape))} values and holds "
            f"{len(data) - start}: it is truncated or damaged; download it again"
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
