"""The base of all whitenings: a fitted, invertible map that is saved in one file."""

from __future__ import annotations

import abc
import copy
import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from trajmatch.data.dataset import Split
from trajmatch.data.pixels import to_float, unit_floats
from trajmatch.errors import DataError
from trajmatch.plugins import Registry
from trajmatch.storage.files import TensorFile, save_tensors
from trajmatch.types import Float, Shaped, Tensor

KIND = "whitening"
VERSION = 1


class Whitening(abc.ABC):
    """A fitted, invertible map from images in [0, 1] to the inputs of networks.

    `tensors` hold all fitted numbers, by name. Applying follows the images' device and dtype and
    moves the tensors there when needed; `to` does so once.

    A subclass implements `fit`, `read`, `transform` and `invert`; `settings` too where something
    other than tensors determines it.

    Raises DataError for tensors that hold NaN or infinity.
    """

    any_size = False
    """Whether one fit applies to images of every height and width."""
    registered_as: str | None = None
    """The name that `fit_whitening` and `load_whitening` found the class under."""

    def __init__(self, tensors: dict[str, Shaped[Tensor, "..."]]) -> None:
        for name, tensor in tensors.items():
            if not bool(tensor.isfinite().all()):
                raise DataError(
                    f"{name} of the whitening holds NaN or infinity; give finite numbers, or fit "
                    "the whitening on the training images"
                )
        self.tensors = tensors

    def __repr__(self) -> str:
        shapes = (f"{n} {'x'.join(map(str, t.shape))}" for n, t in self.tensors.items())
        return f"{type(self).__name__}({', '.join(shapes)})"

    @property
    def name(self) -> str:
        """Its name in WHITENINGS, which files record."""
        return self.registered_as or WHITENINGS.name_of(type(self))

    @classmethod
    @abc.abstractmethod
    def fit(cls, split: Split) -> Whitening:
        """Fitted on the training images, at least two."""

    def apply(self, images: Any) -> Float[Tensor, "*n channels height width"]:
        """Whiten images [n, c, h, w], or one image [c, h, w]: uint8 in 0..255 or floats in [0, 1].

        Raises DataError for another dtype, range or number of axes, MismatchError for images of
        another shape than the whitening was fitted on.

        Examples:
            >>> from trajmatch.data import Normalize, load_data
            >>> train = load_data("digits").train
            >>> whitening = Normalize.fit(train)
            >>> whitening.apply(train.images[:5]).shape, whitening.apply(train.images[0]).shape
            (torch.Size([5, 1, 8, 8]), torch.Size([1, 8, 8]))
            >>> whitening
            Normalize(mean 1, std 1)
        """
        pixels = unit_floats(images, "images")
        if pixels.ndim not in (3, 4):
            raise DataError(
                f"images have shape {tuple(pixels.shape)}; give [n, c, h, w], or one as [c, h, w]"
            )
        return self.transform(pixels) if pixels.ndim == 4 else self.transform(pixels[None])[0]

    @abc.abstractmethod
    def transform(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        """The map itself, of numbers that need not lie in [0, 1]. Raises MismatchError for images
        of another shape."""

    @abc.abstractmethod
    def invert(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        """Back to the scale of [0, 1], not clipped. Raises MismatchError for another shape."""

    @classmethod
    @abc.abstractmethod
    def read(cls, file: TensorFile) -> Whitening:
        """The whitening that `save` wrote: its tensors from `file.read(name)`, its settings from
        `file.metadata`. Raises KeyError or ValueError where something is missing."""

    def to(self, device: torch.device | str) -> Whitening:
        """The same whitening with its tensors on `device`."""
        there = copy.copy(self)
        there.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return there

    def full(self) -> Whitening:
        """The same map in the form that is exported to other programs."""
        return self

    def settings(self) -> dict[str, Any]:
        """Settings beside the fitted tensors, as plain values."""
        return {}

    @cached_property
    def checksum(self) -> str:
        """16 hex digits that change with any fitted number."""
        digest = hashlib.sha256(self.name.encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().view(-1).numpy().data)
        return digest.hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """Name, checksum and settings, as results record them."""
        return {"name": self.name, "checksum": self.checksum, **self.settings()}

    def save(self, path: Path) -> None:
        """Write one file. For CIFAR-10: ZCA 38 MB, CompactZCA 145 KB, Normalize 1 KB."""
        metadata = {"name": self.name, **self.settings()}
        save_tensors(path, self.tensors, kind=KIND, version=VERSION, metadata=metadata)

    def apply_split(
        self, split: Split, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "n channels height width"]:
        """All images of a split, whitened, as one float32 tensor on `device`.

        Works in chunks of 1024 images: besides the result (12 bytes per RGB pixel) it needs about
        50 MB.
        """
        here = self.to(device)
        result = torch.empty(split.images.shape, dtype=torch.float32, device=device)
        for start in range(0, len(split), 1024):
            chunk = split.images[start : start + 1024].to(device)
            result[start : start + 1024] = here.transform(to_float(chunk))
        return result


def _is_whitening(entry: Any) -> bool:
    return isinstance(entry, type) and issubclass(entry, Whitening) and entry is not Whitening


WHITENINGS: Registry[type[Whitening]] = Registry("whitening", "trajmatch.whitenings", _is_whitening)
"""Every whitening by name; other packages add theirs (docs/extending.md)."""
