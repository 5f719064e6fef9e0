"""Decoded images on disk, one file per data set, so that pictures are decoded once.

The folder is that of the environment variable TRAJMATCH_CACHE, else the user's cache folder on this
system (`platformdirs`; on Linux $XDG_CACHE_HOME/trajmatch or ~/.cache/trajmatch). It may be deleted
at any time. All files together take at most TRAJMATCH_CACHE_SIZE (a number with a unit, as 500MB or
20GB; 4 GB where it is not set, 0 for no cache): those used longest ago are removed. A cache never
fails a run: an unreadable file is written anew, and where nothing can be written the images are
decoded each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs

from trajmatch.errors import SettingError, TrajmatchError
from trajmatch.storage.files import TensorFile, open_tensors, save_tensors
from trajmatch.types import Tensor

KIND = "images"
VERSION = 1

FOLDER_VARIABLE = "TRAJMATCH_CACHE"
SIZE_VARIABLE = "TRAJMATCH_CACHE_SIZE"
DEFAULT_SIZE = 4_000_000_000

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_NAME = re.compile(r"[\w-]{0,60}-[0-9a-f]{24}\.safetensors", re.ASCII)  # of `cache_path`
_PARTIAL = re.compile(_NAME.pattern + r"\.\d+-[0-9a-f]+\.partial", re.ASCII)  # of `atomic_write`
_DAY = 24 * 3600.0


@dataclass(frozen=True)
class Entry:
    """One file of the cache."""

    path: Path
    bytes: int
    used: float
    """When it was last read or written, in seconds since 1970."""

    def about(self) -> dict[str, Any]:
        """`source` (the name of the data set) and `images`, where the file says them."""
        file = open_cached(self.path, touch=False)
        known = {} if file is None else file.metadata
        named = self.path.name.rpartition("-")[0]
        return {"source": known.get("source", named), "images": known.get("images")}


def cache_path(name: str, key: Any) -> Path | None:
    """The file for images that are determined by `key` (plain values); None without a home folder,
    and where TRAJMATCH_CACHE_SIZE is 0.

    The name begins with `name`, for people who look into the folder. A file that version 0.1 wrote
    to ~/.cache/trajmatch is used where it lies. Raises SettingError for a TRAJMATCH_CACHE_SIZE that
    is no size.
    """
    if not largest_size():
        return None
    text = json.dumps([VERSION, key], sort_keys=True, separators=(",", ":"))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)
    file = f"{safe[:60]}-{digest}.safetensors"
    places = [folder / file for folder in folders()]
    return next((place for place in places if _exists(place)), places[0] if places else None)


def folders() -> list[Path]:
    """The folder of the cache, then that of version 0.1 if it is another; none without a home."""
    try:
        if chosen := os.environ.get(FOLDER_VARIABLE):
            return [Path(chosen).expanduser()]
        own = Path(platformdirs.user_cache_dir("trajmatch", appauthor=False)).expanduser()
    except RuntimeError:  # no home folder, as in some containers
        return []
    with contextlib.suppress(RuntimeError):
        former = Path("~/.cache/trajmatch").expanduser()
        return [own] if former == own else [own, former]
    return [own]


def largest_size() -> int:
    """Bytes that all files may take together: TRAJMATCH_CACHE_SIZE, else 4 GB."""
    text = os.environ.get(SIZE_VARIABLE, "").strip()
    if not text:
        return DEFAULT_SIZE
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", text.lower())
    if match is None:
        raise SettingError(f"{SIZE_VARIABLE} is '{text}'; give a size such as 500MB, 20GB or 0")
    return int(float(match[1]) * _UNITS[match[2]])


def entries() -> list[Entry]:
    """The files of the cache, those used last first. Other files in its folder are left alone."""
    found = []
    for folder in folders():
        with contextlib.suppress(OSError):
            for item in os.scandir(folder):
                if _NAME.fullmatch(item.name) and item.is_file(follow_symlinks=False):
                    facts = item.stat()
                    found.append(Entry(Path(item.path), facts.st_size, facts.st_mtime))
    return sorted(found, key=lambda entry: (-entry.used, entry.path))


def clear() -> list[Entry]:
    """Remove all files of the cache, and give those that were removed."""
    _sweep(0.0)
    return [entry for entry in entries() if _remove(entry)]


def open_cached(path: Path | None, *, touch: bool = True) -> TensorFile | None:
    """The file at `path`, or None if it is absent or its header is damaged. Reading its tensors
    checks them and may raise FileFormatError. touch: note that it was used now."""
    if path is None:
        return None
    try:
        file = open_tensors(path, kind=KIND, version=VERSION)
    except TrajmatchError:
        return None
    if touch:
        with contextlib.suppress(OSError):
            os.utime(path)
    return file


def keep(path: Path, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> bool:
    """Write the file at `path`, atomically, remove what is used longest ago until all files fit,
    and say whether it is there.

    Nothing happens where the disk is full or read-only, or the file alone is larger than the cache
    may be.
    """
    size = sum(tensor.nbytes for tensor in tensors.values())
    if size > largest_size():
        return False
    try:
        save_tensors(path, tensors, kind=KIND, version=VERSION, metadata=metadata)
    except OSError:
        return False
    _sweep(_DAY)
    total = 0
    for entry in entries():
        total += entry.bytes
        if total > largest_size() and entry.path != path:
            _remove(entry)
            total -= entry.bytes
    return True


def _sweep(age: float) -> None:
    """Remove half-written files of killed processes, last written `age` seconds ago or earlier."""
    for folder in folders():
        with contextlib.suppress(OSError):
            for item in os.scandir(folder):
                if _PARTIAL.fullmatch(item.name) and item.stat().st_mtime <= time.time() - age:
                    os.unlink(item.path)


def _remove(entry: Entry) -> bool:
    try:
        entry.path.unlink()
    except OSError:  # another process was faster, or the folder is read-only
        return False
    return True


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a folder without access
        return False
