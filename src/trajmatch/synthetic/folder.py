"""Replacing the folder of a distilled set as a whole, so that a kill leaves the old or the new."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from trajmatch.errors import DataError
from trajmatch.storage.files import partial_path

TENSORS, DOCUMENT, WHITENING = "distilled.safetensors", "distilled.json", "whitening.safetensors"
PICTURES = ("images", "textures")
OWN = (TENSORS, WHITENING, *PICTURES, DOCUMENT)
"""What belongs to a set, in the order it is renamed: the document completes the set."""


def replace_set(folder: Path, write: Callable[[Path], None]) -> None:
    """Replace the set in `folder`, where there is one, by what `write` puts into a new folder.

    Files that are not a set's stay. Raises DataError when `folder` is a file, or holds pictures
    that belong to no set.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file; give a folder to save the set in")
    _finish_swap(folder)
    holds_set = any((folder / name).exists() for name in (DOCUMENT, TENSORS))
    for place in (folder / name for name in PICTURES):
        if place.exists() and not holds_set:
            raise DataError(f"{place} is not a distilled set's; give another folder")
    beside = partial_path(folder)
    try:
        write(beside)
        _swap(beside, folder)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def existing(folder: Path) -> Path:
    """`folder`, or where its set is when a save was killed between its two renames."""
    previous = _previous(folder)
    return previous if not folder.exists() and previous.exists() else folder


def _previous(folder: Path) -> Path:
    """Where the old set is moved before the new one takes its place."""
    return folder.with_name(f".{folder.name}.trajmatch-previous")


def _swap(beside: Path, folder: Path) -> None:
    """Put the complete set `beside` at `folder`."""
    if (folder / DOCUMENT).exists():
        os.rename(folder, _previous(folder))
        os.rename(beside, folder)
        _finish_swap(folder)
    elif folder.exists():
        # No set here, but other files (a log, a result): add the set's files one by one.
        for name in OWN:
            if (folder / name).is_dir():
                shutil.rmtree(folder / name)
            if (beside / name).exists():
                os.rename(beside / name, folder / name)
        shutil.rmtree(beside)  # not empty: renaming a file to a hard link of itself does nothing
    else:
        os.rename(beside, folder)


def _finish_swap(folder: Path) -> None:
    """Complete a swap that was interrupted: restore the old set when the new one is missing, else
    move files that are not a set's to the new folder and remove the old one."""
    previous = _previous(folder)
    if not previous.exists():
        return
    if not folder.exists():
        os.rename(previous, folder)
        return
    for item in previous.iterdir():
        if item.name not in OWN and not (folder / item.name).exists():
            os.rename(item, folder / item.name)
    shutil.rmtree(previous)
