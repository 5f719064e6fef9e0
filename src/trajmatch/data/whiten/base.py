"""What every whitening is: a fitted, invertible map that a file can hold."""

from __future__ import annotations

import abc
import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch

from trajmatch.data.dataset import Split
from trajmatch.storage.files import TensorFile, save_tensors
from trajmatch.types import Float, Shaped, Tensor, UInt8

KIND = "whitening"
VERSION = 1


def to_float(images: UInt8[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """uint8 in 0..255 to float32 in [0, 1]."""
    return images.to(torch.float32) / 255


class Whitening(abc.ABC):
    """A fitted, invertible map from images in [0, 1] to what networks are fed.

    `tensors` are all that was fitted; they follow `to`. Applying follows the images' device and
    dtype and moves the tensors there at need: `to` once where that is done often.
    """

    name: ClassVar[str]

    def __init__(self, tensors: dict[str, Shaped[Tensor, "..."]]) -> None:
        self.tensors = tensors

    @abc.abstractmethod
    def apply(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        """Whiten images in [0, 1]. Raises MismatchError for images of another shape."""

    @abc.abstractmethod
    def invert(
        self, images: Float[Tensor, "n channels height width"]
    ) -> Float[Tensor, "n channels height width"]:
        """Back to the scale of [0, 1], not clipped. Raises MismatchError for another shape."""

    @classmethod
    @abc.abstractmethod
    def read(cls, file: TensorFile) -> Whitening:
        """What `save` wrote to `file`. Raises KeyError or ValueError where something is missing."""

    @abc.abstractmethod
    def to(self, device: torch.device | str) -> Whitening:
        """The same whitening with its tensors on `device`."""

    def full(self) -> Whitening:
        """The same map in the form that other programs are told of."""
        return self

    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """What is set rather than fitted, as plain values."""

    @cached_property
    def checksum(self) -> str:
        """16 hex digits that change with any fitted number."""
        digest = hashlib.sha256(self.name.encode())
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().view(-1).numpy().data)
        return digest.hexdigest()[:16]

    def summary(self) -> dict[str, Any]:
        """What a result should say of it, as plain values."""
        return {"name": self.name, "checksum": self.checksum, **self.settings()}

    def save(self, path: Path) -> None:
        """Write to one file: of CIFAR-10, ZCA 38 MB, compact ZCA 145 KB, Normalize a kilobyte."""
        metadata = {"name": self.name, **self.settings()}
        save_tensors(path, self.tensors, kind=KIND, version=VERSION, metadata=metadata)

    def apply_split(
        self, split: Split, device: torch.device | str = "cpu"
    ) -> Float[Tensor, "n channels height width"]:
        """All images of a split, whitened, as one float32 tensor on `device`.

        Works in pieces: beyond the result (12 bytes a pixel of RGB) it needs some 50 MB.
        """
        here = self.to(device)
        result = torch.empty(split.images.shape, dtype=torch.float32, device=device)
        for start in range(0, len(split), 1024):
            piece = split.images[start : start + 1024].to(device)
            result[start : start + 1024] = here.apply(to_float(piece))
        return result
