"""Decoded images on disk, one file per data set, so that pictures are decoded once.

The folder is that of the environment variable TRAJMATCH_CACHE, else the user's cache folder on this
system (`platformdirs`; on Linux $XDG_CACHE_HOME/trajmatch or ~/.cache/trajmatch). It may be deleted
at any time. A cache never fails a run: an unreadable file is written anew, and where nothing can be
written the images are decoded each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import platformdirs

from trajmatch.errors import TrajmatchError
from trajmatch.storage.files import TensorFile, open_tensors, save_tensors
from trajmatch.types import Tensor

KIND = "images"
VERSION = 1


def cache_path(name: str, key: Any) -> Path | None:
    """The file for images that are determined by `key` (plain values); None without a home folder.

    The name begins with `name`, for people who look into the folder. A file that version 0.1 wrote
    to ~/.cache/trajmatch is used where it lies.
    """
    text = json.dumps([VERSION, key], sort_keys=True, separators=(",", ":"))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)
    file = f"{safe[:60]}-{digest}.safetensors"
    try:
        if chosen := os.environ.get("TRAJMATCH_CACHE"):
            return Path(chosen).expanduser() / file
        folder = Path(platformdirs.user_cache_dir("trajmatch", appauthor=False)).expanduser()
    except RuntimeError:  # no home folder, as in some containers
        return None
    with contextlib.suppress(RuntimeError, OSError):  # no home folder, or one without access
        former = Path("~/.cache/trajmatch", file).expanduser()
        if former.exists() and not (folder / file).exists():
            return former
    return folder / file


def open_cached(path: Path | None) -> TensorFile | None:
    """The file at `path`, or None if it is absent or its header is damaged. Reading its tensors
    checks them and may raise FileFormatError."""
    if path is None:
        return None
    try:
        return open_tensors(path, kind=KIND, version=VERSION)
    except TrajmatchError:
        return None


def keep(path: Path | None, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write the file at `path`, atomically; nothing happens where the disk is full or read-only."""
    if path is not None:
        with contextlib.suppress(OSError):
            save_tensors(path, tensors, kind=KIND, version=VERSION, metadata=metadata)
