"""The synthetic set: a few images, their labels, and the step size they were made for.

On disk a set is a folder:

    distilled.safetensors   images as trained, labels (or soft labels), step size
    distilled.json          format version, class names, whitening, how it was made
    whitening.safetensors   the whitening, to whiten real images and to show the synthetic ones
    images/<class>/*.png    the images as pictures

The images of a texture are crops of canvases that wrap around. The canvases are in the first file
as well, and as pictures in textures/<class>/: tile.png is a canvas, tiling.png three by three of it
(a class with several canvases has tile-1.png and so on).

The first three files hold checksums of each other, so files of two sets never load as one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import math
import os
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
from trajmatch.synthetic.folder import DOCUMENT, TENSORS, WHITENING, existing, replace_set
from trajmatch.synthetic.pictures import pictures_html, save_pictures, save_textures
from trajmatch.types import Float, Int, Tensor, UInt8

KIND = "distilled"
VERSION = 1
_EXPECTED = {
    "images": "floats [n, channels, height, width], as whitening.apply returns them",
    "labels": "whole numbers [n], or floats [n, classes]",
    "canvases": "floats [n, channels, height, width]",
}
_MEND = "copy the whole folder again from where it was made, or make the set again"


@dataclasses.dataclass(frozen=True, eq=False)
class SyntheticSet(Dataset[tuple[Tensor, Tensor]]):
    """A small labeled set that stands for a large one; networks are trained on it alone.

    It is a torch Dataset: item i is (image, label), ready for a DataLoader. Images are whitened, so
    real images go through `whitening.apply` before a network trained on the set predicts them. The
    set is used with plain SGD at `step_size`, which was learned together with the images.

    Raises DataError when the parts do not fit each other or hold non-finite numbers.

    Examples:
        >>> import trajmatch
        >>> distilled = trajmatch.load_distilled("cifar10-ipc1")
        >>> distilled
        SyntheticSet(10 images of 3x32x32, 10 classes, ipc 1, mtt, step size 0.0109)
        >>> image, label = distilled[3]
        >>> image.shape, distilled.classes[label]
        (torch.Size([3, 32, 32]), 'cat')
        >>> distilled.pixels().dtype
        torch.uint8
        >>> distilled.whitening.apply(torch.rand(2, 3, 32, 32)).shape  # real images in [0, 1]
        torch.Size([2, 3, 32, 32])
    """

    images: Float[Tensor, "n channels height width"]
    """Whitened and not clipped: the input of a network."""
    labels: Int[Tensor, "n_labels"] | Float[Tensor, "n_labels classes"]
    """Class indices, or a probability for each class."""
    classes: tuple[str, ...]
    """Names; label i is class i."""
    whitening: Whitening
    step_size: float | None = None
    """The learned learning rate, per step of plain SGD; None where none was learned."""
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    """How the set was made (method, settings, network, data ...): anything JSON can hold."""
    canvases: Float[Tensor, "canvases channels tall wide"] | None = None
    """Of a texture, whitened: the images are crops of these, image i of canvas i % len(canvases).
    None for plain images."""

    def __post_init__(self) -> None:
        self._convert()
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
                "images or labels hold NaN or infinity: their distillation diverged; lower lr_img"
            )
        if self.canvases is not None and n % len(self.canvases):
            raise DataError(
                f"{n} images of {len(self.canvases)} canvases; give equally many crops of each"
            )
        if self.step_size is not None and not 0 < self.step_size < math.inf:
            raise DataError(f"step_size is {self.step_size}; give a number above 0, or None")

    def _convert(self) -> None:
        """Floats to float32 and whole numbers to int64, as training takes them; refuse the rest."""
        for name, axes in (("images", (4,)), ("labels", (1, 2)), ("canvases", (4,))):
            tensor = getattr(self, name)
            if tensor is None:
                continue
            floats, hard = tensor.is_floating_point(), name == "labels" and tensor.ndim == 1
            integers = not floats and not tensor.is_complex() and tensor.dtype != torch.bool
            fits = tensor.ndim in axes and tensor.layout == torch.strided
            if not fits or not (integers if hard else floats):
                given = f"{tensor.dtype} of shape {list(tensor.shape)}"
                raise DataError(f"{name} are {given}; give {_EXPECTED[name]}")
            object.__setattr__(self, name, tensor.long() if hard else tensor.float())

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.images.shape[1:]))
        parts = [f"{len(self)} images of {shape}", f"{len(self.classes)} classes"]
        parts += [f"ipc {self.ipc_words}", str(self.info.get("method", ""))]
        parts += ["soft labels"] if self.is_soft else []
        parts += [] if self.canvases is None else [f"{len(self.canvases)} canvases"]
        parts += [] if self.step_size is None else [f"step size {self.step_size:.3g}"]
        return f"{type(self).__name__}({', '.join(part for part in parts if part)})"

    def _repr_html_(self) -> str:
        """Its pictures by class, which notebooks show."""
        table = pictures_html(self.pixels(), self.hard_labels.tolist(), self.classes)
        return f"<div>{html.escape(repr(self))}</div>{table}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    @property
    def is_soft(self) -> bool:
        """Whether labels are probabilities."""
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
    def ipc_words(self) -> str:
        """`10`, or `1 to 10` where hard labels are not equally many of each class."""
        counts = [self.ipc] if self.is_soft else self.labels.bincount(minlength=len(self.classes))
        low, high = int(min(counts)), int(max(counts))
        return str(low) if low == high else f"{low} to {high}"

    @property
    def fingerprint(self) -> str:
        """32 hex digits of the images, labels and whitening, which determine what networks trained
        on the set are (step size, class names and `info` are not part of it)."""
        digest = hashlib.blake2b(self.whitening.checksum.encode(), digest_size=16)
        for tensor in (self.images, self.labels):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def plain(self) -> Float[Tensor, "n channels height width"]:
        """The images with whitening undone, clipped to [0, 1], for other programs."""
        return self.whitening.invert(self.images).clamp(0, 1)

    def pixels(self) -> UInt8[Tensor, "n channels height width"]:
        """The images as 8-bit pictures, RGB or gray, on the CPU. Clipped to [0, 255]: train
        networks on `images` instead."""
        return _pixels(self.whitening, self.images)

    def tiles(self) -> UInt8[Tensor, "canvases channels tall wide"] | None:
        """The canvases of a texture as 8-bit pictures; their labels are the first of `labels`."""
        return None if self.canvases is None else _pixels(self.whitening, self.canvases)

    def save(self, folder: str | Path) -> None:
        """Write the set as a folder, replacing the set that was there.

        All files are written to a new folder beside it, which is then renamed, so a kill leaves the
        old set or the new one. Other files in the folder stay. Raises DataError when `folder` is a
        file, or holds pictures that belong to no set.
        """
        folder = Path(folder).resolve()
        replace_set(folder, lambda beside: self._write(beside, folder / WHITENING))

    @classmethod
    def load(cls, folder: str | Path) -> SyntheticSet:
        """Read a set, on the CPU.

        Raises FileFormatError when the folder is no set, or any file of it is missing, truncated,
        altered, from another set, or of a newer format.
        """
        folder = existing(Path(folder).resolve())
        body = _read_document(folder)
        file = open_tensors(folder / TENSORS, kind=KIND, version=VERSION)
        if file.metadata.get("document") != _digest_json(body):
            raise FileFormatError(
                f"{folder / DOCUMENT} and {TENSORS} do not belong together, or the first was "
                f"altered; {_MEND}"
            )
        tensors = {name: file.read(name) for name in file.names}
        # Document and tensors are intact here; the whitening may still belong to another set.
        if not (folder / WHITENING).is_file():
            raise FileFormatError(f"{folder} has no {WHITENING}; {_MEND}")
        whitening = load_whitening(folder / WHITENING)
        if whitening.checksum != body["whitening"]["checksum"]:
            raise FileFormatError(f"{folder / WHITENING} belongs to another set; {_MEND}")
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
        """Write all files to a new `folder`. An equal file `whitening` is linked, not copied."""
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
        _save_whitening(self.whitening, folder / WHITENING, whitening)
        save_tensors(
            folder / TENSORS,
            tensors,
            kind=KIND,
            version=VERSION,
            metadata={"document": _digest_json(body)},
        )
        labels = self.hard_labels.tolist()
        save_pictures(self.pixels(), labels, self.classes, folder / "images")
        if (tiles := self.tiles()) is not None:
            save_textures(tiles, labels[: len(tiles)], self.classes, folder / "textures")
        write_json(folder / DOCUMENT, body)


def load_distilled(name: str | Path) -> SyntheticSet:
    """The set in a folder, or the shipped set of that name (`trajmatch zoo` lists them).

    An existing folder takes precedence over a name. Raises DataError for what is neither, and what
    `SyntheticSet.load` raises.

    Examples:
        >>> load_distilled("cifar10-ipc1").step_size is not None
        True
    """
    path = Path(name)
    if len(path.parts) == 1 and not existing(path).exists():
        path = zoo.find(path.name)
    return SyntheticSet.load(path)


def _read_document(folder: Path) -> dict[str, Any]:
    """distilled.json of a version this one can read, not yet compared with the tensors."""
    path = folder / DOCUMENT
    if not path.is_file():
        runs = [name for name in ("best", "last") if (folder / name / DOCUMENT).is_file()]
        mend = f"give {folder / runs[0]}" if runs else "give a folder that distill or select wrote"
        raise FileFormatError(f"{folder} is not a distilled set (no {DOCUMENT}); {mend}")
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


def _save_whitening(whitening: Whitening, path: Path, earlier: Path) -> None:
    """Save to `path`, as a hard link to `earlier` when that is equal (ZCA of 32 px has 37 MB)."""
    try:
        if load_whitening(earlier).checksum == whitening.checksum:
            os.link(earlier, path)
            return
    except (FileFormatError, OSError):  # no file, a damaged one, or a disk without hard links
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
