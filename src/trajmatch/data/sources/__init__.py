"""A name, a path or an object -> ImageDataset; one short file per kind."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from trajmatch.config import require_range
from trajmatch.config.settings import OnBadImage
from trajmatch.data.dataset import ImageDataset
from trajmatch.data.sources.classes import restricted
from trajmatch.data.sources.folder import load_folder
from trajmatch.data.sources.hub import load_hub
from trajmatch.data.sources.layout import TABLES, LayoutError
from trajmatch.data.sources.named import SOURCES
from trajmatch.data.sources.npz import load_npz
from trajmatch.data.sources.objects import load_objects
from trajmatch.data.sources.source import Caching, Progress, Request, Source
from trajmatch.data.sources.table import load_table, load_tables_of
from trajmatch.data.sources.tree import ARCHIVES, open_tree
from trajmatch.errors import DataError, SettingError, suggest

__all__ = ["HUB", "SOURCES", "Request", "Source", "load_data"]

HUB = "hf:"
"""Prefix of the names of data sets on the Hugging Face hub."""

READ = (
    "a folder or archive (.zip, .tar, .tar.gz) of class folders or of pictures with a table of "
    "labels (.csv, .parquet), such a table, or an .npz of arrays"
)
"""What paths are read, for messages."""

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def load_data(
    data: Any = "digits",
    *,
    test: Any = None,
    size: int | None = None,
    val_fraction: float = 0.1,
    cache: Caching = True,
    progress: Progress | None = None,
    data_root: str | Path | None = None,
    classes: str | Sequence[str] | None = None,
    on_bad_image: OnBadImage = "stop",
) -> ImageDataset:
    """Load images and labels: by name, from files, or from objects of other libraries.

    data: a name of SOURCES, "hf:NAME" of the Hugging Face hub, or `package.module:NAME` of a
        `Source` (a name wins over a folder of that name; write "./digits" for the folder); a path;
        or an object. docs/data.md lists paths and objects. A dict has one object per split.
    test: the test images, as an object. Where there are none, val serves as test, and without val a
        fifth of each class of train; the result's `note` records that.
    size: side in pixels: shorter side resized, then center-cropped. None: the images' own size.
    val_fraction: share of each class's training images that becomes the validation split, always
        the same ones; ignored where the data have one.
    cache: keep decoded files on disk for the next call (see `data.cache`); "read" takes what is
        there and writes nothing.
    progress: called with the number of images decoded so far, and of all.
    data_root: folder of the named data sets; None: the one in TRAJMATCH_DATA. Nothing but "hf:NAME"
        is ever downloaded.
    classes: "cat,dog" or a list: only these, numbered in this order.
    on_bad_image: "skip" passes over pictures that cannot be read or decoded; `note` says how many.

    Raises DataError for data that cannot be found, read or understood, SettingError for a setting
    out of range.

    Examples:
        >>> import numpy as np
        >>> from trajmatch import load_data
        >>> load_data("digits")
        ImageDataset('digits': 1,295 train, 359 test, 143 val; 1x8x8, 10 classes)
        >>> images, labels = np.zeros((100, 32, 32, 3), dtype=np.uint8), np.arange(100) % 2
        >>> load_data((images, labels), test=(images[:10], labels[:10]), size=16)
        ImageDataset('arrays': 90 train, 10 test, 10 val; 3x16x16, 2 classes)
    """
    if size is not None:
        require_range("size", size)
    require_range("val_fraction", val_fraction, integer=False)
    root = None if data_root is None else Path(data_root)
    request = Request(root, size, cache, progress, _class_list(classes), on_bad_image)
    if isinstance(data_root, str) and not data_root.strip():
        raise SettingError("data_root is empty; give a folder, or leave it out")
    dataset = _load(data, test, request)
    if size is not None:
        dataset = dataset.resized(size)
    return dataset.with_validation(val_fraction)


def _load(data: Any, test: Any, request: Request) -> ImageDataset:
    if not isinstance(data, (str, Path, Source, ImageDataset)):
        return load_objects(data, test, request)
    if test is not None:
        raise SettingError(
            f"test= belongs to data given as objects, and data is {str(data)!r:.60}; leave it out"
        )
    if isinstance(data, ImageDataset):
        return restricted(data, request.classes)
    if isinstance(data, Source):
        return data.read(request)
    if isinstance(data, str):
        if not data.strip():
            raise DataError(
                f"data is {data!r}; give a name ({', '.join(SOURCES)}), {HUB}NAME, or the path of "
                f"{READ}"
            )
        if data.startswith(HUB):
            return load_hub(data, request)
        if data in SOURCES or (_IMPORT_PATH.fullmatch(data) and not Path(data).exists()):
            return SOURCES.find(data).read(request)
    return _at_path(data, request)


def _at_path(data: str | Path, request: Request) -> ImageDataset:
    path = Path(data).expanduser()
    if not path.exists():
        looks_like_path = isinstance(data, Path) or len(path.parts) > 1 or path.suffix
        what = "no such file or folder" if looks_like_path else "unknown data"
        raise DataError(
            f"{what} '{data}'; {suggest(str(data), SOURCES)}; or give {HUB}NAME of a data set on "
            f"the Hugging Face hub, or the path of {READ}"
        )
    request = replace(request, source=str(path.absolute()))
    name = path.name.lower()
    if path.is_dir() or (path.is_file() and name.endswith(ARCHIVES)):
        return _folder(path, request)
    if path.is_file() and name.endswith(".npz"):
        return load_npz(path, request)
    if path.is_file() and name.endswith(TABLES):
        return load_table(path, request)
    raise DataError(f"{path} is not read; give {READ}")


def _folder(path: Path, request: Request) -> ImageDataset:
    """Class folders, or pictures with a table of their labels."""
    try:
        return load_folder(path, request)
    except LayoutError:
        with open_tree(path) as tree:
            found = load_tables_of(tree, request)
        if found is None:
            raise
        return found


def _class_list(classes: str | Sequence[str] | None) -> tuple[str, ...] | None:
    if classes is None:
        return None
    words = classes.split(",") if isinstance(classes, str) else classes
    names = tuple(word.strip() for word in words)
    if not names or not all(names):
        raise SettingError(f"--classes is {classes!r}; give names with commas between, as cat,dog")
    return names
