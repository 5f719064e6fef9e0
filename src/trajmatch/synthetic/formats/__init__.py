"""Files that other programs write and read.

`released.py` and `buffers.py`: the formats of released code; `arrays.py`: NumPy; `archive.py`: what
files of both have in common; `pictures.py`: an image folder; `hub.py`: a data set folder for the
Hugging Face hub; `portable.py`: a set without local paths.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from trajmatch.errors import SettingError, suggest
from trajmatch.synthetic.formats.archive import read_pt
from trajmatch.synthetic.formats.arrays import read_npz, write_npz
from trajmatch.synthetic.formats.buffers import Imported, export_buffers, import_buffers
from trajmatch.synthetic.formats.hub import write_hub
from trajmatch.synthetic.formats.pictures import write_pictures
from trajmatch.synthetic.formats.released import (
    EXPECTED,
    fit_released_whitening,
    read_number,
    read_released,
    set_contents,
    write_released,
)
from trajmatch.synthetic.set import SyntheticSet

__all__ = [
    "EXPECTED",
    "FORMATS",
    "Imported",
    "export_buffers",
    "export_set",
    "fit_released_whitening",
    "import_buffers",
    "read_npz",
    "read_number",
    "read_pt",
    "read_released",
    "set_contents",
    "write_hub",
    "write_npz",
    "write_pictures",
    "write_released",
]

FORMATS = ("pt", "folder", "npz", "hub")
"""Formats of `export_set`."""


def export_set(
    distilled: SyntheticSet, to: str, out: str | Path, *, title: str = "", accuracy: str = ""
) -> dict[str, Any]:
    """Write a set to the folder `out` in one of FORMATS; returns names of files and other facts.

    title, accuracy: for the card of "hub". Raises SettingError for an unknown format, DataError
    when a file would be overwritten.

    Examples:
        >>> import tempfile, trajmatch
        >>> distilled = trajmatch.load_distilled("cifar10-ipc1")
        >>> with tempfile.TemporaryDirectory() as out:
        ...     export_set(distilled, "pt", out)
        {'files': ['images_best.pt', 'labels_best.pt', 'syn_lr.pt']}
    """
    out = Path(out)
    if to == "pt":
        return write_released(distilled, out)
    if to == "folder":
        return write_pictures(distilled, out)
    if to == "npz":
        return write_npz(distilled, out)
    if to == "hub":
        return write_hub(distilled, out, title=title, accuracy=accuracy)
    raise SettingError(f"cannot export to '{to}'; {suggest(to, FORMATS)}")
