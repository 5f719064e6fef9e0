"""What a reader of a named data set is given, and how it finds its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trajmatch.data.dataset import ImageDataset
from trajmatch.errors import DataError

Progress = Callable[[int, int], None]
"""Called with how many images are decoded and how many there are."""

ROOT_VARIABLE = "TRAJMATCH_DATA"


@dataclass(frozen=True)
class Request:
    """What a person asked for, besides the data set's name."""

    root: Path | None = None
    """Folder under which data sets lie (--data-root); None: the one in TRAJMATCH_DATA, if set."""
    size: int | None = None
    """Side in pixels: shorter side resized, then center-cropped. None: the data set's own."""
    cache: bool = True
    """Keep decoded pictures for the next time."""
    progress: Progress | None = None
    classes: tuple[str, ...] | None = None
    """Only these classes, in this order. None: all, in the data set's own."""

    def find(
        self, name: str, candidates: tuple[str, ...], get: str, folders: tuple[str, ...] = ("",)
    ) -> Path:
        """The first of `candidates` (files or folders) that is there, in one of `folders`.

        `folders` are relative to the root, "" being the root itself. `get`: where the files come
        from, such as "download cifar-10-python.tar.gz from https://... and unpack it". Raises
        DataError that says so when there are none.
        """
        places = " or ".join(f"{folder}/" for folder in folders if folder)
        looked = ", ".join(candidates)
        if places:
            looked += f", {'there or ' if '' in folders else ''}in {places}"
        named = os.environ.get(ROOT_VARIABLE)
        given = self.root or (Path(named) if named else None)
        if given is None:
            raise DataError(
                f"{name} needs its files ({looked}): {get}; then give the folder they lie in as "
                f"--data-root or {ROOT_VARIABLE}"
            )
        root = given.expanduser()
        if not root.is_dir():
            raise DataError(
                f"there is no folder {root}; give the one that the files of {name} lie in as "
                f"--data-root or {ROOT_VARIABLE}"
            )
        for folder in folders:
            for candidate in candidates:
                if (root / folder / candidate).exists():
                    return root / folder / candidate
        raise DataError(f"no files of {name} under {root} (looked for {looked}): {get}")


@dataclass(frozen=True)
class Source:
    """A data set that can be loaded by name."""

    load: Callable[[Request], ImageDataset]
    """Reads it; no validation split unless the data set brings its own. Raises DataError."""
    about: str
    """One line: what it is and which files it is read from."""
