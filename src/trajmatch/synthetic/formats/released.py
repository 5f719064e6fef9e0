"""The tensor files of released code: of trajectory matching (MTT), of dataset condensation (DC,
DSA, DM), and of the many programs derived from either.

images_best.pt    MTT: float [n, channels, height, width], as trained: whitened
labels_best.pt    int64 [n], or a probability or a logit per class
syn_lr.pt         the learned step size; the released code prints it and does not save it
res_*.pt          DC, DSA, DM: {"data": [[images, labels], ...]}, one pair an experiment

A pair (images, labels) in one file is read as well. None of them records data, classes or
whitening, so these have to be given.

    Cazenavette et al., Dataset distillation by matching training trajectories, CVPR 2022, code.
    Zhao, Bilen, Dataset condensation with distribution matching, WACV 2023, code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trajmatch.data import ImageDataset
from trajmatch.data.dataset import Split
from trajmatch.data.whiten import Normalize, Whitening, fit_whitening
from trajmatch.errors import DataError, FileFormatError, MismatchError, SettingError
from trajmatch.synthetic.formats.archive import read_pt, save_pt
from trajmatch.synthetic.formats.publish import publish
from trajmatch.synthetic.set import SyntheticSet
from trajmatch.types import Float, Int, Tensor

EXPECTED = (
    "give an images_*.pt, a pair (images, labels), or {'data': [[images, labels], ...]} as DC, DSA "
    "and DM publish it"
)
IMAGES, LABELS, STEP_SIZE = "images_best.pt", "labels_best.pt", "syn_lr.pt"


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
            "these files do not say which whitening they were made with; give --whitening=zca, "
            "--whitening=normalize, or --mean and --std"
        )
    return fit_whitening(name, _all_training_images(data))


@dataclasses.dataclass(frozen=True)
class Contents:
    """The sets in a .pt file, at least one."""

    sets: list[tuple[Tensor, Tensor | None]]
    """Images and labels of each; labels are None where they are in a file of their own."""

    @property
    def has_labels(self) -> bool:
        return self.sets[0][1] is not None


def set_contents(value: Any) -> Contents | None:
    """The sets in the value of a .pt file; None where it is of another kind, such as experts."""
    if isinstance(value, Tensor):
        return Contents([(value, None)])
    if _is_pair(value):
        return Contents([(value[0], value[1])])
    found = value.get("data") if isinstance(value, dict) else None
    if isinstance(found, (list, tuple)) and found and all(_is_pair(pair) for pair in found):
        return Contents([(pair[0], pair[1]) for pair in found])
    return None


def read_released(
    images: Path,
    labels: Path | None = None,
    *,
    data: ImageDataset,
    whitening: Whitening,
    number: int | None = None,
    step_size: float | None = None,
    info: Mapping[str, Any] | None = None,
) -> SyntheticSet:
    """A set from images_*.pt and labels_*.pt, or from one file that holds both.

    Labels that leave [0, 1] are taken as logits, of which the softmax is the labels; `info`
    then says so under "labels".

    labels: None for a file that holds them.
    number: which set of a file with several, from 0. None: the last.
    info: added to the set's `info`. The files do not record the data, so its fingerprint is
        "unknown", and `evaluate` refuses to test the set on validation images, which are among
        those it was made from.

    Raises FileFormatError for other files, SettingError for a `number` that is not there,
    MismatchError for images or classes that are not those of `data`, DataError for labels that are
    not finite.
    """
    contents = set_contents(read_pt(images))
    if contents is None:
        raise FileFormatError(f"{images} holds no set; {EXPECTED}")
    number = _number(images, contents, number)
    pixels, stored = contents.sets[number]
    pixels = _images(images, pixels, data)
    files = [images.name]
    if labels is not None:
        files, stored = [images.name, labels.name], read_pt(labels)
    values, logits = _labels(labels or images, stored, len(pixels), data)
    built_from = {**data.summary(), "fingerprint": "unknown"}
    origin: dict[str, Any] = {"method": "imported", "files": files, "data": built_from}
    if len(contents.sets) > 1:
        origin["number"] = number
    if logits:
        origin["labels"] = "softmax of the logits in the file"
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

    Raises DataError when they exist.
    """
    tensors = {IMAGES: distilled.images, LABELS: distilled.labels}
    if distilled.step_size is not None:
        tensors[STEP_SIZE] = torch.tensor(distilled.step_size, dtype=torch.float64)

    def write(folder: Path) -> None:
        for name, tensor in tensors.items():
            save_pt(folder / name, tensor.detach().cpu().contiguous())

    publish(out, sorted(tensors), write)
    return {"files": sorted(tensors)}


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


def _is_pair(value: Any) -> bool:
    pair = isinstance(value, (list, tuple)) and len(value) == 2
    return pair and all(isinstance(part, Tensor) for part in value)


def _number(path: Path, contents: Contents, number: int | None) -> int:
    last = len(contents.sets) - 1
    if number is None:
        return last
    if not 0 <= number <= last:
        holds = f"sets 0 to {last}" if last else "one set, number 0"
        raise SettingError(f"--number is {number} and {path} holds {holds}; give one of them")
    return number


def _images(path: Path, value: Any, data: ImageDataset) -> Float[Tensor, "n channels height width"]:
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
    path: Path, value: Any, count: int, data: ImageDataset
) -> tuple[Int[Tensor, "n"] | Float[Tensor, "n classes"], bool]:
    """The labels, and whether they were logits."""
    if isinstance(value, Tensor) and value.ndim and len(value) == count:
        integers = not (
            value.is_floating_point() or value.is_complex() or value.dtype == torch.bool
        )
        if value.ndim == 1 and integers:
            return _hard_labels(path, value.long().clone(), data), False
        if value.ndim == 2 and value.is_floating_point():
            return _soft_labels(path, value.detach().float().clone(), data)
    raise FileFormatError(
        f"{path} holds {_words(value)} for {count} images; give labels as whole numbers [n], or "
        "probabilities or logits [n, classes]"
    )


def _hard_labels(path: Path, labels: Tensor, data: ImageDataset) -> Tensor:
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= data.num_classes:
        raise MismatchError(
            f"the labels of {path} run from {low} to {high} and {data.name} has "
            f"{data.num_classes} classes; give the --data they were made from"
        )
    return labels


def _soft_labels(path: Path, labels: Tensor, data: ImageDataset) -> tuple[Tensor, bool]:
    if labels.shape[1] != data.num_classes:
        raise MismatchError(
            f"the soft labels of {path} are for {labels.shape[1]} classes and {data.name} has "
            f"{data.num_classes}; give the --data they were made from"
        )
    if not bool(labels.isfinite().all()):
        raise DataError(f"the labels of {path} hold NaN or infinity; give finite numbers")
    if bool((labels < 0).any()) or bool((labels > 1).any()):
        return labels.softmax(1), True
    sums = labels.sum(1)
    if bool(((sums - 1).abs() > 1e-3).any()):
        raise DataError(
            f"the labels of {path} lie in [0, 1] like probabilities, and their rows sum to "
            f"{float(sums.min()):.4g} to {float(sums.max()):.4g}; give probabilities that sum to 1 "
            "(divide each row by its sum), or logits"
        )
    return labels, False


def _words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} of shape {list(value.shape)}"
    return "nothing" if value is None else f"a {type(value).__name__}"
