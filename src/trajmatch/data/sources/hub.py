"""Data sets of the Hugging Face hub, or a folder in one of its forms, read by `datasets`.

    hf:uoft-cs/cifar10   hf:NAME:CONFIG   hf:./folder   (with data/train-*.parquet, test-*.parquet)

A folder is read without network. The picture column is the one of type Image; the label column the
one of type ClassLabel, or else the whole numbers or words in "label", "labels" or "fine_label".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from trajmatch.data.cache import cache_path
from trajmatch.data.dataset import ImageDataset
from trajmatch.data.sources.classes import choose
from trajmatch.data.sources.folder import decode_splits
from trajmatch.data.sources.source import Request
from trajmatch.data.sources.tree import SPLITS, Listed, read_regular, split_role
from trajmatch.data.stratified import TEST_IS_CUT, cut_test
from trajmatch.errors import DataError, MissingExtraError

_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "labels", "fine_label")
_DTYPES = ("int", "uint", "string", "large_string")
_NOTE = "{} is the test split, as no other has labels; validation is cut from train"


def load_hub(name: str, request: Request) -> ImageDataset:
    """The data set called `name`, as above; downloaded at first use into the cache of `datasets`.

    Needs train. With test and validation, validation is the validation split; without test it is
    the TEST split; without both, a fifth of each class of train is. `note` records that. Raises
    MissingExtraError without `datasets`, DataError for what cannot be loaded, and what
    `load_tables` raises.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:  # also for an unrelated package of that name
        raise MissingExtraError(f"'{name}'", "hub") from error
    address = name.removeprefix("hf:")
    if not address.strip(": "):
        raise DataError(f"'{name}' names no data set; give hf:NAME or hf:NAME:CONFIG")
    return _from_tables(name, _load(address, load_dataset), request)


def load_tables(tables: Mapping[str, Any], request: Request) -> ImageDataset:
    """The images of `datasets.Dataset` objects by split: train, and test and validation if there
    are.

    Splits serve as those of `load_hub`. Nothing is cached, because the files behind an object do
    not determine its rows. Raises DataError as `load_hub`.
    """
    name = str(getattr(getattr(tables.get("train"), "info", None), "dataset_name", None) or "table")
    plain = {split: table.with_format(None) for split, table in tables.items()}
    return _from_tables(name, plain, replace(request, cache=False))


def is_table(data: Any) -> bool:
    """Whether `data` is a `datasets.Dataset`, by its attributes."""
    names = ("features", "with_format", "select_columns", "__len__", "__getitem__")
    return all(hasattr(data, name) for name in names)


def _from_tables(name: str, tables: Mapping[str, Any], request: Request) -> ImageDataset:
    """The data set of these splits."""
    roles, note = _roles(name, tables)
    others = [split for split in tables if split not in roles.values()]
    remarks = (f"passed over the splits {', '.join(others)}",) if others else ()
    chosen = {role: tables[split] for role, split in roles.items()}
    note = note if "test" in roles else TEST_IS_CUT
    return _from_rows(name, chosen, request, note, remarks)


