"""Data sets of the Hugging Face hub, or a folder in one of its forms, read by `datasets`.

    hf:uoft-cs/cifar10   hf:NAME:CONFIG   hf:./folder   (with data/train-*.parquet, test-*.parquet)

A folder is read without network. The picture column is the one of type Image; the label column the
one of type ClassLabel, or else the whole numbers or words in "label", "labels" or "fine_label".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trajmatch.data.cache import cache_path
from trajmatch.data.dataset import ImageDataset
from trajmatch.data.sources.folder import choose, decode_splits
from trajmatch.data.sources.source import Request
from trajmatch.data.sources.tree import Listed
from trajmatch.errors import DataError, MissingExtraError

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_DTYPES = ("int", "uint", "string", "large_string")
_VALIDATION = ("validation", "valid", "val")
_NOTE = "{} is the test split, as no other has labels; validation is cut from train"


def load_hub(name: str, request: Request) -> ImageDataset:
    """The data set called `name`, as above; downloaded at first use into the cache of `datasets`.

    Needs train, and test or validation. With both, validation is the validation split; else it is
    the TEST split, and `note` says so. Rows without a label (-1) are passed over, and so is a test
    split of nothing else, as contests have. Raises MissingExtraError without `datasets`, DataError
    for what cannot be had or understood.
    """
    try:
        from datasets import ClassLabel, Image, load_dataset
    except ImportError as error:  # also for a folder of one's own that is called datasets
        raise MissingExtraError(f"'{name}'", "hub") from error
    found = _load(name.removeprefix("hf:"), load_dataset)
    if "train" not in found:
        raise DataError(f"'{name}' has no train split (it has {', '.join(found)}); give another")
    features = found["train"].features
    image, label = _image_column(name, features, Image), _label_column(name, features, ClassLabel)
    roles, note = _roles(name, {split: set(rows[label]) for split, rows in found.items()})
    # Encoded bytes as they are stored: what a picture may be and how it is resized is decided here.
    rows = {
        role: found[split].select_columns([image, label]).cast_column(image, Image(decode=False))
        for role, split in roles.items()
    }
    classes, labels = _numbered(name, features[label], {r: list(rows[r][label]) for r in rows})
    chosen = choose(classes, request.classes, f"'{name}'")
    place_of = {classes.index(word): new for new, word in enumerate(chosen)}
    splits = {
        role: Listed(
            [f"{role}/{row}" for row, old in enumerate(numbers) if old in place_of],
            [place_of[old] for old in numbers if old in place_of],
        )
        for role, numbers in labels.items()
    }

    def read(picture: str) -> bytes:
        role, row = picture.split("/")
        return _bytes(f"{picture} of '{name}'", rows[role][int(row)][image])

    place = _place(name, rows, splits, request.size) if request.cache else None
    return decode_splits(name, splits, chosen, read, request.size, place, request.progress, note)


def _load(address: str, load_dataset: Callable[..., Any]) -> dict[str, Any]:
    """Split name -> datasets.Dataset."""
    folder, config = Path(address).expanduser(), ""
    if address.startswith((".", "~")) or folder.is_absolute():
        if not folder.is_dir():
            raise DataError(f"there is no folder {folder}; give one with data/train-*.parquet")
        address = str(folder)
    else:
        address, _, config = address.partition(":")
    try:
        return dict(load_dataset(address, config or None))
    except Exception as error:  # the hub, its files and its builders fail in many ways
        said = " ".join(str(error).split())[:300]
        raise DataError(
            f"cannot load '{address}' with Hugging Face datasets ({type(error).__name__}: {said}); "
            "check the name, hf:NAME:CONFIG where it has several, and the network"
        ) from error


def _image_column(name: str, features: Mapping[str, Any], image: type) -> str:
    found = [column for column, kind in features.items() if isinstance(kind, image)]
    return _one(name, "of type Image", found, _IMAGE_COLUMNS, features)


def _label_column(name: str, features: Mapping[str, Any], class_label: type) -> str:
    found = [column for column, kind in features.items() if isinstance(kind, class_label)]
    if not found:
        named = [column for column in _LABEL_COLUMNS if column in features]
        found = [c for c in named if str(getattr(features[c], "dtype", "")).startswith(_DTYPES)]
    return _one(name, "of type ClassLabel", found, _LABEL_COLUMNS, features)


def _one(
    name: str, kind: str, found: list[str], usual: tuple[str, ...], features: Mapping[str, Any]
) -> str:
    """The only column `found`, or the first that has a usual name."""
    preferred = [column for column in usual if column in found]
    if preferred or len(found) == 1:
        return (preferred or found)[0]
    raise DataError(
        f"'{name}' has {len(found) or 'no'} columns {kind} among {', '.join(features)}; save it as "
        f"parquet with the one meant called '{usual[0]}', or as a folder of class folders"
    )


def _roles(name: str, values: dict[str, set[Any]]) -> tuple[dict[str, str], str]:
    """train, test and perhaps val -> the split that serves as it; and the note on that."""
    labeled = [split for split in values if values[split] - {-1, None}]
    validation = next((split for split in _VALIDATION if split in labeled), None)
    if "test" in labeled:
        roles = {"train": "train", "test": "test"}
        return ({**roles, "val": validation} if validation else roles), ""
    if validation is None:
        raise DataError(
            f"'{name}' has no test or validation split with labels (it has {', '.join(values)}); "
            "give one that has"
        )
    return {"train": "train", "test": validation}, _NOTE.format(validation)


def _numbered(
    name: str, feature: Any, values: dict[str, list[Any]]
) -> tuple[list[str], dict[str, list[int]]]:
    """Class names, and the labels of each split as places among them (-1: none).

    A ClassLabel has both; other whole numbers or words are sorted.
    """
    if hasattr(feature, "names"):
        return list(feature.names), {
            role: [-1 if label is None else label for label in labels]
            for role, labels in values.items()
        }
    known = sorted(set(values["train"]) - {-1, None})
    number = {-1: -1, None: -1, **{value: i for i, value in enumerate(known)}}
    for role, labels in values.items():
        strange = [label for label in labels if label not in number]
        if strange:
            raise DataError(f"{role} of '{name}' has a label {strange[0]!r} that train has not")
    numbers = {role: [number[label] for label in labels] for role, labels in values.items()}
    return [str(value) for value in known], numbers


def _bytes(what: str, cell: Any) -> bytes:
    if cell and cell["bytes"] is not None:
        return bytes(cell["bytes"])
    try:
        return Path(cell["path"]).read_bytes()
    except (OSError, TypeError) as error:  # no picture, or a path that leads nowhere
        raise DataError(f"there is no picture in {what} ({error}); remove that row") from error


def _place(
    name: str, rows: dict[str, Any], splits: dict[str, Listed], size: int | None
) -> Path | None:
    """Where these pictures are kept; None where no file is behind them."""
    files = [file["filename"] for part in rows.values() for file in part.cache_files]
    stats = [os.stat(file) for file in files]
    stamps = [[f, s.st_size, s.st_mtime_ns] for f, s in zip(files, stats, strict=True)]
    names = [listed.names for listed in splits.values()]
    return cache_path(name, [stamps, names, size]) if files else None
