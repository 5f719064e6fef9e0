"""Decoded images kept for the next time, in one file a data set; safe to delete at any time.

They lie in the folder that the environment variable TRAJMATCH_CACHE names, else in
~/.cache/trajmatch. A cache never fails a run: what cannot be read is made again, what cannot be
written is not kept.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from pathlib import Path
from typing import Any

from trajmatch.errors import TrajmatchError
from trajmatch.storage.files import TensorFile, open_tensors, save_tensors
from trajmatch.types import Tensor

KIND = "images"
VERSION = 1


def cache_path(name: str, key: Any) -> Path | None:
    """Where images that `key` (plain values) determines are kept; None when there is no place.

    `name` leads the file name, for the eye alone.
    """
    text = json.dumps([VERSION, key], sort_keys=True, separators=(",", ":"))
    digest = hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()
    try:
        named = os.environ.get("TRAJMATCH_CACHE")
        folder = Path(named).expanduser() if named else Path.home() / ".cache" / "trajmatch"
    except RuntimeError:  # no home folder, as in some containers
        return None
    safe = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in name)
    return folder / f"{safe[:60]}-{digest}.safetensors"


def open_cached(path: Path | None) -> TensorFile | None:
    """The file at `path`, or None when it is absent or broken. Its tensors are checked on reading:
    that too may raise FileFormatError."""
    if path is None:
        return None
    try:
        return open_tensors(path, kind=KIND, version=VERSION)
    except TrajmatchError:
        return None


def keep(path: Path | None, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
    """Write the file at `path`, atomically; silently not, where the place is full or read-only."""
    if path is not None:
        with contextlib.suppress(OSError):
            save_tensors(path, tensors, kind=KIND, version=VERSION, metadata=metadata)