def _from_rows(
    name: str,
    tables: Mapping[str, Any],
    request: Request,
    note: str,
    remarks: tuple[str, ...],
) -> ImageDataset:
    """The data set of the tables that serve as train, test (if any) and val (if any)."""
    features = tables["train"].features
    image, label = _image_column(name, features), _label_column(name, features)
    # Encoded bytes as they are stored: decoding and resizing happen here, as for folders.
    encoded = type(features[image])(decode=False)
    rows = {
        role: table.select_columns([image, label]).cast_column(image, encoded)
        for role, table in tables.items()
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
    if "test" not in splits:
        complete = splits["train"]
        rest, cut = cut_test(
            torch.tensor(complete.labels, dtype=torch.int64), chosen, "without test images"
        )
        splits = {
            **splits,
            "train": complete.take(rest.tolist()),
            "test": complete.take(cut.tolist()),
        }

    def read(picture: str) -> bytes:
        role, row = picture.split("/")
        return _bytes(f"{picture} of '{name}'", rows[role][int(row)][image])

    place = _place(name, rows, splits, request) if request.cache else None
    return decode_splits(name, splits, chosen, read, request, place, note, remarks)


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


def _image_column(name: str, features: Mapping[str, Any]) -> str:
    found = [column for column, kind in features.items() if type(kind).__name__ == "Image"]
    return _one(name, "of type Image", found, _IMAGE_COLUMNS, features)


def _label_column(name: str, features: Mapping[str, Any]) -> str:
    found = [column for column, kind in features.items() if type(kind).__name__ == "ClassLabel"]
    if not found:
        named = [column for column in _LABEL_COLUMNS if column in features]
        found = [c for c in named if str(getattr(features[c], "dtype", "")).startswith(_DTYPES)]
    lists = [column for column, kind in features.items() if _is_label_list(kind)]
    if not found and lists:
        raise DataError(
            f"'{lists[0]}' of '{name}' has a list of labels for each image (a sequence of "
            "ClassLabel), and one label per image is what can be learned; save the data set with a "
            "column of type ClassLabel"
        )
    return _one(name, "of type ClassLabel", found, _LABEL_COLUMNS, features)


def _is_label_list(kind: Any) -> bool:
    """Whether a feature is `Sequence(ClassLabel)`, `List(ClassLabel)` or `[ClassLabel]`."""
    inner = kind[0] if isinstance(kind, list) and kind else getattr(kind, "feature", None)
    return type(inner).__name__ == "ClassLabel"


def _one(
    name: str, kind: str, found: list[str], usual: tuple[str, ...], features: Mapping[str, Any]
) -> str:
    """The only column `found`, or the first with a usual name."""
    preferred = [column for column in usual if column in found]
    if preferred or len(found) == 1:
        return (preferred or found)[0]
    raise DataError(
        f"'{name}' has {len(found) or 'no'} columns {kind} among {', '.join(features)}; save it as "
        f"parquet with the one meant called '{usual[0]}', or as a folder of class folders"
    )


def _roles(name: str, tables: Mapping[str, Any]) -> tuple[dict[str, str], str]:
    """The splits that serve as train, as test and val where there are; and a note on the choice."""
    by_role = {
        role: sorted((s for s in tables if split_role(s) == role), key=_usual) for role in SPLITS
    }
    if not by_role["train"]:
        raise DataError(f"'{name}' has no train split (it has {', '.join(tables)}); give another")
    train = by_role["train"][0]
    label = _label_column(name, tables[train].features)
    if not set(tables[train][label]) - {-1, None}:
        raise DataError(f"no row of {train} of '{name}' has a label; give a data set with labels")

    def labeled(role: str) -> str | None:
        return next((s for s in by_role[role] if set(tables[s][label]) - {-1, None}), None)

    test, validation = labeled("test"), labeled("val")
    if test is not None:
        roles = {"train": train, "test": test}
        return ({**roles, "val": validation} if validation else roles), ""
    if validation is None:
        return {"train": train}, ""
    return {"train": train, "test": validation}, _NOTE.format(validation)


def _usual(split: str) -> int:
    """Place of a split's name among the usual ones, for one that has several."""
    known = [name for names in SPLITS.values() for name in names]
    return known.index(split) if split in known else len(known)


def _numbered(
    name: str, feature: Any, values: dict[str, list[Any]]
) -> tuple[list[str], dict[str, list[int]]]:
    """Class names, and the labels of each split as indices of them (-1: no label).

    A ClassLabel has both; the classes of other numbers or words are sorted.
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
            raise DataError(
                f"{role} of '{name}' has a label {strange[0]!r} that train does not have"
            )
    numbers = {role: [number[label] for label in labels] for role, labels in values.items()}
    return [str(value) for value in known], numbers


def _bytes(what: str, cell: Any) -> bytes:
    if cell and cell["bytes"] is not None:
        return bytes(cell["bytes"])
    try:
        return read_regular(Path(cell["path"]))
    except (DataError, TypeError) as error:  # no picture, or no file of that path
        raise DataError(f"there is no picture in {what} ({error}); remove that row") from error


def _place(
    name: str, rows: dict[str, Any], splits: dict[str, Listed], request: Request
) -> Path | None:
    """The cache file for these pictures; None for rows that come from no file."""
    files = [file["filename"] for part in rows.values() for file in part.cache_files]
    stats = [os.stat(file) for file in files]
    stamps = [[f, s.st_size, s.st_mtime_ns] for f, s in zip(files, stats, strict=True)]
    names = [listed.names for listed in splits.values()]
    key = [stamps, names, request.size, *(["skip"] if request.skip else [])]
    return cache_path(name, key) if files else None
