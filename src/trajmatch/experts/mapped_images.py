"""Whitened images in a file that several processes map, so that memory holds them once.

Shared memory would serve as well, but /dev/shm is 64 MB in most containers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from pathlib import Path

import torch

from trajmatch.data.dataset import ImageDataset, Split
from trajmatch.data.whiten import Whitening
from trajmatch.storage.files import partial_path
from trajmatch.types import Float, Int, Tensor

CHUNK = 4096
"""Images that are whitened and written at a time."""


@dataclasses.dataclass(frozen=True)
class MappedImages:
    """Images (float32, whitened) and labels of every split, the images in one file.

    The writer removes it with `remove`; that of a writer that was killed, `storage.folder.sweep`.
    """

    path: Path
    shapes: dict[str, tuple[int, ...]]
    labels: dict[str, Int[Tensor, "_"]]

    @classmethod
    def write(cls, folder: Path, dataset: ImageDataset, whitening: Whitening) -> MappedImages:
        """Whiten every split into a new file in `folder`: 12 bytes an RGB pixel on disk, in memory
        `CHUNK` images."""
        splits = {"train": dataset.train, "test": dataset.test}
        if dataset.val is not None:
            splits["val"] = dataset.val
        path = partial_path(folder / "images")
        shapes = {name: tuple(split.images.shape) for name, split in splits.items()}
        labels = {name: split.labels.long() for name, split in splits.items()}
        mapped = cls(path, shapes, labels)
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

    def open(self) -> dict[str, tuple[Float[Tensor, "n channels height width"], Tensor]]:
        """Images and labels per split; pages of the file, read when used and shared by all.

        Raises OSError where the file is gone.
        """
        self.path.stat()  # torch raises RuntimeError, which names no file
        sizes = [math.prod(shape) for shape in self.shapes.values()]
        mapped = torch.from_file(str(self.path), shared=False, size=sum(sizes), dtype=torch.float32)
        parts = zip(self.shapes.items(), torch.split(mapped, sizes), strict=True)
        return {name: (part.view(shape), self.labels[name]) for (name, shape), part in parts}

    def remove(self) -> None:
        """Remove the file; may be repeated.

        Where processes have the file mapped, its pages live until they are done. Windows keeps
        the file itself as well; the next `sweep` takes it.
        """
        with contextlib.suppress(PermissionError):  # Windows: the file is mapped
            self.path.unlink(missing_ok=True)
