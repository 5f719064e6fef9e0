"""Whitened images in a file that several processes map, so that memory holds them once.

Shared memory would serve as well, but /dev/shm is 64 MB in most containers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import secrets
from pathlib import Path
from typing import Any

import torch

from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.whiten import Whitening
from trajmatch.storage.locks import ProcessLock, try_lock
from trajmatch.types import Float, Int, Tensor

SUFFIX = ".partial"
CHUNK = 4096
"""Images that are whitened and written at a time."""


@dataclasses.dataclass(frozen=True)
class MappedImages:
    """Images (float32, whitened) and labels of every split, the images in one file.

    The writer holds the lock on a file beside it until `remove`, so a file whose writer was killed
    is recognized: its lock is free. Pickled, the value keeps the path and leaves the lock behind.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    labels: dict[str, Int[Tensor, "_"]]
    writer: ProcessLock | None
    """The writer's lock; None in other processes."""

    @classmethod
    def write(cls, folder: Path, dataset: ImageDataset, whitening: Whitening) -> MappedImages:
        """Whiten every split into a new file in `folder`: 12 bytes an RGB pixel on disk, in memory
        `CHUNK` images. The caller must hold the folder's lock."""
        splits = {"train": dataset.train, "test": dataset.test}
        if dataset.val is not None:
            splits["val"] = dataset.val
        path = folder / f"images.{os.getpid()}-{secrets.token_hex(4)}{SUFFIX}"
        writer = ProcessLock(_lock_path(path))
        writer.acquire()
        shapes = {name: tuple(split.images.shape) for name, split in splits.items()}
        labels = {name: split.labels.long() for name, split in splits.items()}
        mapped = cls(path, shapes, labels, writer)
        try:
            with path.open("wb") as file:
                for split in splits.values():
                    for start in range(0, len(split), CHUNK):
                        rows = slice(start, start + CHUNK)
                        chunk = whitening.apply_split(Split(split.images[rows], split.labels[rows]))
                        file.write(chunk.view(-1).numpy().data)
        except BaseException:
            mapped.remove()
            raise
        return mapped

    @staticmethod
    def remove_abandoned(folder: Path) -> None:
        """Remove the files of writers that were killed. The caller must hold the folder's lock."""
        for path in folder.glob(f"images.*{SUFFIX}"):
            with try_lock(_lock_path(path)) as abandoned:
                if abandoned:
                    _unlink(path)
        # Their locks, and those of writers killed before the first image.
        for path in folder.glob("images.*.lock"):
            if not path.with_suffix(SUFFIX).exists():
                lock = ProcessLock(path)
                if lock.acquire():
                    lock.release(remove=True)

    def open(self) -> dict[str, tuple[Float[Tensor, "n channels height width"], Tensor]]:
        """Images and labels per split; pages of the file, read when used and shared by all."""
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        mapped = torch.from_file(str(self.path), shared=False, size=sum(sizes), dtype=torch.float32)
        parts = zip(self.shapes.items(), torch.split(mapped, sizes), strict=True)
        return {name: (part.view(shape), self.labels[name]) for (name, shape), part in parts}

    def remove(self) -> None:
        """Remove the file and free its lock; may be repeated.

        Where processes have the file mapped, its pages live until they are done. Windows keeps
        the file itself as well; the next `remove_abandoned` takes it.
        """
        _unlink(self.path)
        if self.writer:
            self.writer.release(remove=True)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "writer": None}


def _lock_path(path: Path) -> Path:
    return path.with_suffix(".lock")


def _unlink(path: Path) -> None:
    with contextlib.suppress(PermissionError):  # Windows: the file is mapped
        path.unlink(missing_ok=True)
