"""The tensor files of the method's released code, and of the many programs derived from it.

images_best.pt    float [n, channels, height, width], as trained: whitened
labels_best.pt    int64 [n], or one probability per class
syn_lr.pt         the learned step size; the released code prints it and does not save it

They do not record data, classes or whitening, so these have to be given.

    Cazenavette et al., Dataset distillation by matching training trajectories, CVPR 2022, code.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch.data import ImageDataset
from trajmatch.data.dataset import Split
from trajmatch.data.whiten import Normalize, Whitening, fit_whitening
from trajmatch.errors import DataError, FileFormatError, MismatchError, SettingError
from trajmatch.storage.files import atomic_write
from trajmatch.synthetic.set import SyntheticSet
from trajmatch.types import Float, Int, Tensor

IMAGES, LABELS, STEP_SIZE = "images_best.pt", "labels_best.pt", "syn_lr.pt"


def read_pt(path: Path) -> Any:
    """Tensors, numbers and lists of them that `torch.save` wrote, on the CPU.

    Tensors are mapped from the file and read on use, so a buffer of 10 GB does not need 10 GB of
    memory. (Files older than torch 1.6 are read whole.)

    Raises FileFormatError for a file that is missing, damaged, or holds any other Python object,
    because unpickling one could run code.
    """
    try:
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise FileFormatError(
            f"{path} is not a plain torch file: it holds more than tensors, numbers and lists, or "
            "it is damaged; such files may run code when they are read, so it was not"
        ) from error
    except Exception as error:  # the type depends on where torch fails
        lines = (getattr(error, "strerror", None) or str(error)).splitlines()
        why = lines[0] if lines else type(error).__name__
        raise FileFormatError(
            f"cannot read {path} ({why}); give a whole file that torch.save wrote"
        ) from error


def read_number(given: str) -> float:
    """A number given as text, or as the path of a .pt or text file that holds one.

    Raises SettingError for what is neither, FileFormatError for a file with other contents.

    Examples:
        >>> read_number("0.02")
        0.02
    """
    try:
        return float(given)
    except ValueError:
        path = Path(given)
    if not path.is_file():
        raise SettingError(f"the step size is '{given}'; give a number, or a file that holds one")
    value = read_pt(path) if path.suffix == ".pt" else path.read_bytes()
    try:
        return float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"{path} does not hold one number; give the step size") from error


def fit_released_whitening(
    data: ImageDataset,
    name: str | None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Whitening:
    """The whitening of released files, fitted or from given statistics.

    name: "zca" is fitted as in the released code, on images in [0, 1] with eps 0.1 and on all
        training images, including those of the validation split.
    mean, std: one number per channel of images in [0, 1]. The released code's "normalize" uses
        constants: for CIFAR mean 0.4914, 0.4822, 0.4465, std 0.2023, 0.1994, 0.2010 (not the data's
        own), for the others mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225.

    Raises SettingError when nothing is given, or name and statistics contradict each other.
    """
    if mean is not None or std is not None:
        if name == "zca":
            raise SettingError(
                "mean and std belong to whitening 'normalize'; leave them out of zca"
            )
        return _given_statistics(data, mean, std)
    if name is None:
        raise SettingError(
            "these files do not say which whitening they were made with; give --whitening zca, "
            "--whitening normalize, or --mean and --std"
        )
    return fit_whitening(name, _all_training_images(data))


def read_released(
    images: Path,
    labels: Path,
    *,
    data: ImageDataset,
    whitening: Whitening,
    step_size: float | None = None,
    info: Mapping[str, Any] | None = None,
) -> SyntheticSet:
    """A set from images_*.pt and labels_*.pt.

    info: added to the set's `info`. The files do not record the data, so its fingerprint is
        "unknown", and `evaluate` refuses to test the set on validation images, which are among
        those it was made from.

    Raises FileFormatError for other files, MismatchError for images or classes that are not those
    of `data`, DataError for soft labels that are no probabilities.
    """
    pixels = _images(images, data)
    built_from = {**data.summary(), "fingerprint": "unknown"}
    origin = {"method": "imported", "files": [images.name, labels.name], "data": built_from}
    values = _labels(labels, len(pixels), data)
    distilled = SyntheticSet(
        images=pixels,
        labels=values,
        classes=data.classes,
        whitening=whitening,
        step_size=step_size,
        info={**origin, **(info or {})},
    )
    distilled.info["ipc"] = distilled.ipc
    return distilled


def write_released(distilled: SyntheticSet, out: Path) -> dict[str, Any]:
    """Write images_best.pt, labels_best.pt and syn_lr.pt (a float64 scalar; only with a step size).

    Raises DataError when one of them exists.
    """
    tensors = {IMAGES: distilled.images, LABELS: distilled.labels}
    if distilled.step_size is not None:
        tensors[STEP_SIZE] = torch.tensor(distilled.step_size, dtype=torch.float64)
    require_absent(out, tensors)
    for name, tensor in tensors.items():
        save_pt(out / name, tensor.detach().cpu().contiguous())
    return {"files": sorted(tensors)}


def save_pt(path: Path, value: Any) -> None:
    """`torch.save`, atomically."""
    with atomic_write(path) as partial:
        torch.save(value, partial)


def require_absent(out: Path, names: Mapping[str, Any] | Sequence[str]) -> None:
    """Refuse to overwrite existing files, which may be the originals of an export."""
    for name in names:
        if (out / name).exists():
            raise DataError(f"{out / name} is there already; move it away or give another --out")


def _given_statistics(
    data: ImageDataset, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Normalize:
    for name, values in (("mean", mean), ("std", std)):
        if values is None or len(values) != data.channels:
            raise SettingError(
                f"{name} is {values} for images of {data.channels} channels; give mean and std, "
                "one number per channel each"
            )
    assert mean is not None
    assert std is not None
    return Normalize(torch.tensor(mean), torch.tensor(std))


def _all_training_images(data: ImageDataset) -> Split:
    if data.val is None:
        return data.train
    parts = (data.train, data.val)
    return Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))


def _images(path: Path, data: ImageDataset) -> Float[Tensor, "n channels height width"]:
    value = read_pt(path)
    fits = isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point()
    if not fits or not len(value):
        raise FileFormatError(
            f"{path} holds {_words(value)}; give floats [n, channels, height, width], as trained"
        )
    shape = tuple(data.train.images.shape[1:])
    if tuple(value.shape[1:]) != shape:
        theirs, ours = ("x".join(map(str, s)) for s in (value.shape[1:], shape))
        raise MismatchError(
            f"the images of {path} are {theirs} and those of {data.name} {ours} (channels x height "
            "x width); give the --data and --size they were made from"
        )
    pixels: Tensor = value.detach().float().clone()  # a copy outside the mapped file
    return pixels


def _labels(
    path: Path, count: int, data: ImageDataset
) -> Int[Tensor, "n"] | Float[Tensor, "n classes"]:
    value = read_pt(path)
    if isinstance(value, Tensor) and value.ndim and len(value) == count:
        if value.ndim == 1 and not value.is_floating_point():
            return _hard_labels(path, value.long().clone(), data)
        if value.ndim == 2 and value.is_floating_point():
            return _soft_labels(path, value.detach().float().clone(), data)
    raise FileFormatError(
        f"{path} holds {_words(value)} for {count} images; give whole numbers [n], or "
        "probabilities [n, classes]"
    )


def _hard_labels(path: Path, labels: Tensor, data: ImageDataset) -> Tensor:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= data.num_classes:
        raise MismatchError(
            f"the labels of {path} run from {low} to {high} and {data.name} has "
            f"{data.num_classes} classes; give the --data they were made from"
        )
    return labels


def _soft_labels(path: Path, labels: Tensor, data: ImageDataset) -> Tensor:
    if labels.shape[1] != data.num_classes:
        raise MismatchError(
            f"the soft labels of {path} are for {labels.shape[1]} classes and {data.name} has "
            f"{data.num_classes}; give the --data they were made from"
        )
    least, sums = float(labels.min()), labels.sum(1)
    if not (least >= 0 and float((sums - 1).abs().max()) <= 1e-3):
        raise DataError(
            f"the soft labels of {path} are no probabilities: the least is {least:.3g}, the first "
            f"row adds up to {float(sums[0]):.3g}; give the softmax of logits"
        )
    return labels


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    return f"a {type(value).__name__}"
