"""A data set that can be loaded by name, and the arguments its reader gets."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trajmatch.config.settings import OnBadImage
from trajmatch.data.dataset import ImageDataset
from trajmatch.data.sources.classes import restricted
from trajmatch.errors import DataError, SettingError

Progress = Callable[[int, int], None]
"""Called with the number of images decoded so far, and of all."""

Caching = bool | Literal["read"]

ROOT_VARIABLE = "TRAJMATCH_DATA"


@dataclass(frozen=True)
class Request:
    """The arguments of `load_data` besides the name."""

    root: Path | None = None
    """Folder that holds the data sets (--data-root); None: the one in TRAJMATCH_DATA, if set."""
    size: int | None = None
    """Side in pixels: shorter side resized, then center-cropped. None: the data set's own."""
    cache: Caching = True
    """Cache decoded pictures on disk; "read": take those that are cached, and write nothing."""
    progress: Progress | None = None
    classes: tuple[str, ...] | None = None
    """Only these classes, in this order. None: all, in the data set's own order."""
    on_bad_image: OnBadImage = "stop"
    """Whether to stop at a picture that cannot be decoded, or to pass over it."""

    source: str = ""
    """Where the data come from, for lists of the cache."""

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise SettingError(f"size is {self.size}; it must be at least 1 pixel")
        if self.on_bad_image not in ("stop", "skip"):
            raise SettingError(f"on_bad_image is {self.on_bad_image!r}; give stop or skip")

    @property
    def skip(self) -> bool:
        return self.on_bad_image == "skip"

    def find(
        self,
        name: str,
        candidates: tuple[str, ...],
        instructions: str,
        folders: tuple[str, ...] = ("",),
    ) -> Path:
        """The first existing one of `candidates` (files or folders) in one of `folders`.

        folders: relative to the root, "" being the root itself.
        instructions: how to get the files, such as "download cifar-10-python.tar.gz from
            https://... and unpack it".

        Raises DataError with these instructions when there are no files.
        """
        places = " or ".join(f"{folder}/" for folder in folders if folder)
        looked = ", ".join(candidates)
        if places:
            looked += f", {'there or ' if '' in folders else ''}in {places}"
        named = os.environ.get(ROOT_VARIABLE)
        given = self.root or (Path(named) if named else None)
        if given is None:
            raise DataError(
                f"{name} needs its files ({looked}): {instructions}; then give the folder that "
                f"holds them as --data-root or {ROOT_VARIABLE}"
            )
        root = given.expanduser()
        if not root.is_dir():
            raise DataError(
                f"there is no folder {root}; give the one that holds the files of {name} as "
                f"--data-root or {ROOT_VARIABLE}"
            )
        for folder in folders:
            for candidate in candidates:
                place = root / folder / candidate
                if place.is_file() or place.is_dir():  # and no pipe, at which reading would wait
                    return place
        raise DataError(f"no files of {name} under {root} (looked for {looked}): {instructions}")


@dataclass(frozen=True)
class Source:
    """A data set that can be loaded by name."""

    load: Callable[[Request], ImageDataset]
    """Reads the images; without a validation split, unless the data set has its own. May ignore
    the request's size, which `load_data` applies. Raises DataError."""
    about: str
    """One line: the data set, and the files it is read from."""
    reads_classes: bool = False
    """Whether `load` reads the request's classes alone; else all are read and then restricted."""

    def read(self, request: Request) -> ImageDataset:
        """The data set with the classes of the request."""
        dataset = self.load(request)
        return dataset if self.reads_classes else restricted(dataset, request.classes)
