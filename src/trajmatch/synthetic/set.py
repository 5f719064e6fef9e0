"""The product: a handful of images, their labels, and the step size they were made for.

On disk a set is a folder:

    distilled.safetensors   images as trained, labels (or soft labels), step size
    distilled.json          format version, class names, whitening, how it was made
    whitening.safetensors   what turns the images back into pictures, and pictures into such images
    images/<class>/*.png    the pictures, to look at

Images of a texture are crops of canvases that wrap around. These lie beside the images in the first
file, and as pictures in textures/<class>/: tile.png is a canvas, tiling.png nine of them side by
side (of a class with several, the next are tile-1.png and so on).

The first three are bound to each other by checksums, so files of two sets never load as one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from trajmatch.data.whiten import Whitening, load_whitening
from trajmatch.errors import DataError, FileFormatError
from trajmatch.storage.files import open_tensors, read_json, save_tensors, write_json
from trajmatch.storage.jsonl import jsonable
from trajmatch.storage.result import versions
from trajmatch.synthetic import zoo
from trajmatch.synthetic.pictures import save_pictures, save_textures
from trajmatch.types import Float, Int, Tensor, UInt8

KIND = "distilled"
VERSION = 1
_TENSORS, _DOCUMENT, _WHITENING = "distilled.safetensors", "distilled.json", "whitening.safetensors"
_PICTURES = ("images", "textures")
_OURS = (_TENSORS, _WHITENING, *_PICTURES, _DOCUMENT)  # the document last: it completes a set
_MEND = "copy the whole folder again from where it was made, or make the set again"


@dataclasses.dataclass(frozen=True, eq=False)
class SyntheticSet(Dataset[tuple[Tensor, Tensor]]):
    """A small labelled set, ready for a DataLoader: item i is (image, label), as trained on.

    Raises DataError when the parts do not fit each other or hold non-finite numbers.
    """

    images: Float[Tensor, "n channels height width"]
    """Whitened and not clipped: feed them to a network as they are."""
    labels: Int[Tensor, "n_labels"] | Float[Tensor, "n_labels classes"]
    """Class indices, or a probability for each class."""
    classes: tuple[str, ...]
    whitening: Whitening
    step_size: float | None = None
    """The learned learning rate, per step of plain SGD; None for a set that has none."""
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How the set was made: anything JSON can hold."""
    canvases: Float[Tensor, "canvases channels tall wide"] | None = None
    """Of a texture: what the images are crops of, whitened as they are; image i is one of canvas
    i % len(canvases). None for a set of plain images."""

    def __post_init__(self) -> None:
        n, classes = len(self.images), len(self.classes)
        if n == 0 or len(self.labels) != n:
            raise DataError(f"{n} images with {len(self.labels)} labels; give one label per image")
        if self.is_soft and self.labels.shape[1] != classes:
            raise DataError(
                f"soft labels have {self.labels.shape[1]} columns for {classes} classes; "
                "give one probability per class"
            )
        low, high = int(self.hard_labels.min()), int(self.hard_labels.max())
        if low < 0 or high >= classes:
            raise DataError(
                f"labels run from {low} to {high} for {classes} classes; "
                f"give class indices from 0 to {classes - 1}"
            )
        finite = self.images.isfinite().all() and (not self.is_soft or self.labels.isfinite().all())
        if not finite:
            raise DataError(
                "images or labels hold NaN or infinity: their making diverged; lower lr_img"
            )
        if self.canvases is not None and n % len(self.canvases):
            raise DataError(
                f"{n} images of {len(self.canvases)} canvases; give equally many crops of each"
            )
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise DataError(f"step_size is {self.step_size}; give a number above 0, or None")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def is_soft(self) -> bool:
        return self.labels.ndim == 2

    @property
    def hard_labels(self) -> Int[Tensor, "n"]:
        """Class indices; of soft labels the most probable class."""
        return self.labels.argmax(1) if self.is_soft else self.labels

    @property
    def ipc(self) -> int:
        """Images per class: the mean, rounded down, where classes differ."""
        return len(self.images) // len(self.classes)

    @property
    def fingerprint(self) -> str:
        """32 hex digits that change with what networks trained on the set see of it: images, labels
        and whitening. The step size, class names and `info` are apart."""
        digest = hashlib.blake2b(self.whitening.checksum.encode(), digest_size=16)
        for tensor in (self.images, self.labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def plain(self) -> Float[Tensor, "n channels height width"]:
        """The images with whitening undone, clipped to [0, 1]: what another pipeline would take."""
        return self.whitening.invert(self.images).clamp(0, 1)

    def pixels(self) -> UInt8[Tensor, "n channels height width"]:
        """The images as pictures: plain RGB (or gray) on the CPU. Values outside of what 8 bits can
        show are lost; networks train on `images`."""
        return _pixels(self.whitening, self.images)

    def tiles(self) -> UInt8[Tensor, "canvases channels tall wide"] | None:
        """The canvases of a texture as pictures, in the order of the first labels."""
        return None if self.canvases is None else _pixels(self.whitening, self.canvases)

    def save(self, folder: str | Path) -> None:
        """Write the set as a folder, replacing the set that was there.

        Everything is first written beside, then renamed into place, so a kill at any moment leaves
        the old set or the new one. Other files in the folder stay. Raises DataError when the place
        is taken by a file, or by a folder of pictures that belongs to no set.
        """
        folder = Path(folder).resolve()
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file; give a folder to save the set in")
        _finish_swap(folder)
        ours = any((folder / name).exists() for name in (_DOCUMENT, _TENSORS))
        for place in (folder / name for name in _PICTURES):
            if place.exists() and not ours:
                raise DataError(f"{place} is not a distilled set's; give another folder")
        beside = folder.with_name(f"{folder.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
        try:
            self._write(beside, folder / _WHITENING)
            _swap(beside, folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise

    @classmethod
    def load(cls, folder: str | Path) -> SyntheticSet:
        """Read a set, on the CPU.

        Raises FileFormatError, with the mend, when the folder is no set, or any file of it is
        missing, truncated, altered, from another set, or of a newer format.
        """
        folder = Path(folder).resolve()
        if not folder.exists() and _previous(folder).exists():
            folder = _previous(folder)  # a save was killed between its two renames
        body = _read_document(folder)
        file = open_tensors(folder / _TENSORS, kind=KIND, version=VERSION)
        if file.metadata.get("document") != _digest_json(body):
            raise FileFormatError(
                f"{folder / _DOCUMENT} and {_TENSORS} do not belong together, or the first was "
                f"altered; {_MEND}"
            )
        tensors = {name: file.read(name) for name in file.names}
        # Known to be ours and whole from here on: only a mixed folder can still be wrong.
        if not (folder / _WHITENING).is_file():
            raise FileFormatError(f"{folder} has no {_WHITENING}; {_MEND}")
        whitening = load_whitening(folder / _WHITENING)
        if whitening.checksum != body["whitening"]["checksum"]:
            raise FileFormatError(f"{folder / _WHITENING} belongs to another set; {_MEND}")
        step_size = tensors.get("step_size")
        return cls(
            images=tensors["images"],
            labels=tensors["labels"],
            classes=tuple(body["classes"]),
            whitening=whitening,
            step_size=None if step_size is None else step_size.item(),
            info=body["info"],
            canvases=tensors.get("canvases"),
        )

    def _write(self, folder: Path, whitening: Path) -> None:
        """All files of the set into a new `folder`; `whitening` may be an equal one to share."""
        folder.mkdir(parents=True)
        tensors: dict[str, Tensor] = {"images": self.images, "labels": self.labels}
        if self.step_size is not None:
            tensors["step_size"] = torch.tensor([self.step_size], dtype=torch.float64)
        if self.canvases is not None:
            tensors["canvases"] = self.canvases
        body = {
            "kind": KIND,
            "version": VERSION,
            "content": _digest_tensors(tensors),
            "classes": self.classes,
            "images": len(self),
            "ipc": self.ipc,
            "size": list(self.images.shape[1:]),
            "soft_labels": self.is_soft,
            "step_size": self.step_size,
            "whitening": {**self.whitening.summary(), "checksum": self.whitening.checksum},
            "info": self.info,
            "versions": versions(),
        }
        body = jsonable(body)
        _save_whitening(self.whitening, folder / _WHITENING, whitening)
        save_tensors(
            folder / _TENSORS,
            tensors,
            kind=KIND,
            version=VERSION,
            metadata={"document": _digest_json(body)},
        )
        labels = self.hard_labels.tolist()
        save_pictures(self.pixels(), labels, self.classes, folder / "images")
        if (tiles := self.tiles()) is not None:
            save_textures(tiles, labels[: len(tiles)], self.classes, folder / "textures")
        write_json(folder / _DOCUMENT, body)


def load_distilled(name: str | Path) -> SyntheticSet:
    """A set from its folder, or one that ships with the package by its name (see `trajmatch zoo`).

    A folder that is there wins over a name. Raises DataError for a word that is neither, and what
    `SyntheticSet.load` raises.
    """
    path = Path(name)
    if len(path.parts) == 1 and not (path.exists() or _previous(path).exists()):
        path = zoo.find(path.name)
    return SyntheticSet.load(path)


def _read_document(folder: Path) -> dict[str, Any]:
    """distilled.json, of a version we read. Its contents are checked against the tensors after."""
    path = folder / _DOCUMENT
    if not path.is_file():
        runs = [name for name in ("best", "last") if (folder / name / _DOCUMENT).is_file()]
        mend = f"give {folder / runs[0]}" if runs else "give a folder that distill or select wrote"
        raise FileFormatError(f"{folder} is not a distilled set (no {_DOCUMENT}); {mend}")
    body = read_json(path)
    if not isinstance(body, dict) or body.get("kind") != KIND:
        raise FileFormatError(f"{path} does not describe a distilled set; {_MEND}")
    version = body.get("version")
    if isinstance(version, int) and version > VERSION:
        raise FileFormatError(
            f"{path} was written by a newer trajmatch (format {version}, this one reads up to "
            f"{VERSION}); upgrade trajmatch"
        )
    return body


def _previous(folder: Path) -> Path:
    """Where the set that is being replaced waits until the new one stands."""
    return folder.with_name(f".{folder.name}.trajmatch-previous")


def _swap(beside: Path, folder: Path) -> None:
    """Put the complete set `beside` at `folder`."""
    if (folder / _DOCUMENT).exists():
        os.rename(folder, _previous(folder))
        os.rename(beside, folder)
        _finish_swap(folder)
    elif folder.exists():
        # No set here to mix with, but other files (a log, a result): join them one by one.
        for name in _OURS:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            if (beside / name).exists():
                os.rename(beside / name, folder / name)
        shutil.rmtree(beside)  # not empty: renaming a file to a hard link of itself does nothing
    else:
        os.rename(beside, folder)


def _finish_swap(folder: Path) -> None:
    """Complete a swap that may have been cut short: bring back the old set when the new one never
    arrived, else carry over what was not the old set's own and remove the rest."""
    previous = _previous(folder)
    if not previous.exists():
        return
    if not folder.exists():
        os.rename(previous, folder)
        return
    for item in previous.iterdir():
        if item.name not in _OURS and not (folder / item.name).exists():
            os.rename(item, folder / item.name)
    shutil.rmtree(previous)


def _save_whitening(whitening: Whitening, path: Path, existing: Path) -> None:
    """Save to `path`, sharing the file `existing` when it holds the same (ZCA of 32 px: 37 MB)."""
    try:
        if load_whitening(existing).checksum == whitening.checksum:
            os.link(existing, path)
            return
    except (FileFormatError, OSError):  # none there, a damaged one, or a disk without hard links
        pass
    whitening.save(path)


def _pixels(
    whitening: Whitening, images: Float[Tensor, "n channels height width"]
) -> UInt8[Tensor, "n channels height width"]:
    plain = whitening.invert(images).clamp(0, 1)
    return (plain * 255).round().to("cpu", torch.uint8)


def _digest_tensors(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _digest_json(body: dict[str, Any]) -> str:
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
