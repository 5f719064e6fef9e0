"""Files of an export: complete in the folder or absent, and never over a file that is there."""

from __future__ import annotations

import filecmp
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from trajmatch.errors import DataError
from trajmatch.storage.files import partial_path


def publish(out: Path, names: Sequence[str], write: Callable[[Path], None]) -> None:
    """Add the files and folders `names` to `out`, from the new folder that `write` fills with them.

    A kill leaves some of them at most, complete; the same export again adds the rest, since files
    that are equal to the byte may be there. Raises DataError when all are there, which is found out
    before any work, or one with other contents.
    """
    require_absent(out, names)
    beside = partial_path(out / "export")
    try:
        beside.mkdir(parents=True)
        write(beside)
        for name in names:
            if (out / name).exists() and not _equal(out / name, beside / name):
                raise DataError(_words(out / name))
        for name in names:
            if not (out / name).exists():
                os.rename(beside / name, out / name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def require_absent(out: Path, names: Sequence[str]) -> None:
    """Refuse an export whose files are all there, perhaps as the originals of this one."""
    if all((out / name).exists() for name in names):
        raise DataError(_words(out / names[0]))


def _words(path: Path) -> str:
    return f"{path} is there already; move it away or give another --out"


def _equal(one: Path, other: Path) -> bool:
    """Whether two files, or all files in two folders, are equal."""
    if not (one.is_dir() and other.is_dir()):
        return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
    names, others = ({path.name for path in folder.iterdir()} for folder in (one, other))
    return names == others and all(_equal(one / name, other / name) for name in names)
