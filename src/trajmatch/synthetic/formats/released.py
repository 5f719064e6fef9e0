"""The tensor files of the method's released code, and of the many programs grown from it.

images_best.pt    float [n, channels, height, width], as trained: whitened
labels_best.pt    int64 [n], or one probability per class
syn_lr.pt         the learned step size; the released code prints it and does not save it

They say nothing of the data, the classes and the whitening, which a person has to add.

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
    """What `torch.save` wrote: tensors, numbers and lists of them, on the CPU, nothing else.

    Tensors are mapped from the file, so that their bytes are read when they are used, and only
    then: a buffer of 10 GB needs no memory of 10 GB. (Files older than torch 1.6 are read whole.)

    Raises FileFormatError for a file that is absent, damaged, or holds any other Python object,
    which torch would have to run code for.
    """
    try:
        mapped = zipfile.is_zipfile(path)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise FileFormatError(
            f"{path} is not a plain torch file: it holds more than tensors, numbers and lists, or "
            "it is damaged; such files may run code when they are read, so it was not"
        ) from error
    except Exception as error:  # torch raises nearly anything, according to where it notices
        lines = (getattr(error, "strerror", None) or str(error)).splitlines()
        why = lines[0] if lines else type(error).__name__
        raise FileFormatError(
            f"cannot read {path} ({why}); give a whole file that torch.save wrote"
        ) from error


def read_number(given: str) -> float:
    """A step size given as a number, or as a .pt or text file that holds one.

    Raises SettingError for what is neither, FileFormatError for a file that holds anything else.
    """
    try:
        return float(given)
    except ValueError:
        path = Path(given)
    if not path.is_file():
        raise SettingError(f"the step size is '{given}'; give a number, or a file that holds one")
    found = read_pt(path) if path.suffix == ".pt" else path.read_bytes()
    try:
        return float(found.detach() if isinstance(found, Tensor) else found)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"{path} does not hold one number; give the step size") from error


def fit_released_whitening(
    data: ImageDataset,
    name: str | None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Whitening:
    """The whitening that released files went through, as far as it can be known.

    "zca": fitted on images in [0, 1] with eps 0.1, as there, and on all training images, those set
    aside for validation included. `mean` and `std`, one number per channel of images in [0, 1]:
    the released code's "normalize" uses constants instead of fitted statistics, and for CIFAR they
    are not the data's own: mean 0.4914, 0.4822, 0.4465, std 0.2023, 0.1994, 0.2010; for the others
    mean 0.485, 0.456, 0.406, std 0.229, 0.224, 0.225.

    Raises SettingError when nothing is given, or what does not fit together.
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

    `info` is added to what the set says of its making. The images' own data are not on record, so
    their fingerprint is "unknown", and the set is never judged on validation images, which are
    among those it was made from.

    Raises FileFormatError for other files, MismatchError for images or classes that are not those
    of `data`, DataError for soft labels that are no probabilities.
    """
    pixels = _images(images, data)
    made_from = {**data.summary(), "fingerprint": "unknown"}
    origin = {"method": "imported", "files": [images.name, labels.name], "data": made_from}
    found = _labels(labels, len(pixels), data)
    made = SyntheticSet(
        images=pixels,
        labels=found,
        classes=data.classes,
        whitening=whitening,
        step_size=step_size,
        info={**origin, **(info or {})},
    )
    made.info["ipc"] = made.ipc
    return made


def write_released(made: SyntheticSet, out: Path) -> dict[str, Any]:
    """images_best.pt, labels_best.pt and, where the set has one, syn_lr.pt (a float64 scalar)."""
    tensors = {IMAGES: made.images, LABELS: made.labels}
    if made.step_size is not None:
        tensors[STEP_SIZE] = torch.tensor(made.step_size, dtype=torch.float64)
    require_absent(out, tensors)
    for name, tensor in tensors.items():
        save_pt(out / name, tensor.detach().cpu().contiguous())
    return {"files": sorted(tensors)}


def save_pt(path: Path, value: Any) -> None:
    """`torch.save`, atomically."""
    with atomic_write(path) as partial:
        torch.save(value, partial)


def require_absent(out: Path, names: Mapping[str, Any] | Sequence[str]) -> None:
    """Refuse to write over what is there: it may be the original of what is being exported."""
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
    if min(std) <= 0:
        raise SettingError(f"std is {list(std)}; its numbers must be above 0")
    return Normalize(torch.tensor(mean), torch.tensor(std))


def _all_training_images(data: ImageDataset) -> Split:
    if data.val is None:
        return data.train
    parts = (data.train, data.val)
    return Split(torch.cat([p.images for p in parts]), torch.cat([p.labels for p in parts]))


def _images(path: Path, data: ImageDataset) -> Float[Tensor, "n channels height width"]:
    found = read_pt(path)
    fits = isinstance(found, Tensor) and found.ndim == 4 and found.is_floating_point()
    if not fits or not len(found):
        raise FileFormatError(
            f"{path} holds {_words(found)}; give floats [n, channels, height, width], as trained"
        )
    shape = tuple(data.train.images.shape[1:])
    if tuple(found.shape[1:]) != shape:
        theirs, ours = ("x".join(map(str, s)) for s in (found.shape[1:], shape))
        raise MismatchError(
            f"the images of {path} are {theirs} and those of {data.name} {ours} (channels x height "
            "x width); give the --data and --size they were made from"
        )
    pixels: Tensor = found.detach().float().clone()  # out of the mapped file
    return pixels


def _labels(
    path: Path, count: int, data: ImageDataset
) -> Int[Tensor, "n"] | Float[Tensor, "n classes"]:
    found = read_pt(path)
    if isinstance(found, Tensor) and found.ndim and len(found) == count:
        if found.ndim == 1 and not found.is_floating_point():
            return _hard_labels(path, found.long().clone(), data)
        if found.ndim == 2 and found.is_floating_point():
            return _soft_labels(path, found.detach().float().clone(), data)
    raise FileFormatError(
        f"{path} holds {_words(found)} for {count} images; give whole numbers [n], or "
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


def _words(found: Any) -> str:
    if isinstance(found, Tensor):
        return f"{found.dtype} of shape {list(found.shape)}"
    return f"a {type(found).__name__}"
